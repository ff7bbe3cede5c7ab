"""Powers, logarithms, reciprocals, roots and angles.

The results are those of numpy in float64, rounded, and so the same on every machine. Hardware promises 1 ulp for float32: one
of its results may be the next float below or above. In float32, denormal sources and results are flushed to zeros, whatever the
kernel's modes say; in float16 and float64 they are kept ("1ULP accuracy, denormals are flushed" in the notes of V_EXP_F32,
V_LOG_F32 and V_SQRT_F32; LLVM, AMDGPUCodeGenPrepare, says so of v_rcp_f32 and v_rsq_f32).

Source: "VOP1 Instructions" in AMD's Instinct MI300 ISA and in AMD's RDNA4 ISA. v_tanh is gfx1250's (LLVM, VOP1Instructions.td);
no document says how exact it is.
"""

from collections.abc import Callable

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


def _in_float64(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """A function of float32 that is computed in float64, with denormals flushed before and after it."""
    return lambda a: flushed(function(flushed(a).astype(F64)).astype(F32))


def _reciprocal_root(a: np.ndarray) -> np.ndarray:
    return np.reciprocal(np.sqrt(a))


def _turned(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """A function of an angle that is given in turns of 2 pi."""
    return _in_float64(lambda turns: function(2 * np.pi * np.fmod(turns, 1)))


sqrt, rsq, sin, cos = _in_float64(np.sqrt), _in_float64(_reciprocal_root), _turned(np.sin), _turned(np.cos)
for _name, _function in {"sqrt": sqrt, "rsq": rsq, "sin": sin, "cos": cos, "tanh": _in_float64(np.tanh)}.items():
    vector(f"v_{_name}_f32", "f32 = f32", takes=("clamp",))(_function)
_OF_OTHERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "exp": np.exp2,
    "log": np.log2,
    "rcp": np.reciprocal,
    "sqrt": np.sqrt,
    "rsq": _reciprocal_root,
    "sin": sin,
    "cos": cos,
    "tanh": np.tanh,
}
for _name, _function in _OF_OTHERS.items():
    vector(f"v_{_name}_f16", "f16 = f16", takes=("clamp", "op_sel"))(in_float32(_function))
for _name in ("rcp", "sqrt", "rsq"):
    vector(f"v_{_name}_f64", "f64 = f64", takes=("clamp",))(_OF_OTHERS[_name])
