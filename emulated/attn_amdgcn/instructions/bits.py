"""Bits of vector registers: logic, shifts, fields, bytes.

Source: "VOP1", "VOP2" and "VOP3 Instructions" in AMD's Instinct MI300 ISA and in AMD's RDNA4 ISA; v_bitop3 in AMD's Instinct
CDNA4 ISA. The count of a shift is its lowest 4, 5 or 6 bits, and the others are dropped.
"""

from functools import lru_cache, reduce
from typing import NamedTuple

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel
from attn_amdgcn.instructions.forms import made_vector, vector
from attn_amdgcn.operands import number

U32 = np.uint32


for _name, _function in (("and", np.bitwise_and), ("or", np.bitwise_or), ("xor", np.bitwise_xor)):
    for _kind in ("b16", "b32"):
        vector(f"v_{_name}_{_kind}", f"{_kind} = {_kind} {_kind}")(_function)


vector("v_not_b16", "b16 = b16")(np.invert)
vector("v_not_b32", "b32 = b32")(np.invert)
vector("v_xnor_b32", "b32 = b32 b32")(lambda a, b: ~(a ^ b))
vector("v_and_or_b32", "b32 = b32 b32 b32")(lambda a, b, c: a & b | c)
vector("v_or3_b32", "b32 = b32 b32 b32")(lambda a, b, c: a | b | c)
vector("v_xor3_b32", "b32 = b32 b32 b32")(lambda a, b, c: a ^ b ^ c)
vector("v_lshl_or_b32", "b32 = b32 u5 b32")(lambda a, count, b: a << count | b)


def shift_left(a, count):
    """Shift left. The count is taken modulo the width."""
    return a << (count & U32(8 * a.dtype.itemsize - 1)).astype(a.dtype)


def shift_right(a, count):
    """Shift right. The count is taken modulo the width, and a signed number is extended by its sign."""
    return a >> (count & U32(8 * a.dtype.itemsize - 1)).astype(a.dtype)


vector("v_lshlrev_b32", "b32 = u5 b32")(lambda count, a: a << count)
vector("v_lshrrev_b32", "b32 = u5 b32")(lambda count, a: a >> count)
vector("v_ashrrev_i32", "i32 = i5 i32")(lambda count, a: a >> count)
for _bits, _count in ((16, "u16"), (64, "u32")):
    vector(f"v_lshlrev_b{_bits}", f"b{_bits} = {_count} b{_bits}")(lambda count, a: shift_left(a, count))
    vector(f"v_lshrrev_b{_bits}", f"b{_bits} = {_count} b{_bits}")(lambda count, a: shift_right(a, count))
    vector(f"v_ashrrev_i{_bits}", f"i{_bits} = {_count} i{_bits}")(lambda count, a: shift_right(a, count))
vector("v_bfe_u32", "u32 = u32 u5 u5")(lambda a, first, count: a >> first & (U32(1) << count) - U32(1))


@vector("v_bfe_i32", "i32 = i32 i5 i5")
def signed_bit_field(a, first, count):
    """`count` bits from bit `first` on, extended by their sign."""
    unused = -count & np.int32(31)
    return np.where(count == 0, np.int32(0), a >> first << unused >> unused)


vector("v_bfi_b32", "b32 = b32 b32 b32")(lambda mask, a, b: b ^ mask & (a ^ b))


@vector("v_bfm_b32", "b32 = u32 u32")
def bit_field_mask(count, first):
    return (U32(1) << (count & U32(31))) - U32(1) << (first & U32(31))


_REVERSED = np.array([int(f"{byte:08b}"[::-1], 2) for byte in range(256)], np.uint8)


@vector("v_bfrev_b32", "b32 = b32")
def reverse(a):
    return _REVERSED.take(np.ascontiguousarray(a).view(np.uint8)).view(U32).byteswap()


vector("v_bcnt_u32_b32", "u32 = b32 u32")(lambda a, b: np.bitwise_count(a) + b)


def _bit_length(a):
    return np.frexp(a.astype(np.float64))[1]


@vector("v_ffbh_u32 v_clz_i32_u32", "i32 = u32")
def leading_zeros(a):
    """The number of zeros above the highest 1; -1 if there is no 1."""
    return np.where(a == 0, np.int32(-1), 32 - _bit_length(a))


@vector("v_ffbl_b32 v_ctz_i32_b32", "i32 = u32")
def trailing_zeros(a):
    """The number of zeros below the lowest 1; -1 if there is no 1."""
    return _bit_length(a & -a) - 1


@vector("v_ffbh_i32 v_cls_i32", "i32 = i32")
def leading_signs(a):
    """The number of leading bits that equal the sign, the sign included; -1 if all bits are equal."""
    return leading_zeros((a ^ a >> np.int32(31)).view(U32))


@vector("v_alignbit_b32", "b32 = b32 b32 u32")
def align_bits(high, low, count):
    """The 32 bits of a pair of registers that begin at bit `count`."""
    count = count & U32(31)
    return low >> count | high << U32(1) << (U32(31) - count)


