"""Methods that replace those of the `InterpreterBuilder` of Triton's interpreter, and compute with elements in place of floats.

While a call is followed (`attn_fuzz.exact.followed_call`), a method computes with elements if one of its operands is a block of
elements, and as before otherwise. Blocks of elements come from loads of floats and from constants. Integers, pointers and
truth values stay arrays of NumPy. An operation on elements that is not listed here is refused by its name.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from attn_fuzz.exact import algebra, elements, followed_call
from attn_fuzz.exact.elements import Elements
from attn_fuzz.exact.refusal import NotCarriedError
from attn_fuzz.interpreted import libdevice
from attn_fuzz.interpreted.numbers import STORED, cast, decoded
from attn_fuzz.interpreted.together import blocks

Handle = Any
Method = Callable[..., Any]

_BINARY: dict[str, Callable[[Elements, Elements], Elements]] = {
    "create_fadd": algebra.add,
    "create_fsub": algebra.subtract,
    "create_fmul": algebra.multiply,
    "create_fdiv": algebra.divide,
    "create_precise_divf": algebra.divide,
    "create_approx_divf": algebra.divide,
    "create_minnumf": algebra.smaller,
    "create_maxnumf": algebra.larger,
}
_UNARY: dict[str, Callable[[Elements], Elements]] = {
    "create_fneg": algebra.negative,
    "create_fabs": algebra.absolute,
    "create_exp2": algebra.exp2,
    "create_exp": algebra.exp,
    "create_log2": algebra.log2,
    "create_log": algebra.log,
}
_LIBDEVICE: dict[str, Callable[..., Elements]] = {
    **dict.fromkeys(("tanh", "fast_tanhf"), algebra.tanh),
    **dict.fromkeys(("exp", "fast_expf"), algebra.exp),
    **dict.fromkeys(("log", "fast_logf"), algebra.log),
    **dict.fromkeys(("log2", "fast_log2f"), algebra.log2),
    **dict.fromkeys(("div_rn", "fast_dividef"), algebra.divide),
    "exp2": algebra.exp2,
    "abs": algebra.absolute,
    "add_rn": algebra.add,
    "sub_rn": algebra.subtract,
    "mul_rn": algebra.multiply,
}
"""Functions of libdevice, by name."""
_COMPARISONS = {
    "LT": np.less,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
    "EQ": np.equal,
    "NE": np.not_equal,
}
_REFUSED = (
    *("create_frem", "create_minimumf", "create_maximumf", "create_cos", "create_sin", "create_floor"),
    *("create_ceil", "create_sqrt", "create_precise_sqrt", "create_rsqrt", "create_erf", "create_dot_scaled"),
    *("create_atomic_rmw", "create_atomic_cas", "create_histogram", "create_umulhi", "create_atomic_load"),
    *("create_atomic_store", "create_atomic_poll"),
)
_CONSTANTS = {"get_fp16": "fp16", "get_bf16": "bf16", "get_fp32": "fp32", "get_fp64": "fp64"}


def methods(interpreter: Any) -> dict[str, Method]:
    """The methods of the builder by name, for Triton's module `triton.runtime.interpreter`."""
    handle, tl, builder = interpreter.TensorHandle, interpreter.tl, interpreter.InterpreterBuilder
    of = partial(blocks.method, builder)
    found: dict[str, Method] = {}
    for name, operation in {**_BINARY, **_UNARY}.items():
        if hasattr(builder, name):  # Triton 3.6 has no create_approx_divf and no create_fneg
            found[name] = _on_elements(handle, of(name), operation)
    for name, operation in _COMPARISONS.items():
        for kind in "OU":
            full = f"create_fcmp{kind}{name}"
            found[full] = _comparison(handle, tl.int1, of(full), operation)
    for name in _REFUSED:
        if hasattr(builder, name):
            found[name] = _refusing(name, of(name))
    for name, dtype in _CONSTANTS.items():
        if hasattr(builder, name):  # Triton 3.6 has no get_bf16
            found[name] = _constant(handle, interpreter.tl.str_to_ty(dtype, None), of(name))
    found["create_fma"] = _on_elements(handle, builder.create_fma, lambda x, y, z: algebra.add(algebra.multiply(x, y), z))
    found["create_extern_elementwise"] = _of_libdevice(handle, of("create_extern_elementwise"))
    found["create_clampf"] = _clamp(handle, of("create_clampf"))
    found["create_dot"] = _dot(handle, of("create_dot"))
    found["create_select"] = _select(handle, of("create_select"))
    found["create_bitcast"] = _bitcast(handle, of("create_bitcast"))
    found["create_cat"] = _of_alike(handle, of("create_cat"))
    found["create_join"] = _of_alike(handle, of("create_join"))
    found["get_null_value"] = _null_value(handle, of("get_null_value"))
    found["cast_impl"] = _cast(handle, of("cast_impl"))
    found["create_fp_to_fp"] = _cast(handle, of("create_fp_to_fp"))
    found["create_masked_load"] = _load(handle, interpreter._interpreter, of("create_masked_load"))
    found["create_masked_store"] = _store(interpreter._interpreter, of("create_masked_store"))
    return found


