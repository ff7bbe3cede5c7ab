"""What `attn-parity exhaust` prints."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from attn_fuzz.errors import ExecutorError
from attn_fuzz.exhaustive.ledger import Ended
from attn_fuzz.verdict.verdict import COMPARED
from attn_parity.commands.exhaust.exhausted import Exhausted
from attn_parity.console import plain_table, results
from attn_parity.device import device_name

MAX_REASONS = 4
"""The number of reasons for leaving calls out that are printed for each part."""


def say_what_runs(outcome: Exhausted, before: int, path: Path) -> None:
    plan = outcome.plan
    shard = "" if plan.shard == (1, 1) else f", shard {outcome.shard}"
    where = f"{device_name(plan.device)}, {plan.workers} workers"
    work = f"{outcome.total_calls:,} calls in {sum(part.launches for part in outcome.parts):,} launches{shard}"
    results.print(f"target {outcome.target.name} on {where}: scope {plan.scope}, {work}")
    if before:
        results.print(f"{before:,} launches have ended before, in {path}")


def tell(outcome: Exhausted, path: Path) -> None:
    """Print what ended, and the claim if all of it agrees."""
    plan, ended = outcome.plan, outcome.ended.values()
    calls, failed = sum(launch.calls for launch in ended), outcome.failed_launches
    of = f"scope {plan.scope} of target {outcome.target.name}"
    of = of if plan.shard == (1, 1) else f"shard {outcome.shard} of {of}"
    rate = f"{outcome.calls:,} calls in {outcome.seconds:.1f} s ({outcome.calls / max(outcome.seconds, 1e-9):,.0f}/s)"
    if failed:
        some = "" if outcome.is_whole else f" so far, of {outcome.launches:,}"
        results.print(f"{of}: {len(failed):,} of {len(ended):,} launches fail{some}; this run: {rate}")
    elif outcome.is_whole:
        ratio = max((launch.ratio for launch in ended), default=0.0)
        claim = f"all {calls:,} calls of {of} agree with the reference, within the judge's bound"
        results.print(f"{claim} (largest error {ratio:.2f} of it); this run: {rate}")
        if plan.exactly:
            _tell_exact(list(ended), of)
    if not outcome.is_whole:
        left = f"{outcome.launches - len(ended):,} launches are left: the same command goes on, by {path}"
        results.print(f"interrupted, {left}" if outcome.interrupted else left)


def _tell_exact(ended: Sequence[Ended], of: str) -> None:
    """Print the claim in exact arithmetic, and what exact mode did not carry.

    Raises:
        ExecutorError: no launch was compared exactly.
    """
    compared = sum(launch.calls for launch in ended if launch.exact == COMPARED)
    left: Counter[str] = Counter()
    for launch in ended:
        if launch.exact != COMPARED:
            left[launch.exact] += launch.calls
    results.print(f"{compared:,} of them are the formula's in exact arithmetic, in every element")
    for reason, count in left.most_common():
        results.print(f"{reason}: {count:,} calls")
    if not compared:
        raise ExecutorError(f"--exact: no call of {of} was compared exactly, so nothing was shown")


def print_counts(outcome: Exhausted) -> None:
    numbers = ("layers", "calls", "launches", "left out", "undefined")
    table = plain_table("part", "block sizes", *numbers, right=numbers)
    for part in outcome.parts:
        out, undefined = part.left_out.not_served.total(), part.left_out.undefined.total()
        sizes = ", ".join(map(str, part.block_sizes))
        counts = (part.layers, part.calls, part.launches, out, undefined)
        table.add_row(part.part.what, sizes, *(f"{count:,}" for count in counts))
    results.print(table)
    for part in outcome.parts:
        for why, count in part.left_out.not_served.most_common(MAX_REASONS):
            results.print(f"left out of {part.part.what}: {count:,}, {why}")
    launches = sum(part.launches for part in outcome.parts)
    of = f"scope {outcome.plan.scope} has {outcome.total_calls:,} calls on target {outcome.target.name}"
    shard = "" if outcome.plan.shard == (1, 1) else f", {outcome.launches:,} of them in shard {outcome.shard}"
    results.print(f"{of}, in {launches:,} launches{shard}")
