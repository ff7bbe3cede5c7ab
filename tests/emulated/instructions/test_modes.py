"""Modes of floats that a kernel sets for itself: FP16_OVFL, and what is refused."""

import numpy as np
import pytest
from attn_amdgcn import UnknownInstructionError

from tests.emulated.lines import ran

LARGEST = np.float16(65504)
OVERFLOW = "s_setreg_imm32_b32 hwreg(HW_REG_MODE, 23, 1), 1"
INPUTS = np.zeros(64, np.float32)
INPUTS[:6] = [1e5, -1e5, np.inf, -np.inf, np.nan, 1.5]


def halves(text: str, **registers: object) -> np.ndarray:
    after = ran(text, "gfx942", **registers)
    return after.vector[0, 0, :6].astype(np.uint16).view(np.float16)


@pytest.mark.parametrize(("architecture", "register"), [("gfx942", "MODE"), ("gfx1250", "WAVE_MODE")])
def test_the_mode_has_two_names(architecture, register):
    after = ran(f"{OVERFLOW.replace('MODE', register)}\nv_cvt_f16_f32_e32 v0, v1", architecture, v={1: INPUTS[0]})
    assert after.vector[0, 0, 0].astype(np.uint16).view(np.float16) == LARGEST


def test_a_float16_that_overflows_becomes_the_largest_number_and_an_infinity_stays():
    found = halves(f"{OVERFLOW}\nv_cvt_f16_f32_e32 v0, v1", v={1: INPUTS})
    np.testing.assert_array_equal(found, np.array([LARGEST, -LARGEST, np.inf, -np.inf, np.nan, 1.5], np.float16))
    found = halves(f"{OVERFLOW}\nv_fma_mixlo_f16 v0, v1, 2.0, neg(0)", v={1: INPUTS})
    np.testing.assert_array_equal(found, np.array([LARGEST, -LARGEST, np.inf, -np.inf, np.nan, 3.0], np.float16))
    for text in ("v_cvt_pk_f16_f32 v0, v1, v1", "v_cvt_pkrtz_f16_f32 v0, v1, v1"):
        found = halves(f"{OVERFLOW}\n{text}", v={1: INPUTS})
        np.testing.assert_array_equal(found, np.array([LARGEST, -LARGEST, np.inf, -np.inf, np.nan, 1.5], np.float16))
    found = halves("v_cvt_f16_f32_e32 v0, v1", v={1: INPUTS})
    np.testing.assert_array_equal(found, np.array([np.inf, -np.inf, np.inf, -np.inf, np.nan, 1.5], np.float16))


def test_packed_float16_that_overflow_become_the_largest_number():
    pairs = np.resize(np.array([0x7BFFFBFF, 0x7C00FC00, 0x3C007BFF], np.uint32), 64)
    sums = "v_pk_add_f16 v0, v1, v1", "v_pk_fma_f16 v0, v1, 1.0, v1 op_sel_hi:[1,0,1]"
    for text in (*sums, "v_pk_mul_f16 v0, v1, 2.0 op_sel_hi:[1,0]"):
        after = ran(f"{OVERFLOW}\n{text}", "gfx942", v={1: pairs}).vector[0, 0, :3]
        assert [f"{bits:08x}" for bits in after] == ["7bfffbff", "7c00fc00", "40007bff"]


def test_a_bfloat16_that_overflows_becomes_the_largest_number_and_an_infinity_stays():
    most = np.float32(3.4e38)
    numbers = np.resize(np.array([most, -most, np.inf, -np.inf, np.nan, 1.5], np.float32), 64)
    after = ran(f"{OVERFLOW}\nv_cvt_pk_bf16_f32 v0, v1, v1", "gfx950", v={1: numbers}).vector[0, 0, :6]
    assert (after >> np.uint32(16) == after & np.uint32(0xFFFF)).all()
    assert [hex(bits & 0xFFFF) for bits in after] == ["0x7f7f", "0xff7f", "0x7f80", "0xff80", "0x7fc0", "0x3fc0"]


