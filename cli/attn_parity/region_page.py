"""The page of the contract's regions: which values are legal, how often they are drawn, and why the others are not."""

from collections.abc import Mapping

import hypothesis
import msgspec
from attn_fuzz.cases import regions, tensors
from attn_fuzz.cases.dimensions import DIMENSIONS
from attn_fuzz.run import runner, shard
from attn_fuzz.run.shard import FuzzPlan

TARGETS = ("triton", "reference-fp32")
"""The targets whose cases are counted: the kernels, and the reference, which alone has all that the contract has."""


def region_counts(plan: FuzzPlan) -> dict[tuple[str, str], int]:
    """In how many cases of a plan each region is drawn, by dimension and name. The tensors of every case are built.

    Args:
        plan: for each of TARGETS, whatever its own target is.
    """
    plans = [msgspec.structs.replace(plan, target=target) for target in TARGETS]
    cases = (case for each in plans for part in runner.shards(each) for case in shard.drawn(part))
    return regions.counts((case, tensors.build(case)) for case in cases)


def never_drawn(counts: Mapping[tuple[str, str], int]) -> list[tuple[str, str]]:
    """The regions that no case lies in, though they have no reason not to be drawn."""
    return [region for region, count in counts.items() if not count]


def region_page(counts: Mapping[tuple[str, str], int]) -> str:
    """The page, of the counts of `region_counts`."""
    undrawn = [value for dimension in DIMENSIONS for value in dimension.values if value.reason]
    legal = len(counts) + sum(value.legal for value in undrawn)
    targets = " and ".join(f"`{target}`" for target in TARGETS)
    lines = [
        "# What is legal, and what is drawn",
        "",
        f"- Calls differ in {len(DIMENSIONS)} dimensions (`attn_fuzz.cases.dimensions`). The last table says which of the",
        f"  {len(regions.fields())} fields and arguments of the contract each of them is about.",
        f"- They have {legal} regions of legal values, of which the fuzzer draws {len(counts)}. The others have reasons.",
        "",
        f"`attn-parity matrix` wrote this page with Hypothesis {hypothesis.__version__}; `attn-parity matrix --check` fails if",
        "it is not current. A region is a set of calls. The column `cases` counts those in the",
        f"region, among the cases of `attn-parity fuzz --profile ci --seed 0` on a CPU for {targets}.",
        "Their tensors are built, and no kernel is run. A field without a region fails a test, and so does a legal region that",
        "has neither a case nor a reason.",
        "",
        "| dimension | region | cases | why it is not drawn |",
        "|---|---|--:|---|",
    ]
    for dimension in DIMENSIONS:
        lines += [f"| {dimension.name} | {name} | {counts[dimension.name, name]} | |" for name in regions.regions(dimension)]
        for value in dimension.values:
            if value.reason:
                lines.append(f"| {dimension.name} | {value.name} | {'-' if value.legal else 'illegal'} | {value.reason} |")
    lines += ["", "## Fields", "", "| dimension | fields of a case | of the contract |", "|---|---|---|"]
    for dimension in DIMENSIONS:
        fields = [", ".join(f"`{name}`" for name in names) for names in (dimension.fields, dimension.contract)]
        lines.append(f"| {dimension.name} | {' | '.join(fields)} |")
    return "\n".join(lines) + "\n"
