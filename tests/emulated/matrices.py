"""Matrices in registers, for tests: from an element of a matrix to its lane and its place there.

The package states its layouts the other way round. The formulas here are those that AMD's Matrix Instruction Calculator prints
as "matrix element to register mapping".
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from attn_amdgcn.waves import Waves

from tests.emulated.lines import ran

A, B, C, D, ACCUMULATION = 0, 32, 64, 96, 192
"""The registers that tests use. From ACCUMULATION on they are accumulation registers on gfx9."""
Places = Callable[[int, int, int], list[tuple[int, int]]]
"""From a block, a row and a column to lanes, each with the number of the element among those that the lane holds."""

TORCH = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.float8_e4m3fn,
    "bf8": torch.float8_e5m2,
    "fp8_fnuz": torch.float8_e4m3fnuz,
    "bf8_fnuz": torch.float8_e5m2fnuz,
    "i32": torch.int32,
    "i8": torch.int8,
    "u8": torch.uint8,
}
TABLES = {
    "fp4": [0, 0.5, 1, 1.5, 2, 3, 4, 6],
    "fp6": [i / 8 for i in range(16)] + [2 + i / 4 for i in range(8)] + [4 + i / 2 for i in range(8)],
    "bf6": [i / 16 for i in range(8)] + [(4 + i % 4) / 16 * 2 ** (i // 4 - 1) for i in range(8, 32)],
    "i4": [*range(8), *range(-8, 0)],
    "u4": [*range(16)],
}
"""Values in the order of their bits, of floats without a sign: E2M1, E2M3 and E3M2 of OCP's Microscaling Formats."""
SMALL = {
    "i8": (-128, 127),
    "u8": (0, 255),
    "i4": (-8, 7),
    "u4": (0, 15),
    "i32": (-(1 << 20), 1 << 20),
    **dict.fromkeys(("f16", "bf16", "f32", "f64"), (-60, 60)),
    **dict.fromkeys(("fp8", "fp8_fnuz"), (-8, 8)),
    **dict.fromkeys(("fp4", "fp6", "bf6", "bf8", "bf8_fnuz"), (-4, 4)),
}
"""By kind: the least and the greatest integer that `drawn` draws; floats hold each integer between them."""


