"""This project's kernels as another folder has them, such as an earlier commit, beside today's in one run."""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

from benchmarks.speed.participants import BEFORE, OURS
from benchmarks.speed.peers import MissingPeerError, as_package, imported
from benchmarks.speed.results import CaseResult


def load_before(folder: Path) -> SimpleNamespace:
    """The attention functions of a folder that holds this project, such as one that `git worktree add` makes.

    They get layers and batches of today's `attn_contract`. Today's `attn_optimized` stays imported, and torch's ops call it.

    Raises:
        MissingPeerError: the folder has no such package or functions, or they do not import beside today's `attn_contract`.
    """
    root = folder / "optimized" / "attn_optimized"
    if not root.is_dir():
        raise MissingPeerError(f"--before: got {folder}, expected a folder that holds optimized/attn_optimized")
    with as_package("attn_optimized", root):
        attention, cascade = imported("attn_optimized.attention"), imported("attn_optimized.cascade")
    try:
        return SimpleNamespace(
            paged_attention=attention.paged_attention,
            varlen_attention=attention.varlen_attention,
            cascade_attention=cascade.cascade_attention,
        )
    except AttributeError as error:
        raise MissingPeerError(f"--before: got {folder}, expected one with today's functions of attention: {error}") from error


def gains(cases: Sequence[CaseResult]) -> Iterator[str]:
    """For each kind of traffic, the time before over the time now: the geometric mean, and the cases at both ends."""
    found: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for case in cases:
        before, now = (case.results[name].time if name in case.results else None for name in (BEFORE, OURS))
        if before is not None and now is not None:
            found[case.traffic or "all cases"].append((before.ms / now.ms, case.name))
    for traffic, ratios in found.items():
        (least, slower), (most, faster) = min(ratios), max(ratios)
        mean = statistics.geometric_mean(ratio for ratio, _ in ratios)
        ends = f"{least:.2f} in {slower}, {most:.2f} in {faster}"
        yield f"{traffic}: time before / now {mean:.2f} in {len(ratios)} cases; {ends}"
