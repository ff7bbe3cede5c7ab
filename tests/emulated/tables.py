"""Runs an instruction on edge values of its operands, and compares each lane with a formula of Python's numbers."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from tests.emulated import floats
from tests.emulated.lines import ran

EDGES = (0, 1, 2, 3, 5, 15, 16, 31, 32, 63, 64, 100, 127, 128, 255, 0xFFF, 2049, 2051, 0x7FFF, 0x8000, 0xFFFF)
EDGES += (0x1000001, 0x1000003, 0x01020304, 0x12345678, 0x7FFFFFC0, 0x7FFFFFFF)
SHORT = {"b16", "u16", "i16", "f16", "bf16"}
_LANES = np.arange(64, dtype=np.uint64)
OLD = 0xABCDABCD
"""The bits in the register of a result before the instruction."""


def bits_of_kind(kind: str) -> int:
    return 32 if kind[0] == "2" else int(kind.lstrip("biuf"))


def edges(kind: str) -> list[int]:
    """Bits of edge values of a kind: small numbers, powers of two and their neighbours; for floats each class."""
    if kind[0] == "2":
        return [low | high << 16 for low, high in itertools.product(edges(kind[1:]), repeat=2)]
    if kind in floats.FORMATS:
        return floats.edges(kind)
    bits = bits_of_kind(kind)
    mask, high = (1 << bits) - 1, 1 << bits - 1
    found = {*(edge & mask for edge in EDGES), *(~edge & mask for edge in EDGES[:10]), high, high + 1, high - 1, mask, mask - 1}
    return sorted(found)


def number_of(bits: int, kind: str) -> int | float | tuple[float, float]:
    """The value of bits; those of a mask are 0 or 1."""
    if kind[0] == "2":
        return number_of(bits & 0xFFFF, kind[1:]), number_of(bits >> 16, kind[1:])
    if kind in floats.FORMATS:
        return floats.number(bits, kind)
    return bits - (bits >> bits_of_kind(kind) - 1 << bits_of_kind(kind)) if kind[0] == "i" else bits


def drawn(kinds: Sequence[str], most: int, multiple: int) -> list[tuple[int, ...]]:
    """Bits of the operands: all combinations of edges if they are no more than `most`, else half as many drawn ones."""
    rng = np.random.default_rng(len(kinds))
    each = [[0, 1] if kind == "mask" else edges(kind) for kind in kinds]
    if math.prod(map(len, each)) <= most:
        rows = [*itertools.product(*each)]
    else:
        rows = [tuple(values[rng.integers(len(values))] for values in each) for _ in range(most // 2)]
    return [*itertools.islice(itertools.cycle(rows), -(-len(rows) // multiple) * multiple)]


class Places(NamedTuple):
    """The layout of operands' values in registers.

    Attributes:
        file: "v", or "s": there each wave has one value.
        lanes: of a wave.
        half: "l" or "h": operands of 16 bits are in this half of their registers; without it they are in the lower one.
        is_packed: an operand has two values in each lane.
    """

    file: str
    lanes: int
    half: str
    is_packed: bool

    def name(self, kind: str, number: int) -> str:
        file = "s" if kind == "mask" else self.file
        if (self.lanes if kind == "mask" else bits_of_kind(kind) << self.is_packed) == 64:
            return f"{file}[{number}:{number + 1}]"
        return f"{file}{number}.{self.half}" if self.half and kind != "mask" and bits_of_kind(kind) == 16 else f"{file}{number}"

    def words(self, kind: str, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Two registers that have the values [waves, lanes], the lower bits first."""
        bits = 64 if kind == "mask" else bits_of_kind(kind)
        if kind == "mask":
            values = (values << _LANES[: self.lanes]).sum(1)
        elif self.is_packed:
            values = values[:, ::2] | values[:, 1::2] << np.uint64(bits)
        elif bits == 16:
            values = values << np.uint64(16) | np.uint64(0x1234) if self.half == "h" else values | np.uint64(0x56780000)
        return values & np.uint64(0xFFFFFFFF), values >> np.uint64(32)

    def values(self, kind: str, registers: np.ndarray) -> np.ndarray:
        """The values of two registers. Two values of one lane are side by side."""
        low, high = registers.astype(np.uint64)
        both = low | high << np.uint64(32)
        if kind == "mask":
            return both[:, None] >> _LANES[: self.lanes] & np.uint64(1)
        bits = np.uint64(bits_of_kind(kind))
        mask = np.uint64((1 << int(bits)) - 1)
        if self.is_packed:
            return np.stack([both & mask, both >> bits & mask], -1)
        return (both >> np.uint64(16) if self.half == "h" and bits == 16 else both) & mask


