"""Calls with one argument wrong: a tensor as `attn_fuzz.cases.wrong_arguments` has them, another type, below 0, or missing."""

import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from attn_contract import ContractError, UnsupportedError
from attn_fuzz.cases.wrong_arguments import overlapping, wrong_tensors

Calls = Iterator[tuple[str, Callable[[], object]]]
"""The fault of a call, in words, and the call."""
TEXT = "no such thing"


def wrong_calls(
    function: Callable[..., object],
    arguments: Mapping[str, Any],
    *,
    optional: Collection[str] = (),
    free: Mapping[str, Collection[int]] | None = None,
    written: Collection[str] = (),
) -> Calls:
    """Each way in which one argument of a call is wrong.

    Args:
        function: takes the arguments by their names.
        arguments: a call that agrees with the contract. The sizes of its tensors depend on each other.
        optional: the names of the arguments that may be None.
        free: by the name of a tensor, the dimensions whose sizes depend on no other argument.
        written: the names of tensors that the call writes. They share memory with each other tensor, and with themselves.
    """
    tensors = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    for _, what, make in overlapping(tensors, [name for name in written if name in tensors]):
        yield what, lambda make=make: function(**{**arguments, **make()})
    for name, right in arguments.items():
        wrong: dict[str, Callable[[], Any]] = {f"={TEXT!r}": lambda: TEXT}
        if isinstance(right, torch.Tensor):
            wrong |= {f" {form}": make for _, form, make in wrong_tensors(right, (free or {}).get(name, ()))}
        if isinstance(right, int):
            wrong |= {"=-1": lambda: -1, " as a float": lambda right=right: float(right)}
        if right is not None and name not in optional:
            wrong["=None"] = lambda: None
        for form, make in wrong.items():
            yield f"{name}{form}", lambda name=name, make=make: function(**{**arguments, name: make()})
    for name, parameter in inspect.signature(function).parameters.items():
        if isinstance(parameter.default, bool) and name not in arguments:
            yield f"{name}={TEXT!r}", functools.partial(function, **arguments, **{name: TEXT})


def not_refused(calls: Calls, tensors: Collection[torch.Tensor | None] = ()) -> list[str]:
    """The faults of calls that are served, raise something else than a refusal, or write a tensor first.

    A call without an argument, or with a wrong number for one, has to name the argument.
    """
    found = []
    before = [_bytes(tensor) for tensor in tensors if tensor is not None]
    for what, call in calls:
        try:
            call()
        except (ContractError, UnsupportedError) as error:
            name = what.split("=")[0].split(" ")[0]
            names = what.endswith(("=None", "=-1", " as a float"))
            if names and isinstance(error, ContractError) and name not in error.argument:
                found.append(f"{what}: refused as {error}")
        except Exception as error:
            found.append(f"{what}: {type(error).__name__}: {error}")
        else:
            found.append(f"{what}: served")
        after = [_bytes(tensor) for tensor in tensors if tensor is not None]
        if not all(torch.equal(*pair) for pair in zip(before, after, strict=True)):
            found.append(f"{what}: a tensor was written before")
            before = after
    return found


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)
