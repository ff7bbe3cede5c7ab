"""The larger, the smaller and the middle one, bit by bit, against the ISA's pseudocode in Python."""

import math
from functools import partial

import pytest

from tests.emulated.floats import FORMATS, f32, number
from tests.emulated.lines import ran
from tests.emulated.tables import check


def _key(bits: int, kind: str) -> tuple[float, bool]:
    """Orders -0 before +0."""
    value = number(bits, kind)
    return value, math.copysign(1, value) > 0


def _is_nan(bits: int, kind: str) -> bool:
    return math.isnan(number(bits, kind))


def _quiet(bits: int, kind: str) -> int:
    return bits | 1 << FORMATS[kind][0] - 2


def _is_signaling(bits: int, kind: str) -> bool:
    return _is_nan(bits, kind) and bits != _quiet(bits, kind)


def _ieee(pick, kind: str, a: int, b: int) -> int:
    """V_MAX_F32 with WAVE_MODE.IEEE."""
    if _is_signaling(a, kind):
        return _quiet(a, kind)
    if _is_signaling(b, kind):
        return _quiet(b, kind)
    if _is_nan(a, kind):
        return b
    if _is_nan(b, kind):
        return a
    return pick((a, b), key=partial(_key, kind=kind))


def _num(pick, kind: str, a: int, b: int) -> int:
    """V_MAX_NUM_F32."""
    if _is_nan(a, kind) and _is_nan(b, kind):
        return _quiet(a, kind)
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
                return _quiet(bits, kind)
    return pick((a, b), key=partial(_key, kind=kind))


TWO = {
    "v_max_{}": ("gfx942", _ieee, max),
    "v_min_{}": ("gfx942", _ieee, min),
    "v_max_num_{}": ("gfx1201", _num, max),
    "v_min_num_{}": ("gfx1201", _num, min),
    "v_maximum_{}": ("gfx1201", _propagating, max),
    "v_minimum_{}": ("gfx1201", _propagating, min),
    "s_max_num_{}": ("gfx1201", _num, max),
    "s_min_num_{}": ("gfx1201", _num, min),
}


@pytest.mark.parametrize("kind", ["f16", "f32"])
@pytest.mark.parametrize("name", TWO)
def test_the_extreme_of_two_agrees(name, kind):
    architecture, rule, pick = TWO[name]
    check(name.format(kind), f"{kind} = {kind} {kind}", partial(rule, pick, kind), architecture, of_bits=True)


THREE = {
    "v_max3_f32": ("gfx942", _ieee, max, max),
    "v_min3_f32": ("gfx942", _ieee, min, min),
    "v_maxmin_f32": ("gfx1100", _ieee, max, min),
    "v_minmax_f32": ("gfx1100", _ieee, min, max),
    "v_max3_num_f32": ("gfx1201", _num, max, max),
    "v_min3_num_f32": ("gfx1201", _num, min, min),
    "v_maxmin_num_f32": ("gfx1201", _num, max, min),
    "v_minmax_num_f32": ("gfx1201", _num, min, max),
    "v_maximum3_f32": ("gfx950", _propagating, max, max),
    "v_minimum3_f32": ("gfx950", _propagating, min, min),
    "v_minimummaximum_f32": ("gfx1201", _propagating, min, max),
    "v_maximumminimum_f32": ("gfx1201", _propagating, max, min),
}


@pytest.mark.parametrize("name", THREE)
def test_the_extreme_of_three_agrees(name):
    architecture, rule, first, second = THREE[name]
    check(
        name, "f32 = f32 f32 f32", lambda a, b, c: rule(second, "f32", rule(first, "f32", a, b), c), architecture, of_bits=True
    )


@pytest.mark.parametrize(
    ("name", "architecture", "rule"), [("v_med3_f32", "gfx942", _ieee), ("v_med3_num_f32", "gfx1201", _num)]
)
def test_the_middle_of_three_agrees(name, architecture, rule):
    def middle(a, b, c):
        if any(_is_nan(bits, "f32") for bits in (a, b, c)):
            return rule(min, "f32", rule(min, "f32", a, b), c)
        largest = max(map(f32, (a, b, c)))
        return rule(max, "f32", *((b, c) if f32(a) == largest else (a, c) if f32(b) == largest else (a, b)))

    check(name, "f32 = f32 f32 f32", middle, architecture, of_bits=True)


def test_signs_of_sources_are_applied_before_an_extreme():
    after = ran("v_max_f32_e64 v9, |v0|, -v1", v={0: 0xC0000000, 1: 0xC0400000})
    assert f32(int(after.vector[9, 0, 0])) == 3.0
