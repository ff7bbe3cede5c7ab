"""The step of a matrix instruction: gather A and B by their tables, multiply, and add C into the registers of D."""

from collections.abc import Callable
from functools import cache

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel, Literal, Operand, Register
from attn_amdgcn.instructions.forms import Step
from attn_amdgcn.instructions.matrix.elements import Format, flushed
from attn_amdgcn.operands import KINDS, bits_of, unknown, vector_row
from attn_amdgcn.waves import Waves

_UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32}
Gather = Callable[[Waves], np.ndarray]
"""From waves to A [waves, blocks, rows, k] or B [waves, blocks, k, columns], as floats."""
Accumulate = Callable[[Waves, np.ndarray], None]
"""Adds C to a product [elements of a lane, waves, lanes] and writes D."""


def step_of(a: Gather, b: Gather, places: np.ndarray | None, per_lane: int, accumulate: Accumulate) -> Step:
    """The step of D = A B + C.

    Args:
        places: [per_lane * lanes], which of the product's elements each place of D holds; None if they are in this order.
        per_lane: elements of D that a lane holds.
    """

    def step(waves: Waves) -> None:
        product = np.matmul(a(waves), b(waves)).reshape(len(waves), -1)
        if places is not None:
            product = product.take(places, axis=1)
        accumulate(waves, product.reshape(len(waves), per_lane, -1).transpose(1, 0, 2))

    return step


def gathers(
    row: int, words: int, table: np.ndarray, kind: Format, *, lanes: int, signs: np.ndarray | None = None, flush: bool = False
) -> Gather:
    """Gathers A or B.

    Args:
        row, words: the first row of `Waves.vector`, and how many registers.
        table: the element in each place, of layouts.input_table.
        lanes: the lanes that are read.
        signs: [elements of a lane] of 1 and -1, which the elements are multiplied by.
        flush: whether denormals count as zeros.
    """

    if kind.bits in _UNSIGNED:
        return _gathers_whole(row, words, table, kind, signs, flush)

    def gather(waves: Waves) -> np.ndarray:
        bits = np.empty((len(waves), lanes, words), np.uint32)
        bits[...] = waves.vector[row : row + words, :, :lanes].transpose(1, 2, 0)
        values = kind.values(bits)
        if flush:
            values = flushed(values, kind.tiny)
        if signs is not None:
            values = values * signs
        return values.reshape(len(waves), -1).take(table, axis=1)

    return gather


