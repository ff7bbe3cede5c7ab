"""Packed instructions: each half against the instruction that is not packed."""

import itertools

import numpy as np
import pytest
from attn_amdgcn import UnknownInstructionError

from tests.emulated.floats import bits16, bits32, f32
from tests.emulated.lines import JUNK, ran
from tests.emulated.tables import check

LOW, HIGH = [1.5, -2.0, 3.25], [0.5, 7.0, -4.0]
"""The halves of v[0:1], v[2:3] and v[4:5], and of s[10:11], s[12:13] and s[14:15]."""
VECTORS = {2 * i + half: np.float32(values[i]) for half, values in enumerate((LOW, HIGH)) for i in range(3)}
SCALARS = {10 + 2 * i + half: bits32(values[i]) for half, values in enumerate((LOW, HIGH)) for i in range(3)}


def pair(text: str, architecture: str = "gfx942") -> tuple[float, float]:
    after = ran(text, architecture, v=VECTORS, s=SCALARS)
    return f32(int(after.vector[8, 0, 5])), f32(int(after.vector[9, 0, 5]))


def test_the_halves_that_op_sel_names_and_their_signs():
    both = (LOW, HIGH)
    for low, high in itertools.product(itertools.product((0, 1), repeat=3), repeat=2):
        text = f"v_pk_fma_f32 v[8:9], v[0:1], v[2:3], v[4:5] op_sel:{list(low)} op_sel_hi:{list(high)}"
        signs = f"{text} neg_lo:[1,0,1] neg_hi:[0,1,0]"
        a, b, c = ([both[half][i] for half in (low[i], high[i])] for i in range(3))
        assert pair(text) == (a[0] * b[0] + c[0], a[1] * b[1] + c[1]), text
        assert pair(signs) == (-a[0] * b[0] - c[0], a[1] * -b[1] + c[1]), signs


@pytest.mark.parametrize(
    ("text", "architecture", "expected"),
    [
        ("v_pk_mul_f32 v[8:9], v[0:1], v[2:3]", "gfx942", (-3.0, 3.5)),
        ("v_pk_add_f32 v[8:9], v[0:1], v[2:3] op_sel_hi:[1,0]", "gfx942", (-0.5, -1.5)),
        ("v_pk_add_f32 v[8:9], v[0:1], 1.0 op_sel_hi:[1,0] neg_lo:[1,0] neg_hi:[1,0]", "gfx942", (-0.5, 0.5)),
        ("v_pk_mul_f32 v[8:9], v[0:1], s[12:13]", "gfx942", (-3.0, 3.5)),
        ("v_pk_mul_f32 v[8:9], v[0:1], s[12:13] op_sel_hi:[1,0]", "gfx950", (-3.0, -1.0)),
        ("v_pk_mul_f32 v[8:9], v[0:1], s[12:13] op_sel:[0,1]", "gfx942", (10.5, 3.5)),
        ("v_pk_mul_f32 v[8:9], v[0:1], s[12:13]", "gfx1250", (-3.0, -1.0)),
        ("v_pk_fma_f32 v[8:9], 0x3f000000, v[0:1], s[14:15] op_sel_hi:[0,1,0]", "gfx1250", (4.0, 3.5)),
        ("v_pk_mul_f32 v[8:9], v[0:1], v[2:3] clamp", "gfx942", (0.0, 1.0)),
        ("v_pk_add_f32 v[0:1], v[0:1], v[0:1]\nv_pk_mov_b32 v[8:9], v[0:1], v[0:1] op_sel:[0,1]", "gfx942", (3.0, 1.0)),
        ("v_pk_mov_b32 v[8:9], v[0:1], v[2:3] op_sel:[1,0]", "gfx942", (0.5, -2.0)),
        ("v_pk_mov_b32 v[8:9], v[0:1], s[12:13] op_sel:[0,1]", "gfx942", (1.5, 7.0)),
        ("v_pk_mov_b32 v[8:9], 0, 0", "gfx90a", (0.0, 0.0)),
        ("v_mov_b32_e32 v8, v0\nv_mov_b32_e32 v9, v1\nv_pk_mov_b32 v[8:9], v[8:9], v[8:9] op_sel:[1,0]", "gfx942", (0.5, 1.5)),
    ],
)
def test_each_form_of_operands_agrees(text, architecture, expected):
    assert pair(text, architecture) == expected


def test_lanes_that_are_off():
    off = ran("v_pk_mul_f32 v[8:9], v[0:1], v[2:3]\nv_pk_mov_b32 v[10:11], v[0:1], v[0:1]", v=VECTORS, exec=2)
    assert off.vector[8:12, 0, 0].tolist() == [JUNK] * 4
    assert off.vector[8:10, 0, 1].view(np.float32).tolist() == [-3.0, 3.5]


def test_operands_that_are_not_defined_are_refused():
    with pytest.raises(UnknownInstructionError, match="upper half of a constant"):
        pair("v_pk_mul_f32 v[8:9], v[0:1], 1.0")
    with pytest.raises(UnknownInstructionError, match="upper half of a constant"):
        pair("v_pk_add_u16 v8, v0, 1")
    with pytest.raises(UnknownInstructionError, match="mul"):
        pair("v_pk_mul_f32 v[8:9], v[0:1], v[2:3] mul:2")


INTEGERS = {
    "v_pk_add_u16": ("u16 = u16 u16", lambda a, b: a + b),
    "v_pk_sub_i16": ("i16 = i16 i16", lambda a, b: a - b),
    "v_pk_mul_lo_u16": ("u16 = u16 u16", lambda a, b: a * b),
    "v_pk_max_u16": ("u16 = u16 u16", max),
    "v_pk_min_u16": ("u16 = u16 u16", min),
    "v_pk_max_i16": ("i16 = i16 i16", max),
    "v_pk_min_i16": ("i16 = i16 i16", min),
    "v_pk_mad_u16": ("u16 = u16 u16 u16", lambda a, b, c: a * b + c),
    "v_pk_lshlrev_b16": ("b16 = b16 b16", lambda a, b: b << (a & 15)),
    "v_pk_lshrrev_b16": ("b16 = b16 b16", lambda a, b: b >> (a & 15)),
    "v_pk_ashrrev_i16": ("i16 = u16 i16", lambda a, b: b >> (a & 15)),
}


@pytest.mark.parametrize("name", INTEGERS)
def test_packed_integers_agree(name):
    check(name, *INTEGERS[name])


def test_halves_and_signs_of_float16():
    one = bits16(1.5) | bits16(-3.0) << 16
    text = "v_pk_add_f16 v9, v0, v0 op_sel:[1,0] op_sel_hi:[0,1] neg_lo:[0,1]"
    assert ran(text, v={0: one}).vector[9, 0, 0] == bits16(-4.5) | bits16(-1.5) << 16
    assert ran("v_pk_max_f16 v9, v0, 0", v={0: one}).vector[9, 0, 0] == bits16(1.5)
    assert ran("v_pk_mul_f16 v9, v0, 2.0 op_sel_hi:[1,0]", v={0: one}).vector[9, 0, 0] == bits16(3.0) | bits16(-6.0) << 16
