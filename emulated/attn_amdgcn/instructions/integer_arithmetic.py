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


for _kind in ("u32", "i32", "u16", "i16"):
    _saturating(f"v_add_{_kind} v_add_nc_{_kind}", f"{_kind} = {_kind} {_kind}", np.add)
    _saturating(f"v_sub_{_kind} v_sub_nc_{_kind}", f"{_kind} = {_kind} {_kind}", np.subtract)
_saturating("v_subrev_u32 v_subrev_nc_u32", "u32 = u32 u32", lambda a, b: b - a)
_saturating("v_subrev_u16", "u16 = u16 u16", lambda a, b: b - a)
vector("v_add_nc_u64", "u64 = u64 u64")(np.add)
vector("v_sub_nc_u64", "u64 = u64 u64")(np.subtract)


def _add(a, b):
    total = a + b
    return total, total < a


def _add_with_carry(a, b, carry):
    partial = a + b
    total = partial + carry
    return total, (partial < a) | (total < partial)


def _subtract_with_borrow(a, b, borrow):
    partial = a - b
    return partial - borrow, (a < b) | (partial < borrow)


vector("v_add_co_u32", "u32 mask = u32 u32")(_add)
vector("v_sub_co_u32", "u32 mask = u32 u32")(lambda a, b: (a - b, a < b))
vector("v_subrev_co_u32", "u32 mask = u32 u32")(lambda a, b: (b - a, b < a))
vector("v_addc_co_u32 v_add_co_ci_u32", "u32 mask = u32 u32 mask")(_add_with_carry)
vector("v_subb_co_u32 v_sub_co_ci_u32", "u32 mask = u32 u32 mask")(_subtract_with_borrow)
vector("v_subbrev_co_u32 v_subrev_co_ci_u32", "u32 mask = u32 u32 mask")(lambda a, b, c: _subtract_with_borrow(b, a, c))

vector("v_add3_u32", "u32 = u32 u32 u32")(lambda a, b, c: a + b + c)
vector("v_lshl_add_u32", "u32 = u32 u5 u32")(lambda a, count, b: (a << count) + b)
vector("v_lshl_add_u64", "u64 = u64 u32 u64")(lambda a, count, b: (a << (count & U32(7)).astype(U64)) + b)
vector("v_add_lshl_u32", "u32 = u32 u32 u5")(lambda a, b, count: a + b << count)
vector("v_xad_u32", "u32 = u32 u32 u32")(lambda a, b, c: (a ^ b) + c)


def mul_hi_u32(a, b):
    return (a.astype(U64) * b >> U64(32)).astype(U32)


def mul_hi_i32(a, b):
    return (a.astype(I64) * b >> I64(32)).astype(I32)


def _u24(a):
    return a & U32(0xFFFFFF)


def _i24(a):
    return a << I32(8) >> I32(8)


for _kind in ("u16", "u32"):
    vector(f"v_mul_lo_{_kind}", f"{_kind} = {_kind} {_kind}")(np.multiply)
vector("v_mul_u64", "u64 = u64 u64")(np.multiply)
vector("v_mul_hi_u32", "u32 = u32 u32")(mul_hi_u32)
vector("v_mul_hi_i32", "i32 = i32 i32")(mul_hi_i32)
vector("v_mul_u32_u24", "u32 = u32 u32")(lambda a, b: _u24(a) * _u24(b))
vector("v_mul_i32_i24", "i32 = i32 i32")(lambda a, b: _i24(a) * _i24(b))
vector("v_mul_hi_u32_u24", "u32 = u32 u32")(lambda a, b: mul_hi_u32(_u24(a), _u24(b)))
vector("v_mul_hi_i32_i24", "i32 = i32 i32")(lambda a, b: mul_hi_i32(_i24(a), _i24(b)))
vector("v_mad_u32_u24", "u32 = u32 u32 u32")(lambda a, b, c: _u24(a) * _u24(b) + c)
vector("v_mad_i32_i24", "i32 = i32 i32 i32")(lambda a, b, c: _i24(a) * _i24(b) + c)


@vector("v_mad_u32", "u32 = u32 u32 u32")
@vector("v_mad_u16", "u16 = u16 u16 u16", keeps_half=True)
@vector("v_mad_i16", "i16 = i16 i16 i16", keeps_half=True)
@vector("v_mad_legacy_u16", "u16 = u16 u16 u16")
@vector("v_mad_legacy_i16", "i16 = i16 i16 i16")
@vector("v_mad_u32_u16", "u32 = u16 u16 u32")
@vector("v_mad_i32_i16", "i32 = i16 i16 i32")
@vector("v_mad_nc_u64_u32", "u64 = u32 u32 u64")
@vector("v_mad_nc_i64_i32", "i64 = i32 i32 i64")
def mad(a, b, c):
    """a * b + c; the product has the width of c."""
    return a.astype(c.dtype, copy=False) * b + c


@vector("v_mad_u64_u32 v_mad_co_u64_u32", "u64 mask = u32 u32 u64")
def mad_co_u64_u32(a, b, c):
    """a * b + c; the mask is bit 64 of the sum."""
    total = mad(a, b, c)
    return total, total < c


@vector("v_mad_i64_i32 v_mad_co_i64_i32", "i64 mask = i32 i32 i64")
def mad_co_i64_i32(a, b, c):
    """a * b + c; the mask is bit 64 of the sum of 65 bits, its sign, also where the sum does not fit in 64 bits."""
    product = a.astype(I64) * b
    total = product + c
    overflows = (product ^ total) & (c ^ total)
    return total, (total ^ overflows) < 0


_THREE = {
    "min3": lambda a, b, c: np.minimum(np.minimum(a, b), c),
    "max3": lambda a, b, c: np.maximum(np.maximum(a, b), c),
    "med3": lambda a, b, c: np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c)),
    "maxmin": lambda a, b, c: np.minimum(np.maximum(a, b), c),
    "minmax": lambda a, b, c: np.maximum(np.minimum(a, b), c),
}
for _kind in ("i16", "u16", "i32", "u32", "i64", "u64"):
    vector(f"v_min_{_kind}", f"{_kind} = {_kind} {_kind}")(np.minimum)
    vector(f"v_max_{_kind}", f"{_kind} = {_kind} {_kind}")(np.maximum)
for _name, _function in _THREE.items():
    for _kind in ("i32", "u32"):
        vector(f"v_{_name}_{_kind}", f"{_kind} = {_kind} {_kind} {_kind}")(_function)
    for _kind in ("i16", "u16") if _name.endswith("3") else ():
        vector(f"v_{_name}_{_kind}", f"{_kind} = {_kind} {_kind} {_kind}", takes=("op_sel",), keeps_half=True)(_function)