def check(
    name: str,
    signature: str,
    formula: Callable,
    architecture: str = "gfx942",
    *,
    half: str = "",
    more: str = "",
    of_bits: bool = False,
) -> None:
    """Run `name_e64` with edge values in vector registers, or a scalar instruction with those of one lane in each wave.

    Args:
        name: without an encoding. The two halves of packed registers get values of their own.
        signature: kinds, as in `attn_amdgcn.instructions.forms`; 2f16 are two float16, and *f32 is what the
            register of the result holds before.
        formula: from Python's numbers to the results: numbers modulo the width, or a truth for a mask. For a NaN any quiet
            NaN is right.
        architecture: gfx9 has 64 lanes.
        half: as of `Places`.
        more: modifiers.
        of_bits: the formula is one of bits, of floats too.
    """
    results, named = (side.split() for side in signature.split("="))
    sources = [kind.removeprefix("*") for kind in named]
    is_scalar, lanes = name.startswith(("s_", "v_s_")), 64 if architecture.startswith("gfx9") else 32
    places = Places("s" if is_scalar else "v", lanes, half, name.startswith("v_pk_"))
    row = (1 if is_scalar else lanes) << places.is_packed
    rows = drawn(sources, 512 if is_scalar else 8192, row)
    registers: dict[str, dict] = {"v": {40: OLD}, "s": {}}
    for i, (kind, column) in enumerate(zip(sources, zip(*rows, strict=True), strict=True)):
        for j, word in enumerate(places.words(kind, np.array(column, np.uint64).reshape(-1, row))):
            file = "s" if kind == "mask" else places.file
            registers[file][(40 if named[i][0] == "*" else 10 + 2 * i) + j] = word.ravel() if file == "s" else word
    targets = [places.name(kind, 40 + 10 * i) for i, kind in enumerate(results) if kind != "scc"]
    operands = targets + [places.name(kind, 10 + 2 * i) for i, kind in enumerate(named) if kind[0] != "*"]
    text = f"{name}{'' if is_scalar else '_e64'} {', '.join(operands)} {more}"
    after = ran(text, architecture, **registers, num_waves=len(rows) // row)
    kinds, found = [], []
    for i, kind in enumerate(results):
        file = after.scalar.T if is_scalar or kind == "mask" else after.vector
        values = after.scc if kind == "scc" else places.values(kind, file[40 + 10 * i : 42 + 10 * i])
        parts = [values & np.uint64(0xFFFF), values >> np.uint64(16)] if kind[0] == "2" else [values]
        kinds += [kind.removeprefix("2")] * len(parts)
        found += [part.ravel().tolist() for part in parts]
    if results[0] in SHORT and not places.is_packed:
        is_kept = not is_scalar and (lanes == 32 or len(sources) == 3)
        rest = OLD & 0xFFFF if half == "h" else OLD >> 16 if is_kept else 0
        whole = after.scalar[:, 40] if is_scalar else after.vector[40]
        assert ((whole & 0xFFFF if half == "h" else whole >> 16) == rest).all(), f"{name}: the other half of the register"
    for given, *got in zip(rows, *found, strict=True):
        expected = formula(*(given if of_bits else map(number_of, given, sources)))
        for kind, bits, want in zip(kinds, got, expected if isinstance(expected, tuple) else (expected,), strict=True):
            assert is_right(bits, want, kind, of_bits), f"{name}{given}: {bits:#x}, and {want} is expected"


def is_right(bits: int, want: float, kind: str, of_bits: bool) -> bool:
    if kind in floats.FORMATS and not of_bits:
        return floats.is_same(bits, want, kind)
    return bits == (int(want) if kind in ("mask", "scc") else int(want) % (1 << bits_of_kind(kind)))
