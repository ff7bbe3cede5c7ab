"""Floats in scalar registers, from gfx11.5 on: one value for each wave. Each means what the vector instruction of its name
means.

A result of 16 bits leaves 0 in the upper half of its register.

Source: "SOP2", "SOP1" and "SOPC Instructions" in AMD's RDNA4 ISA; V_S_EXP_F32 and its like. The upper half: AMD's pull request
4075 of ROCm/llvm-project.
"""

from collections.abc import Callable

import numpy as np
from attn_amdgcn.instructions import transcendental
from attn_amdgcn.instructions.compare import FLOATS
from attn_amdgcn.instructions.convert import f16_to_f32, f32_to_f16, f32_to_i32, f32_to_u32, pkrtz, to_f32
from attn_amdgcn.instructions.extremes import max_num, maximum, min_num, minimum
from attn_amdgcn.instructions.float_arithmetic import in_float32
from attn_amdgcn.instructions.forms import scalar
from attn_amdgcn.instructions.fused import fma32


def in_lower_half(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """The bits of a float16 result, with 0 above."""
    return lambda *values: function(*values).view(np.uint16).astype(np.uint32)


for _name, _function in (("add", np.add), ("sub", np.subtract), ("mul", np.multiply)):
    scalar(f"s_{_name}_f32", "f32 = f32 f32")(_function)
    scalar(f"s_{_name}_f16", "b32 = f16 f16")(in_lower_half(in_float32(_function)))
for _name, _function in (("max_num", max_num), ("min_num", min_num), ("maximum", maximum), ("minimum", minimum)):
    scalar(f"s_{_name}_f32", "f32 = f32 f32")(_function)
    scalar(f"s_{_name}_f16", "b32 = f16 f16")(in_lower_half(_function))
for _name, _function in (("floor", np.floor), ("ceil", np.ceil), ("trunc", np.trunc), ("rndne", np.rint)):
    scalar(f"s_{_name}_f32", "f32 = f32")(_function)
    scalar(f"s_{_name}_f16", "b32 = f16")(in_lower_half(_function))
for _name in ("exp", "log", "rcp", "sqrt", "rsq"):
    scalar(f"v_s_{_name}_f32", "f32 = f32")(getattr(transcendental, _name))

scalar("s_fmaak_f32 s_fmamk_f32", "f32 = f32 f32 f32")(fma32)
scalar("s_fmac_f32", "f32 = f32 f32 *f32")(fma32)
scalar("s_cvt_f32_i32", "f32 = i32")(to_f32)
scalar("s_cvt_f32_u32", "f32 = u32")(to_f32)
scalar("s_cvt_i32_f32", "i32 = f32")(f32_to_i32)
scalar("s_cvt_u32_f32", "u32 = f32")(f32_to_u32)
scalar("s_cvt_f32_f16", "f32 = f16")(f16_to_f32)
scalar("s_cvt_f16_f32", "b32 = f32")(in_lower_half(f32_to_f16))
scalar("s_cvt_pk_rtz_f16_f32", "b32 = f32 f32")(pkrtz)


scalar("s_cvt_hi_f32_f16", "f32 = b32")(lambda a: f16_to_f32((a >> np.uint32(16)).astype(np.uint16).view(np.float16)))


for _name, _function in FLOATS.items():
    if _name not in ("f", "t", "tru"):
        for _kind in ("f32", "f16"):
            scalar(f"s_cmp_{_name}_{_kind}", f"scc = {_kind} {_kind}")(_function)
