"""Arguments that no call may have: an argument of another dtype, with a row, a head or a dimension too many or too few."""

import random
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from attn_contract import ContractError


def must_contradict(function: Callable[..., object], arguments: Mapping[str, Any], optional: Collection[str] = ()) -> None:
    """Call a function with one argument wrong. The sizes of the arguments choose which argument and how.

    Args:
        function: takes the arguments by their names.
        arguments: a call that agrees with the contract. The sizes of its tensors depend on each other.
        optional: the names of the arguments that may be None.

    Raises:
        AssertionError: the function raised no ContractError, or it wrote a tensor before.
    """
    tensors = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    choose = random.Random(repr([tuple(tensor.shape) for tensor in tensors.values()]))
    wrong = [(name, value) for name, right in arguments.items() for value in _wrong(right)]
    wrong += [(name, None) for name, right in arguments.items() if right is not None and name not in optional]
    name, value = choose.choice(wrong)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    shown = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else value
    must_raise(lambda: function(**{**arguments, name: value}), f"{name} {shown}")
    for name, tensor in tensors.items():
        assert torch.equal(_bytes(tensor), _bytes(before[name])), f"{name} was written by a call that was refused"


def must_raise(call: Callable[[], object], what: str) -> None:
    """Raise an AssertionError unless a call raises a ContractError."""
    try:
        call()
    except ContractError:
        return
    raise AssertionError(f"{what}: expected a ContractError")


def _wrong(right: object) -> Iterator[Any]:
    if isinstance(right, int):
        yield from (-1, float(right))
    if not isinstance(right, torch.Tensor):
        return
    yield from (right[None], right.to(torch.int64 if right.dtype == torch.int32 else torch.float64))
    yield torch.cat([right, right.new_zeros(1, *right.shape[1:])])
    if len(right):
        yield right[:-1]
    if right.dim() > 1 and right.numel():
        yield right[:, :-1]
        yield right[..., :-1]


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)
