"""Instructions whose rounding the ISA leaves open are named if they ran."""

import numpy as np
from attn_amdgcn import Report, inexact, load, prepare
from attn_amdgcn.instructions.forms import REGISTERED
from attn_amdgcn.rounding import OPEN

from tests.emulated.kernels import KERNEL

NAMED = (
    *(f"v_{prefix}{name}_f32" for prefix in ("", "s_") for name in ("exp", "log", "rcp", "rsq", "sqrt")),
    *("v_exp_f16", "v_rcp_f64", "v_sin_f32", "v_mfma_f32_32x32x8_bf16", "v_mfma_f64_16x16x4_f64", "v_wmma_bf16_16x16x16_bf16"),
    "v_dot2_bf16_bf16",
)
EXACT = (
    *("v_frexp_exp_i32_f32", "v_rcp_iflag_f32", "v_mfma_i32_32x32x16_i8", "v_wmma_i32_16x16x16_iu8", "v_ldexp_f32"),
    *("v_fma_f32", "v_pk_mul_f32", "v_cvt_pk_bf16_f32", "v_exp"),
)


def test_functions_and_sums_of_floats_are_open():
    assert {*NAMED} <= {*REGISTERED}
    assert [name for name in NAMED if not OPEN.fullmatch(name)] == []
    assert [name for name in EXACT if OPEN.fullmatch(name)] == []


def test_only_what_ran_is_named():
    text = KERNEL.replace("s_endpgm", "v_exp_f32_e32 v3, v2\nv_exp_f32_e32 v4, v2\nv_log_f32_e32 v3, v2\ns_endpgm")
    program = prepare(load(text))
    names = [instruction.name for instruction in program.kernel.instructions]
    assert inexact(program, Report(np.ones(len(names), int))) == ("v_exp_f32", "v_log_f32")
    assert inexact(program, Report(np.array([name != "v_log_f32" for name in names], int))) == ("v_exp_f32",)
    assert inexact(program, Report(np.zeros(len(names), int))) == ()
