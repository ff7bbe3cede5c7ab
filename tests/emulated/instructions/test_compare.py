"""Comparisons against Python's."""

import math
import struct

import numpy as np
import pytest
from attn_amdgcn.instructions.compare import FLOATS

from tests.emulated.lines import ran
from tests.emulated.tables import check

INTEGERS = {
    "f": lambda a, b: False,
    "lt": lambda a, b: a < b,
    "eq": lambda a, b: a == b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ne": lambda a, b: a != b,
    "ge": lambda a, b: a >= b,
    "t": lambda a, b: True,
}
TRUE_WHERE = {
    "f": "",
    "lt": "<",
    "eq": "=",
    "le": "<=",
    "gt": ">",
    "lg": "<>",
    "ge": ">=",
    "o": "<=>",
    "u": "?",
    "nge": "<?",
    "nlg": "=?",
    "ngt": "<=?",
    "nle": ">?",
    "neq": "<>?",
    "nlt": ">=?",
    "tru": "<=>?",
    "t": "<=>?",
}
"""The relations of two floats for which a comparison is true; two floats of which one is a NaN stand in the relation "?"."""


def relation(a: float, b: float) -> str:
    return "?" if math.isnan(a) or math.isnan(b) else "<" if a < b else ">" if a > b else "="


@pytest.mark.parametrize("kind", ["i16", "u16", "i32", "u32", "i64", "u64"])
def test_comparisons_of_integers_agree(kind):
    for name, formula in INTEGERS.items():
        check(f"v_cmp_{name}_{kind}", f"mask = {kind} {kind}", formula)


@pytest.mark.parametrize("half", ["l", "h"])
def test_comparisons_of_halves_agree(half):
    check("v_cmp_lt_u16", "mask = u16 u16", INTEGERS["lt"], "gfx1100", half=half)
    check("v_cmp_ne_i16", "mask = i16 i16", INTEGERS["ne"], "gfx1201", half=half)


@pytest.mark.parametrize("kind", ["f16", "f32", "f64"])
def test_comparisons_of_floats_agree(kind):
    assert set(TRUE_WHERE) == set(FLOATS)
    for name, true in TRUE_WHERE.items():
        check(f"v_cmp_{name}_{kind}", f"mask = {kind} {kind}", lambda a, b, true=true: relation(a, b) in true)


@pytest.mark.parametrize("name", [name for name in TRUE_WHERE if name not in ("f", "t", "tru")])
def test_scalar_comparisons_of_floats_agree(name):
    for kind in ("f16", "f32"):
        check(f"s_cmp_{name}_{kind}", f"scc = {kind} {kind}", lambda a, b: relation(a, b) in TRUE_WHERE[name], "gfx1201")


CLASSES = {
    "f16": [0x7C01, 0x7E00, 0xFC00, 0xC000, 0x8001, 0x8000, 0, 0x03FF, 0x0400, 0x7C00],
    "f32": [0x7F800001, 0x7FC00000, 0xFF800000, 0xC0000000, 0x80000001, 0x80000000, 0, 0x7FFFFF, 0x800000, 0x7F800000],
    "f64": [
        *(
            struct.unpack("<Q", struct.pack("<d", x))[0]
            for x in (0, math.nan, -math.inf, -2.0, -5e-324, -0.0, 0, 1e-310, 1e-307, math.inf)
        )
    ],
}
CLASSES["f64"][0] = 0x7FF0000000000001


@pytest.mark.parametrize("kind", CLASSES)
def test_each_class_of_floats_is_found(kind):
    values = np.array(CLASSES[kind] + [CLASSES[kind][0] | 1 << int(kind[1:]) - 1], np.uint64)  # a NaN has no sign
    values = np.resize(values, 64)
    v = {0: values.astype(np.uint32), 1: (values >> np.uint64(32)).astype(np.uint32)}
    source = "v[0:1]" if kind == "f64" else "v0"
    for bit in range(10):
        after = ran(f"v_cmp_class_{kind}_e64 s[2:3], {source}, s0", v=v, s={0: 1 << bit})
        expected = [i % 11 in ((0, 10) if bit == 0 else (bit,)) for i in range(64)]
        assert after.mask(2)[0].tolist() == expected
    after = ran(f"v_cmp_class_{kind}_e32 vcc, {source}, v2", v={**v, 2: 0x1F8})
    assert after.mask(106)[0, :10].tolist() == [bool(0x1F8 >> bit & 1) for bit in range(10)]


def test_signs_of_sources_are_applied_before_a_comparison():
    values = np.array([1.0, -1.0, np.nan, -0.0] * 16, np.float32)
    after = ran(
        "v_cmp_lt_f32_e64 vcc, |v0|, -v0\nv_cmp_gt_f32_e64 s[0:1], 0.5, -|v0|\nv_cmp_u_f32_e64 s[2:3], |v0|, |v0|",
        v={0: values},
    )
    assert [after.mask(index)[0, :4].tolist() for index in (106, 0, 2)] == [
        [False] * 4,
        [True, True, False, True],
        [False, False, True, False],
    ]


def test_lanes_that_are_off_get_0():
    after = ran("v_cmp_eq_u32_e32 vcc, v0, v0\nv_cmp_t_u32_e64 s[4:5], s0, 1", v={0: 1}, vcc=-1, exec=0xF0)
    assert after.scalar64[0, [53, 2]].tolist() == [0xF0, 0xF0]


def test_a_wave_of_32_lanes_writes_one_register():
    after = ran("v_cmp_le_u32_e64 s4, 3, v0", "gfx1201", v={0: np.arange(32)}, s={5: 7})
    assert after.scalar[0, 4:6].tolist() == [0xFFFFFFF8, 7]


def test_v_cmpx_switches_lanes_off():
    text = "v_cmpx_lt_i32_e32 {}2, v0\nv_mov_b32_e32 v1, 5"
    after = ran(text.format(""), "gfx1100", v={0: np.arange(32), 1: 0}, vcc=0x77, exec=0xFF)
    assert after.vector[1, 0, :10].tolist() == [0, 0, 0, 5, 5, 5, 5, 5, 0, 0]
    assert (after.scalar[0, 126], after.scalar[0, 106]) == (0xF8, 0x77)
    after = ran(text.format("vcc, "), v={0: np.arange(64), 1: 0}, exec=0xFF)
    assert after.vector[1, 0, :10].tolist() == [0, 0, 0, 5, 5, 5, 5, 5, 0, 0]
    assert after.scalar64[0, [63, 53]].tolist() == [0xF8, 0xF8]


def test_v_cmpx_of_64_bits_and_of_classes():
    after = ran(
        "v_cmpx_ge_u64_e32 v[0:1], v[2:3]\nv_cmpx_class_f32_e64 v4, 0x40",
        "gfx1201",
        v={0: 5, 1: np.arange(32), 2: 6, 3: 3, 4: np.arange(32) - 9},
    )
    assert after.scalar[0, 126] == 1 << 9
