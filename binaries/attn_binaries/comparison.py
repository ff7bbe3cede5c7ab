"""Compare what two machines made of one launch, bit by bit: tensors by elements, and all other bytes of their buffers."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from attn_binaries import run_folder
from attn_binaries.run_folder import EmulatedLaunch, Tensor
from attn_binaries.saved import SavedFileError, content
from attn_contract.arguments import shown

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float32, torch.float16, torch.bfloat16, torch.float64),
        *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    )
}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A difference in a tensor, or in bytes of a buffer that belong to no tensor.

    Attributes:
        where: the tensor, or the buffer if the bytes belong to no tensor.
        count, of: the number of elements or bytes that differ, and the number of all.
        first: the first one that differs: an index, or a byte of the file.
        worst: the one with the largest absolute difference, and a NaN on one side before all others; of bytes, the first one.
        here, there: the values of the worst one.
        difference: their absolute difference; None if one is NaN, or for bytes.
        ulps: their distance in units in the last place; the difference, for integers; None as `difference`.
        most_ulps: the largest distance of any; None if a NaN is among the values that differ.
    """

    where: str
    count: int
    of: int
    first: str
    worst: str
    here: str
    there: str
    difference: float | None
    ulps: int | None
    most_ulps: int | None


def compared(here: Path, there: Path) -> tuple[EmulatedLaunch, list[Difference]]:
    """A launch, and how the buffers after it differ in two folders.

    Raises:
        SavedFileError: a file is missing, has another size or is one too many, or the folders are of other launches.
    """
    launch = run_folder.read(here)
    line = [content(folder / "launch.txt", "it is copied from the folder of the launch") for folder in (here, there)]
    if line[0] != line[1]:
        raise SavedFileError(f"{there / 'launch.txt'}: expected the same as {here / 'launch.txt'}: it is of another launch")
    one, other = (run_folder.after(folder, launch) for folder in (here, there))
    found = []
    for buffer in launch.buffers:
        differs = one[buffer.name] != other[buffer.name]
        if differs.any():
            tensors = [tensor for tensor in launch.tensors if tensor.buffer == buffer.name]
            found.extend(_of_buffer(buffer.name, tensors, one[buffer.name], other[buffer.name], differs, here))
    return launch, found


def _of_buffer(
    name: str, tensors: list[Tensor], one: np.ndarray, other: np.ndarray, differs: np.ndarray, folder: Path
) -> list[Difference]:
    """The differences of a buffer. A byte of several tensors counts for the first one.

    Args:
        differs: bytes that differ; False where a difference is reported already.
    """
    found, outside = [], np.ones(len(one), bool)
    for tensor in tensors:
        places = _places(tensor, len(one), folder)
        outside[places] = False
        wrong = np.logical_or.reduce(differs[places], axis=1)
        differs[places] = False
        if wrong.any():
            found.append(_of_tensor(tensor, one[places[wrong]], other[places[wrong]], wrong))
    if differs.any():
        byte = int(differs.argmax())
        rest = Difference(
            where=f"{name}, in no tensor",
            count=int(differs.sum()),
            of=int(outside.sum()),
            first=f"byte {byte}",
            worst=f"byte {byte}",
            here=f"0x{one[byte]:02x}",
            there=f"0x{other[byte]:02x}",
            difference=None,
            ulps=None,
            most_ulps=None,
        )
        found.append(rest)
    return found


def _places(tensor: Tensor, size: int, folder: Path) -> np.ndarray:
    """[elements, bytes of an element] int64: the bytes of a tensor in its buffer's file.

    Raises:
        SavedFileError: the tensor reaches beyond the buffer, or its dtype is unknown.
    """
    if tensor.dtype not in DTYPES:
        raise SavedFileError(
            f"{folder / 'launch.json'}: dtype of {tensor.name}: got {tensor.dtype}, expected one of {', '.join(DTYPES)}"
        )
    if len(tensor.shape) != len(tensor.strides):
        what = f"{tensor.name} has {len(tensor.shape)} sizes and {len(tensor.strides)} strides"
        raise SavedFileError(f"{folder / 'launch.json'}: {what}")
    itemsize = DTYPES[tensor.dtype].itemsize
    steps = [(length - 1) * stride * itemsize for length, stride in zip(tensor.shape, tensor.strides, strict=True)]
    first, last = (tensor.byte + sum(bound(0, step) for step in steps) for bound in (min, max))
    elements = math.prod(tensor.shape)
    if elements and not (0 <= first <= last <= size - itemsize and elements <= size):
        what = f"{tensor.name}, of shape {shown(tensor.shape)} and strides {shown(tensor.strides)} from byte {tensor.byte} on,"
        raise SavedFileError(f"{folder / 'launch.json'}: {what} reaches beyond the {size} bytes of {tensor.buffer}")
    index = np.zeros(tensor.shape, np.int64)
    for axis, (length, stride) in enumerate(zip(tensor.shape, tensor.strides, strict=True)):
        index += (np.arange(length) * stride).reshape([-1 if i == axis else 1 for i in range(len(tensor.shape))])
    return tensor.byte + itemsize * index.reshape(-1, 1) + np.arange(itemsize)


def _of_tensor(tensor: Tensor, one: np.ndarray, other: np.ndarray, wrong: np.ndarray) -> Difference:
    """The difference of a tensor.

    Args:
        one, other: [elements that differ, bytes of an element]
        wrong: True if each element of the tensor differs.
    """
    dtype = DTYPES[tensor.dtype]
    pairs = zip(_ranks(one, dtype), _ranks(other, dtype), strict=True)
    distances = [None if a is None or b is None else abs(a - b) for a, b in pairs]
    known = [distance for distance in distances if distance is not None]
    differences = [abs(a - b) for a, b in zip(_values(one, dtype), _values(other, dtype), strict=True)]
    worst = max(range(len(one)), key=lambda i: (math.isnan(differences[i]), differences[i]))
    elements = [str([int(i) for i in np.unravel_index(element, tensor.shape)]) for element in wrong.nonzero()[0]]
    return Difference(
        where=tensor.name,
        count=len(one),
        of=wrong.size,
        first=elements[0],
        worst=elements[worst],
        here=_shown(one[worst], dtype),
        there=_shown(other[worst], dtype),
        difference=None if math.isnan(differences[worst]) else differences[worst],
        ulps=distances[worst],
        most_ulps=max(known) if len(known) == len(distances) else None,
    )


def _values(data: np.ndarray, dtype: torch.dtype) -> list[float]:
    """The elements as numbers of Python, integers exactly."""
    values = torch.from_numpy(data).view(dtype).flatten()
    return (values.to(torch.float64) if dtype.is_floating_point else values.long()).tolist()


def _ranks(data: np.ndarray, dtype: torch.dtype) -> list[int | None]:
    """Numbers whose difference counts the steps from one value of the dtype to another. Zeros have one number, and NaN none."""
    values = _values(data, dtype)
    if not dtype.is_floating_point:
        return [int(value) for value in values]
    sign = 1 << 8 * dtype.itemsize - 1
    bits = data.view(f"<u{dtype.itemsize}").flatten().tolist()
    return [None if math.isnan(value) else (bit if bit < sign else sign - bit) for bit, value in zip(bits, values, strict=True)]


def _shown(data: np.ndarray, dtype: torch.dtype) -> str:
    """An element's value and its bits."""
    (value,) = _values(data, dtype)
    number = f"{value:.9g}" if dtype.is_floating_point else str(value)
    return f"{number} (0x{data[::-1].tobytes().hex()})"
