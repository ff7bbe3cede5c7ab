"""Matrix instructions as functions of registers: gather A and B by their tables, multiply, add C, and write the registers of D.

Registers are given as arrays [registers, waves, lanes]. Several instructions at once have a further axis in front.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel, Literal, Operand
from attn_amdgcn.instructions.convert import bf16_to_f32, f32_to_bf16
from attn_amdgcn.instructions.formats import rows_target
from attn_amdgcn.instructions.matrix.elements import ElementFormat, flushed
from attn_amdgcn.operands import KINDS, bits_of, row_of
from attn_amdgcn.pieces import Piece, SourceRow, piece

_UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32}
Gather = Callable[[np.ndarray], np.ndarray]
"""Makes A [..., waves, blocks, rows, k] or B [..., waves, blocks, k, columns] of the words of registers, as floats."""
Accumulate = Callable[[Piece], Piece]
"""The statement that adds C to a product [..., elements of a lane, waves, lanes] and writes D."""


def multiplies(
    a: Gather, b: Gather, places: np.ndarray | None, per_lane: int
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The function that makes the product of the registers of A and of B, in the order of D's registers.

    Args:
        places: [per_lane * lanes], which of the product's elements each place of D holds; None if they are in this order.
        per_lane: elements of D that a lane holds.
    """

    def multiply(words_of_a: np.ndarray, words_of_b: np.ndarray) -> np.ndarray:
        product = np.matmul(a(words_of_a), b(words_of_b))
        product = product.reshape(*product.shape[:-3], -1)
        if places is not None:
            product = product.take(places, axis=-1)
        return product.reshape(*product.shape[:-1], per_lane, -1).swapaxes(-3, -2)

    return multiply


def gathers(
    words: int, table: np.ndarray, kind: ElementFormat, *, lanes: int, signs: np.ndarray | None = None, flush: bool = False
) -> Gather:
    """Gathers A or B.

    Args:
        words: the number of registers.
        table: the element in each place, of layouts.input_table.
        lanes: the lanes that are read.
        signs: [elements of a lane] of 1 and -1, which the elements are multiplied by.
        flush: True if denormals count as zeros.
    """

    if kind.bits in _UNSIGNED:
        return _gathers_whole(words, table, kind, signs, flush)

    def gather(registers: np.ndarray) -> np.ndarray:
        bits = np.ascontiguousarray(np.moveaxis(registers[..., :lanes], -3, -1))
        values = kind.values(bits)
        if flush:
            values = flushed(values, kind.tiny)
        if signs is not None:
            values = values * signs
        return values.reshape(*values.shape[:-2], -1).take(table, axis=-1)

    return gather


