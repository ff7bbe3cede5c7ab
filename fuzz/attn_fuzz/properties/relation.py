"""Properties, and the parts that they share: variants of a step, and comparisons of outputs."""

import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec

import torch
from attn_contract import Batch
from attn_fuzz.cases.poison import bits, canary
from attn_fuzz.cases.tensors import Step
from attn_fuzz.properties.rules import BOUNDED, Question
from attn_fuzz.verdict.oracle import as_read

CallTarget = Callable[[Step], None]
"""Calls the target's attention on a step, which writes the step's outputs."""
P = ParamSpec("P")
Rows = slice | torch.Tensor
ALL = slice(None)


@dataclass(frozen=True, kw_only=True)
class Property:
    """A relation between a target's outputs for a step and for variants of the step. It needs no right outputs to compare with.

    A property is called with a step whose outputs are written, and with a function that calls the target on a variant. It
    returns a message that says what does not hold, or None. A property that does not apply to the step never calls the target.

    Args:
        name: as reports name it.
        says: the relation in a sentence.
        applies: to which steps, rules apart.
        rules: beside which rules it holds.
        adds: rules that its variants may have beside those of the step.
        compared: the comparison of outputs, in words; see `compared`.
        is_bounded: True if it asks for the error of an output (`attn_fuzz.properties.bound`).
        holds: the relation itself.
    """

    name: str
    says: str
    applies: str = "all"
    rules: Question
    adds: tuple[str, ...] = ()
    compared: str
    is_bounded: bool = False
    holds: Callable[[Step, CallTarget], str | None]

    def __call__(self, step: Step, call_target: CallTarget) -> str | None:
        return None if self.left_out(step) else self.holds(step, call_target)

    def left_out(self, step: Step) -> tuple[str, str] | None:
        """The rule because of which a step is left out, and the reason; None if there is none."""
        return self.rules.left_out(step, self.adds) or (BOUNDED.left_out(step, ()) if self.is_bounded else None)


@dataclass(frozen=True)
class Outputs:
    """Outputs in the rows that requests own. They come from one step, or are computed from several steps."""

    out: torch.Tensor
    """[rows, H, D] as stored, or float64"""
    lse: torch.Tensor | None
    """[rows, H], or None if the step asks for no LSE"""

    @classmethod
    def of(cls, step: Step) -> "Outputs":
        rows, layer = int(step.batch.query_start_loc[-1]), step.layer
        out = step.out[:rows].reshape(rows, layer.num_heads, layer.v_head_size)
        return cls(out, None if step.lse is None else step.lse[:, :rows].T)

    @classmethod
    def read(cls, step: Step) -> "Outputs":
        """The outputs in float64. A quantized output is multiplied by its scale."""
        stored = cls.of(step)
        return cls(as_read(stored.out, step.layer), None if stored.lse is None else stored.lse.double())

    def __getitem__(self, rows: Rows) -> "Outputs":
        return Outputs(self.out[rows], None if self.lse is None else self.lse[rows])

    def __add__(self, other: "Outputs") -> "Outputs":
        lse = None if self.lse is None or other.lse is None else self.lse + other.lse
        return Outputs(self.out + other.out, lse)

    def named(self) -> dict[str, torch.Tensor]:
        return {"out": self.out} if self.lse is None else {"out": self.out, "lse": self.lse}


ErrorBound = Callable[[Step], Outputs]
"""Bounds the distance of each output of a step from the right output; see `attn_fuzz.properties.bound`."""

Launch = Callable[[Step], Hashable]
"""A key of the order in which a target adds the numbers of a step: tiles, splits, and compiled-in constants.

Where two steps attend to the same numbers, equal launches give equal bits. Other launches may add in another order.
"""


def compared(error: ErrorBound | None, launch: Launch | None = None) -> str:
    """The comparison of outputs, in words. The arguments are those of Comparison."""
    if error is None:
        return "bit by bit"
    return "within the bound" if launch is None else "bit by bit if the launch is the same, else within the bound"


def relation(
    name: str, *, says: str, rules: Question, applies: str = "all", adds: tuple[str, ...] = ()
) -> Callable[[Callable[Concatenate[Step, CallTarget, P], str | None]], Callable[P, Property]]:
    """Turn a relation into a function that takes the arguments after the step and the call, and returns the Property.

    Args:
        name, says, rules, applies, adds: as of Property. How outputs are compared follows from the relation's arguments.
    """

    def made(holds: Callable[Concatenate[Step, CallTarget, P], str | None]) -> Callable[P, Property]:
        @functools.wraps(holds)
        def factory(*args: P.args, **kwargs: P.kwargs) -> Property:
            given = inspect.signature(holds).bind_partial(None, None, *args, **kwargs).arguments
            return Property(
                name=name,
                says=says,
                applies=applies,
                rules=rules,
                adds=adds,
                compared=compared(given.get("error"), given.get("launch")),
                is_bounded=given.get("error") is not None,
                holds=lambda step, call_target: holds(step, call_target, *args, **kwargs),
            )

        return factory

    return made


