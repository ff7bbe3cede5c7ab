"""Integer arithmetic of vector registers: sums, products, the least and the greatest.

Source: "VOP2" and "VOP3 Instructions" in AMD's Instinct MI300 ISA and in AMD's RDNA4 ISA. gfx9 adds with a carry in
v_addc_co_u32, later architectures in v_add_co_ci_u32. On gfx9 a result of 16 bits clears the upper half of its register, except
that of an instruction with three sources (v_mad_u16; v_mad_legacy_u16, as in gfx8, clears it: "VOP3 Instructions" in AMD's
Vega ISA). Sums and differences of at most 32 bits saturate under `clamp`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel
from attn_amdgcn.instructions.forms import made_vector, vector

U32, U64, I32, I64 = np.uint32, np.uint64, np.int32, np.int64


def _saturating(names: str, signature: str, function: Callable[..., Any]) -> None:
    """Register a sum or difference of up to 32 bits. It wraps, or with `clamp` ends at the least and the greatest number."""

    def ended(a, b):
        bounds = np.iinfo(a.dtype)
        return np.clip(function(a.astype(I64), b.astype(I64)), bounds.min, bounds.max).astype(a.dtype)

    def make(instruction: Instruction, kernel: Kernel) -> Callable[..., Any]:
        return ended if "clamp" in instruction.modifiers else function

    made_vector(names, signature, takes=("clamp",), least=4 if isinstance(function, np.ufunc) else 2)(make)


def subrev(a, b):
    return b - a


_saturating("v_add_u32 v_add_nc_u32", "u32 = u32 u32", np.add)
_saturating("v_add_nc_i32 v_add_i32", "i32 = i32 i32", np.add)
_saturating("v_add_u16 v_add_nc_u16", "u16 = u16 u16", np.add)
_saturating("v_add_nc_i16 v_add_i16", "i16 = i16 i16", np.add)
vector("v_add_nc_u64", "u64 = u64 u64")(np.add)


_saturating("v_sub_u32 v_sub_nc_u32", "u32 = u32 u32", np.subtract)
_saturating("v_sub_nc_i32 v_sub_i32", "i32 = i32 i32", np.subtract)
_saturating("v_sub_u16 v_sub_nc_u16", "u16 = u16 u16", np.subtract)
_saturating("v_sub_nc_i16 v_sub_i16", "i16 = i16 i16", np.subtract)
vector("v_sub_nc_u64", "u64 = u64 u64")(np.subtract)


_saturating("v_subrev_u32 v_subrev_nc_u32", "u32 = u32 u32", subrev)
_saturating("v_subrev_u16", "u16 = u16 u16", subrev)


@vector("v_add_co_u32", "u32 mask = u32 u32")
def add_co(a, b):
    total = a + b
    return total, total < a


@vector("v_addc_co_u32 v_add_co_ci_u32", "u32 mask = u32 u32 mask")
def add_co_ci(a, b, carry):
    partial = a + b
    total = partial + carry
    return total, (partial < a) | (total < partial)


@vector("v_sub_co_u32", "u32 mask = u32 u32")
def sub_co(a, b):
    return a - b, a < b


@vector("v_subrev_co_u32", "u32 mask = u32 u32")
def subrev_co(a, b):
    return sub_co(b, a)


@vector("v_subb_co_u32 v_sub_co_ci_u32", "u32 mask = u32 u32 mask")
def sub_co_ci(a, b, borrow):
    partial = a - b
    return partial - borrow, (a < b) | (partial < borrow)


@vector("v_subbrev_co_u32 v_subrev_co_ci_u32", "u32 mask = u32 u32 mask")
def subrev_co_ci(a, b, borrow):
    return sub_co_ci(b, a, borrow)


@vector("v_add3_u32", "u32 = u32 u32 u32")
def add3(a, b, c):
    return a + b + c


@vector("v_lshl_add_u32", "u32 = u32 u5 u32")
def lshl_add(a, count, b):
    return (a << count) + b


@vector("v_lshl_add_u64", "u64 = u64 u32 u64")
def lshl_add_wide(a, count, b):
    """The count is 3 bits."""
    return (a << (count & U32(7)).astype(U64)) + b


@vector("v_add_lshl_u32", "u32 = u32 u32 u5")
def add_lshl(a, b, count):
    return a + b << count


@vector("v_xad_u32", "u32 = u32 u32 u32")
def xor_add(a, b, c):
    return (a ^ b) + c


vector("v_mul_lo_u32", "u32 = u32 u32")(np.multiply)
vector("v_mul_lo_u16", "u16 = u16 u16")(np.multiply)
vector("v_mul_u64", "u64 = u64 u64")(np.multiply)


@vector("v_mul_hi_u32", "u32 = u32 u32")
def mul_hi_u32(a, b):
    return (a.astype(U64) * b >> U64(32)).astype(U32)


@vector("v_mul_hi_i32", "i32 = i32 i32")
def mul_hi_i32(a, b):
    return (a.astype(I64) * b >> I64(32)).astype(I32)


def _u24(a):
    return a & U32(0xFFFFFF)


def _i24(a):
    return a << I32(8) >> I32(8)


@vector("v_mul_u32_u24", "u32 = u32 u32")
def mul_u24(a, b):
    return _u24(a) * _u24(b)


@vector("v_mul_i32_i24", "i32 = i32 i32")
def mul_i24(a, b):
    return _i24(a) * _i24(b)


@vector("v_mul_hi_u32_u24", "u32 = u32 u32")
def mul_hi_u24(a, b):
    return mul_hi_u32(_u24(a), _u24(b))


@vector("v_mul_hi_i32_i24", "i32 = i32 i32")
def mul_hi_i24(a, b):
    return mul_hi_i32(_i24(a), _i24(b))


@vector("v_mad_u32", "u32 = u32 u32 u32")
@vector("v_mad_u16", "u16 = u16 u16 u16", keeps_half=True)
@vector("v_mad_i16", "i16 = i16 i16 i16", keeps_half=True)
@vector("v_mad_legacy_u16", "u16 = u16 u16 u16")
@vector("v_mad_legacy_i16", "i16 = i16 i16 i16")
def mad(a, b, c):
    return a * b + c


@vector("v_mad_u32_u24", "u32 = u32 u32 u32")
def mad_u24(a, b, c):
    return mul_u24(a, b) + c


@vector("v_mad_i32_i24", "i32 = i32 i32 i32")
def mad_i24(a, b, c):
    return mul_i24(a, b) + c


@vector("v_mad_u32_u16", "u32 = u16 u16 u32")
def mad_u32_u16(a, b, c):
    return a.astype(U32) * b + c


@vector("v_mad_i32_i16", "i32 = i16 i16 i32")
def mad_i32_i16(a, b, c):
    return a.astype(I32) * b + c


@vector("v_mad_nc_u64_u32", "u64 = u32 u32 u64")
def mad_nc_u64_u32(a, b, c):
    return a.astype(U64) * b + c


@vector("v_mad_nc_i64_i32", "i64 = i32 i32 i64")
def mad_nc_i64_i32(a, b, c):
    return a.astype(I64) * b + c


@vector("v_mad_u64_u32 v_mad_co_u64_u32", "u64 mask = u32 u32 u64")
def mad_co_u64_u32(a, b, c):
    """The mask is bit 64 of the sum."""
    total = mad_nc_u64_u32(a, b, c)
    return total, total < c


@vector("v_mad_i64_i32 v_mad_co_i64_i32", "i64 mask = i32 i32 i64")
def mad_co_i64_i32(a, b, c):
    """The mask is bit 64 of the sum of 65 bits: its sign, where 64 bits do not hold it, too."""
    product = a.astype(I64) * b
    total = product + c
    overflows = (product ^ total) & (c ^ total)
    return total, (total ^ overflows) < 0


def _min3(a, b, c):
    return np.minimum(np.minimum(a, b), c)


def _max3(a, b, c):
    return np.maximum(np.maximum(a, b), c)


def _med3(a, b, c):
    return np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))


def _maxmin(a, b, c):
    return np.minimum(np.maximum(a, b), c)


def _minmax(a, b, c):
    return np.maximum(np.minimum(a, b), c)


for _kind in ("i16", "u16", "i32", "u32", "i64", "u64"):
    vector(f"v_min_{_kind}", f"{_kind} = {_kind} {_kind}")(np.minimum)
    vector(f"v_max_{_kind}", f"{_kind} = {_kind} {_kind}")(np.maximum)
for _name, _function in {"min3": _min3, "max3": _max3, "med3": _med3}.items():
    for _kind in ("i16", "u16"):
        vector(f"v_{_name}_{_kind}", f"{_kind} = {_kind} {_kind} {_kind}", takes=("op_sel",), keeps_half=True)(_function)
for _name, _function in {"min3": _min3, "max3": _max3, "med3": _med3, "maxmin": _maxmin, "minmax": _minmax}.items():
    for _kind in ("i32", "u32"):
        vector(f"v_{_name}_{_kind}", f"{_kind} = {_kind} {_kind} {_kind}")(_function)
