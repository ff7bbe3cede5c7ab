"""Regions of the contract: for each field and argument, which values are legal, which are drawn, and why the others are not.

A region is a set of calls, named beside the field that it is about. It is drawn if some drawn case lies in it. A legal region
that is not drawn has a reason, and so has an illegal one. A rule has the regions "off" and "on" until it gets its own regions.
Any other field without a region fails a test: whoever adds a field says what its values are, and which of them are drawn.
"""

import dataclasses
import inspect
from collections.abc import Iterable, Mapping

from attn_contract import RULES, Batch, KVCacheView, Layer
from attn_contract.rules import held_rules
from attn_contract.validation import (
    check_paged_attention,
    check_rope_and_write_kv_cache,
    check_varlen_attention,
    check_write_kv_cache,
    check_write_latent_cache,
)
from attn_fuzz.cases.case import Case
from attn_fuzz.cases.regions.arguments import ARGUMENTS, CALL
from attn_fuzz.cases.regions.batch import BATCH
from attn_fuzz.cases.regions.layer import LAYER
from attn_fuzz.cases.regions.region import Region
from attn_fuzz.cases.regions.view import VIEW
from attn_fuzz.cases.tensors import Step

__all__ = ["REGIONS", "Region", "counts", "fields"]

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
    """In how many steps each region is drawn, by field and name. The steps are of any target."""
    found = {(field, region.name): 0 for field, regions in REGIONS.items() for region in regions if region.holds is not None}
    for case, step in steps:
        for field, regions in REGIONS.items():
            for region in regions:
                if region.holds is not None and region.holds(case, step):
                    found[field, region.name] += 1
    return found


def _of_rule(name: str) -> tuple[Region, ...]:
    return Region("off", lambda case, step: name not in case.rules), Region("on", lambda case, step: name in case.rules)


REGIONS: Mapping[str, tuple[Region, ...]] = {
    **{f"{holder.__name__}.{name}": _of_rule(name) for holder in (Layer, Batch) for name in held_rules(holder)},
    **{f"Layer.{name}": regions for name, regions in LAYER.items()},
    **{f"Batch.{name}": regions for name, regions in BATCH.items()},
    **{f"KVCacheView.{name}": regions for name, regions in VIEW.items()},
    **{f"call: {name}": regions for name, regions in CALL.items()},
    **{f"argument {name}": regions for name, regions in ARGUMENTS.items()},
}
"""By the name of a field, as `fields` has it: its regions."""
