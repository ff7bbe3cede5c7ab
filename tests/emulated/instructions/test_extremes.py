"""The larger, the smaller and the middle one, bit by bit, against the ISA's pseudocode in Python."""

import math
from functools import partial

import pytest

from tests.emulated.floats import EDGES16, EDGES32, f16, f32, results
from tests.emulated.lines import ran

FORMATS = {"f32": (f32, 1 << 22, EDGES32), "f16": (f16, 1 << 9, EDGES16)}


def _key(bits: int, kind: str) -> tuple[float, bool]:
    """Orders -0 before +0."""
    value = FORMATS[kind][0](bits)
    return value, math.copysign(1, value) > 0


def _is_nan(bits: int, kind: str) -> bool:
    return math.isnan(FORMATS[kind][0](bits))


def _is_signaling(bits: int, kind: str) -> bool:
    return _is_nan(bits, kind) and not bits & FORMATS[kind][1]


def _ieee(pick, kind: str, a: int, b: int) -> int:
    """V_MAX_F32 with WAVE_MODE.IEEE."""
    if _is_signaling(a, kind):
        return a | FORMATS[kind][1]
    if _is_signaling(b, kind):
        return b | FORMATS[kind][1]
    if _is_nan(a, kind):
        return b
    if _is_nan(b, kind):
        return a
    return pick((a, b), key=partial(_key, kind=kind))


def _num(pick, kind: str, a: int, b: int) -> int:
    """V_MAX_NUM_F32."""
    if _is_nan(a, kind) and _is_nan(b, kind):
        return a | FORMATS[kind][1]
    if _is_nan(a, kind):
        return b
    if _is_nan(b, kind):
        return a
    return pick((a, b), key=partial(_key, kind=kind))


def _propagating(pick, kind: str, a: int, b: int) -> int:
    """V_MAXIMUM_F32."""
    for is_nan in (_is_signaling, _is_nan):
        for bits in (a, b):
            if is_nan(bits, kind):
                return bits | FORMATS[kind][1]
    return pick((a, b), key=partial(_key, kind=kind))


TWO = {
    "v_max_{}_e32": ("gfx942", _ieee, max),
    "v_min_{}_e32": ("gfx942", _ieee, min),
    "v_max_num_{}_e32": ("gfx1201", _num, max),
    "v_min_num_{}_e32": ("gfx1201", _num, min),
    "v_maximum_{}": ("gfx1201", _propagating, max),
    "v_minimum_{}": ("gfx1201", _propagating, min),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", TWO)
def test_of_two(name, kind):
    architecture, rule, pick = TWO[name]
    edges = FORMATS[kind][2]
    for (a, b), found in results(f"{name.format(kind)} v9, v0, v1", edges, edges, architecture=architecture):
        assert found == rule(pick, kind, a, b), (hex(a), hex(b), hex(found))


THREE = {
    "v_max3_{}": ("gfx942", _ieee, max, max),
    "v_min3_{}": ("gfx942", _ieee, min, min),
    "v_maxmin_{}": ("gfx1100", _ieee, max, min),
    "v_minmax_{}": ("gfx1100", _ieee, min, max),
    "v_max3_num_{}": ("gfx1201", _num, max, max),
    "v_min3_num_{}": ("gfx1201", _num, min, min),
    "v_maxmin_num_{}": ("gfx1201", _num, max, min),
    "v_minmax_num_{}": ("gfx1201", _num, min, max),
    "v_maximum3_{}": ("gfx950", _propagating, max, max),
    "v_minimum3_{}": ("gfx950", _propagating, min, min),
    "v_minimummaximum_{}": ("gfx1201", _propagating, min, max),
    "v_maximumminimum_{}": ("gfx1201", _propagating, max, min),
}


@pytest.mark.parametrize("name", THREE)
def test_of_three(name):
    architecture, rule, first, second = THREE[name]
    edges = [*EDGES32[:2], *EDGES32[8:10], *EDGES32[18:22]]
    for (a, b, c), found in results(f"{name.format('f32')} v9, v0, v1, v2", edges, edges, edges, architecture=architecture):
        assert found == rule(second, "f32", rule(first, "f32", a, b), c), (hex(a), hex(b), hex(c), hex(found))


@pytest.mark.parametrize(
    ("name", "architecture", "rule"), [("v_med3_f32", "gfx942", _ieee), ("v_med3_num_f32", "gfx1201", _num)]
)
def test_the_middle_one(name, architecture, rule):
    edges = [*EDGES32[:2], *EDGES32[8:11], *EDGES32[17:22]]
    for (a, b, c), found in results(f"{name} v9, v0, v1, v2", edges, edges, edges, architecture=architecture):
        if any(_is_nan(bits, "f32") for bits in (a, b, c)):
            assert found == rule(min, "f32", rule(min, "f32", a, b), c)
        elif {a, b, c} & {0, 0x80000000}:
            assert f32(found) == sorted(map(f32, (a, b, c)))[1]
        else:
            assert found == sorted((a, b, c), key=f32)[1]


def test_signs_of_sources():
    after = ran("v_max_f32_e64 v9, |v0|, -v1", v={0: 0xC0000000, 1: 0xC0400000})
    assert f32(int(after.vector[9, 0, 0])) == 3.0