def test_results_that_cannot_overflow_may_stand_beside_the_mode():
    ran(f"{OVERFLOW}\nv_max_f16_e32 v0, v1, v1\nv_pk_max_f16 v0, v1, v1", "gfx942")
    ran(f"{OVERFLOW}\nv_cvt_scalef32_pk_bf16_fp8 v0, v1, 1.0", "gfx950")


@pytest.mark.parametrize("narrow", ["v_pk_mul_bf16 v0, v1, v1", "v_rcp_f16_e32 v0, v1"])
def test_the_mode_is_refused_beside_narrow_results_of_which_it_is_not_known(narrow):
    ran(f"{OVERFLOW}\nv_cvt_f32_f16 v0, v1\nv_mul_f32 v0, v1, v1\nv_cvt_f32_fp8 v0, v1", "gfx942")
    with pytest.raises(UnknownInstructionError, match=rf"HW_REG_MODE, 23, 1.*: `{narrow}` beside it"):
        ran(f"{OVERFLOW}\n{narrow}", "gfx942")


def test_a_branch_may_lead_to_the_mode():
    found = halves(f"s_branch .LBB0_0\n.LBB0_0:\n{OVERFLOW}\nv_cvt_f16_f32_e32 v0, v1", v={1: INPUTS})
    assert found[0] == LARGEST


@pytest.mark.parametrize("first", ["v_cvt_f16_f32_e32 v0, v1", "s_cbranch_scc0 .LBB0_1", "s_branch .LBB0_1"])
def test_the_mode_is_refused_where_it_may_not_be_that_of_all_results(first):
    with pytest.raises(UnknownInstructionError, match=r"HW_REG_MODE, 23, 1.*beside it"):
        ran(f"{first}\n{OVERFLOW}\nv_cvt_f16_f32_e32 v0, v1\n.LBB0_1:", "gfx942")
    with pytest.raises(UnknownInstructionError, match="HW_REG_MODE, 23, 1"):
        ran("s_setreg_imm32_b32 hwreg(HW_REG_MODE, 23, 1), 0", "gfx942")


def test_a_mode_flushes_denormals_of_floats_and_not_of_bits_that_are_chosen():
    """v_cndmask_b32 chooses integers, too: small ones are no denormals of float32."""
    text = "v_mul_f32 v0, 1.0, v1\nv_cndmask_b32_e32 v2, v3, v1, vcc\nv_cndmask_b32_e64 v4, v1, v3, vcc"
    modes = {"float_denorm_mode_32": 0}
    after = ran(text, v={1: 5, 3: 7}, vcc=1, modes=modes)
    assert [after.vector[row, 0, 0] for row in (0, 2, 4)] == [0, 5, 7]
    assert [after.vector[row, 0, 1] for row in (2, 4)] == [7, 5]


@pytest.mark.parametrize("text", ["v_mul_f32_e32 v0, 1.0, v1", "v_add_f32_e32 v0, 0, v1", "v_max_f32_e32 v0, v1, v1"])
@pytest.mark.parametrize(("mode", "kept"), [(0, False), (3, True)])
def test_denormals_of_float32_are_zeros_if_the_mode_says_so(text, mode, kept):
    numbers = np.full(64, np.float32(1e-40))
    found = ran(text, "gfx942", v={1: numbers}, modes={"float_denorm_mode_32": mode}).vector_f32[0, 0]
    assert (found == (numbers if kept else 0)).all()


@pytest.mark.parametrize(("mode", "expected"), [(0, 2.0), (1, np.nan)])
def test_a_signaling_nan_is_as_a_quiet_one_without_ieee_mode(mode, expected):
    signaling = np.full(64, 0x7F800001, np.uint32)
    found = ran("v_max_f32_e32 v0, 2.0, v1", "gfx942", v={1: signaling}, modes={"ieee_mode": mode}).vector_f32[0, 0]
    np.testing.assert_array_equal(found, np.full(64, expected, np.float32))


def test_a_clamp_without_dx10_clamp_is_refused():
    with pytest.raises(UnknownInstructionError, match=r"clamp where \.amdhsa_dx10_clamp is 0"):
        ran("v_mul_f32_e64 v0, v1, v1 clamp", "gfx942", modes={"dx10_clamp": 0})
