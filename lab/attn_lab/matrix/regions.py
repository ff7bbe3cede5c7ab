"""The page of the contract's regions: which values are legal, how often they are drawn, and why the others are not."""

from collections.abc import Mapping

import msgspec
from attn_fuzz.cases import regions, tensors
from attn_fuzz.run import runner, shard
from attn_fuzz.run.shard import FuzzPlan
from attn_lab.written import table

HEADING = "## What is legal, and what is drawn"
TARGETS = ("triton", "reference-fp32")
"""The targets whose cases are counted: the kernels, and the reference, which alone has all that the contract has."""


def region_counts(plan: FuzzPlan) -> dict[tuple[str, str], int]:
    """In how many cases of a plan each region is drawn, by field and name. The tensors of every case are built.

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
    legal = [region for found in regions.REGIONS.values() for region in found if region.legal]
    drawn = sum(region.holds is not None for region in legal)
    targets = " and ".join(f"`{target}`" for target in TARGETS)
    lines = [
        HEADING,
        "",
        f"- The contract has {len(regions.REGIONS)} fields and arguments.",
        f"- They have {len(legal)} regions of legal values, of which the fuzzer draws {drawn}. The others have reasons.",
        "",
        "A region is a set of calls (`attn_fuzz.cases.regions`). The column `cases` counts those in the region, among the",
        f"cases of `attn-parity fuzz --profile ci --seed 0` on a CPU for {targets}.",
        "Their tensors are built, and no kernel is run. A field without a region fails a test, and so does a legal region that",
        "has neither a case nor a reason.",
        "",
    ]
    rows = [
        (f"`{field}`", region.name, _count(counts, field, region), region.reason)
        for field, found in regions.REGIONS.items()
        for region in found
    ]
    return "\n".join([*lines, *table(("field", "region", "cases", "why it is not drawn"), rows, ("cases",))]) + "\n"


def _count(counts: Mapping[tuple[str, str], int], field: str, region: regions.Region) -> int | str:
    return counts[field, region.name] if region.holds is not None else "-" if region.legal else "illegal"