def _gathers_whole(words: int, table: np.ndarray, kind: ElementFormat, signs: np.ndarray | None, flush: bool) -> Gather:
    """`gathers` of elements that numpy has unsigned integers for: they are taken from the registers as these lie in memory."""
    per_word, unsigned = 32 // kind.bits, _UNSIGNED[kind.bits]
    lane, element = np.divmod(table, words * per_word)
    changes = None if signs is None else signs.take(element)

    @cache
    def places(num_waves: int, num_lanes: int) -> np.ndarray:
        """The places of the elements in the registers of a number of waves and lanes."""
        wave = np.arange(num_waves).reshape(-1, 1, 1, 1)
        return ((element // per_word * num_waves + wave) * num_lanes + lane) * per_word + element % per_word

    def gather(registers: np.ndarray) -> np.ndarray:
        *several, _, num_waves, num_lanes = registers.shape
        values = kind.values(registers.reshape(*several, -1).view(unsigned).take(places(num_waves, num_lanes), axis=-1))
        if flush:
            values = flushed(values, kind.tiny)
        return values if changes is None else values * changes

    return gather


def words_of(operand: Operand, count: int, instruction: Instruction, kernel: Kernel, attribute: str = "vector") -> Piece:
    """A number of registers of an operand, as an attribute of `Waves` holds them."""
    row = row_of(instruction, operand, count, kernel)
    return piece(f"waves.{attribute}{{}}", SourceRow(tuple(range(row, row + count))))


def accumulates_floats(
    instruction: Instruction, kernel: Kernel, count: int, *, neg: bool = False, absolute: bool = False, flush: bool = False
) -> Accumulate:
    """C and D are f32, one element in each register.

    Args:
        neg, absolute: modifiers of C.
        flush: True if denormals of C and D count as zeros.
    """
    add = _changed_sum(neg, absolute, flush) if neg or absolute or flush else np.add
    return _writes_d(instruction, kernel, count, _c(instruction, kernel, "f32", count, "vector_f32"), add, "vector_f32")


@cache
def _changed_sum(neg: bool, absolute: bool, flush: bool) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def add(c: np.ndarray, product: np.ndarray) -> np.ndarray:
        if absolute:
            c = np.abs(c)
        if neg:
            c = -c
        if flush:
            c = flushed(c, 2.0**-126)
        found = c + product
        return flushed(found, 2.0**-126) if flush else found

    return add


def accumulates_integers(instruction: Instruction, kernel: Kernel, count: int, *, clamp: bool) -> Accumulate:
    """C and D are i32. A sum wraps, or with `clamp` ends at the least and the greatest i32."""
    c = _c(instruction, kernel, "i32", count, "vector_i32")
    return _writes_d(instruction, kernel, count, c, _clamped_sum if clamp else _wrapped_sum)


def _wrapped_sum(c: np.ndarray, product: np.ndarray) -> np.ndarray:
    return c.astype(np.int64) + product.astype(np.int64)


def _clamped_sum(c: np.ndarray, product: np.ndarray) -> np.ndarray:
    limits = np.iinfo(np.int32)
    return np.clip(_wrapped_sum(c, product), limits.min, limits.max)


def accumulates_pairs(instruction: Instruction, kernel: Kernel, count: int, *, neg: bool) -> Accumulate:
    """C and D are f64, one element in two registers. `count` counts elements."""
    c = _c(instruction, kernel, "f64", 2 * count)
    return _writes_d(instruction, kernel, 2 * count, c, _difference_of_pairs if neg else _sum_of_pairs)


def _sum_of_pairs(c: np.ndarray, product: np.ndarray) -> np.ndarray:
    return _pairs(_doubles(c) + product)


def _difference_of_pairs(c: np.ndarray, product: np.ndarray) -> np.ndarray:
    return _pairs(-_doubles(c) + product)


def _doubles(c: np.ndarray) -> np.ndarray:
    """[..., elements, waves, lanes] of two registers each; of a constant itself."""
    if c.dtype == np.float64:
        return c
    both = c.reshape(*c.shape[:-3], -1, 2, *c.shape[-2:])
    return np.ascontiguousarray(np.moveaxis(both, -3, -1)).view(np.float64)[..., 0]


def _pairs(values: np.ndarray) -> np.ndarray:
    """[..., 2 * elements, waves, lanes]: the words of f64."""
    words = np.moveaxis(np.ascontiguousarray(values)[..., None].view(np.uint32), -1, -3)
    return words.reshape(*words.shape[:-4], -1, *words.shape[-2:])


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
    c = _c(instruction, kernel, kind, registers)
    before = words_of(instruction.operands[0], registers, instruction, kernel)
    which = slice(None) if half is None else slice(half, half + 1)

    def add(c: np.ndarray, product: np.ndarray, before: np.ndarray) -> np.ndarray:
        if c.dtype == np.uint32:
            c = _widened(_halves(c)[:, which], kind)
        if absolute:
            c = np.abs(c)
        if neg:
            c = -c
        found = before.copy()
        into = _halves(found)[:, which]
        into[...] = _narrowed(c + product.reshape(into.shape), kind)
        return found

    target = rows_target(row_of(instruction, instruction.operands[0], registers, kernel), registers)
    return lambda product: piece("{} = {}({}, {}, {})", target, add, c, product, before)


def _halves(registers: np.ndarray) -> np.ndarray:
    """[registers, halves, waves, lanes], a view."""
    return registers.view(np.uint16).reshape(*registers.shape, 2).transpose(0, 3, 1, 2)


def _writes_d(
    instruction: Instruction, kernel: Kernel, count: int, c: Piece, add: Callable[..., np.ndarray], attribute: str = "vector"
) -> Accumulate:
    """The statement that writes `add` of C and of a product."""
    row = row_of(instruction, instruction.operands[0], count, kernel)
    target = rows_target(row, count, attribute)
    return lambda product: piece("{} = {}({}, {})", target, add, c, product)


def _c(instruction: Instruction, kernel: Kernel, kind: str, count: int, attribute: str = "vector") -> Piece:
    """C: a constant of a kind (f16 and bf16 as float32), or `count` registers."""
    operand = instruction.operands[3]
    if isinstance(operand.of, Literal):
        return piece("{}", _constant(operand.of.number, kind).reshape(1, 1, 1))
    return words_of(operand, count, instruction, kernel, attribute)


def _constant(number: float, kind: str) -> np.ndarray:
    if kind in ("f16", "bf16"):
        return _widened(np.array(bits_of(number, KINDS[kind]), np.uint16), kind)
    unsigned = np.uint64 if kind == "f64" else np.uint32
    return np.array(bits_of(number, KINDS[kind]), unsigned).view(KINDS[kind].dtype)


def _widened(bits: np.ndarray, kind: str) -> np.ndarray:
    if kind == "f16":
        return bits.view(np.float16).astype(np.float32)
    return bf16_to_f32(bits)


def _narrowed(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16)
    return f32_to_bf16(values)
