"""Calls of a function that a target makes of a call of attention, after calls that differ in one property of one argument.

`attn_fuzz.cases.earlier` changes a call of attention in one thing. A merge, or a function of an index layer, gets arguments
that a target makes of that call, and nearly all of them are others then: the key of a launch that lacks one property goes
unnoticed. So the calls that come before are made of the function's own arguments.
"""

import contextlib
import dataclasses
import enum
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from attn_contract import Batch
from attn_contract.memory import extent
from attn_fuzz.cases.earlier import OTHER_DTYPE, realigned, restrided
from attn_fuzz.targets.rng import rng_of

CALLS = 2
"""The calls before a function's own, in half of its calls."""
MAX_BYTES = 1 << 26
_OTHER_DTYPE = {
    **OTHER_DTYPE,
    torch.float8_e4m3fn: torch.float8_e4m3fnuz,
    torch.float8_e4m3fnuz: torch.float8_e4m3fn,
}


def preceded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, before half of whose calls come others, each with one property of its arguments changed.

    A property is the dtype, the alignment, a size or a stride of a tensor, or a field of a record, of one argument, or a size
    that several of them have. A Batch stays as it is: `attn_fuzz.cases.earlier` changes it. The function may refuse such a call
    by a ValueError or a NotImplementedError. It gets copies of all tensors. Tensors that lie far apart (`modes.far`) are too
    large for copies, and have no calls before theirs.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        given = signature.bind(*arguments, **options).arguments
        tensors = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
        rng = rng_of([(tensor.shape, tensor.stride()) for tensor in tensors.values()])
        is_small = all(tensor.untyped_storage().nbytes() <= MAX_BYTES for tensor in tensors.values())
        others = _others(given) if is_small and rng.random() < 0.5 else []
        for make in rng.sample(others, min(CALLS, len(others))):
            copies = given | {name: _copy(tensor) for name, tensor in tensors.items()}
            with contextlib.suppress(ValueError, NotImplementedError):  # the contract may have no such call
                bound = inspect.BoundArguments(signature, copies | make(copies))  # pyright: ignore[reportArgumentType]
                function(*bound.args, **bound.kwargs)
        return function(*arguments, **options)

    return call


def _others(given: dict[str, Any]) -> list[Callable[[dict[str, Any]], dict[str, Any]]]:
    """Functions that take the arguments of a call, and return those that are others: one alone, or each with some size."""

    def alone(name: str, make: Callable[[Any], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
        return lambda arguments: {name: make(arguments[name])}

    sizes = {size for value in given.values() if isinstance(value, torch.Tensor) for size in value.shape if size > 1}
    shorter = [
        lambda arguments, size=size: {name: _shorter(value, size) for name, value in arguments.items()} for size in sizes
    ]
    return [*shorter, *(alone(name, make) for name, value in given.items() for make in changes(value))]


def _shorter(value: Any, size: int) -> Any:
    """A tensor, or a record, in which one less stands for a size."""
    if isinstance(value, torch.Tensor):
        for dim in (dim for dim, own in enumerate(value.shape) if own == size):
            value = value.narrow(dim, 0, size - 1)
        return value
    if _is_record(value):
        own = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        return dataclasses.replace(value, **{name: _shorter(each, size) for name, each in own.items()})
    return size - 1 if type(value) is int and value == size else value


def changes(value: Any) -> Iterator[Callable[[Any], Any]]:
    """Functions that make of a value another one, which differs in one property."""
    if isinstance(value, torch.Tensor):
        yield from _of_tensor(value)
    elif _is_record(value):
        for field in (field for field in dataclasses.fields(value) if field.init):
            for make in changes(getattr(value, field.name)):
                yield functools.partial(_with_another, field.name, make)
    elif isinstance(value, bool):
        yield lambda own: not own
    elif isinstance(value, enum.Enum):
        yield from (functools.partial(_constant, other) for other in type(value) if other is not value)
    elif isinstance(value, int):
        yield lambda own: own - 1
        yield lambda own: own + 1
    elif isinstance(value, torch.dtype) and value in _OTHER_DTYPE:
        yield lambda own: _OTHER_DTYPE[own]


def _is_record(value: Any) -> bool:
    """True of a record but a Batch, whose numbers say what its tensors hold."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type | Batch)


def _of_tensor(tensor: torch.Tensor) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    if tensor.numel() and tensor.dim():
        yield restrided
        yield lambda own: own if (other := realigned(own)) is None else other
    if tensor.dtype in _OTHER_DTYPE:
        yield lambda own: own.to(_OTHER_DTYPE[own.dtype])
    for dim, size in enumerate(tensor.shape):
        if size > 1:
            yield lambda own, dim=dim: own.narrow(dim, 0, own.shape[dim] - 1)


def _with_another(name: str, make: Callable[[Any], Any], record: Any) -> Any:
    return dataclasses.replace(record, **{name: make(getattr(record, name))})


def _constant(value: Any, own: Any) -> Any:
    return value


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same numbers, strides and alignment in memory of its own."""
    begin = int(tensor.storage_offset()) * tensor.element_size() % 16 // tensor.element_size()
    whole = tensor.new_zeros(extent(tensor.shape, tensor.stride()) + begin)
    return whole.as_strided(tensor.shape, tensor.stride(), begin).copy_(tensor)
