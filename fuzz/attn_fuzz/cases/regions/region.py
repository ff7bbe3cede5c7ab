"""What a region is, and predicates of which regions are made."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from attn_contract import KVCacheView
from attn_fuzz.cases.case import Case, Request
from attn_fuzz.cases.tensors import Step

Predicate = Callable[[Case, Step], object]


class Region(NamedTuple):
    """A set of calls.

    Attributes:
        name: what its calls have.
        holds: whether the step of a case lies in it; None if it is not drawn.
        reason: why it is not drawn; empty if it is.
        legal: whether the contract allows it.
    """

    name: str
    holds: Predicate | None = None
    reason: str = ""
    legal: bool = True


def legal(**regions: Predicate) -> tuple[Region, ...]:
    """Regions that are drawn, by their names with underscores for spaces."""
    return tuple(Region(name.replace("_", " ").strip(), holds) for name, holds in regions.items())


def not_drawn(name: str, reason: str) -> Region:
    return Region(name, None, reason)


def illegal(name: str, reason: str) -> Region:
    return Region(name, None, reason, legal=False)


def of_request(holds: Callable[[Request], object]) -> Predicate:
    return lambda case, step: any(holds(request) for request in case.requests)


def of_tensor(name: str, holds: Callable[[torch.Tensor], object]) -> Predicate:
    """Whether a tensor of the layer, the batch or the step is there, and has a property."""

    def of(case: Case, step: Step) -> bool:
        tensors = {
            **step.layer.tensors,
            **step.batch.tensors,
            **{key: getattr(step, key) for key in ("q", "k", "v", "out", "lse")},
        }
        return tensors.get(name) is not None and bool(holds(tensors[name]))

    return of


def idle_stride(name: str) -> Region:
    """A tensor that has a dimension of one element, whose stride is one that nobody would give it."""
    has_one = of_tensor(name, lambda tensor: 1 in tensor.shape)
    return Region("one element in a dimension of any stride", lambda case, step: case.unlike_strides and has_one(case, step))


def of_view(holds: Callable[[KVCacheView], object]) -> Predicate:
    return lambda case, step: step.view is not None and bool(holds(step.view))


def of_rotation(name: str, holds: Callable[[torch.Tensor, Case], object]) -> Predicate:
    return lambda case, step: any(
        write.rotation is not None and holds(getattr(write.rotation, name), case) for write in step.writes
    )


def of_values(*values: object) -> Callable[[str], tuple[Region, ...]]:
    """A region for each value of a field of Case."""
    return lambda name: tuple(
        Region(str(value), lambda case, step, value=value: getattr(case, name) == value) for value in values
    )


def refused_if_not_finite(*, name: str) -> Region:
    return illegal("NaN, infinity", f"`validation.values` refuses it: {name} is a number that enters every logit")
