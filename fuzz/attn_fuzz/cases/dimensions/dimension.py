"""A dimension of calls, and the parts of its values."""

from collections.abc import Callable, Collection, Container, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from attn_contract import AttentionType, KVCacheView
from attn_fuzz.cases.case import Cache, Case, Request
from attn_fuzz.cases.tensors import Step

Holds = Callable[[Case], object]
InStep = Callable[[Case, Step], object]
Asks = Callable[[Any], object]
Causality = Literal["causal", "non-causal", "per request"]
"""The causality of a decoder: `causal` is True, False, or a tensor. With a tensor, each request has both flags in turn."""
FLAGS: dict[Causality, tuple[bool, ...]] = {"causal": (True,), "non-causal": (False,), "per request": (False, True)}
"""The causal flags that requests of a decoder have."""
Ranges = Literal["edges", "all"]
"""The bidirectional ranges of a request: one of a few at its edges, or each of those that touch one of its keys."""
Scopes = Literal["every", "few", "all", "none"]
"""The scopes of `attn_fuzz.exhaustive.scope` that have a setting: all, those with few or with all settings, or none."""


@dataclass(frozen=True)
class Setting:
    """A way to have a value.

    Args:
        fields, cache: the fields of Case and of Cache that it sets.
        causality, ranges: the causal flags and ranges of the requests; None: any.
        lengths: (query_len, seq_len) of requests; empty: any.
        scopes: which scopes have it.
    """

    fields: Mapping[str, Any]
    cache: Mapping[str, Any]
    causality: Causality | None = None
    ranges: Ranges | None = None
    lengths: tuple[tuple[int, int], ...] = ()
    scopes: Scopes = "every"

    def __or__(self, other: "Setting") -> "Setting":
        """Both settings together. The other one wins where both set something; lengths are joined."""
        fields, cache = {**self.fields, **other.fields}, {**self.cache, **other.cache}
        causality, ranges = other.causality or self.causality, other.ranges or self.ranges
        return Setting(fields, cache, causality, ranges, self.lengths + other.lengths)

    @property
    def names(self) -> frozenset[str]:
        """The names of the fields that it sets. Two settings of one name do not meet in one layer."""
        requests = [name for name in ("causality", "ranges") if getattr(self, name)]
        return frozenset([*self.fields, *(f"cache.{name}" for name in self.cache), *requests])


class Value(NamedTuple):
    """A value of a dimension, which some calls have.

    Attributes:
        name: unlike that of every other feature and aspect, and of every other value of its dimension.
        kind: A "feature" is counted alone and in pairs, and drawn to meet others. An "aspect" is what a failure may need: see
            `attn_fuzz.findings.aspects`. A "region" is only counted.
        holds: True if a case has it. For a value of a rule, it is only asked of cases that have the rule.
        in_step: for a region, True if a case and its tensors have it. A region with neither function is not drawn.
        settings: ways to have it.
        asks: by a field of Support or Engine, True if the field's value lets a case have it.
        reason: why it is not drawn.
        legal: True if the contract allows it.
    """

    name: str
    kind: Literal["feature", "aspect", "region"] = "region"
    holds: Holds | None = None
    in_step: InStep | None = None
    settings: tuple[Setting, ...] = ()
    asks: Mapping[str, Asks] = {}
    reason: str = ""
    legal: bool = True


@dataclass(frozen=True)
class Dimension:
    """One thing in which calls differ.

    Args:
        name: the name of the dimension.
        group: the group of its features and aspects, for pages, and for the triples of `attn_fuzz.strategies.tally`.
        fields: names of fields: of Case, as "window"; of Cache, a request, Rope and Values, as "cache.padding". Each field
            belongs to one dimension.
        contract: the fields and arguments of the contract that it is about, as `attn_lab.matrix.regions.fields` names them.
        values: the values of the dimension.
        rule: the rule that all its values are about, if they are.
        choice: the name under which settings exclude each other in a scope; empty: the dimension's own.
        needs_cache: True if only cases with a cache have its features.
        is_total: True if every case has one of its features.
        left_out: why no scope sets its fields; empty if one does.
    """

    name: str
    group: str
    fields: tuple[str, ...]
    contract: tuple[str, ...]
    values: tuple[Value, ...]
    rule: str | None = None
    choice: str = ""
    needs_cache: bool = False
    is_total: bool = False
    left_out: str = ""


