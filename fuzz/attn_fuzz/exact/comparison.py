"""Compares the outputs of a followed call with the specification: each element is equal, or it is wrong."""

from typing import Literal, NamedTuple

import numpy as np
import torch
from attn_fuzz.cases.poison import bits, canary
from attn_fuzz.cases.tensors import Step
from attn_fuzz.exact import algebra, fields
from attn_fuzz.exact.elements import Elements
from attn_fuzz.exact.fields import VALUES
from attn_fuzz.exact.followed_call import FollowedCall
from attn_fuzz.exact.memory import Memory, bits_of, places_of
from attn_fuzz.exact.refusal import NotCarriedError
from attn_fuzz.exact.specification import Rows, specified


class Inequality(NamedTuple):
    """The first element that differs from the specification, and the number of those that do."""

    tensor: Literal["out", "lse"]
    message: str


def inequality(call: FollowedCall, step: Step, expected: Step) -> Inequality | None:
    """The first wrong element of a step's outputs; None if all are equal.

    Args:
        call: the call, with the elements that kernels have stored.
        step: the step as the target left it.
        expected: the step for which the formula is evaluated.

    Raises:
        NotCarriedError: exact mode cannot compare an output.
    """
    for rows in specified(expected):
        out = _by_head(step)[rows.rows]
        if wrong := _unwritten(call.memory, out, "out", rows):
            return wrong
        held = _elements(call.memory, out, "out")
        if wrong := _wrong_out(held, rows, step.out.dtype):
            return wrong
        if step.lse is not None:
            lse = step.lse[:, rows.rows]
            if wrong := _unwritten(call.memory, lse.T, "lse", rows):
                return wrong
            if wrong := _wrong_lse(_elements(call.memory, lse, "lse"), rows):
                return wrong
    return None


def _by_head(step: Step) -> torch.Tensor:
    """`out` [T, H, Dv], a view."""
    return step.out if step.out.dim() == 3 else step.out.unflatten(1, (step.layer.num_heads, step.layer.v_head_size))


def _elements(memory: Memory, tensor: torch.Tensor, name: str) -> Elements:
    """The elements that were stored in a tensor.

    Raises:
        NotCarriedError: not all of it was stored by interpreted kernels or by torch.
    """
    stored, places = memory.stored_in(tensor), places_of(tensor)
    held = np.zeros(places.shape, np.bool_) if stored is None else stored.holds(places, bits_of(tensor))
    if not held.any() and held.size:
        raise NotCarriedError(f"{name}, which neither interpreted kernels nor torch have stored")
    if stored is None or not held.all():
        raise NotCarriedError(f"{name}, of which neither interpreted kernels nor torch have stored every element")
    return stored.get(places.ravel()).reshape(places.shape)


def _unwritten(memory: Memory, tensor: torch.Tensor, name: Literal["out", "lse"], rows: Rows) -> Inequality | None:
    """The first row [rows, ...] with an element that no kernel has stored, and that holds what memory held before the call."""
    stored, places = memory.stored_in(tensor), places_of(tensor)
    written = np.zeros(places.shape, np.bool_) if stored is None else stored.written(places)
    wrong = ~written & (bits(tensor) == bits(canary((1,), tensor.dtype, tensor.device))).cpu().numpy()
    if not wrong.any():
        return None
    row = rows.rows.start + int(np.argwhere(wrong)[0][0])
    words = f"{name} of request {rows.request} at row {row}: never written; {int(wrong.sum())} elements of these rows are not"
    return Inequality(name, words)


def _wrong_out(held: Elements, rows: Rows, dtype: torch.dtype) -> Inequality | None:
    if held.value is None:
        raise NotCarriedError(f"out, which is {held.lacks or 'a logarithm'}")
    wrong = (held.value != rows.out) & ~_is_clamped(held.value, dtype) | ~np.isfinite(held.order)
    wrong &= rows.is_comparable.T[..., None]
    if not wrong.any():
        return None
    row, head, dim = np.argwhere(wrong)[0].tolist()
    where = f"row {rows.rows.start + row}, head {head}, dim {dim}"
    return Inequality("out", _words("out", rows.request, where, float(held.order[row, head, dim]), int(wrong.sum())))


def _is_clamped(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """True if an element is the largest number of a float8 output, of either sign. The judge decides if that is right."""
    if not dtype.is_floating_point or dtype.itemsize > 1:
        return np.zeros(values.shape, np.bool_)
    largest = torch.finfo(dtype).max
    return np.isin(values, fields.of_floats(np.array([largest, -largest]), VALUES))


def _wrong_lse(held: Elements, rows: Rows) -> Inequality | None:
    """The LSE [H, q] is compared by its exponential."""
    power = algebra.exp(held)
    assert power.value is not None
    minus_infinity = held.order == -np.inf
    wrong = np.where(rows.is_empty, ~minus_infinity, (power.value != rows.total) | ~np.isfinite(held.order))
    wrong &= rows.is_comparable
    if not wrong.any():
        return None
    head, row = np.argwhere(wrong)[0].tolist()
    where = f"row {rows.rows.start + row}, head {head}"
    return Inequality("lse", _words("lse", rows.request, where, float(held.order[head, row]), int(wrong.sum())))


def _words(name: str, request: int, where: str, order: float, count: int) -> str:
    return (
        f"{name} of request {request} at {where}: about {order:.9g}, and not the number that the formula gives; "
        f"{count} elements of these rows are unequal"
    )