def _gathers_whole(row: int, words: int, table: np.ndarray, kind: Format, signs: np.ndarray | None, flush: bool) -> Gather:
    """`gathers` of elements that numpy has unsigned integers for: they are taken from the registers as these lie in memory."""
    per_word, unsigned = 32 // kind.bits, _UNSIGNED[kind.bits]
    lane, element = np.divmod(table, words * per_word)
    changes = None if signs is None else signs.take(element)

    @cache
    def places(num_waves: int, num_lanes: int) -> np.ndarray:
        """Where in the registers of so many waves and lanes the elements lie."""
        wave = np.arange(num_waves).reshape(-1, 1, 1, 1)
        return ((element // per_word * num_waves + wave) * num_lanes + lane) * per_word + element % per_word

    def gather(waves: Waves) -> np.ndarray:
        values = kind.values(waves.vector[row : row + words].reshape(-1).view(unsigned).take(places(*waves.shape)))
        if flush:
            values = flushed(values, kind.tiny)
        return values if changes is None else values * changes

    return gather


def registers_of(operand: Operand, count: int, instruction: Instruction, kernel: Kernel) -> int:
    """The first row of an operand that must be so many vector registers."""
    register = operand.of
    if not isinstance(register, Register) or (row := vector_row(register, kernel)) is None or register.count != count:
        raise unknown(instruction, f"an operand that is not {count} vector registers")
    if operand.neg or operand.abs:
        raise unknown(instruction, "a sign at an operand")
    return row


def accumulates_floats(
    instruction: Instruction, kernel: Kernel, count: int, *, neg: bool = False, absolute: bool = False, flush: bool = False
) -> Accumulate:
    """C and D are f32, one element in each register.

    Args:
        neg, absolute: modifiers of C.
        flush: whether denormals of C and D count as zeros.
    """
    row = registers_of(instruction.operands[0], count, instruction, kernel)
    read = _reads_c(instruction, kernel, "f32", count, lambda waves, row: waves.vector_f32[row : row + count])

    def accumulate(waves: Waves, product: np.ndarray) -> None:
        np.add(read(waves), product, out=waves.vector_f32[row : row + count])

    def accumulate_changed(waves: Waves, product: np.ndarray) -> None:
        c = read(waves)
        if absolute:
            c = np.abs(c)
        if neg:
            c = -c
        if flush:
            c = flushed(c, 2.0**-126)
        found = c + product
        waves.vector[row : row + count] = (flushed(found, 2.0**-126) if flush else found).view(np.uint32)

    return accumulate_changed if neg or absolute or flush else accumulate


def accumulates_integers(instruction: Instruction, kernel: Kernel, count: int, *, clamp: bool) -> Accumulate:
    """C and D are i32. A sum wraps, or with `clamp` ends at the least and the greatest i32."""
    row = registers_of(instruction.operands[0], count, instruction, kernel)
    read = _reads_c(instruction, kernel, "i32", count, lambda waves, row: waves.vector[row : row + count].view(np.int32))
    limits = np.iinfo(np.int32)

    def accumulate(waves: Waves, product: np.ndarray) -> None:
        found = read(waves).astype(np.int64) + product.astype(np.int64)
        waves.vector[row : row + count] = np.clip(found, limits.min, limits.max) if clamp else found

    return accumulate


def accumulates_pairs(instruction: Instruction, kernel: Kernel, count: int, *, neg: bool) -> Accumulate:
    """C and D are f64, one element in two registers. `count` counts elements."""
    row = registers_of(instruction.operands[0], 2 * count, instruction, kernel)

    def pairs(waves: Waves, first: int) -> np.ndarray:
        """[elements, waves, lanes, 2], a view."""
        rows = waves.vector[first : first + 2 * count]
        return rows.reshape(count, 2, *rows.shape[1:]).transpose(0, 2, 3, 1)

    def values(waves: Waves, first: int) -> np.ndarray:
        return np.ascontiguousarray(pairs(waves, first)).view(np.float64)[..., 0]

    read = _reads_c(instruction, kernel, "f64", 2 * count, values)

    def accumulate(waves: Waves, product: np.ndarray) -> None:
        c = read(waves)
        found = (-c if neg else c) + product
        pairs(waves, row)[...] = np.ascontiguousarray(found)[..., None].view(np.uint32)

    return accumulate


def accumulates_halves(
    instruction: Instruction, kernel: Kernel, kind: str, count: int, *, half: int | None, neg: bool, absolute: bool
) -> Accumulate:
    """C and D are f16 or bf16: the sum is rounded once, to the nearest.

    Args:
        count: elements of a lane.
        half: 0 or 1, the half of each register that holds the element, while the other half is kept; None if each register
            holds two elements.
    """
    registers = count if half is not None else count // 2
    row = registers_of(instruction.operands[0], registers, instruction, kernel)

    def halves(waves: Waves, first: int) -> np.ndarray:
        """[registers, halves, waves, lanes], a view: `count` elements."""
        both = waves.vector[first : first + registers].view(np.uint16).reshape(registers, *waves.shape, 2).transpose(0, 3, 1, 2)
        return both if half is None else both[:, half : half + 1]

    read = _reads_c(instruction, kernel, kind, registers, lambda waves, first: _widened(halves(waves, first), kind))

    def accumulate(waves: Waves, product: np.ndarray) -> None:
        c = read(waves)
        if absolute:
            c = np.abs(c)
        if neg:
            c = -c
        into = halves(waves, row)
        into[...] = _narrowed(c + product.reshape(into.shape), kind)

    return accumulate


def _reads_c(
    instruction: Instruction, kernel: Kernel, kind: str, count: int, values: Callable[[Waves, int], np.ndarray]
) -> Callable[[Waves], np.ndarray]:
    """Reads C: a constant, or by `values` from the row of the first of `count` registers."""
    operand = instruction.operands[3]
    if isinstance(operand.of, Literal):
        constant = _constant(operand.of.number, kind)
        return lambda waves: constant
    row = registers_of(operand, count, instruction, kernel)
    return lambda waves: values(waves, row)


def _constant(number: float, kind: str) -> np.ndarray:
    if kind == "bf16":  # a constant with a point has the upper half of its float32
        bits = bits_of(number, KINDS["f32"]) >> 16 if isinstance(number, float) else bits_of(number, KINDS["b16"])
        return _widened(np.array(bits, np.uint16), kind)
    if kind == "f16":
        return _widened(np.array(bits_of(number, KINDS[kind]), np.uint16), kind)
    unsigned = np.uint64 if kind == "f64" else np.uint32
    return np.array(bits_of(number, KINDS[kind]), unsigned).view(KINDS[kind].dtype)


def _widened(bits: np.ndarray, kind: str) -> np.ndarray:
    if kind == "f16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _narrowed(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32)
    nearest = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)) >> np.uint32(16)
    return np.where(np.isnan(values), bits >> np.uint32(16) | np.uint32(0x40), nearest).astype(np.uint16)