vector("v_alignbyte_b32", "b32 = b32 b32 u32")(lambda high, low, count: align_bits(high, low, (count & U32(3)) * U32(8)))


@vector("v_perm_b32", "b32 = b32 b32 b32")
def permute(high, low, selectors):
    """A permutation: each byte of the selectors chooses a byte of the result.

    0 to 3 are the bytes of the second source, 4 to 7 those of the first one. 8 to 11 are the signs of the bytes 1, 3, 5 and 7,
    extended. 12 is zeros, and a greater number is ones.
    """
    return _permuted(high, low, selectors) if selectors.ndim == 2 else _several_permuted(high, low, selectors)


def _permuted(high, low, selectors):
    if (moves := _moves(selectors.item(0))) and _are_alike(selectors):
        return _joined_bytes(high, low, moves)
    high, low, selectors = np.broadcast_arrays(high, low, selectors)
    choices = np.empty((*low.shape, 14), np.uint8)
    choices[..., 0:4], choices[..., 4:8] = _bytes(low), _bytes(high)
    choices[..., 8:12] = (choices[..., 1:8:2].view(np.int8) >> 7).view(np.uint8)
    choices[..., 12], choices[..., 13] = 0, 0xFF
    chosen = np.take_along_axis(choices, np.minimum(_bytes(selectors), 13).astype(np.intp), -1)
    return chosen.view(U32)[..., 0]


def _several_permuted(high, low, selectors):
    """The results of several permutations; those with the same selectors are computed together."""
    if _are_alike(selectors):
        return _permuted(high, low, selectors)
    high, low = (np.broadcast_to(each, (len(selectors), *each.shape[-2:])) for each in (high, low))
    result = np.empty(np.broadcast_shapes(high.shape, low.shape, selectors.shape), U32)
    first = selectors[:, 0, 0].tolist()
    for value in set(first):
        which = [i for i, each in enumerate(first) if each == value]
        result[which] = _permuted(high[which], low[which], selectors[which])
    return result


def _are_alike(selectors) -> bool:
    """Most selectors are those of waves, which are few."""
    if selectors.shape[-1] == 1:
        return len(set(selectors.ravel().tolist())) == 1
    return bool((selectors == selectors.item(0)).all())


class _Move(NamedTuple):
    """A part of a result: one of the two sources, shifted and masked."""

    from_high: bool
    shift: np.ufunc | None
    by: U32
    mask: U32


@lru_cache(maxsize=256)
def _moves(selectors: int) -> tuple[_Move, ...]:
    """The parts of which bytes are made up that are the same in all lanes; none if one is neither a byte nor zeros."""
    masks: dict[tuple[bool, int], int] = {}
    for place, selector in enumerate(selectors.to_bytes(4, "little")):
        if selector >= 8 and selector != 12:
            return ()
        if selector != 12:  # equal shifts make one part
            part = selector >= 4, 8 * (place - selector % 4)
            masks[part] = masks.get(part, 0) | 0xFF << 8 * place
    return tuple(
        _Move(from_high, np.left_shift if shift > 0 else np.right_shift if shift else None, U32(abs(shift)), U32(mask))
        for (from_high, shift), mask in masks.items()
    )


def _joined_bytes(high, low, moves: tuple[_Move, ...]):
    return reduce(np.bitwise_or, [_moved(high if move.from_high else low, move) for move in moves])


def _moved(source, move: _Move):
    return (source if move.shift is None else move.shift(source, move.by)) & move.mask


def _bytes(a):
    return np.ascontiguousarray(a)[..., None].view(np.uint8)


@made_vector("v_bitop3_b16", "b16 = b16 b16 b16", takes=["bitop3"], keeps_half=True)
@made_vector("v_bitop3_b32", "b32 = b32 b32 b32", takes=["bitop3"])
def bitop3(instruction: Instruction, kernel: Kernel):
    """Bit 4a + 2b + c of the table is the result where the sources' bits are a, b and c.

    The table is computed as the exclusive or of some products of the sources (its algebraic normal form).
    """
    table = number(instruction, "bitop3")
    products = [factors for factors in range(1, 8) if _is_summand(table, factors)]
    constant = _is_summand(table, 0)

    def combine(a, b, c):
        sources = {4: a, 2: b, 1: c}
        value = None
        for factors in products:
            product = reduce(np.bitwise_and, [source for bit, source in sources.items() if factors & bit])
            value = product if value is None else value ^ product
        value = a ^ a if value is None else value
        return ~value if constant else value

    return combine


def _is_summand(table: int, factors: int) -> bool:
    """True if a table's normal form has the product of these sources: the parity of the table below it (Moebius transform)."""
    return sum(table >> place & 1 for place in range(8) if place & factors == place) % 2 == 1


@made_vector("v_bitop2_b32", "b32 = b32 b32", takes=["bitop3"])
def bitop2(instruction: Instruction, kernel: Kernel):
    """One half of a dual instruction: the third source is 0."""
    combine = bitop3(instruction, kernel)
    return lambda a, b: combine(a, b, U32(0))
