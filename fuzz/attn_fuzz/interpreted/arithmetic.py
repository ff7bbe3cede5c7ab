"""Correct arithmetic for Triton's interpreter: methods that replace those of its `InterpreterBuilder`.

As it comes (Triton 3.6 to 3.9), the interpreter computes with the bit patterns of bfloat16 and float8, and its comparisons
return the dtype of their operands. The methods here compute as compiled code does:

    bfloat16      in float32, rounded once to nearest even
    float8        not at all: no backend compiles arithmetic or comparisons of float8, and a kernel casts first
    int1          modulo 2
    integers      `//` and `%` truncate; `umulhi` takes bits as unsigned numbers
    fma           rounded once; float64 as far as this Triton has an exact one
    min, max      a NaN loses against a number, unless the kernel asks for PropagateNan.ALL
    tl.dot        of float8 and 16-bit floats in float32, in which products of such numbers are exact
"""

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
from attn_fuzz.errors import LimitError, RefusedByTritonError
from attn_fuzz.interpreted.numbers import STORED, cast, decoded, larger, rounded_to_odd, smaller

_BITS_OF_32 = np.uint64(0xFFFFFFFF)


def methods(interpreter: Any) -> dict[str, Callable[..., Any]]:
    """The methods by name, for Triton's module `triton.runtime.interpreter`."""
    handle, tl, builder = interpreter.TensorHandle, interpreter.tl, interpreter.InterpreterBuilder
    replaced = {
        **_casts(handle, tl, interpreter._ir.ROUNDING_MODE.RTZ),
        **_elementwise(handle, tl, interpreter._ir.PROPAGATE_NAN.NONE),
        "create_fma": _fma(handle, builder.create_fma if hasattr(interpreter._interpreter, "fma_fp64") else None),
        "create_dot": _dot(handle, builder.create_dot),
        "create_inline_asm": _inline_asm,
        "create_umulhi": lambda self, lhs, rhs: handle(_high_bits(lhs.data, rhs.data), lhs.dtype.scalar),
        "create_histogram": lambda self, data, bins, mask: handle(_histogram(data.data, bins, mask), tl.int32),
        "create_atomic_rmw": _atomic_rmw(handle, builder.create_atomic_rmw, interpreter),
        "create_descriptor_load": _descriptor_load(builder.create_descriptor_load, interpreter._ir.PADDING_OPTION.PAD_NAN),
    }
    if hasattr(builder, "create_tensor_pointer_load"):
        replaced["create_tensor_pointer_load"] = _block_pointer_load(
            builder.create_tensor_pointer_load, interpreter._ir.PADDING_OPTION.PAD_NAN
        )
    return replaced


def _inline_asm(self: Any, *arguments: Any) -> NoReturn:
    raise LimitError("tl.inline_asm_elementwise: the text is that of a GPU")


