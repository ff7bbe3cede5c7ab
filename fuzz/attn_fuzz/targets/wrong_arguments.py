"""Calls with one argument wrong: of another type, dtype, shape, stride or device, below 0, or missing.

They are derived from a call that agrees with the contract. No value in a tensor is wrong. So they are to be refused whether or
not values in tensors are checked, and whether or not a legal call of the same form came before.
"""

import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from attn_contract import ContractError, UnsupportedError
from attn_fuzz.targets.choices import choices_by

Calls = Iterator[tuple[str, Callable[[], object]]]
"""What is wrong with a call, in words, and the call."""
_INTEGERS = {1: torch.bool, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_TEXT = "no such thing"


def wrong_calls(
    function: Callable[..., object],
    arguments: Mapping[str, Any],
    *,
    optional: Collection[str] = (),
    free: Mapping[str, Collection[int]] | None = None,
) -> Calls:
    """What is wrong with a call in words, and the call.

    A call without an argument, or with a wrong number for one, raises an AssertionError if its ContractError does not name the
    argument.

    Args:
        function: takes the arguments by their names.
        arguments: a call that agrees with the contract. The sizes of its tensors depend on each other.
        optional: the names of the arguments that may be None.
        free: by the name of a tensor, the dimensions whose sizes depend on no other argument.
    """
    for name, right in arguments.items():
        call = call_naming if isinstance(right, int) else _call_with
        for form, make in _wrong(right, (free or {}).get(name, ())):
            yield f"{name} {form}", functools.partial(call, function, arguments, name, make)
        yield f"{name}={_TEXT!r}", functools.partial(function, **{**arguments, name: _TEXT})
        if right is not None and name not in optional:
            yield f"{name}=None", functools.partial(call_naming, function, arguments, name, lambda: None)
    for name, parameter in inspect.signature(function).parameters.items():
        if isinstance(parameter.default, bool) and name not in arguments:
            yield f"{name}={_TEXT!r}", functools.partial(function, **arguments, **{name: _TEXT})


def must_contradict(function: Callable[..., object], arguments: Mapping[str, Any], optional: Collection[str] = ()) -> None:
    """Make one of the `wrong_calls`. The sizes of the arguments choose which one.

    Raises:
        AssertionError: the function raised no ContractError, or it wrote a tensor before.
    """
    tensors = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    choose = choices_by([tensor.shape for tensor in tensors.values()])
    what, call = choose.choice([*wrong_calls(function, arguments, optional=optional)])
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    must_raise(call, what)
    for name, tensor in tensors.items():
        assert torch.equal(_bytes(tensor), _bytes(before[name])), f"{name} was written by a call that was refused: {what}"


def must_raise(call: Callable[[], object], what: str) -> None:
    """Raise an AssertionError unless a call raises a ContractError."""
    try:
        call()
    except ContractError:
        return
    raise AssertionError(f"{what}: expected a ContractError")


def must_refuse(call: Callable[[], object], what: str) -> str:
    """What a refusal says. Raise an AssertionError unless a call is refused."""
    try:
        call()
    except UnsupportedError as error:
        return str(error)
    raise AssertionError(f"{what}: expected a refusal")


def _call_with(function: Callable[..., object], arguments: Mapping[str, Any], name: str, make: Callable[[], object]) -> object:
    return function(**{**arguments, name: make()})


def call_naming(function: Callable[..., object], arguments: Mapping[str, Any], name: str, make: Callable[[], object]) -> object:
    """Call with another value of an argument. Raise an AssertionError if a ContractError does not name the argument."""
    try:
        return _call_with(function, arguments, name, make)
    except ContractError as error:
        if name in error.argument:
            raise
        raise AssertionError(f"expected an error that names {name}, got {error}") from error


def _wrong(right: object, free: Collection[int]) -> Iterator[tuple[str, Callable[[], object]]]:
    if isinstance(right, int):
        for value in (-1, float(right)):
            yield f"{value!r}", lambda value=value: value
    if not isinstance(right, torch.Tensor):
        return
    for form, change in _FORMS.items():
        yield form, functools.partial(change, right)
    if right.dim():
        # a vector of all elements: with two of three dimensions an output would be legal
        yield "with too few dimensions", lambda: right.flatten() if right.dim() > 1 else right.new_zeros(())
    # a dimension of one element, or of a tensor without elements, has no stride
    if right.numel() and right.dim() and right.shape[-1] > 1:
        yield "with gaps in its last dimension", lambda: right.new_empty((*right.shape, 2))[..., 0]
    for dim, size in enumerate(right.shape):
        if dim not in free:
            yield f"longer in dimension {dim}", functools.partial(_longer, right, dim)
            if size:
                yield f"shorter in dimension {dim}", functools.partial(right.narrow, dim, 0, size - 1)


def _longer(right: torch.Tensor, dim: int) -> torch.Tensor:
    """One more in a dimension, where it is 0."""
    longer = right.new_zeros([size + (i == dim) for i, size in enumerate(right.shape)])
    longer.narrow(dim, 0, right.shape[dim]).copy_(right)
    return longer


def _other_dtype(right: torch.Tensor) -> torch.Tensor:
    return right.to(torch.int64 if right.dtype == torch.int32 else torch.float64)


def _other_numbers(right: torch.Tensor) -> torch.Tensor:
    """The same bits as integers, or integers as floats."""
    return right.view(_INTEGERS[right.element_size()]) if right.is_floating_point() else right.float()


_FORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "of another dtype": _other_dtype,
    "of other numbers": _other_numbers,
    # one more is legal for a flat output of one row and one head
    "with two more dimensions": lambda tensor: tensor[None, None],
    "on no device": lambda tensor: tensor.to("meta"),
    "negated": torch._neg_view,  # pyright: ignore[reportPrivateImportUsage]
}


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    # `contiguous` keeps the stride of a last dimension of one element, of which a view makes no bytes
    return tensor.clone(memory_format=torch.contiguous_format).view(torch.uint8)
