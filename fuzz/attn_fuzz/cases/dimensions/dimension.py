"""What a dimension is, and what its values are made of."""

from collections.abc import Callable, Collection, Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from attn_contract import AttentionType, KVCacheView
from attn_fuzz.cases.case import Cache, Case, Request
from attn_fuzz.cases.tensors import Step

Holds = Callable[[Case], object]
InStep = Callable[[Case, Step], object]
Causality = Literal["causal", "non-causal", "per request"]
"""Of a decoder: `causal` is True, False, or a tensor. With a tensor, each request is enumerated with both flags."""
Ranges = Literal["edges", "all"]
"""The bidirectional ranges of a request: one of a few at its edges, or each of those that touch one of its keys."""
Scopes = Literal["every", "few", "all", "none"]
"""Which scopes of `attn_fuzz.exhaustive.scope` have a setting: every one, those with few or with all settings, or none."""

OFF = "off"
"""The region of calls that lack a rule."""


@dataclass(frozen=True)
class Setting:
    """A way to have a value.

    Args:
        words: for people.
        fields, cache: the fields of Case and of Cache that it sets.
        causality, ranges, lengths: what it says of the requests, `lengths` as (query_len, seq_len); None: nothing.
        scopes: which scopes have it.
    """

    words: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    cache: Mapping[str, Any] = field(default_factory=dict)
    causality: Causality | None = None
    ranges: Ranges | None = None
    lengths: tuple[int, int] | None = None
    scopes: Scopes = "every"

    @property
    def names(self) -> frozenset[str]:
        """What it sets. Two settings that set the same do not meet in one layer."""
        requests = [name for name in ("causality", "ranges") if getattr(self, name)]
        return frozenset([*self.fields, *(f"cache.{name}" for name in self.cache), *requests])


class Value(NamedTuple):
    """What some calls have along a dimension.

    Attributes:
        name: unlike that of every other feature and aspect, and of every other region of its dimension.
        kind: A "feature" is counted alone and in pairs, and drawn to meet others. An "aspect" is what a failure may need: see
            `attn_fuzz.findings.aspects`. Features are aspects, too. A "region" is only counted, on its own page.
        holds: whether a case has it. Of a rule, only cases are asked that have the rule.
        in_step: of a region, the same of a case and its tensors. A region with neither is not drawn.
        settings: ways to have it.
        asks: by a field of Support or Engine, whether the field's value lets a case have it.
        reason: why it is not drawn.
        legal: whether the contract allows it.
    """

    name: str
    kind: Literal["feature", "aspect", "region"] = "region"
    holds: Holds | None = None
    in_step: InStep | None = None
    settings: tuple[Setting, ...] = ()
    asks: Mapping[str, Callable[[Any], object]] = {}
    reason: str = ""
    legal: bool = True


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One thing in which calls differ.

    Args:
        name: of the dimension. Each scope combines settings of dimensions that are unlike in `choice`.
        group: of its features and aspects, for pages, and for the triples of `attn_fuzz.strategies.tally`.
        fields: of Case, as "window"; of Cache, a request, Rope and Values, as "cache.padding". Each field is of one dimension.
        contract: the fields and arguments of the contract that it is about, as `attn_fuzz.cases.regions.fields` names them.
        values: of it.
        rule: the rule that all its features and aspects are about, if they are.
        choice: the name under which settings exclude each other in a scope; empty: the dimension's own.
        needs_cache: whether only cases with a cache have its features.
        left_out: why no scope sets its fields; empty if one does.
    """

    name: str
    group: str = ""
    fields: tuple[str, ...] = ()
    contract: tuple[str, ...] = ()
    values: tuple[Value, ...] = ()
    rule: str | None = None
    choice: str = ""
    needs_cache: bool = False
    left_out: str = ""


def feature(name: str, holds: Holds, *settings: Setting, **asks: Callable[[Any], object]) -> Value:
    return Value(name, "feature", holds, settings=settings, asks=asks)


def aspect(name: str, holds: Holds, *settings: Setting) -> Value:
    return Value(name, "aspect", holds, settings=settings)


def region(name: str, holds: Holds, *settings: Setting) -> Value:
    return Value(name, holds=holds, settings=settings)


def step_region(name: str, in_step: InStep) -> Value:
    return Value(name, in_step=in_step)


def not_drawn(name: str, reason: str) -> Value:
    return Value(name, reason=reason)


def illegal(name: str, reason: str) -> Value:
    return Value(name, reason=reason, legal=False)


def not_finite(name: str) -> Value:
    return illegal("NaN, infinity", f"`validation.values` refuses it: {name} is a number that enters every logit")


def setting(
    words: str = "",
    cache: Mapping[str, Any] | None = None,
    *,
    causality: Causality | None = None,
    ranges: Ranges | None = None,
    lengths: tuple[int, int] | None = None,
    scopes: Scopes = "every",
    **fields: Any,
) -> Setting:
    """A setting of fields of Case, and of Cache."""
    return Setting(words, fields, cache or {}, causality, ranges, lengths, scopes)


def unscoped(cache: Mapping[str, Any] | None = None, **fields: Any) -> Setting:
    """A setting that no scope has: the plainest calls of targets have it, or others that are alike."""
    return setting("", cache, scopes="none", **fields)


def any_reads_cache(attn_types: Collection[AttentionType]) -> bool:
    return any(attn_type.reads_cache for attn_type in attn_types)


def has(value: object) -> Callable[[Container[object]], bool]:
    return lambda values: value in values


def of_cache(holds: Callable[[Cache], object]) -> Holds:
    return lambda case: case.cache is not None and bool(holds(case.cache))


def of_request(holds: Callable[[Request], object]) -> Holds:
    return lambda case: any(holds(request) for request in case.requests)


def of_tensor(name: str, holds: Callable[[torch.Tensor], object]) -> InStep:
    """Whether a tensor of the layer, the batch or the step is there, and has a property."""

    def of(case: Case, step: Step) -> bool:
        own = {key: getattr(step, key) for key in ("q", "k", "v", "out", "lse")}
        tensor = {**step.layer.tensors, **step.batch.tensors, **own}.get(name)
        return tensor is not None and bool(holds(tensor))

    return of


def of_view(holds: Callable[[KVCacheView], object]) -> InStep:
    return lambda case, step: step.view is not None and bool(holds(step.view))


def of_rotation(name: str, holds: Callable[[Any, Case], object]) -> InStep:
    """Whether an argument of a write that rotates has a property."""
    return lambda case, step: any(
        write.rotation is not None and holds(getattr(write.rotation, name), case) for write in step.writes
    )


def tensor_regions(name: str, regions: Mapping[str, Callable[[torch.Tensor], object]]) -> tuple[Value, ...]:
    """Regions of a tensor, by name."""
    return tuple(step_region(words, of_tensor(name, holds)) for words, holds in regions.items())


def idle_stride(name: str) -> Value:
    """A tensor that has a dimension of one element, whose stride is one that nobody would give it."""
    has_one = of_tensor(name, lambda tensor: 1 in tensor.shape)
    return step_region(
        "one element in a dimension of any stride", lambda case, step: case.unlike_strides and has_one(case, step)
    )
