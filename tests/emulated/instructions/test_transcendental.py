"""Powers, logarithms and reciprocals against Python's math, one ulp allowed; what is flushed and what is special, exactly."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from tests.emulated.floats import EDGES16, EDGES32, bits32, f16, f32, is_same, results

FUNCTIONS: dict[str, Callable[[float], float]] = {
    "exp": lambda a: 0.0 if a < -2000 else math.inf if a > 1000 else 2.0**a,
    "log": lambda a: -math.inf if a == 0 else math.nan if a < 0 else math.log2(a),
    "rcp": lambda a: math.copysign(math.inf, a) if a == 0 else 1 / a,
    "sqrt": lambda a: math.nan if a < 0 else math.sqrt(a),
    "rsq": lambda a: math.copysign(math.inf, a) if a == 0 else math.nan if a < 0 else 1 / math.sqrt(a),
    "sin": lambda a: math.nan if math.isinf(a) else math.sin(2 * math.pi * math.fmod(a, 1)),
    "cos": lambda a: math.nan if math.isinf(a) else math.cos(2 * math.pi * math.fmod(a, 1)),
    "tanh": math.tanh,
}
VALUES = [
    0.1,
    0.75,
    2.0,
    3.0,
    10.25,
    -0.5,
    -1.5,
    -125.5,
    -126.0,
    -126.5,
    -149.0,
    127.5,
    128.0,
    1e-30,
    2.0**126,
    2.0**127,
    -(2.0**126),
]
VALUES32 = [bits32(float(np.float32(value))) for value in VALUES]


def _flushed(value: float) -> float:
    return math.copysign(0.0, value) if abs(value) < 2.0**-126 else value


def _is_near(found: float, expected: float) -> bool:
    return found == expected or abs(found - expected) <= 2.0**-23 * abs(expected)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_float32_are_near(name):
    for (a,), found in results(f"v_{name}_f32_e32 v9, v0", EDGES32 + VALUES32):
        value = _flushed(f32(a))
        expected = value if math.isnan(value) else FUNCTIONS[name](value)
        if math.isnan(expected) or math.isinf(expected) or abs(expected) < 2.0**-126:
            assert is_same(found, _flushed(expected), "f32"), (value, hex(found))
        elif abs(expected) >= 2.0**128:
            assert is_same(found, math.copysign(math.inf, expected), "f32"), (value, hex(found))
        else:
            slack = 2.0**-50 if name in ("sin", "cos") else 0
            assert _is_near(f32(found), expected) or abs(f32(found) - expected) <= slack, (value, hex(found))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_of_float16_keeps_denormals(name):
    for (a,), found in results(f"v_{name}_f16_e32 v9, v0", EDGES16):
        value = f16(a)
        expected = value if math.isnan(value) else FUNCTIONS[name](value)
        if math.isnan(expected) or abs(expected) >= 65520:
            assert is_same(found, expected if math.isnan(expected) else math.copysign(math.inf, expected), "f16"), (
                value,
                hex(found),
            )
        else:
            assert abs(f16(found) - expected) <= 2.0**-10 * abs(expected) + 2.0**-25, (value, hex(found))


def test_whole_powers_and_reciprocals_of_powers_are_exact():
    for (a,), found in results("v_exp_f32_e32 v9, v0", [bits32(float(n)) for n in range(-126, 128)]):
        assert f32(found) == 2.0 ** f32(a)
    for (a,), found in results("v_rcp_iflag_f32_e32 v9, v0", [bits32(2.0**n) for n in range(-126, 127)]):
        assert f32(found) == 1 / f32(a)
