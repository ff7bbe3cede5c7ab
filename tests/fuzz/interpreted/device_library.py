"""Functions of libdevice in a kernel, each in all dtypes that Triton declares, against mpmath and Python's integers."""

import inspect
import itertools
import math
import struct
from collections.abc import Callable
from typing import Any

import mpmath
import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

mpmath.mp.dps = 40
DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "int32": torch.int32, "int64": torch.int64}
NUMBERS = (0.0, -0.0, 0.25, -0.75, 0.5, 1.0, -1.5, 2.5, -3.5, 7.25, 1e-3, 40.0)
WHOLE = (0, 1, -1, 2, 5, -7, 96, 2**30, -(2**31), 2**31 - 1)

_PLAIN = ("sin", "cos", "tan", "sinh", "cosh", "tanh", "exp", "expm1", "sqrt", "cbrt", "floor", "ceil", "erf", "erfc", "erfinv")
_BITS = {"fp32": ("<f", "<i"), "fp64": ("<d", "<q")}


def _bits(value: Any, source: str, target: str) -> Any:
    return struct.unpack(target, struct.pack(source, value))[0]


def _half_away(x: Any) -> int:
    return int(mpmath.floor(abs(x) + 0.5)) * (-1 if x < 0 else 1)


def _ones(x: int, width: int) -> str:
    return f"{x % 2**width:0{width}b}"


