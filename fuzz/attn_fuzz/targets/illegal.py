"""Calls that contradict the contract: calls of a target's attention with one argument that no call may have.

What is wrong is a shape, a dtype, a stride or a number of the host. It is to be refused whether or not values in tensors are
checked, and whether or not a legal call of the same form came before.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from attn_fuzz.targets.target import AttentionFunction

Arguments = dict[str, Any]
"""The arguments of an AttentionFunction, by name."""
_INTEGERS = {1: torch.bool, 2: torch.int16, 4: torch.int32}


def illegal_calls(**functions: AttentionFunction) -> Mapping[str, AttentionFunction]:
    """By what is wrong with a call and by the name of a function: the function, called so."""
    return {
        f"{what} ({name})": functools.partial(_with_wrong, function, wrong)
        for (what, wrong), (name, function) in itertools.product(_WRONG.items(), functions.items())
    }


def _with_wrong(
    function: AttentionFunction, wrong: Callable[[Arguments], Arguments], q, k, v, kv_cache, layer, batch, **outputs
):
    arguments = {"q": q, "k": k, "v": v, "kv_cache": kv_cache, "layer": layer, "batch": batch, **outputs}
    return function(**(arguments | wrong(arguments)))


def _keys(arguments: Arguments) -> str:
    return "k" if arguments["kv_cache"] is None else "kv_cache"


def _lse(arguments: Arguments) -> torch.Tensor:
    q, lse = arguments["q"], arguments["lse"]
    return q.new_empty(q.shape[1::-1], dtype=torch.float32) if lse is None else lse


def _of_tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Arguments], Arguments]:
    """A tensor in another form: q, out, the LSE whether or not the call has one, or what holds the keys."""

    def wrong(arguments: Arguments) -> Arguments:
        argument = _keys(arguments) if name == "keys" else name
        return {argument: change(_lse(arguments) if name == "lse" else arguments[argument])}

    return wrong


def _as_integers(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(_INTEGERS[tensor.element_size()])


def _with_gaps(tensor: torch.Tensor) -> torch.Tensor:
    """The same shape, with elements between those of the last dimension."""
    return tensor.new_empty((*tensor.shape, 2))[..., 0]


def _another_table(arguments: Arguments) -> Arguments:
    batch = arguments["batch"]
    table = torch.zeros((batch.num_requests, 1), dtype=torch.int32, device=batch.seq_lens.device)
    return {"batch": dataclasses.replace(batch, block_table=table if batch.block_table is None else None)}


def _more_tokens(arguments: Arguments) -> Arguments:
    batch, rows = arguments["batch"], len(arguments["q"])
    return {"batch": dataclasses.replace(batch, num_actual_tokens=rows + 1)}


_FORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "of integers": _as_integers,
    "with one more dimension": lambda tensor: tensor[..., None],
    "with a shorter last dimension": lambda tensor: tensor[..., :-1],
    "on no device": lambda tensor: tensor.to("meta"),
}
_WRONG: dict[str, Callable[[Arguments], Arguments]] = {
    **{
        f"{name} {form}": _of_tensor(name, change)
        for name, (form, change) in itertools.product(("q", "keys", "out", "lse"), _FORMS.items())
    },
    **{f"{name} with gaps in its last dimension": _of_tensor(name, _with_gaps) for name in ("q", "out")},
    "a block table without a cache, or a cache without one": _another_table,
    "more tokens than rows": _more_tokens,
}