def _of_libdevice(handle: Any, method: Method) -> Method:
    def extern_elementwise(self: Any, library: str, path: str, symbol: str, operands: list[Handle], to: Any, pure: bool) -> Any:
        if not _has_elements(operands):
            return method(self, library, path, symbol, operands, to, pure)
        name = libdevice.called[-1] if libdevice.called else symbol
        if name not in _LIBDEVICE:
            raise NotCarriedError(f"{name} of libdevice")
        return handle(_LIBDEVICE[name](*map(elements_of, operands)), to.scalar)

    return extern_elementwise


def elements_of(operand: Handle) -> Elements:
    """The elements of a block of floats."""
    if isinstance(operand.data, Elements):
        return operand.data
    return elements.of_floats(decoded(operand.data, operand.dtype.scalar.name).astype(np.float64))


def _has_elements(operands: Any) -> bool:
    return any(isinstance(getattr(each, "data", None), Elements) for each in operands)


def _for_elements(method: Method, compute: Callable[..., Handle]) -> Method:
    """A method that computes with elements if an operand is a block of elements, and as before otherwise."""

    def op(self: Any, *operands: Any, **named: Any) -> Any:
        if _has_elements(operands):
            return compute(*operands, **named)
        return method(self, *operands, **named)

    return op


def _on_elements(handle: Any, method: Method, operation: Callable[..., Elements]) -> Method:
    return _for_elements(method, lambda *blocks: handle(operation(*map(elements_of, blocks)), blocks[0].dtype.scalar))


def _comparison(handle: Any, truth: Any, method: Method, operation: Any) -> Method:
    return _for_elements(method, lambda *blocks: handle(operation(*(elements_of(each).order for each in blocks)), truth))


def _refusing(name: str, method: Method) -> Method:
    def refuse(*_: Any, **__: Any) -> Any:
        raise NotCarriedError(f"tl.{name.removeprefix('create_')} of floats")

    return _for_elements(method, refuse)


def _constant(handle: Any, dtype: Any, method: Method) -> Method:
    def constant(self: Any, number: float) -> Handle:
        if followed_call.current is None:
            return method(self, number)
        return handle(followed_call.current.quantities.element(float(number)), dtype)

    return constant


def _null_value(handle: Any, method: Method) -> Method:
    def null_value(self: Any, dtype: Any) -> Handle:
        if followed_call.current is None or not dtype.scalar.is_floating():
            return method(self, dtype)
        return handle(elements.of_floats(np.zeros(1)), dtype.scalar)

    return null_value


def _clamp(handle: Any, method: Method) -> Method:
    def clamp(x: Handle, low: Handle, high: Handle, _propagate_nan: Any) -> Handle:
        block, least, most = map(elements_of, (x, low, high))
        clamped = algebra.smaller(algebra.larger(block, least), most)
        return handle(elements.selected(np.isnan(block.order), block, clamped), x.dtype.scalar)

    return _for_elements(method, clamp)


def _dot(handle: Any, method: Method) -> Method:
    def dot(x: Handle, y: Handle, added: Handle, *_: Any) -> Handle:
        return handle(algebra.add(algebra.dot(elements_of(x), elements_of(y)), elements_of(added)), added.dtype.scalar)

    return _for_elements(method, dot)


def _select(handle: Any, method: Method) -> Method:
    def select(condition: Handle, x: Handle, y: Handle) -> Handle:
        return handle(elements.selected(condition.data, elements_of(x), elements_of(y)), y.dtype.scalar)

    return _for_elements(method, select)