FORMULAS: dict[str, Callable[..., Any]] = {
    **{name: getattr(mpmath, name) for name in _PLAIN},
    **{f"a{name}": getattr(mpmath, f"a{name}") for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh")},
    "atan2": math.atan2,
    **{f"fast_{name}f": getattr(mpmath, name) for name in ("sin", "cos", "tan", "tanh", "exp", "log", "log10")},
    "exp2": lambda x: mpmath.mpf(2) ** x,
    "exp10": lambda x: mpmath.mpf(10) ** x,
    "fast_exp10f": lambda x: mpmath.mpf(10) ** x,
    "log": mpmath.log,
    "log2": lambda x: mpmath.log(x, 2),
    "fast_log2f": lambda x: mpmath.log(x, 2),
    "log10": mpmath.log10,
    "log1p": mpmath.log1p,
    "cospi": mpmath.cospi,
    "sinpi": mpmath.sinpi,
    "j0": mpmath.j0,
    "j1": mpmath.j1,
    "y0": lambda x: mpmath.bessely(0, x),
    "y1": lambda x: mpmath.bessely(1, x),
    "cyl_bessel_i0": lambda x: mpmath.besseli(0, x),
    "cyl_bessel_i1": lambda x: mpmath.besseli(1, x),
    "erfcx": lambda x: mpmath.exp(mpmath.mpf(x) ** 2) * mpmath.erfc(x),
    "erfcinv": lambda x: mpmath.erfinv(1 - mpmath.mpf(x)),
    "normcdf": mpmath.ncdf,
    "normcdfinv": lambda x: mpmath.sqrt(2) * mpmath.erfinv(2 * mpmath.mpf(x) - 1),
    "lgamma": lambda x: mpmath.log(abs(mpmath.gamma(x))),
    "tgamma": mpmath.gamma,
    "abs": lambda x: abs(x) if x != -(2**31) else None,
    "trunc": math.trunc,
    "rint": round,
    "nearbyint": round,
    "llrint": round,
    "round": _half_away,
    "llround": _half_away,
    "logb": lambda x: mpmath.floor(mpmath.log(abs(x), 2)),
    "ilogb": lambda x: mpmath.floor(mpmath.log(abs(x), 2)),
    "rsqrt": lambda x: 1 / mpmath.sqrt(x),
    "rsqrt_rn": lambda x: 1 / mpmath.sqrt(x),
    "rcbrt": lambda x: 1 / mpmath.cbrt(x),
    "rcp_rn": lambda x: 1 / mpmath.mpf(x),
    "sqrt_rn": mpmath.sqrt,
    "saturatef": lambda x: min(max(x, 0), 1),
    "add_rn": lambda x, y: mpmath.mpf(x) + y,
    "sub_rn": lambda x, y: mpmath.mpf(x) - y,
    "mul_rn": lambda x, y: mpmath.mpf(x) * y,
    "div_rn": lambda x, y: mpmath.mpf(x) / y,
    "fast_dividef": lambda x, y: mpmath.mpf(x) / y,
    "copysign": math.copysign,
    "fdim": lambda x, y: max(x - y, 0),
    "fmod": math.fmod,
    "hypot": mpmath.hypot,
    "rhypot": lambda x, y: 1 / mpmath.hypot(x, y),
    "nextafter": None,
    "pow": lambda x, y: mpmath.mpf(x) ** y,
    "fast_powf": lambda x, y: mpmath.mpf(x) ** y,
    "remainder": math.remainder,
    "fma": lambda x, y, z: mpmath.mpf(x) * y + z,
    "fma_rn": lambda x, y, z: mpmath.mpf(x) * y + z,
    **dict.fromkeys(("norm3d", "norm4d"), lambda *x: mpmath.sqrt(sum(mpmath.mpf(each) ** 2 for each in x))),
    **dict.fromkeys(("rnorm3d", "rnorm4d"), lambda *x: 1 / mpmath.sqrt(sum(mpmath.mpf(each) ** 2 for each in x))),
    **dict.fromkeys(("ldexp", "scalbn"), lambda x, n: mpmath.ldexp(x, n) if abs(n) < 100 else None),
    **dict.fromkeys(("isinf", "isnan"), lambda x: 0),
    **dict.fromkeys(("finitef", "isfinited"), lambda x: 1),
    "signbit": lambda x: int(math.copysign(1, x) < 0),
    "hadd": lambda x, y: (x + y) // 2,
    "rhadd": lambda x, y: (x + y + 1) // 2,
    "float_as_int": lambda x: _bits(x, "<f", "<i"),
    "float_as_uint": lambda x: _bits(x, "<f", "<i"),
    "double_as_longlong": lambda x: _bits(x, "<d", "<q"),
    "int_as_float": lambda x: _bits(x, "<i", "<f"),
    "longlong_as_double": lambda x: _bits(x, "<q", "<d"),
    "double2float_rn": lambda x: x,
    **{f"{source}2{to}_rn": lambda x: x for source in ("int", "ll") for to in ("float", "double")},
    **{
        f"{source}2{to}_{way}": rounded
        for source in ("float", "double")
        for to in ("int", "ll")
        for way, rounded in {"rn": round, "rd": math.floor, "ru": math.ceil, "rz": math.trunc}.items()
    },
}
"""By name. What is not a number, or has no formula here, is not compared: poles, domains, overflow."""
OF_BITS: dict[str, Callable[[str], int]] = {
    "brev": lambda bits: int(bits[::-1], 2),
    "clz": lambda bits: len(bits) - len(bits.lstrip("0")),
    "ffs": lambda bits: len(bits) - bits.rindex("1") if "1" in bits else 0,
    "popc": lambda bits: bits.count("1"),
}
UNSIGNED = {"uint2float_rn", "uint2double_rn", "ull2float_rn", "ull2double_rn", "uint_as_float"}
"""Their arguments are unsigned, and differ from those of the signed functions in the declaration alone."""


@triton.jit
def _kernel(out, x, y, z, w, N: tl.constexpr, FUNCTION: tl.constexpr, COUNT: tl.constexpr):
    i = tl.arange(0, N)
    if COUNT == 1:
        found = FUNCTION(tl.load(x + i))
    elif COUNT == 2:
        found = FUNCTION(tl.load(x + i), tl.load(y + i))
    elif COUNT == 3:
        found = FUNCTION(tl.load(x + i), tl.load(y + i), tl.load(z + i))
    else:
        found = FUNCTION(tl.load(x + i), tl.load(y + i), tl.load(z + i), tl.load(w + i))
    tl.store(out + i, found)


def names() -> list[str]:
    return [name for name, _ in inspect.getmembers(libdevice, callable) if not name.startswith("_")]


def checked(name: str) -> Callable[[], None]:
    def check() -> None:
        count = len(inspect.signature(getattr(libdevice, name)).parameters)
        forms = [form for form in itertools.product(DTYPES, repeat=count) if _compares(name, form)]
        assert forms or name in UNSIGNED, f"no dtype of {name} is declared, or none of its results has a formula"

    return check


def _compares(name: str, form: tuple[str, ...]) -> bool:
    """Compare the results of a function. True if Triton declares it for these dtypes."""
    pools = [NUMBERS if "fp" in dtype else WHOLE for dtype in form]
    rows = [tuple(pool[(i * (k + 1) + k) % len(pool)] for k, pool in enumerate(pools)) for i in range(16)]
    operands = [torch.tensor(column, dtype=DTYPES[dtype]) for column, dtype in zip(zip(*rows, strict=True), form, strict=True)]
    out = torch.empty(16, dtype=torch.float64)
    function = tl.constexpr(getattr(libdevice, name))
    try:
        _kernel[(1,)](out, *operands, *[None] * (4 - len(form)), 16, function, len(form))
    except triton.runtime.errors.InterpreterError as error:
        if isinstance(error.__cause__, KeyError | ValueError):
            return False  # dtypes that the declaration has not
        raise
    compared = 0
    for found, *row in zip(out.tolist(), *(operand.tolist() for operand in operands), strict=True):
        expected = _expected(name, row, form[0])
        if expected is not None:
            assert math.isclose(found, expected, rel_tol=1e-6, abs_tol=1e-7), (
                f"{name}{row} in {form}: {found}, expected {expected}"
            )
            compared += 1
    return compared > 0


def _expected(name: str, row: list[Any], dtype: str) -> float | None:
    if name in OF_BITS:
        width = int(dtype.removeprefix("int").removeprefix("fp"))
        found = OF_BITS[name](_ones(row[0], width))
        return float(found - 2**width if name == "brev" and found >= 2 ** (width - 1) else found)
    if name == "nextafter":
        x, y = torch.tensor(row, dtype=DTYPES[dtype])
        return float(torch.nextafter(x, y))
    try:
        found = FORMULAS[name](*row)
    except (ValueError, ZeroDivisionError, OverflowError):
        return None
    is_number = found is not None and not isinstance(found, mpmath.mpc) and mpmath.isfinite(found) and abs(found) < 3e38
    return float(found) if is_number else None
