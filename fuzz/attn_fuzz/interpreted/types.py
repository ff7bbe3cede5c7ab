"""Makes each type of Triton's language once. Each block that an interpreted operation returns has a type.

Results of kernels stay the same. A type follows from its element and shape, and is never altered. Operands of an elementwise
operation keep their sizes of 1, along which NumPy repeats them. Integers are not added a second time for an assertion that is
off.
"""

import importlib
from collections.abc import Callable
from typing import Any, cast

import numpy as np

_HOOKS = {
    "triton.language.core": ("_unwrap_if_constexpr", "block_type", "tensor", "constexpr", "dtype"),
    "triton.language.semantic": ("TritonSemantic",),
    "triton.runtime.interpreter": ("_get_np_dtype", "TensorHandle"),
}
_RULES = ("broadcast_impl_value", "binary_op_type_checking_impl", "binary_op_sanitize_overflow_impl")


def missing() -> list[str]:
    """Names of replaced parts that this Triton lacks."""
    modules = {name: importlib.import_module(name) for name in _HOOKS}
    found = [part for name, parts in _HOOKS.items() for part in parts if not hasattr(modules[name], part)]
    rules = getattr(modules["triton.language.semantic"], "TritonSemantic", None)
    return found + [name for name in _RULES if not hasattr(rules, name)]


def install() -> None:
    """Remember types for the life of this process."""
    from triton.language import core, semantic
    from triton.runtime import interpreter

    core._unwrap_if_constexpr = _unwrapping(core)
    interpreter._get_np_dtype = _numpy_dtypes(interpreter._get_np_dtype)
    interpreter.TensorHandle.__init__ = _handle_init(interpreter.TensorHandle)
    block_type, tensor, dtype, rules = cast("list[Any]", [core.block_type, core.tensor, core.dtype, semantic.TritonSemantic])
    block_type.__init__ = _block_type_init(core)
    tensor.__init__ = _tensor_init(core)
    dtype.__eq__ = _dtype_eq(dtype.__eq__)
    rules.binary_op_type_checking_impl = _operands(rules, interpreter.interpreter_builder)
    rules.binary_op_sanitize_overflow_impl = _overflow_where_asserted(rules.binary_op_sanitize_overflow_impl)


def _unwrapping(core: Any) -> Callable[[Any], Any]:
    unwrap, constexpr = core._unwrap_if_constexpr, core.constexpr
    plain = {core.tensor, core.dtype, int, float, bool, str, type(None)}

    def _unwrap_if_constexpr(value: Any) -> Any:
        kind = type(value)
        if kind is constexpr:
            return value.value
        return value if kind in plain else unwrap(value)

    return _unwrap_if_constexpr


def _block_type_init(core: Any) -> Callable[[Any, Any, Any], None]:
    init, constexpr = core.block_type.__init__, core.constexpr
    known: dict[Any, dict[str, Any]] = {}

    def __init__(self: Any, element_ty: Any, shape: Any) -> None:  # noqa: N807 - it becomes one
        key = element_ty.name, *(size.value if type(size) is constexpr else size for size in shape)
        if key not in known:
            init(self, element_ty, shape)
            known[key] = dict(self.__dict__)
        self.__dict__.update(known[key])

    return __init__


def _tensor_init(core: Any) -> Callable[[Any, Any, Any], None]:
    init = core.tensor.__init__
    known: dict[Any, dict[str, Any]] = {}

    def __init__(self: Any, handle: Any, type: Any) -> None:  # noqa: N807 - it becomes one
        if type.name not in known:
            init(self, handle, type)
            known[type.name] = {name: value for name, value in self.__dict__.items() if name != "handle"}
        self.__dict__.update(known[type.name])
        self.handle = handle

    return __init__


def _handle_init(handle: Any) -> Callable[..., None]:
    validate = handle.__post_init__
    fits: set[tuple[int, str]] = set()

    def __init__(self: Any, data: Any, dtype: Any, attr: dict[str, Any] | None = None) -> None:  # noqa: N807 - it becomes one
        self.data, self.dtype, self.attr = data, dtype, {} if attr is None else attr
        sizes = data.itemsize, dtype.name
        if sizes not in fits:
            validate(self)
            fits.add(sizes)

    return __init__


def _dtype_eq(equals: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def __eq__(self: Any, other: Any) -> bool:  # noqa: N807 - it becomes one
        return self is other or equals(self, other)

    return __eq__


def _numpy_dtypes(get: Callable[[Any], np.dtype]) -> Callable[[Any], np.dtype]:
    known: dict[str, np.dtype] = {}

    def _get_np_dtype(tt_dtype: Any) -> np.dtype:
        if tt_dtype.name not in known:
            known[tt_dtype.name] = get(tt_dtype)
        return known[tt_dtype.name]

    return _get_np_dtype


def _operands(rules: Any, builder: Any) -> Callable[..., tuple[Any, Any]]:
    check, broadcast = rules.binary_op_type_checking_impl, rules.broadcast_impl_value
    unnoted = rules(builder)

    class OfOneType(rules):
        """Triton's rules by which two operands get one type. The operands keep their sizes of 1."""

        def broadcast_impl_value(self, lhs: Any, rhs: Any) -> tuple[Any, Any]:
            left, right = broadcast(unnoted, lhs, rhs)
            return self._as(left.type, lhs), self._as(right.type, rhs)

        def _as(self, kind: Any, operand: Any) -> Any:
            if operand.type.name == kind.name:
                return operand
            handle = operand.handle
            for _ in range(len(kind.shape) - len(operand.shape)):
                handle = self.builder.create_expand_dims(handle, 0)
            return self.tensor(handle, kind)

    def binary_op_type_checking_impl(self: Any, lhs: Any, rhs: Any, *asked: Any, **named: Any) -> tuple[Any, Any]:
        return check(OfOneType(self.builder), lhs, rhs, *asked, **named)

    return binary_op_type_checking_impl


def _overflow_where_asserted(check: Callable[..., None]) -> Callable[..., None]:
    """The check of an integer operation for overflow, in int64, only where `tl.device_assert` raises."""

    def check_overflow(self: Any, *operands: Any) -> None:
        if self.builder.options.debug:
            check(self, *operands)

    return check_overflow
