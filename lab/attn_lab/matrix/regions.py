"""The page of regions: for each dimension of a call, which values are legal, how often they are drawn, and why not the others.

A region is a set of calls, a value of a dimension. It is drawn if some drawn case lies in it. A legal region that is not drawn
has a reason, and so has an illegal one.
"""

import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Mapping

import hypothesis
import msgspec
from attn_contract import RULES, Batch, KVCacheView, Layer
from attn_contract.validation import (
    check_paged_attention,
    check_rope_and_write_kv_cache,
    check_varlen_attention,
    check_write_kv_cache,
    check_write_latent_cache,
)
from attn_fuzz.cases import tensors
from attn_fuzz.cases.case import Case
from attn_fuzz.cases.dimensions import DIMENSIONS, Dimension, Value
from attn_fuzz.cases.tensors import Step
from attn_fuzz.run import runner, shard
from attn_fuzz.run.shard import FuzzPlan
from attn_lab.pages import table

_ARGUMENT_CHECKS = (
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
    arguments = dict.fromkeys(f"argument.{name}" for check in _ARGUMENT_CHECKS for name in inspect.signature(check).parameters)
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


HEADING = "## What is legal, and what is drawn"
TARGETS = ("triton", "reference-fp32")
"""The targets whose cases are counted: the kernels, and the reference, because only it has everything in the contract."""


def region_counts(plan: FuzzPlan) -> dict[tuple[str, str], int]:
    """In how many cases of a plan each region is drawn, by dimension and name. The tensors of every case are built.

    Args:
        plan: for each of TARGETS, whatever its own target is.
    """
    plans = [msgspec.structs.replace(plan, target=target) for target in TARGETS]
    cases = (case for each in plans for part in runner.shards(each) for case in shard.drawn(part))
    return counts((case, tensors.build(case)) for case in cases)


def never_drawn(counted: Mapping[tuple[str, str], int]) -> list[tuple[str, str]]:
    """The regions that no case lies in, though they have no reason not to be drawn."""
    return [region for region, count in counted.items() if not count]


def region_page(counted: Mapping[tuple[str, str], int]) -> str:
    """The page, of the counts of `region_counts`."""
    undrawn = [value for dimension in DIMENSIONS for value in dimension.values if value.reason]
    legal = len(counted) + sum(value.legal for value in undrawn)
    targets = " and ".join(f"`{target}`" for target in TARGETS)
    lines = [
        HEADING,
        "",
        f"- Calls differ in {len(DIMENSIONS)} dimensions (`attn_fuzz.cases.dimensions`), which are about all",
        f"  {len(fields())} fields and arguments of the contract.",
        f"- They have {legal} regions of legal values, of which the fuzzer draws {len(counted)}. The others have reasons.",
        "",
        f"`python -m attn_lab matrix page` wrote this page with Hypothesis {hypothesis.__version__}; with `--check` it fails",
        "if the page is not current. A region is a set of calls. The column `cases` counts those in",
        f"the region, among the cases of `attn-parity fuzz --profile ci --seed 0` on a CPU for {targets}.",
        "Their tensors are built, and no kernel is run. A field without a dimension fails a test, and so does a legal region",
        "that has neither a case nor a reason.",
        "",
        *table(("dimension", "region", "cases", "why it is not drawn"), _of_regions(counted), ("cases",)),
    ]
    return "\n".join(lines) + "\n"


def _of_regions(counted: Mapping[tuple[str, str], int]) -> Iterator[tuple[object, ...]]:
    """A row for each region. The first row of a dimension names it."""
    for dimension in DIMENSIONS:
        rows = [(name, counted[dimension.name, name], "") for name in regions(dimension)]
        rows += [(value.name, "-" if value.legal else "illegal", value.reason) for value in dimension.values if value.reason]
        for number, row in enumerate(rows):
            yield ("" if number else dimension.name, *row)
