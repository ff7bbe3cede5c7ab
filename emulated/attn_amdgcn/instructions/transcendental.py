"""Powers, logarithms, reciprocals, roots and angles.

The results are those of numpy in float64, rounded, and so the same on every machine. Hardware promises 1 ulp for float32: one
of its results may be the float before or behind. In float32, denormal sources and results are flushed to zeros, whatever the
kernel's modes say; in float16 and float64 they are kept ("1ULP accuracy, denormals are flushed" in the notes of V_EXP_F32,
V_LOG_F32 and V_SQRT_F32; LLVM, AMDGPUCodeGenPrepare, says so of v_rcp_f32 and v_rsq_f32).

Source: "VOP1 Instructions" in AMD's Instinct MI300 ISA and in AMD's RDNA4 ISA. v_tanh is gfx1250's (LLVM, VOP1Instructions.td);
no document says how exact it is.
"""

import numpy as np
from attn_amdgcn.instructions.float_arithmetic import in_float32
from attn_amdgcn.instructions.forms import vector
from attn_amdgcn.instructions.fused import F32, F64
from attn_amdgcn.instructions.modes import TINY, flushed

_LARGEST_WITH_NORMAL_RECIPROCAL = F32(2.0**126)


@vector("v_exp_f32", "f32 = f32", takes=("clamp",))
def exp(a):
    """2 ** a."""
    result = np.exp2(a.astype(F64)).astype(F32)
    np.copyto(result, F32(0), where=result < TINY)
    return result


@vector("v_log_f32", "f32 = f32", takes=("clamp",))
def log(a):
    """The logarithm to base 2."""
    return np.log2(flushed(a).astype(F64)).astype(F32)


@vector("v_rcp_f32 v_rcp_iflag_f32", "f32 = f32", takes=("clamp",))
def rcp(a):
    magnitude = np.abs(a)
    if (
        np.minimum.reduce(magnitude, axis=None) >= TINY
        and np.maximum.reduce(magnitude, axis=None) <= _LARGEST_WITH_NORMAL_RECIPROCAL
    ):
        return np.reciprocal(a)
    return flushed(np.reciprocal(flushed(a)))


@vector("v_sqrt_f32", "f32 = f32", takes=("clamp",))
def sqrt(a):
    return np.sqrt(flushed(a))


@vector("v_rsq_f32", "f32 = f32", takes=("clamp",))
def rsq(a):
    return (1 / np.sqrt(flushed(a).astype(F64))).astype(F32)


@vector("v_sin_f32", "f32 = f32", takes=("clamp",))
def sin(a):
    """Of an angle in turns."""
    turns = flushed(a).astype(F64)
    return flushed(np.sin(2 * np.pi * np.fmod(turns, 1)).astype(F32))


@vector("v_cos_f32", "f32 = f32", takes=("clamp",))
def cos(a):
    """Of an angle in turns."""
    turns = flushed(a).astype(F64)
    return flushed(np.cos(2 * np.pi * np.fmod(turns, 1)).astype(F32))


@vector("v_tanh_f32", "f32 = f32", takes=("clamp",))
def tanh(a):
    return flushed(np.tanh(flushed(a).astype(F64)).astype(F32))


_HALF = {
    "exp": np.exp2,
    "log": np.log2,
    "rcp": np.reciprocal,
    "sqrt": np.sqrt,
    "rsq": lambda a: np.reciprocal(np.sqrt(a)),
    "sin": sin,
    "cos": cos,
    "tanh": np.tanh,
}
for _name, _function in _HALF.items():
    vector(f"v_{_name}_f16", "f16 = f16", takes=("clamp", "op_sel"))(in_float32(_function))
vector("v_rcp_f64", "f64 = f64", takes=("clamp",))(np.reciprocal)
vector("v_sqrt_f64", "f64 = f64", takes=("clamp",))(np.sqrt)
vector("v_rsq_f64", "f64 = f64", takes=("clamp",))(lambda a: np.reciprocal(np.sqrt(a)))
