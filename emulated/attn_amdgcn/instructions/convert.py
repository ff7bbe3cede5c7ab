"""Conversions between integers, float16, bfloat16, float32 and float64.

A float becomes an integer towards zero; one that does not fit becomes the nearest integer that does, and a NaN becomes 0.
Between floats a value is rounded to nearest even, and denormals are kept, except where the name says rtz: towards zero.

Source: "VOP1" and "VOP3 Instructions" in AMD's Instinct MI300 ISA and in AMD's RDNA4 ISA. v_cvt_pk_bf16_f32: AMD's Instinct
MI355 ISA.
"""

from collections.abc import Callable

import numpy as np
from attn_amdgcn.instructions.extremes import quiet
from attn_amdgcn.instructions.forms import vector
from attn_amdgcn.instructions.fused import F16, F32, F64


def to_integer(dtype: type, rounded: Callable[[np.ndarray], np.ndarray] | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """A function from floats to integers of at most 32 bits."""
    least, most = (F64(bound) for bound in (np.iinfo(dtype).min, np.iinfo(dtype).max))

    def converted(a: np.ndarray) -> np.ndarray:
        wide = (rounded(a) if rounded else a).astype(F64)
        if least == 0:
            np.fmax(wide, 0, out=wide)  # of a NaN and 0 it takes 0
            return np.minimum(wide, most, out=wide).astype(dtype)
        wide[np.isnan(wide)] = 0
        return np.clip(wide, least, most, out=wide).astype(dtype)

    return converted


f32_to_u32, f32_to_i32 = to_integer(np.uint32), to_integer(np.int32)
vector("v_cvt_u32_f32", "u32 = f32")(f32_to_u32)
vector("v_cvt_i32_f32", "i32 = f32")(f32_to_i32)
vector("v_cvt_u32_f64", "u32 = f64")(f32_to_u32)
vector("v_cvt_i32_f64", "i32 = f64")(f32_to_i32)
vector("v_cvt_u16_f16", "u16 = f16", takes=("op_sel",))(to_integer(np.uint16))
vector("v_cvt_i16_f16", "i16 = f16", takes=("op_sel",))(to_integer(np.int16))
vector("v_cvt_flr_i32_f32 v_cvt_floor_i32_f32", "i32 = f32")(to_integer(np.int32, np.floor))


@vector("v_cvt_f32_u32", "f32 = u32", takes=("clamp",))
@vector("v_cvt_f32_i32", "f32 = i32", takes=("clamp",))
@vector("v_cvt_f32_f64", "f32 = f64", takes=("clamp",))
def to_f32(a):
    return a.astype(F32)


def _quieted(converted: np.ndarray, source: np.ndarray) -> np.ndarray:
    """numpy leaves a signaling NaN signaling where it converts between float16 and float32."""
    return np.where(np.isnan(converted), quiet(converted), converted) if np.isnan(source).any() else converted


@vector("v_cvt_f32_f16", "f32 = f16", takes=("clamp", "op_sel"))
def f16_to_f32(a):
    wide = a.astype(F32)
    return _quieted(wide, wide)


@vector("v_cvt_f16_f32", "f16 = f32", takes=("clamp", "op_sel"))
def f32_to_f16(a):
    return _quieted(a.astype(F16), a)


for _kind in ("u16", "i16"):
    vector(f"v_cvt_f16_{_kind}", f"f16 = {_kind}", takes=("clamp", "op_sel"))(lambda a: a.astype(F16))
for _kind in ("u32", "i32", "f32"):
    vector(f"v_cvt_f64_{_kind}", f"f64 = {_kind}", takes=("clamp",))(lambda a: a.astype(F64))
vector("v_cvt_u32_u16", "u32 = u16")(lambda a: a.astype(np.uint32))
vector("v_cvt_i32_i16", "i32 = i16")(lambda a: a.astype(np.int32))


def _byte_to_f32(byte: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda a: (a >> np.uint32(8 * byte) & np.uint32(0xFF)).astype(F32)


for _byte in range(4):
    vector(f"v_cvt_f32_ubyte{_byte}", "f32 = u32")(_byte_to_f32(_byte))


def _rounded_to_bf16(a: np.ndarray) -> np.ndarray:
    """uint32 whose upper half is the nearest bfloat16; of a NaN it is the upper half, made quiet."""
    bits = a.view(np.uint32)
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    is_nan = np.isnan(a)
    return np.where(is_nan, bits | np.uint32(0x00400000), rounded) if is_nan.any() else rounded


def f32_to_bf16(a: np.ndarray) -> np.ndarray:
    """uint16: the bits of the nearest bfloat16."""
    return (_rounded_to_bf16(a) >> np.uint32(16)).astype(np.uint16)


def bf16_to_f32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(F32)


vector("v_cvt_f32_bf16", "f32 = u16")(bf16_to_f32)


def packed16(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """uint32 of two values of 16 bits."""
    return low.view(np.uint16).astype(np.uint32) | high.view(np.uint16).astype(np.uint32) << np.uint32(16)


@vector("v_cvt_pk_bf16_f32", "b32 = f32 f32")
def pk_bf16(a, b):
    return _rounded_to_bf16(a) >> np.uint32(16) | _rounded_to_bf16(b) & np.uint32(0xFFFF0000)


def f32_to_f16_rtz(a: np.ndarray) -> np.ndarray:
    """Towards zero: the nearest float16, or the one before where that is larger. A large number becomes the largest float16."""
    nearest = f32_to_f16(a)
    beyond = np.abs(nearest.astype(F32)) > np.abs(a)
    return (nearest.view(np.uint16) - beyond).astype(np.uint16).view(F16)


def _packs(convert: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return lambda a, b: packed16(convert(a), convert(b))


pkrtz = _packs(f32_to_f16_rtz)
vector("v_pack_b32_f16", "b32 = f16 f16", takes=("op_sel",))(packed16)
vector("v_cvt_pk_f16_f32", "b32 = f32 f32")(_packs(f32_to_f16))
vector("v_cvt_pkrtz_f16_f32 v_cvt_pk_rtz_f16_f32", "b32 = f32 f32")(pkrtz)
vector("v_cvt_pk_u16_u32", "b32 = u32 u32")(_packs(lambda a: np.minimum(a, 0xFFFF).astype(np.uint16)))
vector("v_cvt_pk_i16_i32", "b32 = i32 i32")(_packs(lambda a: np.clip(a, -0x8000, 0x7FFF).astype(np.int16)))
vector("v_cvt_pk_u16_f32", "b32 = f32 f32")(_packs(to_integer(np.uint16)))
vector("v_cvt_pk_i16_f32", "b32 = f32 f32")(_packs(to_integer(np.int16)))


@vector("v_cvt_pk_u8_f32", "u32 = f32 u32 u32")
def pk_u8(a, place, old):
    """The float as a byte takes the byte of `old` that bits 1:0 of `place` name."""
    shift = (place & np.uint32(3)) << np.uint32(3)
    byte = to_integer(np.uint8)(a).astype(np.uint32)
    return old & ~(np.uint32(0xFF) << shift) | byte << shift
