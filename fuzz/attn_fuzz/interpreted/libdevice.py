"""Functions of libdevice in interpreted kernels: `triton.language.extra.libdevice`, and those of `cuda` and `hip` beside it.

As it comes, the interpreter calls the stubs of the first module, which return None, and refuses the other two. Here each
function has the dtypes of Triton's own declaration, and is computed in float64 and rounded once. Functions named `fast_...` are
as exact as the others; those of hardware are not. A function that is not computed raises a LimitError with its name.
"""

import functools
import importlib
import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from attn_fuzz.errors import LimitError
from attn_fuzz.interpreted.numbers import STORED, cast, decoded

_MODULES = tuple(f"triton.language.extra.{name}" for name in ("libdevice", "cuda.libdevice", "hip.libdevice"))
_DIRECTED = ("_rd", "_ru", "_rz")
_METHODS = {"fma": "create_fma", "fma_rn": "create_fma"}
"""Functions that are methods of the interpreter's builder."""
called: list[str] = []
"""The functions whose declarations are asking for a symbol, the innermost last: exact mode computes some of them, too."""


def _special(name: str) -> Callable[[np.ndarray], np.ndarray]:
    function = getattr(torch.special, name)
    return lambda x: function(torch.from_numpy(np.array(x, ndmin=1))).numpy().reshape(np.shape(x))


def _half_away(x: np.ndarray) -> np.ndarray:
    return np.copysign(np.floor(np.abs(x) + 0.5), x)


def _gamma(x: np.ndarray) -> np.ndarray:
    def one(number: float) -> float:
        try:
            return math.gamma(number)
        except OverflowError:
            return math.inf
        except ValueError:  # a pole, or -inf
            return math.copysign(math.inf, number) if number == 0 else math.nan

    return np.vectorize(one, otypes=[np.float64])(x)


