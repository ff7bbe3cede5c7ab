"""Wrong calls of a target whose author promises checks (`attn-parity fuzz --malformed`).

In each case one call has one corruption, which the case's seed draws: of attention, or of a cache write. The target refuses it
before it writes anything, or gives what the call without the corruption gives.
"""

import contextlib
import random
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import torch
from attn_contract import ContractError
from attn_fuzz.cases import wrong_values
from attn_fuzz.cases.case import Case
from attn_fuzz.cases.earlier import restored
from attn_fuzz.cases.poison import bits
from attn_fuzz.cases.tensors import Rotation, Write
from attn_fuzz.cases.wrong_arguments import GRADIENT, Wrong, dims_of, overlapping, wrong_attention, wrong_tensors
from attn_fuzz.errors import FailedCheckError
from attn_fuzz.interpreted import sanitizer
from attn_fuzz.run.case.attempt import Attempt, RefusedCallError
from attn_fuzz.run.case.exceptions import described
from attn_fuzz.run.case.limits import limit_of
from attn_fuzz.targets.target import Target
from attn_fuzz.verdict.verdict import MALFORMED, Verdict

WRITES = 1 / 3
"""The share of the cases with a cache write in which a write is corrupted."""
_REFUSALS = (ValueError, NotImplementedError, TypeError)
_ARGUMENTS = {
    "attention": ("q", "k", "v", "kv_cache", "layer", "batch"),
    "write_kv_cache": ("k", "v", "kv_cache", "layer", "slot_mapping"),
    "write_latent_cache": ("kv_c", "k_pe", "kv_cache", "layer", "slot_mapping"),
    "rope_and_write_kv_cache": ("q", "k", "v", "positions", "cos_sin_cache", "kv_cache", "layer", "slot_mapping"),
}
"""The positional arguments of each function of a Target."""
_OF_ANY_LENGTH = ("q", "positions", "cos_sin_cache", "slot_mapping")
"""The arguments of a write whose number of rows depends on no other: fewer of them are another legal call."""


class _Option(NamedTuple):
    kind: str
    what: str
    corrupted: Callable[[], AbstractContextManager[dict[str, Any]]]


@dataclass
class Corruption:
    """Corrupts the first write of a case, or its call of attention.

    Args:
        seed: chooses the call and its corruption. A smaller case that still can have the corruption has the same one.
        is_after_legal: True if the legal call comes first.
        calls: False: the target is not called, and the corruption gets its words alone.

    Attributes:
        kind, what: the kind and the words of the corruption; empty as long as there is none.
    """

    seed: int
    is_after_legal: bool
    calls: bool = True
    kind: str = field(default="", init=False)
    what: str = field(default="", init=False)

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """See `Target.wrapped`."""

        def call(*positional: Any, **named: Any) -> None:
            right = {**dict(zip(_ARGUMENTS[name], positional, strict=True)), **named}

            def called(arguments: Mapping[str, Any]) -> None:
                if self.calls:
                    own = [arguments[each] for each in _ARGUMENTS[name]]
                    function(*own, **{each: arguments[each] for each in named})

            if self.what or (name != "attention" and self._rank("a write") >= WRITES):
                called(right)
            elif name == "attention":
                self._corrupt(called, right, _of_attention(right, function), ("out", "lse"))
            else:
                self._corrupt(called, right, _of_write(right, function), ("kv_cache", *(["q"] if "q" in right else [])))

        return call

    def _corrupt(
        self,
        call: Callable[[Mapping[str, Any]], None],
        right: dict[str, Any],
        options: Iterable[_Option],
        names: tuple[str, ...],
    ) -> None:
        written = {name: right[name] for name in names if right[name] is not None}
        if self.is_after_legal:
            scales = [tensor for name, tensor in right["layer"].tensors.items() if name.endswith("_scale_cache")]
            with restored([*written.values(), *scales]):
                call(right)
        error = None
        with self._drawn(options) as changed:
            arguments = right | changed
            try:
                call(arguments)
            except sanitizer.Violation:
                raise
            except Exception as raised:
                if limit_of(raised):
                    raise
                error = raised
        if isinstance(error, _REFUSALS):
            raise RefusedCallError(f"{self.what}: {described(error)}")
        if error is not None:
            raise FailedCheckError("raised", type(error).__name__, described(error))
        for name, tensor in written.items():
            _give_back(tensor, arguments[name])

    def _drawn(self, options: Iterable[_Option]) -> AbstractContextManager[dict[str, Any]]:
        """The corruption: first its kind is drawn, and then one of the kind that the contract's objects let pass."""
        for option in sorted(options, key=lambda each: [*map(self._rank, (each.kind, without_numbers(each.what), each.what))]):
            with contextlib.suppress(ContractError):  # of a Layer or a Batch: no call of the target
                corrupted = option.corrupted()
                self.kind, self.what = option.kind, option.what
                return corrupted
        return contextlib.nullcontext({})

    def _rank(self, words: str) -> float:
        return random.Random(f"{self.seed} {words}").random()