def drawn(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    low, high = SMALL[kind]
    return rng.integers(low, high, shape, endpoint=True).astype(np.float64)


def width_of(kind: str) -> int:
    if kind in TABLES:
        return 6 if kind.endswith("6") else 4
    return 8 * torch.empty(0, dtype=TORCH[kind]).element_size()


def encoded(values: np.ndarray, kind: str) -> np.ndarray:
    """uint64 bits of values that the format holds exactly."""
    if kind in TABLES:
        table, is_float = TABLES[kind], kind[0] not in "iu"
        number = [table.index(abs(value) if is_float else value) for value in values.ravel().tolist()]
        sign = len(table) * (np.signbit(values.ravel()) & is_float)
        return (np.array(number) + sign).reshape(values.shape).astype(np.uint64)
    exact = torch.from_numpy(values)
    tensor = exact.to(TORCH[kind])
    assert torch.equal(tensor.double().nan_to_num(), exact.nan_to_num())
    width = width_of(kind)
    signed = {8: torch.int8, 16: torch.int16, 32: torch.int32, 64: torch.int64}[width]
    return tensor.view(signed).numpy().astype(np.uint64) & np.uint64((1 << width) - 1)


def decoded(bits: np.ndarray, kind: str) -> np.ndarray:
    """float64 of bits of 16 to 64 bits."""
    signed = {16: np.int16, 32: np.int32, 64: np.int64}[width_of(kind)]
    return torch.from_numpy(bits.astype(signed)).view(TORCH[kind]).double().numpy()


def registers(matrix: np.ndarray, kind: str, places: Places, lanes: int) -> np.ndarray:
    """[registers, waves, lanes] uint32 that hold a matrix [waves, blocks, rows, columns]."""
    width, held, most = width_of(kind), {}, 0
    for (wave, *index), number in np.ndenumerate(encoded(matrix, kind)):
        for lane, element in places(*index):
            held[wave, lane] = held.get((wave, lane), 0) | int(number) << width * element
            most = max(most, element)
    words = np.zeros((-(-(most + 1) * width // 32), len(matrix), lanes), np.uint32)
    for (wave, lane), number in held.items():
        words[:, wave, lane] = [number >> 32 * i & 0xFFFFFFFF for i in range(len(words))]
    return words


def held(vector: np.ndarray, first: int, kind: str, places: Places, shape: tuple[int, ...]) -> np.ndarray:
    """The matrix [waves, blocks, rows, columns] that registers from `first` on hold."""
    width, bits = width_of(kind), np.zeros(shape, np.uint64)
    for wave, *index in np.ndindex(shape):
        ((lane, element),) = places(*index)
        begin = width * element
        low, high = (int(vector[first + begin // 32 + i, wave, lane]) for i in range(2))
        bits[(wave, *index)] = (low | high << 32) >> begin % 32 & (1 << width) - 1
    return decoded(bits, kind)


def named(first: int, count: int) -> str:
    """The text of some registers."""
    bank, index = ("a", first - ACCUMULATION) if first >= ACCUMULATION else ("v", first)
    return f"{bank}[{index}:{index + count - 1}]" if count > 1 else f"{bank}{index}"


def multiplied(
    name: str, architecture: str, operands: Mapping[int, np.ndarray], results: int, *, first_d: int = D, end: str = "", **state
) -> Waves:
    """The waves after one instruction.

    Args:
        operands: the registers of A, B and C by their first numbers, in this order.
        results: how many registers D has; they begin at `first_d`.
        end: what follows the operands.
        state: what `ran` takes.
    """
    text = ", ".join([named(first_d, results), *(named(first, len(words)) for first, words in operands.items())])
    v = {first + i: word for first, words in operands.items() for i, word in enumerate(words)}
    num_waves = next(iter(operands.values())).shape[1]
    return ran(f"{name} {text} {end}", architecture, v=v, num_waves=num_waves, **state)


def mfma_input(rows: int, blocks: int, per_lane: int) -> Places:
    return lambda block, i, k: [(rows * block + rows * blocks * (k // per_lane) + i, k % per_lane)]


def bytes_of_f8f6f4(rows: int) -> Places:
    return lambda block, i, k: [(rows * (k // 16 % (64 // rows)) + i, 16 * (k // 16 // (64 // rows)) + k % 16)]


def mfma_output(rows: int, is_f64: bool) -> Places:
    if is_f64 and rows == 16:
        return lambda block, i, j: [(16 * (i % 4) + j, i // 4)]
    if is_f64:
        return lambda block, i, j: [(16 * i + 4 * block + j, 0)]
    return {
        32: lambda block, i, j: [(32 * (i // 4) % 64 + j, 16 * block + 4 * (i // 8) + i % 4)],
        16: lambda block, i, j: [(16 * (i // 4) + j, 4 * block + i % 4)],
        4: lambda block, i, j: [(4 * block + j, i)],
    }[rows]


def gfx11_input(block: int, i: int, k: int) -> list[tuple[int, int]]:
    return [(i, k), (i + 16, k)]


def gfx11_output(block: int, i: int, j: int) -> list[tuple[int, int]]:
    return [(16 * i % 32 + j, i // 2)]


def gfx12_input(k_in_all: int, width: int) -> Places:
    if width == 16 and k_in_all == 16:
        return lambda block, i, k: [(16 * (k // 4 % 2) + i, 4 * (k // 8) + k % 4)]
    return lambda block, i, k: [(16 * (k // (k_in_all // 2)) + i, k % (k_in_all // 2))]


def gfx12_output(block: int, i: int, j: int) -> list[tuple[int, int]]:
    return [(16 * (i // 8) + j, i % 8)]


def of_b(places: Places) -> Places:
    """B has A's layout with columns instead of rows."""
    return lambda block, k, j: places(block, j, k)
