"""Whatever another machine changes in the buffers of a launch is named."""

import contextlib
import json
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from attn_binaries import run_folder
from attn_binaries.comparison import Difference, compared
from attn_binaries.run_folder import GUARD_BYTES, Argument, Buffer, EmulatedLaunch, Tensor
from attn_binaries.saved import SavedFileError
from attn_fuzz.errors import InputError


def written(folder: Path, data: np.ndarray, *tensors: Tensor) -> Path:
    """A folder of a launch with one buffer, `data`."""
    buffers = run_folder.guarded({"data": data})
    launch = EmulatedLaunch(
        architecture="gfx942",
        call="call",
        case="random",
        code="code.hsaco",
        sha256="",
        kernel="kernel",
        grid=(3, 2, 1),
        threads_per_block=64,
        dynamic_lds_bytes=16,
        kernarg_bytes=24,
        arguments=(
            Argument("data", 0, 8, "global_buffer", "00" * 8, "data", GUARD_BYTES),
            Argument("n", 8, 4, "by_value", "05000000"),
            Argument("hidden_block_count_x", 12, 4, "hidden_block_count_x", "03000000"),
        ),
        buffers=(Buffer("data", len(buffers["data"]), "digest"),),
        tensors=tensors,
        inexact=(),
    )
    run_folder.write(folder, launch, buffers, buffers)
    assert run_folder.read(folder) == launch
    return folder


@pytest.mark.parametrize("number", [-1, 0, 1 << 31, 10**12, 10**30, 1.5, "x", "x" * 5000, [], None])
def test_a_number_of_a_launch_has_its_bounds(tmp_path, number):
    """Each number of launch.json in turn: the launch is refused or compared, and nothing has its size."""
    tensor = Tensor("data_ptr", "data", GUARD_BYTES, "int8", (2, 2), (2, 1))
    folders = [written(tmp_path / name, np.full(4, i, np.uint8), tensor) for i, name in enumerate(("here", "there"))]
    path = folders[0] / "launch.json"
    text = path.read_text()
    tracemalloc.start()
    for found in re.finditer(r"(?<=[ \[])\d+(?=[,\n\]])", text):
        path.write_text(text[: found.start()] + json.dumps(number) + text[found.end() :])
        with contextlib.suppress(InputError):
            compared(*folders)
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()


def test_a_launch_in_lines_of_words(tmp_path):
    lines = (written(tmp_path, np.zeros(8, np.uint8)) / "launch.txt").read_text()
    assert lines == (
        "attn-parity-launch 1\ncode ../../code.hsaco \nkernel kernel\ngrid 3 2 1\nthreads 64\nlds 16\nkernarg 24\n"
        "buffer data 8200 digest\npointer 0 data 4096\nvalue 8 4 05000000\nhidden 12 4 03000000\n"
    )


def difference_of(folder: Path, dtype: str, *both: list[float]) -> Difference:
    """The difference between two tensors [2, 2]."""
    kind = getattr(torch, dtype)
    tensors = [torch.tensor(values, dtype=kind if kind.itemsize > 1 else None).to(kind) for values in both]
    described = Tensor("data_ptr", "data", GUARD_BYTES, dtype, (2, 2), (2, 1))
    folders = [written(folder / str(i), each.view(torch.uint8).numpy(), described) for i, each in enumerate(tensors)]
    _, (found,) = compared(*folders)
    return found


@pytest.mark.parametrize(
    ("dtype", "here", "there", "ulps", "shown"),
    [
        ("float32", 1.0, 1 + 2**-22, 2, "1 (0x3f800000)"),
        ("bfloat16", 2**-133, -(2**-133), 2, "9.18354962e-41 (0x0001)"),
        ("float16", 65504.0, float("inf"), 1, "65504 (0x7bff)"),
        ("float32", 0.0, -0.0, 0, "0 (0x00000000)"),
        ("float32", float("nan"), 1.0, None, "nan (0x7fc00000)"),
        ("float8_e4m3fn", 448.0, 416.0, 1, "448 (0x7e)"),
        ("float8_e4m3fnuz", 240.0, float("nan"), None, "240 (0x7f)"),
        ("int8", -1, 1, 2, "-1 (0xff)"),
        ("int64", -(2**62), 2**62, 2**63, f"{-(2**62)} (0xc000000000000000)"),
        ("bool", 0, 1, 1, "0 (0x00)"),
    ],
)
def test_distances_count_the_values_between(tmp_path, dtype, here, there, ulps, shown):
    found = difference_of(tmp_path, dtype, [0, 0, 0, here], [0, 0, 0, there])
    assert (found.where, found.first, found.count, found.of) == ("data_ptr", "[1, 1]", 1, 4)
    assert (found.here, found.ulps, found.most_ulps) == (shown, ulps, ulps)


@pytest.mark.parametrize(
    ("dtype", "there", "worst", "difference"),
    [
        ("float32", [1e-30, 0.0, 0.5, 0.25], "[1, 0]", 0.5),
        ("float32", [1e-30, float("nan"), 0.5, float("inf")], "[0, 1]", None),
        ("float16", [0.0, 1.0, -float("inf"), 2.0], "[1, 0]", float("inf")),
        ("int64", [3, 2**62, 2**62 + 1, 0], "[1, 0]", 2**62 + 1),
    ],
)
def test_the_worst_element_is_the_one_that_is_off_by_most(tmp_path, dtype, there, worst, difference):
    """Many ULP near 0 are a small difference, and a NaN on one side is worse than any."""
    found = difference_of(tmp_path, dtype, [0, 0, 0, 0], there)
    assert (found.worst, found.difference) == (worst, difference)
    assert found.first == ("[0, 1]" if there[0] == 0 else "[0, 0]")


def test_a_byte_of_two_tensors_is_told_once_and_one_of_none_is_told(tmp_path):
    whole = Tensor("whole", "data", GUARD_BYTES, "int16", (2, 2), (4, 1))
    part = Tensor("part", "data", GUARD_BYTES + 2, "int8", (10,), (1,))
    data = np.zeros(20, np.uint8)
    here = written(tmp_path / "here", data, whole, part)
    data[[2, 4, 8, 16]] = 1
    there = written(tmp_path / "there", data, whole, part)
    _, found = compared(here, there)
    assert [(one.where, one.first, one.count, one.of) for one in found] == [
        ("whole", "[0, 1]", 2, 4),
        ("part", "[2]", 1, 10),
        ("data, in no tensor", f"byte {GUARD_BYTES + 16}", 1, 2 * GUARD_BYTES + 20 - 12),
    ]


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (Tensor("data", "data", GUARD_BYTES, "complex32", (2,), (1,)), "dtype of data: got complex32"),
        (Tensor("data", "data", GUARD_BYTES, "int8", (2,), (1 << 20,)), "reaches beyond the 8196 bytes of data"),
        (Tensor("data", "data", GUARD_BYTES, "int8", (2,), (-4097,)), "reaches beyond the 8196 bytes of data"),
        (Tensor("data", "data", GUARD_BYTES, "int8", ((1 << 31) - 1, 1, 1), (0, 0, 0)), "reaches beyond the 8196 bytes"),
        (Tensor("data", "data", GUARD_BYTES, "int8", (2,), (1, 1)), "data has 1 sizes and 2 strides"),
    ],
)
def test_a_tensor_that_cannot_be_is_named(tmp_path, tensor, words):
    folders = [written(tmp_path / str(byte), np.full(4, byte, np.uint8), tensor) for byte in (1, 2)]
    with pytest.raises(SavedFileError, match=words):
        compared(*folders)
