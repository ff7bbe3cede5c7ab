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
from attn_fuzz.cases.dimensions import DIMENSIONS, OFF, Dimension, Value
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
    called = [f"call: {name}" for name, rule in RULES.items() if rule.holder == "call"]
    arguments = dict.fromkeys(f"argument {name}" for border in _BORDERS for name in inspect.signature(border).parameters)
    return [*held, *called, *arguments]


def counts(steps: Iterable[tuple[Case, Step]]) -> dict[tuple[str, str], int]:
    """In how many steps each region is drawn, by dimension and name. The steps are of any target."""
    drawn = [(one, value) for one in DIMENSIONS for value in one.values if not value.reason]
    found = {(one.name, value.name): 0 for one, value in drawn}
    for case, step in steps:
        for one, value in drawn:
            found[one.name, value.name] += is_in(case, step, one, value)
    return found


def is_in(case: Case, step: Step, dimension: Dimension, value: Value) -> bool:
    """Whether a case, whose tensors are those of a step, lies in a region."""
    if dimension.rule not in (None, *case.rules) and value.name != OFF:
        return False
    return bool(value.holds(case) if value.holds else value.in_step and value.in_step(case, step))
