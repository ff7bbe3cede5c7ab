"""The larger, the smaller and the middle one of floats, which differ by what they make of a NaN and agree that -0 is less
than +0.

`v_max_f32` (until gfx11): of a quiet NaN and a number the result is the number; a signaling NaN is the result, made quiet, if
the kernel's `ieee_mode` is on, and counts as a quiet one if it is off. `v_max_num_f32` (gfx12): of any NaN and a number the
result is the number. `v_maximum_f32`: a NaN is the result.

Source: V_MAX_F32, V_MAX3_F32 and V_MED3_F32 in AMD's Instinct MI300 ISA; V_MAX_NUM_F32, V_MAXIMUM_F32, V_MED3_NUM_F32,
V_MINMAX_NUM_F32 and V_MINIMUMMAXIMUM_F32 in AMD's RDNA4 ISA.
"""

from collections.abc import Callable, Sequence

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel
from attn_amdgcn.instructions.forms import made_vector, vector

Pick = Callable[[np.ndarray, np.ndarray], np.ndarray]
_INTEGERS = {2: (np.uint16, np.int16), 4: (np.uint32, np.int32), 8: (np.uint64, np.int64)}


def _ordered(bits: np.ndarray) -> np.ndarray:
    """Signed integers in the order of the floats whose bits they are, and back."""
    return bits ^ (bits >> bits.dtype.type(8 * bits.dtype.itemsize - 1) & np.iinfo(bits.dtype).max)