def _of_alike(handle: Any, method: Method) -> Method:
    """A method that moves several blocks into one. If one block is of elements, all are made so."""

    def op(self: Any, *blocks: Handle) -> Handle:
        if _has_elements(blocks):
            blocks = tuple(handle(elements_of(block), block.dtype) for block in blocks)
        return method(self, *blocks)

    return op


def _bitcast(handle: Any, method: Method) -> Method:
    """A bitcast: it knows the bits of floats from memory or a constant, but not those of a computed element, which is
    unrounded."""

    def bitcast(self: Any, operand: Handle, target: Any) -> Handle:
        to, source = target.scalar, operand.dtype.scalar
        if _has_elements((operand,)):
            operand = handle(cast(_floats(operand, f"the bits of {source}"), "fp64", source.name), source)
        result = method(self, operand, target)
        if followed_call.current is None or not to.is_floating():
            return result
        return handle(elements_of(result), to)

    return bitcast


def _cast(handle: Any, method: Method) -> Method:
    def convert(self: Any, operand: Handle, target: Any, *rest: Any) -> Handle:
        to, source = target.scalar, operand.dtype.scalar
        if _has_elements((operand,)):
            if to.is_floating():
                return handle(operand.data, to)
            return handle(cast(_floats(operand, f"a cast of {source} to {to}"), "fp64", to.name), to)
        if followed_call.current is None or not to.is_floating():
            return method(self, operand, target, *rest)
        if source.is_floating():
            return handle(elements_of(operand), to)
        return handle(elements.of_integers(operand.data), to)

    return convert


def _floats(operand: Handle, what: str) -> np.ndarray:
    """The floats that the elements of a block stand for.

    Raises:
        NotCarriedError: an element is the result of a computation.
    """
    floats = elements.as_floats(operand.data)
    if floats is None:
        raise NotCarriedError(f"{what}, of computed numbers")
    return np.array(floats)


def _load(handle: Any, memory: Any, method: Method) -> Method:
    def load(self: Any, pointers: Handle, mask: Handle, other: Handle | None, *rest: Any, **named: Any) -> Handle:
        dtype = pointers.get_element_ty()
        if followed_call.current is None or not dtype.is_floating():
            return method(self, pointers, mask, other, *rest, **named)
        enabled = np.broadcast_to(mask.data, pointers.data.shape)
        stored = STORED[dtype.name]
        raw = memory.load(pointers.data, enabled, np.zeros(pointers.data.shape, stored), stored)
        flat, bits = enabled.ravel(), np.ascontiguousarray(raw).view(f"uint{8 * stored.itemsize}").ravel()
        numbers = decoded(raw, dtype.name).astype(np.float64).ravel()
        found = followed_call.current.memory.loaded(pointers.data.ravel()[flat], bits[flat], numbers[flat])
        return handle(_spread(found, enabled, other), dtype)

    return load


def _spread(found: Elements, enabled: np.ndarray, other: Handle | None) -> Elements:
    """Loaded elements [n] in the enabled lanes, and `other`, or 0 without it, in the rest."""
    if enabled.all():
        return found.reshape(enabled.shape)
    rest = elements.of_floats(np.zeros(1)) if other is None else elements_of(other)
    if not enabled.any():
        return rest.broadcast(enabled.shape)

    def place(parts: list[np.ndarray]) -> np.ndarray:
        lanes = np.array(np.broadcast_to(parts[1], enabled.shape))
        lanes[enabled] = parts[0]
        return lanes

    return elements.joined([found, rest], place)


def _store(memory: Any, method: Method) -> Method:
    def store(self: Any, pointers: Handle, value: Handle, mask: Handle, *rest: Any, **named: Any) -> Any:
        if followed_call.current is None or not isinstance(value.data, Elements):
            return method(self, pointers, value, mask, *rest, **named)
        dtype, shape = value.dtype.scalar, pointers.data.shape
        block = value.data.broadcast(shape)
        stored = block.stored if block.stored is not None else cast(np.array(block.order), "fp64", dtype.name)
        enabled = np.broadcast_to(mask.data, shape)
        memory.store(pointers.data, np.ascontiguousarray(stored), np.ascontiguousarray(enabled))
        bits = np.ascontiguousarray(stored).view(f"uint{8 * stored.itemsize}")
        followed_call.current.memory.store(pointers.data[enabled], block[enabled], bits[enabled])
        return None

    return store
