"""Packing: calls of one request that share their layer run as the requests of one launch.

**Why a packed launch proves its calls.** A request's rows are defined by the layer and by what belongs to the request: its
lengths, flags, ranges, queries and blocks. A packed launch gives each request what its call alone would give it, with these
exceptions, which are all that a kernel can see of the rest of the batch:

    max_query_len, max_seq_len    upper bounds, which a caller may also pass loosely. Calls of one query are packed by
                                  themselves, since many kernels decode by another path where max_query_len is 1. Other calls
                                  have the bounds of the longest call
    the number of requests        and with it the grid, and what is chosen by a batch's size, such as the number of splits
    the place in the batch        a request's index, the offset of its rows, and the ids of its blocks
    qq_bias                       of as many rows as max_query_len

So if all rows of a packed launch are right, a call alone is right, unless the kernel does something else for small batches. And
if a kernel mixes requests up, a packed launch shows it: its requests differ in all lengths, and have different numbers.

**What it does not prove**: that a launch with one request is right, or a launch with two. Parts of a scope that are not packed
run such launches, where the batch itself is the case.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
from attn_fuzz.cases.case import Case
from attn_fuzz.exhaustive import symmetry
from attn_fuzz.exhaustive.calls import Group, call
from attn_fuzz.exhaustive.scope import ScopePart
from attn_fuzz.verdict.verdict import Verdict

MAX_CALLS = 256
"""The most calls of one launch. A failing launch is split in halves, and a larger one saves little."""
SUSPECTS, SEEDS = 8, 3
"""The requests of a verdict that are run alone, and the seeds for each: alone, a request has other numbers."""


@dataclass(frozen=True)
class PackedLaunch:
    """A case to run, and how many calls of the scope it stands for."""

    case: Case
    num_calls: int


def launches(part: ScopePart, group: Group) -> Iterator[PackedLaunch]:
    """The launches that run the calls of a group."""
    if not part.packed:
        yield from (PackedLaunch(call(group.template, (batch,)), 1) for batch in group.batches)
        return
    decodes = [batch for batch in group.batches if batch[0].query_len == 1]
    others = [batch for batch in group.batches if batch[0].query_len != 1]
    for batches in (decodes, others):
        for first in range(0, len(batches), MAX_CALLS):
            packed = batches[first : first + MAX_CALLS]
            yield PackedLaunch(call(group.template, packed), len(packed))


def smallest(case: Case, verdict: Verdict, run: Callable[[Case], Verdict]) -> tuple[Case, Verdict]:
    """The smallest case in a failing launch that fails, and its verdict.

    If a request fails alone, the smallest such request is returned. If none does, the launch is halved as long as a half fails,
    and then loses one request after the other. Then the batch itself is the failing case.

    Args:
        verdict: on the launch.
        run: runs a case on the target.
    """
    if len(case.requests) == 1:
        return case, verdict
    named = sorted({difference.request for difference in verdict.differences}) or range(len(case.requests))
    by_size = sorted(named, key=lambda r: case.requests[r].query_len + case.requests[r].seq_len)
    for r in by_size[:SUSPECTS]:
        for seed in range(SEEDS):
            alone = _only(case, [r], seed)
            if (found := run(alone)).failed:
                return alone, found
    return _fewest(case, verdict, run)


def _fewest(case: Case, verdict: Verdict, run: Callable[[Case], Verdict]) -> tuple[Case, Verdict]:
    """The fewest requests of a launch that still fail, in the order that they have there."""
    size = (len(case.requests) + 1) // 2
    while size and len(case.requests) > 1:
        starts = range(0, len(case.requests), size)
        for start in starts:
            left = [r for r in range(len(case.requests)) if not start <= r < start + size]
            fewer = _only(case, left, case.values.seed)
            if left and (found := run(fewer)).failed:
                case, verdict = fewer, found
                break
        else:
            size //= 2
        size = min(size, len(case.requests) // 2)
    return case, verdict


def _only(case: Case, requests: Sequence[int], seed: int) -> Case:
    """The case with some of its requests, in a cache of their own blocks."""
    batch = symmetry.renamed([case.requests[r] for r in requests])
    values = msgspec.structs.replace(case.values, seed=seed)
    return call(msgspec.structs.replace(case, values=values), (batch,))