def _picked(pick: Pick, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The larger or the smaller one of two numbers, by their bits."""
    signed = _INTEGERS[a.dtype.itemsize][1]
    return _ordered(pick(_ordered(a.view(signed)), _ordered(b.view(signed)))).view(a.dtype)


def quiet(value: np.ndarray) -> np.ndarray:
    """A NaN with its highest bit of the mantissa set."""
    unsigned, _ = _INTEGERS[value.dtype.itemsize]
    return (value.view(unsigned) | unsigned(1 << np.finfo(value.dtype).nmant - 1)).view(value.dtype)


def is_signaling(value: np.ndarray) -> np.ndarray:
    unsigned, _ = _INTEGERS[value.dtype.itemsize]
    return np.isnan(value) & (value.view(unsigned) & unsigned(1 << np.finfo(value.dtype).nmant - 1) == 0)


def _number_or_quieted(pick: Pick, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    result = np.where(np.isnan(a), b, np.where(np.isnan(b), a, _picked(pick, a, b)))
    return np.where(is_signaling(a), quiet(a), np.where(is_signaling(b), quiet(b), result))


def _number(pick: Pick, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    result = np.where(np.isnan(a), b, np.where(np.isnan(b), a, _picked(pick, a, b)))
    return np.where(np.isnan(a) & np.isnan(b), quiet(a), result)


def _number_or_second(pick: Pick, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(a), b, np.where(np.isnan(b), a, _picked(pick, a, b)))


def _nan(pick: Pick, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    result = np.where(np.isnan(a), quiet(a), np.where(np.isnan(b), quiet(b), _picked(pick, a, b)))
    return np.where(is_signaling(b) & ~is_signaling(a), quiet(b), result)


_OF_ZEROS: dict[Pick, Pick] = {np.maximum: np.add, np.minimum: lambda a, b: -(-a - b)}
"""The larger and the smaller one of two zeros."""


def _rule(pick: Pick, of_any: Callable[[Pick, np.ndarray, np.ndarray], np.ndarray]) -> Pick:
    def picked(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        result = pick(a, b)  # numpy passes a NaN on, and may take the wrong zero
        if np.count_nonzero(result == result) < result.size:
            return of_any(pick, a, b)
        if np.count_nonzero(result != 0) < result.size:
            np.copyto(result, _OF_ZEROS[pick](a, b), where=(a == 0) & (b == 0))
        return result

    return picked


max_ieee, min_ieee = _rule(np.maximum, _number_or_quieted), _rule(np.minimum, _number_or_quieted)
max_dx, min_dx = _rule(np.maximum, _number_or_second), _rule(np.minimum, _number_or_second)
max_num, min_num = _rule(np.maximum, _number), _rule(np.minimum, _number)
maximum, minimum = _rule(np.maximum, _nan), _rule(np.minimum, _nan)


def three(first: Pick, second: Pick) -> Callable[..., np.ndarray]:
    """second(first(a, b), c)."""
    return lambda a, b, c: second(first(a, b), c)


def middle(larger: Pick, smaller: Pick) -> Callable[..., np.ndarray]:
    """The middle one of three; if one is a NaN, the smallest one by the rule of `smaller`."""

    def med3(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        most = larger(larger(a, b), c)
        result = np.where(most == a, larger(b, c), np.where(most == b, larger(a, c), larger(a, b)))
        has_nan = np.isnan(a) | np.isnan(b) | np.isnan(c)
        return np.where(has_nan, smaller(smaller(a, b), c), result) if has_nan.any() else result

    return med3


def _register(name: str, signature: str, takes: Sequence[str], ieee: Callable, dx: Callable, *, keeps_half: bool) -> None:
    """Register an instruction whose meaning depends on `ieee_mode`."""

    def make(instruction: Instruction, kernel: Kernel) -> Callable:
        return ieee if kernel.settings.get("ieee_mode", 1) else dx

    made_vector(name, signature, takes=takes, keeps_half=keeps_half)(make)


for _f in ("f16", "f32"):
    _two, _three = f"{_f} = {_f} {_f}", f"{_f} = {_f} {_f} {_f}"
    _takes = ("clamp", "op_sel") if _f == "f16" else ("clamp",)
    for _names, _function in (
        (f"v_max_num_{_f}", max_num),
        (f"v_min_num_{_f}", min_num),
        (f"v_maximum_{_f}", maximum),
        (f"v_minimum_{_f}", minimum),
    ):
        vector(_names, _two, takes=_takes)(_function)
    for _names, _function in (
        (f"v_max3_num_{_f}", three(max_num, max_num)),
        (f"v_min3_num_{_f}", three(min_num, min_num)),
        (f"v_minmax_num_{_f}", three(min_num, max_num)),
        (f"v_maxmin_num_{_f}", three(max_num, min_num)),
        (f"v_med3_num_{_f}", middle(max_num, min_num)),
        (f"v_maximum3_{_f}", three(maximum, maximum)),
        (f"v_minimum3_{_f}", three(minimum, minimum)),
        (f"v_minimummaximum_{_f}", three(minimum, maximum)),
        (f"v_maximumminimum_{_f}", three(maximum, minimum)),
    ):
        vector(_names, _three, takes=_takes, keeps_half=True)(_function)
    for _names, _ieee, _dx in (
        (f"v_max3_{_f}", three(max_ieee, max_ieee), three(max_dx, max_dx)),
        (f"v_min3_{_f}", three(min_ieee, min_ieee), three(min_dx, min_dx)),
        (f"v_minmax_{_f}", three(min_ieee, max_ieee), three(min_dx, max_dx)),
        (f"v_maxmin_{_f}", three(max_ieee, min_ieee), three(max_dx, min_dx)),
        (f"v_med3_{_f}", middle(max_ieee, min_ieee), middle(max_dx, min_dx)),
    ):
        _register(_names, _three, _takes, _ieee, _dx, keeps_half=True)
    _register(f"v_max_{_f}", _two, _takes, max_ieee, max_dx, keeps_half=False)
    _register(f"v_min_{_f}", _two, _takes, min_ieee, min_dx, keeps_half=False)
_register("v_max_f64", "f64 = f64 f64", ("clamp",), max_ieee, max_dx, keeps_half=False)
_register("v_min_f64", "f64 = f64 f64", ("clamp",), min_ieee, min_dx, keeps_half=False)
vector("v_max_num_f64", "f64 = f64 f64", takes=("clamp",))(max_num)
vector("v_min_num_f64", "f64 = f64 f64", takes=("clamp",))(min_num)
