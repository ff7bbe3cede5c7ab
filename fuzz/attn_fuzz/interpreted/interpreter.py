"""Triton's interpreter, made right and quick. For a process that interprets kernels and nothing else.

As it comes (Triton 3.6 to 3.9) it holds bfloat16 as bit patterns and multiplies and adds those, truncates float32 to bfloat16,
and rounds float8 its own way. It patches `triton.language` anew for every call of a jitted function, and multiplies float16
matrices without a BLAS, which is most of its time. `install` replaces the places where it does so:

    casts between floating types    torch's conversions, to nearest even; float8 saturates, as the GPUs' conversions do
    bfloat16 arithmetic             in float32, rounded once
    tl.dot of 16 bits               in float32, in which products of 16-bit numbers are exact
    tl.fma of float32               in float64, in which the product is exact: rounded once, not twice
    the language                    patched once per module of kernels
    types                           each made once (`attn_fuzz.interpreted.types`)
"""

from typing import Any

import numpy as np
import torch
from attn_fuzz.interpreted import types

# by the name of Triton's dtype; the number is the largest finite value of those that saturate
_TORCH = {
    "fp64": (torch.float64, None),
    "fp32": (torch.float32, None),
    "fp16": (torch.float16, None),
    "bf16": (torch.bfloat16, None),
    "fp8e4nv": (torch.float8_e4m3fn, 448.0),
    "fp8e4b8": (torch.float8_e4m3fnuz, 240.0),
    "fp8e5": (torch.float8_e5m2, 57344.0),
    "fp8e5b16": (torch.float8_e5m2fnuz, 57344.0),
}
# set on Triton's InterpreterBuilder, for kernels that refuse bfloat16 where it is computed as bit patterns
EXACT = "exact_bfloat16"
_HOOKS = ("_patch_lang", "_LangPatchScope", "_convert_float", "InterpreterBuilder")
_BUILDER_HOOKS = ("create_dot", "create_fma", "binary_op")


def install() -> None:
    """Replace them for the life of this process.

    Raises:
        RuntimeError: this Triton's interpreter has not the parts that are replaced.
    """
    import triton
    from triton.runtime import interpreter

    missing = [name for name in _HOOKS if not hasattr(interpreter, name)]
    missing += types.missing()
    missing += [name for name in _BUILDER_HOOKS if not hasattr(getattr(interpreter, "InterpreterBuilder", None), name)]
    if missing:
        raise RuntimeError(f"triton {triton.__version__}: its interpreter has no {', '.join(missing)}, which is replaced here")
    builder = interpreter.InterpreterBuilder
    if getattr(builder, EXACT, False):
        return
    interpreter._patch_lang = _patching_once(interpreter._patch_lang, interpreter._LangPatchScope)
    interpreter._convert_float = _converting_exactly(interpreter._convert_float, interpreter._ir.ROUNDING_MODE.RTZ)
    builder.create_dot = _dot_in_float32(builder.create_dot)
    builder.create_fma = _fma_in_float64(builder.create_fma)
    builder.binary_op = _binary_op_in_float32(builder.binary_op)
    types.install()
    setattr(builder, EXACT, True)


def convert(data: np.ndarray, source: str, target: str) -> np.ndarray:
    """Bit patterns (or numbers) of one floating type as bit patterns of another: to nearest even, float8 saturating."""
    from_dtype, to_dtype, largest = _TORCH[source][0], *_TORCH[target]
    numbers = torch.from_numpy(np.array(data, copy=True, ndmin=1)).view(from_dtype)
    if largest is not None:
        # torch's own conversion makes an overflow NaN
        numbers = torch.where(numbers.isnan(), numbers.double(), numbers.double().clamp(-largest, largest)).to(
            _wide(from_dtype)
        )
    bits = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}[to_dtype.itemsize]
    return numbers.to(to_dtype).view(bits).numpy().reshape(np.shape(data))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _patching_once(patch_language: Any, scope: Any) -> Any:
    patched: set[int] = set()

    def _patch_lang(fn: Any) -> Any:
        module = id(fn.__globals__)
        if module not in patched:
            patched.add(module)
            patch_language(fn)
        return scope()  # nothing to restore

    return _patch_lang


def _converting_exactly(convert_float: Any, toward_zero: Any) -> Any:
    def _convert_float(data: Any, source: Any, target: Any, rounding_mode: Any) -> np.ndarray:
        if source.name in _TORCH and target.name in _TORCH and rounding_mode != toward_zero:
            return convert(data, source.name, target.name)
        return convert_float(data, source, target, rounding_mode)

    return _convert_float


def _dot_in_float32(create_dot: Any) -> Any:
    def dot(builder: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        if d.data.dtype != np.float32 or {a.dtype.scalar.name, b.dtype.scalar.name} - {"fp16", "bf16"}:
            return create_dot(builder, a, b, d, input_precision, max_num_imprecise_acc)
        return type(d)(np.matmul(_float32(a), _float32(b)) + d.data, d.dtype.scalar)

    return dot


def _fma_in_float64(create_fma: Any) -> Any:
    def fma(builder: Any, x: Any, y: Any, z: Any) -> Any:
        if z.data.dtype != np.float32 or z.dtype.scalar.name == "bf16":
            return create_fma(builder, x, y, z)
        total = x.data.astype(np.float64) * y.data + z.data
        return type(z)(total.astype(np.float32), z.dtype.scalar)

    return fma


def _binary_op_in_float32(binary_op: Any) -> Any:
    def bfloat16_op(builder: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        if lhs.dtype.scalar.name != "bf16" or rhs.dtype.scalar.name != "bf16":
            return binary_op(builder, lhs, rhs, op)
        result = op(_float32(lhs), _float32(rhs))
        if result.dtype == np.float32:
            result = convert(result, "fp32", "bf16")
        return type(lhs)(result, lhs.dtype.scalar)

    return bfloat16_op


def _float32(handle: Any) -> np.ndarray:
    if handle.dtype.scalar.name == "bf16":
        return convert(handle.data, "bf16", "fp32").view(np.float32)
    return handle.data.astype(np.float32)
