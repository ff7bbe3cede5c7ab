"""Runs an instruction on edge values of its operands, and compares each lane with a formula of Python's numbers."""

import itertools
import math
import struct
from collections.abc import Callable

import numpy as np

from tests.emulated.lines import ran

WAVES = 4
EDGES = (0, 1, 2, 3, 5, 15, 16, 31, 32, 63, 64, 100, 127, 128, 255, 0xFFF, 0x7FFF, 0x8000, 0xFFFF)
EDGES += (0x01020304, 0x12345678, 0x7FFFFFFF)
_FORMATS = {16: "<e", 32: "<f", 64: "<d"}


def bits_of_kind(kind: str) -> int:
    return int(kind[1:])


def edges(kind: str) -> list[int]:
    """Bits of edge values of a kind: small numbers, powers of two and their neighbours; for floats each class."""
    bits = bits_of_kind(kind)
    if kind[0] == "f":
        exponent, mantissa = {16: (5, 10), 32: (8, 23), 64: (11, 52)}[bits]
        infinity, one = (1 << exponent) - 1 << mantissa, ((1 << exponent - 1) - 1) << mantissa
        positive = [0, 1, (1 << mantissa) - 1, 1 << mantissa, one - 1, one, one + 1, one + (1 << mantissa)]
        positive += [infinity - 1, infinity]
        positive += [infinity + 1, infinity + (1 << mantissa - 1), infinity + (1 << mantissa - 1) + 5]
        return [each | sign << bits - 1 for each in positive for sign in (0, 1)]
    mask, high = (1 << bits) - 1, 1 << bits - 1
    found = {*(edge & mask for edge in EDGES), *(~edge & mask for edge in EDGES[:10]), high, high + 1, high - 1, mask, mask - 1}
    return sorted(found)


def number_of(bits: int, kind: str) -> int | float:
    """What bits stand for."""
    width = bits_of_kind(kind)
    if kind[0] == "i":
        return bits - (bits >> width - 1 << width)
    return struct.unpack(_FORMATS[width], bits.to_bytes(width // 8, "little"))[0] if kind[0] == "f" else bits


def drawn(kinds: list[str], lanes: int) -> list[list[int]]:
    """For each operand the bits of `lanes` lanes: every pair of edges if they fit, else drawn ones. A mask is 0 or 1."""
    rng = np.random.default_rng(len(kinds) + lanes)
    each = [[0, 1] if kind == "mask" else edges(kind) for kind in kinds]
    if math.prod(map(len, each)) <= lanes:
        rows = list(itertools.islice(itertools.cycle(itertools.product(*each)), lanes))
    else:
        rows = [[values[rng.integers(len(values))] for values in each] for _ in range(lanes)]
    return [list(column) for column in zip(*rows, strict=True)]


def check(
    name: str, signature: str, formula: Callable, architecture: str = "gfx942", *, half: str = "", more: str = ""
) -> None:
    """Run `name_e64` with edge values in vector registers.

    Args:
        name: without an encoding.
        signature: kinds, as in `attn_amdgcn.instructions.forms`.
        formula: from Python's numbers to the results: numbers modulo the width, or a truth for a mask.
        architecture: gfx9 has 64 lanes.
        half: "l" or "h": operands of 16 bits are in this half of their registers; without it they are in the lower one.
        more: modifiers.
    """
    results, sources = (side.split() for side in signature.split("="))
    wide = architecture.startswith("gfx9")
    lanes = 64 if wide else 32
    values = drawn(sources, WAVES * lanes)
    texts, v, s = [], {}, {}

    def named(kind: str, number: int) -> str:
        if kind == "mask":
            return f"s[{number}:{number + 1}]" if wide else f"s{number}"
        if bits_of_kind(kind) == 64:
            return f"v[{number}:{number + 1}]"
        return f"v{number}.{half}" if half and bits_of_kind(kind) == 16 else f"v{number}"

    for i, (kind, column) in enumerate(zip(sources, values, strict=True)):
        number = 10 + 2 * i
        texts.append(named(kind, number))
        array = np.array(column, np.uint64).reshape(WAVES, lanes)
        if kind == "mask":
            column[:] = column[:lanes] * WAVES  # the same mask in all waves
            word = sum(bit << lane for lane, bit in enumerate(column[:lanes]))
            s |= {number: word & 0xFFFFFFFF, number + 1: word >> 32}
        elif bits_of_kind(kind) == 16:
            v[number] = (array << np.uint64(16) | np.uint64(0x1234)) if half == "h" else (array | np.uint64(0x56780000))
        else:
            v |= {number: array & np.uint64(0xFFFFFFFF), number + 1: array >> np.uint64(32)}
    v = {number: np.asarray(array).astype(np.uint32) for number, array in v.items()}
    targets = [named(kind, 40 + 10 * i) for i, kind in enumerate(results)]
    after = ran(f"{name}_e64 {', '.join(targets + texts)} {more}", architecture, v={**v, 40: 0xABCDABCD}, s=s, num_waves=WAVES)
    found = [_read(after, kind, 40 + 10 * i, lanes) for i, kind in enumerate(results)]
    for row, given in enumerate(zip(*values, strict=True)):
        numbers = [number_of(bits, kind) if kind != "mask" else bits for bits, kind in zip(given, sources, strict=True)]
        expected = formula(*numbers)
        for kind, got, want in zip(results, found, expected if isinstance(expected, tuple) else (expected,), strict=True):
            assert got[row] == _register(kind, want, wide, half), f"{name}{given}: {got[row]:#x}, and {want:#x} is expected"


def _read(after, kind: str, number: int, lanes: int) -> list[int]:
    if kind == "mask":
        words = [int(low) | (int(high) << 32 if lanes == 64 else 0) for low, high in after.scalar[:, number : number + 2]]
        return [word >> lane & 1 for word in words for lane in range(lanes)]
    low = after.vector[number].astype(np.uint64)
    if bits_of_kind(kind) == 64:
        low |= after.vector[number + 1].astype(np.uint64) << np.uint64(32)
    return low.ravel().tolist()


def _register(kind: str, want: int, wide: bool, half: str) -> int:
    """A register that held 0xABCDABCD."""
    if kind == "mask":
        return int(want)
    want %= 1 << bits_of_kind(kind)
    if bits_of_kind(kind) != 16:
        return want
    if half == "h":
        return want << 16 | 0xABCD
    return want | (0 if wide else 0xABCD0000)
