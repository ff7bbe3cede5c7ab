"""Reports to the sanitizer what interpreted kernels do: each launch, and each access of memory.

`install` replaces methods of Triton's interpreter. The new methods call the watch of the running call, and then the old
methods. Pointers keep the Region of the argument from which they were computed, so an access is checked against that argument.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from attn_fuzz.interpreted import sanitizer
from attn_fuzz.interpreted.sanitizer import REGION
from attn_fuzz.interpreted.together import running
from torch.utils._python_dispatch import _disable_current_modes

# by method of the builder that computes pointers from pointers, the position of the pointers among its operands
_BUILDER_HOOKS = {
    "create_addptr": 0,
    "create_bitcast": 0,
    "create_broadcast": 0,
    "create_expand_dims": 0,
    "create_reshape": 0,
    "create_trans": 0,
    "create_splat": 1,
}
# by method that accesses memory: what a message calls it, and the positions of the pointers, the mask and the value
_ACCESS_HOOKS: dict[str, tuple[sanitizer.Access, int, int | None, int | None]] = {
    "create_masked_load": ("load", 0, 1, None),
    "create_masked_store": ("store", 0, 2, 1),
    "create_atomic_rmw": ("atomic", 1, 3, None),
    "create_atomic_cas": ("atomic", 0, None, None),
}


def install(checks: sanitizer.Checks = "rights") -> None:
    """Have Triton's interpreter report to the sanitizer, for the life of this process. Nothing is checked outside of a `watch`.

    Args:
        checks: the checks that a `watch` makes.

    Raises:
        RuntimeError: Triton compiles in this process, or its interpreter lacks a method that is replaced here.
    """
    import triton
    from triton import knobs
    from triton.runtime import interpreter

    builder = getattr(interpreter, "InterpreterBuilder", None)
    executor = getattr(interpreter, "GridExecutor", None)
    missing = [name for name in (*_BUILDER_HOOKS, *_ACCESS_HOOKS) if not hasattr(builder, name)]
    missing += [name for name in ("_init_args_hst",) if not hasattr(executor, name)]
    if missing:
        raise RuntimeError(
            f"triton {triton.__version__}: its interpreter has no {', '.join(missing)}, where accesses are checked"
        )
    if not knobs.runtime.interpret:
        raise RuntimeError("the sanitizer checks interpreted kernels: set TRITON_INTERPRET=1 before Triton is imported")
    was, sanitizer.checks = sanitizer.checks, checks
    if was != "nothing":
        return
    assert builder is not None
    assert executor is not None
    for name, operand in _BUILDER_HOOKS.items():
        setattr(builder, name, _keeping_region(getattr(builder, name), operand, begins=name == "create_addptr"))
    builder.create_masked_load = _poisoning(builder.create_masked_load)
    for name, access in _ACCESS_HOOKS.items():
        setattr(builder, name, _checking(getattr(builder, name), *access))
    executor._init_args_hst = _announcing_launch(executor._init_args_hst)
    executor.__call__ = _without_modes(executor.__call__)


def _keeping_region(method: Any, operand: int, *, begins: bool) -> Any:
    """A method whose pointers keep the Region of the pointers from which they are computed.

    Args:
        method: a method of the builder.
        operand: the position of the pointers among its operands.
        begins: True if pointers without a Region may be an argument itself, whose Region the result then gets.
    """

    def op(builder: Any, *operands: Any) -> Any:
        result = method(builder, *operands)
        source = operands[operand]
        if REGION in source.attr:
            result.attr[REGION] = source.attr[REGION]
        elif begins and sanitizer.current is not None and (region := sanitizer.current.argument_of(source)) is not None:
            result.attr[REGION] = region
        return result

    return op


def _checking(method: Any, access: sanitizer.Access, at: int, mask_at: int | None, value_at: int | None) -> Any:
    """A method whose access is checked before it happens."""

    def op(builder: Any, *operands: Any, **named: Any) -> Any:
        if sanitizer.current is not None:
            mask = None if mask_at is None else operands[mask_at].data
            value = () if value_at is None else (operands[value_at],)
            sanitizer.current.check(access, operands[at], mask, running.current.active, *value)
        return method(builder, *operands, **named)

    return op


def _poisoning(create_masked_load: Any) -> Any:
    def load(builder: Any, pointers: Any, mask: Any, other: Any, *rest: Any, **named: Any) -> Any:
        if sanitizer.current is not None and sanitizer.current.poisons and other is None and not mask.data.all():
            other = _garbage(pointers)
        return create_masked_load(builder, pointers, mask, other, *rest, **named)

    return load


def _garbage(pointers: Any) -> Any:
    """The numbers in lanes that a mask without `other` leaves out: anything on a GPU. Here all bits are set: NaN, -1, True."""
    from triton.runtime import interpreter

    kind = pointers.get_element_ty()
    stored: Any = np.dtype(interpreter._get_np_dtype(kind))
    lanes = np.ones(pointers.data.shape, stored)
    if stored != np.bool_:
        lanes.reshape(-1).view(np.uint8).fill(0xFF)
    return interpreter.TensorHandle(lanes, kind)


def _announcing_launch(init_args_hst: Any) -> Any:
    def announce(executor: Any, args: Any, kwargs: Any) -> Any:
        host_args, host_kwargs = init_args_hst(executor, args, kwargs)
        if sanitizer.current is not None:
            named = {**dict(zip(executor.arg_names, host_args, strict=False)), **host_kwargs}
            sanitizer.current.launch(executor.fn.__name__, dict(tensors_of(named)))
        return host_args, host_kwargs

    return announce


def _without_modes(call: Any) -> Any:
    """A launch during which no mode notes torch's operations: they are those of the interpreter and the sanitizer."""

    def launch(executor: Any, *args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return call(executor, *args, **kwargs)

    return launch


def tensors_of(arguments: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors among a kernel's arguments, by name. Tuples, descriptors and views of another dtype are opened."""
    for name, argument in arguments.items():
        if isinstance(argument, tuple):
            yield from tensors_of({f"{name}[{i}]": item for i, item in enumerate(argument)})
        elif isinstance(argument, torch.Tensor):
            if argument.numel():
                yield name, argument
        elif hasattr(argument, "base"):
            yield from tensors_of({name: argument.base})