def _remainder(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    def one(a: float, b: float) -> float:
        return math.remainder(a, b) if math.isfinite(a) and b != 0 and not math.isnan(b) else math.nan

    return np.vectorize(one, otypes=[np.float64])(x, y)


def _exponent(x: np.ndarray) -> np.ndarray:
    return np.frexp(x)[1] - 1.0


def _bits(x: np.ndarray) -> np.ndarray:
    return x.view(f"u{x.dtype.itemsize}")


def _count_of_ones(x: np.ndarray) -> np.ndarray:
    return np.vectorize(lambda bits: int(bits).bit_count(), otypes=[np.int32])(_bits(x))


def _leading_zeros(x: np.ndarray) -> np.ndarray:
    width = 8 * x.dtype.itemsize
    return np.vectorize(lambda bits: width - int(bits).bit_length(), otypes=[np.int32])(_bits(x))


def _first_one(x: np.ndarray) -> np.ndarray:
    """The place of the lowest bit that is set, from 1; 0 if none is."""
    return np.vectorize(lambda bits: (int(bits) & -int(bits)).bit_length(), otypes=[np.int32])(_bits(x))


def _reversed_bits(x: np.ndarray) -> np.ndarray:
    width = 8 * x.dtype.itemsize
    turned = np.vectorize(lambda bits: int(f"{int(bits):0{width}b}"[::-1], 2), otypes=[_bits(x).dtype])(_bits(x))
    return turned.view(x.dtype)


FLOATS: dict[str, Callable[..., np.ndarray]] = {
    **{name: getattr(np, name) for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh", "exp", "exp2", "expm1")},
    **{name: getattr(np, name) for name in ("log", "log2", "log10", "log1p", "sqrt", "cbrt", "floor", "ceil", "trunc", "rint")},
    **{f"a{name}": getattr(np, f"arc{name}") for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh", "tan2")},
    **{name: getattr(np, name) for name in ("copysign", "fmod", "hypot")},
    **{name: _special(name) for name in ("erf", "erfc", "erfcx", "erfinv")},
    **{f"{kind}{order}": _special(f"bessel_{kind}{order}") for kind in "jy" for order in (0, 1)},
    "cyl_bessel_i0": _special("i0"),
    "cyl_bessel_i1": _special("i1"),
    "abs": np.abs,
    "exp10": lambda x: np.power(10.0, x),
    "cospi": lambda x: np.cos(np.pi * np.fmod(x, 2.0)),
    "sinpi": lambda x: np.sin(np.pi * np.fmod(x, 2.0)),
    "erfcinv": lambda x: _special("erfinv")(1 - x),
    "normcdf": _special("ndtr"),
    "normcdfinv": _special("ndtri"),
    "lgamma": _special("gammaln"),
    "tgamma": _gamma,
    "nearbyint": np.rint,
    "round": _half_away,
    "logb": lambda x: np.where(x == 0, -np.inf, np.where(np.isinf(x), np.inf, _exponent(x))),
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "rcbrt": lambda x: 1 / np.cbrt(x),
    "saturatef": lambda x: np.where(np.isnan(x), 0.0, np.clip(x, 0.0, 1.0)),
    "fdim": lambda x, y: np.where(x > y, x - y, np.where(np.isnan(x) | np.isnan(y), np.nan, 0.0)),
    "pow": np.power,
    "remainder": _remainder,
    "rhypot": lambda x, y: 1 / np.hypot(x, y),
    "norm3d": lambda *x: np.sqrt(sum(each * each for each in x)),
    "rnorm3d": lambda *x: 1 / np.sqrt(sum(each * each for each in x)),
    "ldexp": np.ldexp,
    "scalbn": np.ldexp,
    "rcp_rn": lambda x: 1 / x,
    "rsqrt_rn": lambda x: 1 / np.sqrt(x),
    "sqrt_rn": np.sqrt,
    "add_rn": np.add,
    "sub_rn": np.subtract,
    "mul_rn": np.multiply,
    "div_rn": np.divide,
    "double2float_rn": lambda x: x,
}
"""Functions of float64, by name. Their results are rounded to the float that Triton declares."""
FLOATS |= {
    f"fast_{name}f": FLOATS[name] for name in ("sin", "cos", "tan", "tanh", "exp", "exp10", "log", "log2", "log10", "pow")
}
FLOATS |= {"fast_dividef": np.divide, "norm4d": FLOATS["norm3d"], "rnorm4d": FLOATS["rnorm3d"]}

INTEGERS: dict[str, Callable[..., np.ndarray]] = {
    "abs": np.abs,
    "brev": _reversed_bits,
    "clz": _leading_zeros,
    "ffs": _first_one,
    "popc": _count_of_ones,
    "hadd": lambda x, y: (x >> 1) + (y >> 1) + (x & y & 1),
    "rhadd": lambda x, y: (x >> 1) + (y >> 1) + ((x | y) & 1),
    "float_as_int": lambda x: x.view(np.int32),
    "float_as_uint": lambda x: x.view(np.uint32),
    "double_as_longlong": lambda x: x.view(np.int64),
    "int_as_float": lambda x: x.view(np.float32),
    "uint_as_float": lambda x: x.view(np.float32),
    "longlong_as_double": lambda x: x.view(np.float64),
    "nextafter": np.nextafter,
    **{f"{source}2{to}_rn": lambda x: x for source in ("int", "uint", "ll", "ull") for to in ("float", "double")},
}
"""Functions of integers or of bits, by name. They act on the stored numbers."""

TO_INTEGERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    **dict.fromkeys(("isinf",), np.isinf),
    **dict.fromkeys(("isnan",), np.isnan),
    **dict.fromkeys(("finitef", "isfinited"), np.isfinite),
    "signbit": np.signbit,
    "ilogb": _exponent,
    "llrint": np.rint,
    "llround": _half_away,
    **{
        f"{source}2{to}_{way}": function
        for source in ("float", "double")
        for to in ("int", "ll")
        for way, function in {"rn": np.rint, "rd": np.floor, "ru": np.ceil, "rz": np.trunc}.items()
    },
}
"""Functions of floats, by name, whose results are whole and are cast to integers."""


UNKNOWN = "it is not computed here"


def why_not(name: str) -> str | None:
    """The reason why the interpreter does not compute a function of libdevice, or None."""
    if name in FLOATS or name in INTEGERS or name in TO_INTEGERS or name in _METHODS:
        return None
    if "2u" in name and name.startswith(("float", "double")):
        return "Triton declares its unsigned result as signed"
    return "its rounding is directed" if name.endswith(_DIRECTED) else UNKNOWN


def install(interpreter: Any) -> None:
    """Give the interpreter these functions, of Triton's `triton.runtime.interpreter`."""
    builder, semantic = interpreter.InterpreterBuilder, interpreter.interpreter_semantic

    def create_extern_elementwise(self: Any, library: str, path: str, symbol: str, args: list[Any], to: Any, pure: bool) -> Any:
        name = called[-1] if called else symbol
        if (reason := why_not(name)) is not None:
            raise LimitError(f"{name} of libdevice: {reason}")
        if name in _METHODS:
            return getattr(self, _METHODS[name])(*args)
        return interpreter.TensorHandle(_computed(name, args, to.scalar.name), to.scalar)

    builder.create_extern_elementwise = create_extern_elementwise
    declared = {name: _functions(name) for name in _MODULES}
    for module, functions in declared.items():
        for name, function in functions.items():
            own = function if module != _MODULES[0] else declared[_MODULES[1]].get(name, declared[_MODULES[2]].get(name))
            in_kernel = _in_kernel(name, own, semantic)
            setattr(importlib.import_module(module), name, functools.wraps(function)(in_kernel))


def _functions(module: str) -> dict[str, Any]:
    members = inspect.getmembers(importlib.import_module(module), callable)
    return {name: member for name, member in members if not name.startswith("_")}


def _in_kernel(name: str, declaration: Any, semantic: Any) -> Any:
    def function(*args: Any, **kwargs: Any) -> Any:
        if declaration is None:
            raise LimitError(f"{name} of libdevice: no backend of this Triton declares it")
        called.append(name)
        try:
            return declaration(*args, **{**kwargs, "_semantic": semantic})
        finally:
            called.pop()

    return function


def _computed(name: str, args: list[Any], to: str) -> np.ndarray:
    names = [arg.dtype.scalar.name for arg in args]
    stored = [arg.data for arg in args]
    if name in INTEGERS and not (name == "abs" and "fp" in names[0]):
        return INTEGERS[name](*stored).astype(STORED[to])
    numbers = [decoded(data, dtype) for data, dtype in zip(stored, names, strict=True)]
    wide = [each.astype(np.float64) if each.dtype.kind == "f" else each for each in numbers]
    if name in TO_INTEGERS:
        found = TO_INTEGERS[name](*wide)
        return found.astype(np.int32) if found.dtype == np.bool_ else cast(found, "fp64", to)
    return cast(np.asarray(FLOATS[name](*wide), np.float64), "fp64", to)
