"""Scalar floats of gfx12 against exact fractions."""

import pytest
from attn_amdgcn import UnknownInstructionError

from tests.emulated.floats import bits16, bits32, f32, product_sum
from tests.emulated.lines import ran


def one(text: str, a: int, b: int = 0, old: int = 0) -> int:
    return int(ran(text, "gfx1201", s={1: a, 2: b, 9: old}).scalar[0, 9])


def test_fused_sums_are_rounded_once():
    a, b, old = bits32(1 + 2.0**-23), bits32(1 - 2.0**-23), bits32(-1.0)
    assert f32(one("s_fmac_f32 s9, s1, s2", a, b, old)) == product_sum(f32(a), f32(b), -1.0, "f32")
    assert f32(one("s_fmac_f32 s9, 0, 0x4f800000", 0, 0, bits32(3.0))) == 3.0
    assert f32(one("s_fmaak_f32 s9, s1, s2, 0x40000000", bits32(3.0), bits32(5.0))) == 17.0
    assert f32(one("s_fmamk_f32 s9, s1, 0x40000000, s2", bits32(3.0), bits32(5.0))) == 11.0


@pytest.mark.parametrize(
    ("text", "source", "expected"),
    [
        ("s_cvt_hi_f32_f16 s9, s1", 0x3C00AAAA, bits32(1.0)),
        ("s_cvt_pk_rtz_f16_f32 s9, s1, 1.0", bits32(-2.0), bits16(1.0) << 16 | bits16(-2.0)),
        ("v_s_exp_f32 s9, s1", bits32(3.0), bits32(8.0)),
        ("v_s_log_f32 s9, s1", bits32(8.0), bits32(3.0)),
        ("v_s_rcp_f32 s9, s1", bits32(8.0), bits32(0.125)),
        ("v_s_sqrt_f32 s9, s1", bits32(9.0), bits32(3.0)),
        ("v_s_rsq_f32 s9, s1", bits32(4.0), bits32(0.5)),
    ],
)
def test_functions_of_one_source_agree(text, source, expected):
    assert one(text, source) == expected


def test_signs_of_scalar_operands_are_refused():
    with pytest.raises(UnknownInstructionError, match="sign"):
        one("v_s_exp_f32 s9, -s1", 0)
