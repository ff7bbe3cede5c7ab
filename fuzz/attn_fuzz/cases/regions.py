"""Regions of the contract: for each dimension, which values are legal, which are drawn, and why the others are not.

A region is a set of calls, a value of a dimension. It is drawn if some drawn case lies in it. A legal region that is not drawn
has a reason, and so has an illegal one.
"""

import dataclasses
import inspect
from collections.abc import Iterable

from attn_contract import RULES, Batch, KVCacheView, Layer
from attn_contract.validation import (
    check_paged_attention,
    check_rope_and_write_kv_cache,
    check_varlen_attention,
    check_write_kv_cache,
    check_write_latent_cache,
)
from attn_fuzz.cases.case import Case
from attn_fuzz.cases.dimensions import DIMENSIONS, Dimension, Value
from attn_fuzz.cases.tensors import Step

_BORDERS = (
    check_paged_attention,
    check_varlen_attention,
    check_write_kv_cache,
    check_rope_and_write_kv_cache,
    check_write_latent_cache,
)


def fields() -> list[str]:
    """Every field and argument of the contract that a call has: of Layer, Batch and KVCacheView, rules of a call, arguments."""
    held = [f"{holder.__name__}.{field.name}" for holder in (Layer, Batch, KVCacheView) for field in dataclasses.fields(holder)]
    called = [f"call.{name}" for name, rule in RULES.items() if rule.holder == "call"]
    arguments = dict.fromkeys(f"argument.{name}" for border in _BORDERS for name in inspect.signature(border).parameters)
    return [*held, *called, *arguments]


NONE = "none of these"
"""The region of a dimension's calls that have none of its features and aspects. Of a rule, it is that the rule is off."""


def regions(dimension: Dimension) -> list[str]:
    """The names of the regions that are drawn."""
    named = [value for value in dimension.values if not value.reason]
    has_none = not dimension.is_total and any(value.kind != "region" for value in named)
    return [*(value.name for value in named), *((NONE,) if has_none else ())]


def counts(steps: Iterable[tuple[Case, Step]]) -> dict[tuple[str, str], int]:
    """In how many steps each region is drawn, by dimension and name. The steps are of any target."""
    found = {(dimension.name, name): 0 for dimension in DIMENSIONS for name in regions(dimension)}
    for case, step in steps:
        for dimension in DIMENSIONS:
            held = [value for value in dimension.values if _holds(case, step, dimension, value)]
            names = [value.name for value in held]
            for name in names if any(value.kind != "region" for value in held) else (*names, NONE):
                if (dimension.name, name) in found:
                    found[dimension.name, name] += 1
    return found


def _holds(case: Case, step: Step, dimension: Dimension, value: Value) -> bool:
    if dimension.rule not in (None, *case.rules):
        return False
    return bool(value.holds(case) if value.holds else value.in_step and value.in_step(case, step))