def without_numbers(words: str) -> str:
    """The words of a corruption that a smaller case has, too, in which sizes are others."""
    return re.sub(r"\d+", "N", words)


def corrupting(case: Case, target: Target, *, calls: bool = True) -> tuple[Corruption, Target]:
    """The corruption of a case, and the target that makes the case's calls with it. The case's names of earlier calls say only
    that the legal call comes first."""
    corruption = Corruption(case.values.seed, is_after_legal=bool(case.earlier), calls=calls)
    return corruption, target.wrapped(corruption.wrap, properties=())


def named(verdict: Verdict, corruption: Corruption) -> Verdict:
    """The verdict on a case, which tells the corruption that the case has had."""
    if not corruption.what:
        return verdict
    verdict = msgspec.structs.replace(verdict, events=(*verdict.events, f"{MALFORMED}{corruption.kind}"))
    if not verdict.failed:
        return verdict
    about = f"{verdict.about} with {without_numbers(corruption.what)}"
    return msgspec.structs.replace(verdict, about=about, message=f"with {corruption.what}: {verdict.message}")


def corruption_of(case: Case, target: Target) -> Corruption:
    """The corruption of a case whose process can no longer tell it. The target is not called."""
    corruption, not_called = corrupting(case, target, calls=False)
    Attempt(msgspec.structs.replace(case, earlier=()), not_called, "cpu")
    return corruption


def _of_attention(right: dict[str, Any], function: Callable[..., Any]) -> Iterable[_Option]:
    for wrong in wrong_attention(**right):
        if wrong.kind != GRADIENT:
            yield _option(wrong)
    if wrong_values.are_checked(function):
        for edge in wrong_values.of_attention(right["layer"], right["batch"], right["kv_cache"]):
            if not edge.is_legal:
                yield _Option(edge.kind, edge.what, lambda edge=edge: edge.holding)


def _of_write(right: dict[str, Any], function: Callable[..., Any]) -> Iterable[_Option]:
    tensors = {name: value for name, value in right.items() if isinstance(value, torch.Tensor)}
    layer, cache, slots = right["layer"], right["kv_cache"], right["slot_mapping"]
    free = {"kv_cache": dims_of(layer.layout, "block", "slot"), **dict.fromkeys(_OF_ANY_LENGTH, (0,))}
    for name, tensor in tensors.items():
        for kind, what, make in wrong_tensors(tensor, free.get(name, ())):
            yield _option(Wrong(kind, f"{name} {what}", lambda name=name, make=make: {name: make()}))
    yield from map(_option, overlapping(tensors, [name for name in ("kv_cache", "q") if name in tensors]))
    if wrong_values.are_checked(function):
        rotation = Rotation(right["positions"], right["cos_sin_cache"], right["is_neox"]) if "positions" in right else None
        rows = right["k" if "k" in right else "kv_c"]
        for edge in wrong_values.of_write(Write(layer, layer.view_of(cache), rows, rows, slots, rotation)):
            if not edge.is_legal:
                yield _Option(edge.kind, f"{edge.what} of a write", lambda edge=edge: edge.holding)


def _option(wrong: Wrong) -> _Option:
    return _Option(wrong.kind, wrong.what, lambda: contextlib.nullcontext(wrong.make()))


def _give_back(own: torch.Tensor, found: torch.Tensor) -> None:
    """Copy what a call wrote into the tensor of another dtype or shape that it got for its own. NaN counts as not written."""
    if found.device != own.device or found.untyped_storage().data_ptr() == own.untyped_storage().data_ptr():
        return
    if found.dim() == own.dim():
        found = found[tuple(map(slice, own.shape))]
    if found.numel() == own.numel():
        found = found.reshape(own.shape)
        is_written = ~found.float().isnan()
        bits(own)[is_written] = bits(found.to(own.dtype))[is_written]
