"""Lines that a search prints about classes."""

from collections.abc import Iterator
from dataclasses import fields

from attn_optimized.launch.table import Parameters
from rich.console import Console

from benchmarks.tuning.results import Candidate, Search, Tuning
from benchmarks.tuning.search import gain


def print_all(run: Tuning, console: Console) -> None:
    for found in run.classes:
        console.print()
        for line in class_lines(found):
            console.print(line, soft_wrap=True)


def best_line(found: Search) -> str:
    """The best candidate of a class so far."""
    today, *others = found.candidates
    timed = [each for each in others if each.times]
    if not timed or not today.times:
        return f"{found.name}: nothing timed"
    best = max(timed, key=lambda each: (len(each.times), gain(each, today)))
    count = f"{len(timed)} of {len(others)} candidates"
    what = differences(best.parameters, today.parameters)
    return f"{found.name}: {gain(best, today):.3f} in {len(best.times)} cases, {count}: {what}"


def class_lines(found: Search) -> Iterator[str]:
    """Today's parameters; of each case the share of the floor now, with the class's best, and with what is best for itself."""
    today = found.candidates[0]
    yield f"{found.name}: {found.why}"
    yield f"  today: {today.parameters}"
    best = max((each for each in found.candidates if each.verdict == "final"), key=lambda each: gain(each, today), default=None)
    if best is not None and best is not today:
        yield f"  best:  {differences(best.parameters, today.parameters)}"
    for case in found.cases:
        timed = [each for each in found.candidates if case.name in each.times]
        if case.name not in today.times:
            yield f"  not timed: {case.name}"
            continue
        own = min(timed, key=lambda each: each.times[case.name].ms)
        shares = [_share(case.floor_ms, each, case.name) for each in (today, best, own)]
        yield (
            f"  now {shares[0]}, best {shares[1]}, own best {shares[2]} of {len(timed)}: "
            f"{differences(own.parameters, today.parameters)} | {case.name}"
        )


def differences(parameters: Parameters, today: Parameters) -> str:
    """The parameters that differ from today's, in words."""
    names = [field.name for field in fields(Parameters)]
    changed = [name for name in names if getattr(parameters, name) != getattr(today, name)]
    return ", ".join(f"{name} {getattr(today, name)} -> {getattr(parameters, name)}" for name in changed) or "as today"


def _share(floor_ms: float, candidate: Candidate | None, case: str) -> str:
    if candidate is None or case not in candidate.times:
        return "-"
    return f"{floor_ms / candidate.times[case].ms:.0%}"