def _casts(handle: Any, tl: Any, to_zero: Any) -> dict[str, Callable[..., Any]]:
    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        to = target.scalar
        return handle(cast(source.data, source.dtype.scalar.name, to.name), to)

    def create_fp_to_fp(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        to = target.scalar
        return handle(cast(source.data, source.dtype.scalar.name, to.name, toward_zero=rounding == to_zero), to)

    def get_bf16(self: Any, value: float) -> Any:
        return handle(cast(np.array([value], np.float32), "fp32", "bf16"), tl.bfloat16)

    def get_all_ones_value(self: Any, dtype: Any) -> Any:
        return handle(np.invert(np.zeros(1, STORED[dtype.scalar.name])), dtype.scalar)

    replaced = (cast_impl, create_fp_to_fp, get_bf16, get_all_ones_value)
    return {method.__name__: method for method in replaced}


def _elementwise(handle: Any, tl: Any, nan_loses: Any) -> dict[str, Callable[..., Any]]:
    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        dtype = lhs.dtype.scalar
        x, y = lhs.data, rhs.data
        name = dtype.name
        if name == "bf16":
            result = op(decoded(x, name), decoded(y, name))
        elif x.dtype == np.bool_ and y.dtype == np.bool_:
            result = op(x.astype(np.int8), y.astype(np.int8)) & 1
        else:
            if dtype.is_fp8() and op is not np.bitwise_and:  # tl.abs of fp8e4b15 clears a bit
                raise _of_float8(op.__name__, name)
            result = op(x, y)
        if result.dtype == np.bool_:
            return handle(result, tl.int1)
        return handle(_stored(result, dtype), dtype)

    def unary_op(self: Any, arg: Any, op: Any) -> Any:
        dtype = arg.dtype.scalar
        if dtype.is_fp8():
            raise _of_float8(op.__name__, dtype.name)
        return handle(_stored(op(decoded(arg.data, dtype.name)), dtype), dtype)

    def clamp(self: Any, x: Any, low: Any, high: Any, propagate_nan: Any) -> Any:
        above, below = (larger, smaller) if propagate_nan == nan_loses else (np.maximum, np.minimum)
        return binary_op(self, binary_op(self, x, low, above), high, below)

    def applying(op: Any) -> Callable[..., Any]:
        return lambda self, lhs, rhs: binary_op(self, lhs, rhs, op)

    return {
        "binary_op": binary_op,
        "unary_op": unary_op,
        "create_clampf": clamp,
        "create_minnumf": applying(smaller),
        "create_maxnumf": applying(larger),
        "create_idiv": applying(_quotient),
    }


def _stored(numbers: np.ndarray, dtype: Any) -> np.ndarray:
    """Results of an operation as numbers of its dtype."""
    if dtype.name == "bf16":
        return cast(numbers, "fp32", "bf16")
    stored = STORED.get(dtype.name)  # a pointer has none
    return numbers if stored is None or numbers.dtype == stored else numbers.astype(stored)


def _of_float8(operation: str, name: str) -> RefusedByTritonError:
    return RefusedByTritonError(f"{operation} of {name}: Triton compiles no arithmetic of float8, cast to tl.float32 first")


def _quotient(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x - np.fmod(x, y)) // y


def _fma(handle: Any, of_float64: Any) -> Callable[..., Any]:
    def fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        dtype = z.dtype.scalar
        if not dtype.is_standard_floating():
            raise (
                _of_float8("fma", dtype.name)
                if dtype.is_fp8()
                else RefusedByTritonError(f"fma of {dtype.name}, expected floats")
            )
        if dtype.name == "fp64":
            if of_float64 is None:
                raise LimitError("fma of fp64: the interpreter of this Triton rounds it twice")
            return of_float64(self, x, y, z)
        a, b, c = (decoded(each.data, dtype.name).astype(np.float64) for each in (x, y, z))
        product = a * b  # exact
        total = product + c
        taken = total - product
        odd = rounded_to_odd(total, (product - (total - taken)) + (c - taken))
        return handle(cast(odd, "fp64", dtype.name), dtype)

    return fma


def _dot(handle: Any, create_dot: Any) -> Callable[..., Any]:
    def dot(self: Any, a: Any, b: Any, acc: Any, *rest: Any) -> Any:
        dtype, names = acc.dtype.scalar, [a.dtype.scalar.name, b.dtype.scalar.name]
        if dtype.name not in ("fp16", "fp32") or any(name in ("fp32", "fp64") for name in names):
            return create_dot(self, a, b, acc, *rest)
        left, right = (decoded(each.data, name).astype(np.float32) for each, name in zip((a, b), names, strict=True))
        return handle((np.matmul(left, right) + acc.data).astype(acc.data.dtype), dtype)

    return dot


def _high_bits(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The upper half of the bits of products, of operands as unsigned numbers."""
    unsigned, bits = f"uint{8 * x.itemsize}", np.uint64(8 * x.itemsize)
    a, b = x.view(unsigned).astype(np.uint64), y.view(unsigned).astype(np.uint64)
    if bits < 64:
        return (a * b >> bits).astype(unsigned).view(x.dtype)
    half = np.uint64(32)
    (a1, a0), (b1, b0) = ((each >> half, each & _BITS_OF_32) for each in (a, b))
    middle = a1 * b0 + (a0 * b0 >> half)
    other = a0 * b1 + (middle & _BITS_OF_32)
    return (a1 * b1 + (middle >> half) + (other >> half)).view(x.dtype)


def _histogram(data: np.ndarray, bins: int, mask: Any) -> np.ndarray:
    """A histogram: the count of each of the numbers 0 to bins - 1, without those that `mask` hides."""
    counted = (data >= 0) & (data < bins)
    if mask is not None:
        counted &= mask.data
    return np.bincount(data[counted].astype(np.int64), minlength=bins).astype(np.int32)


def _atomic_rmw(handle: Any, create_atomic_rmw: Any, interpreter: Any) -> Callable[..., Any]:
    memory, operations = interpreter._interpreter, interpreter._ir.ATOMIC_OP

    def rmw(self: Any, op: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        dtype = value.dtype.scalar
        # Triton before 3.9 reads memory as if nothing were broadcast
        pointers, value, mask = (handle(np.ascontiguousarray(each.data), each.dtype) for each in (pointers, value, mask))
        if op == operations.XCHG and dtype.is_floating():  # Triton's own exchanges only integers
            bits = handle(value.data.view(f"uint{dtype.primitive_bitwidth}"), value.dtype)
            old = create_atomic_rmw(self, op, pointers, bits, mask, *rest)
            return handle(old.data.view(value.data.dtype), dtype)
        if op != operations.FADD or dtype.name != "bf16":
            return create_atomic_rmw(self, op, pointers, value, mask, *rest)
        before = np.zeros_like(value.data)
        addresses, addends, enabled = (np.broadcast_to(each.data, before.shape).ravel() for each in (pointers, value, mask))
        everything = np.ones(1, np.bool_)
        for lane in np.flatnonzero(enabled):  # one by one, because several may have one address
            address = addresses[lane : lane + 1].copy()
            old = memory.load(address, everything, np.zeros(1, np.uint16), STORED["bf16"])
            total = self.binary_op(handle(old, dtype), handle(addends[lane : lane + 1], dtype), np.add)
            memory.store(address, total.data, everything)
            before.flat[lane] = old[0]
        return handle(before, dtype)

    return rmw


def _descriptor_load(load: Any, pad_nan: Any) -> Callable[..., Any]:
    def descriptor_load(self: Any, descriptor: Any, *rest: Any) -> Any:
        if descriptor.padding == pad_nan:
            _refuse_nan_padding(descriptor.base)
        return load(self, descriptor, *rest)

    return descriptor_load


def _block_pointer_load(load: Any, pad_nan: Any) -> Callable[..., Any]:
    def block_pointer_load(self: Any, pointer: Any, boundary_check: Any, padding: Any, *rest: Any) -> Any:
        if padding == pad_nan:
            _refuse_nan_padding(pointer.base)
        return load(self, pointer, boundary_check, padding, *rest)

    return block_pointer_load


def _refuse_nan_padding(base: Any) -> None:
    name = base.get_element_ty().name
    if STORED[name].kind != "f":
        raise LimitError(f"a load of {name} that pads with NaN: Triton's interpreter pads with bits of an integer")


def scaled_operand(interpreter: Any) -> Callable[[Any], np.ndarray]:
    """A replacement of `_mxfp_value_handle_to_float32`: the elements of an operand of tl.dot_scaled, before they are scaled."""
    of_pairs = interpreter._e2m1_to_f32
    return lambda operand: (
        of_pairs(operand.data)
        if operand.dtype.scalar.name == "uint8"
        else decoded(operand.data, operand.dtype.scalar.name).astype(np.float32)
    )