def dimension(name: str, group: str = "", fields: str = "", contract: str = "", **more: Any) -> Callable[..., Dimension]:
    """A dimension, which is called with its values. Names of fields are separated by spaces."""
    return lambda *values: Dimension(name, group, tuple(fields.split()), tuple(contract.split()), values, **more)


def feature(name: str, holds: Holds, *settings: Setting, **asks: Asks) -> Value:
    return Value(name, "feature", holds, settings=settings, asks=asks)


def equals(name: str, field: str, value: Any, *settings: Setting, **asks: Asks) -> Value:
    """A feature: a field of Case has a value."""
    return feature(name, lambda case: getattr(case, field) == value, setting(**{field: value}), *settings, **asks)


def aspect(name: str, holds: Holds, *settings: Setting) -> Value:
    return Value(name, "aspect", holds, settings=settings)


def region(name: str, holds: Holds) -> Value:
    return Value(name, holds=holds)


def in_step(name: str, holds: InStep) -> Value:
    return Value(name, in_step=holds)


def of_tensor(tensor: str, words: str, holds: Callable[[torch.Tensor], object]) -> Value:
    """A region of calls that have a tensor of the layer, the batch or the step, with a property."""

    def of(case: Case, step: Step) -> bool:
        own = {key: getattr(step, key) for key in ("q", "k", "v", "out", "lse")}
        found = {**step.layer.tensors, **step.batch.tensors, **own}.get(tensor)
        return found is not None and bool(holds(found))

    return in_step(f"{tensor}, {words}", of)


def idle_stride(tensor: str) -> Value:
    """A tensor that has a dimension of one element, whose stride is unusual."""
    alone = of_tensor(tensor, "one element in a dimension of any stride", lambda found: 1 in found.shape)
    return in_step(alone.name, lambda case, step: case.unlike_strides and alone.in_step and alone.in_step(case, step))


def of_view(name: str, holds: Callable[[KVCacheView], object]) -> Value:
    return in_step(name, lambda case, step: step.view is not None and holds(step.view))


def not_drawn(name: str, reason: str) -> Value:
    return Value(name, reason=reason)


def illegal(name: str, reason: str) -> Value:
    return Value(name, reason=reason, legal=False)


def setting(
    cache: Mapping[str, Any] | None = None,
    *,
    causality: Causality | None = None,
    ranges: Ranges | None = None,
    lengths: tuple[tuple[int, int], ...] = (),
    scopes: Scopes = "every",
    **fields: Any,
) -> Setting:
    """A setting of fields of Case, and of Cache."""
    return Setting(fields, cache or {}, causality, ranges, lengths, scopes)


def unscoped(cache: Mapping[str, Any] | None = None, **fields: Any) -> Setting:
    """A setting that no scope has, because the plainest calls of targets have it, or because another setting is like it."""
    return setting(cache, scopes="none", **fields)


def has(value: object) -> Callable[[Container[object]], bool]:
    return lambda values: value in values


def any_reads_cache(attn_types: Collection[AttentionType]) -> bool:
    return any(attn_type.reads_cache for attn_type in attn_types)


def always(case: Case) -> bool:
    return True


def of_cache(holds: Callable[[Cache], object]) -> Holds:
    return lambda case: case.cache is not None and bool(holds(case.cache))


def of_request(holds: Callable[[Request], object]) -> Holds:
    return lambda case: any(holds(request) for request in case.requests)