def again(step: Step, call_target: CallTarget) -> Step:
    """Call the target on a step once more, with new outputs."""
    rows = len(step.q)
    out = _strided_as(step.out, canary((rows, *step.out.shape[1:]), step.out.dtype, step.out.device))
    lse = None
    if step.lse is not None:
        head, row = _strides_as(step.lse, (len(step.lse), rows))
        lse = canary((len(step.lse), rows), step.lse.dtype, step.lse.device)
        # the heads of a batch with more rows lie further apart
        lse = torch.empty_strided(lse.shape, (max(head, rows * row), row), device=lse.device).copy_(lse)
    repeated = dataclasses.replace(step, out=out, lse=lse)
    call_target(repeated)
    return repeated


def variant(step: Step, call_target: CallTarget, **changes: Any) -> Step:
    """Call the target on a step with some fields changed. The variant writes no keys: the step's cache is written already.

    Strides stay what they were: kernels are compiled for them, and two compiled kernels may differ in a bit.
    """
    for name in changes.keys() & {"q", "k", "v"}:
        changes[name] = _strided_as(getattr(step, name), changes[name])
    changed = dataclasses.replace(step, **changes)
    if changed.kv_cache is not None:
        batch = dataclasses.replace(changed.batch, slot_mapping=None)
        changed = dataclasses.replace(changed, k=None, v=None, batch=batch)
    return again(changed, call_target)


def _strided_as(original: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    strides = _strides_as(original, tensor.shape)
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def _strides_as(original: torch.Tensor, shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a tensor for another number of rows. One row may have had any: several lie one after the other."""
    strides: list[int] = []
    extent = 1
    for size, before, stride in reversed([*zip(shape, original.shape, original.stride(), strict=True)]):
        strides.append(extent if before == 1 < size else stride)
        extent = max(extent, size * strides[-1]) if size > 1 else extent
    return tuple(reversed(strides))


def same_bits(expected: Outputs, got: Outputs, rows: Rows = ALL) -> str | None:
    """Name the first element that differs in a bit, or return None. `got` has the rows `rows` of `expected`."""
    for name, tensor in expected.named().items():
        tensor, other = tensor[rows], got.named()[name]
        if found := _first(name, bits(tensor.contiguous()) != bits(other.contiguous()), tensor, other, rows):
            return found
    return None


def close(expected: Outputs, got: Outputs, allowed: Outputs, rows: Rows = ALL) -> str | None:
    """Name the first element that differs by more than `allowed`, or return None. All outputs are float64."""
    for name, tensor in expected.named().items():
        tensor, other, bound = tensor[rows], got.named()[name], allowed.named()[name][rows]
        error = torch.where(tensor == other, 0.0, (tensor - other).abs())  # an LSE of -inf equals itself
        wrong = ~((error <= bound) | (error == 0))  # a bound of infinity times 0 is NaN
        if found := _first(name, wrong, tensor, other, rows):
            return f"{found} +- {float(bound[wrong][0]):.2g}"
    return None


class Comparison:
    """Compares rows of a step with rows of variants that attend to the same numbers.

    Without an error bound, rows must be equal bit by bit. With an error bound, they may differ by twice the bound; but with a
    launch too, rows of variants of the same launch must be equal bit by bit.
    """

    def __init__(self, step: Step, error: ErrorBound | None, launch: Launch | None = None) -> None:
        self.step = step
        self.error = error
        self.launch = launch

    def differs(self, part: Step, rows: Rows = ALL, part_rows: Rows = ALL) -> str | None:
        """Name the first element of `rows` that differs from the same element of the variant's `part_rows`, or return None."""
        different_bits = same_bits(Outputs.of(self.step), Outputs.of(part)[part_rows], rows)
        if different_bits is None or self.error is None or self._is_same_launch(part):
            return different_bits
        return close(Outputs.read(self.step), Outputs.read(part)[part_rows], self._allowed, rows)

    def _is_same_launch(self, part: Step) -> bool:
        return self.launch is not None and self.launch(self.step) == self.launch(part)

    @functools.cached_property
    def _allowed(self) -> Outputs:
        assert self.error is not None
        allowed = self.error(self.step)
        return allowed + allowed


def request_rows(batch: Batch) -> list[tuple[int, int]]:
    """The first row of each request, and the row after its last row."""
    return list(itertools.pairwise(batch.query_start_loc.tolist()))


def causal_flags(batch: Batch) -> list[bool]:
    return batch.causal.tolist() if isinstance(batch.causal, torch.Tensor) else [batch.causal] * batch.num_requests


def _first(name: str, wrong: torch.Tensor, expected: torch.Tensor, got: torch.Tensor, rows: Rows) -> str | None:
    if not wrong.any():
        return None
    row, head, *dim = (int(index) for index in wrong.nonzero()[0])
    place = (row, head, *dim)
    if isinstance(rows, slice):
        row += rows.start or 0
    else:
        row = int(rows[row])
    where = f"row {row}, head {head}" + (f", dim {dim[0]}" if dim else "")
    numbers = f"{float(got[place]):.9g} instead of {float(expected[place]):.9g}"
    return f"{int(wrong.sum())} elements of {name} differ, first at {where}: {numbers}"
