"""A run: class by class, found on the GPU that is here or derived from binaries for one that is not."""

import time
from collections.abc import Callable, Iterable, Sequence

import torch
from attn_optimized.launch.table import Entry, Parameters
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.tuning.classes import CallClass
from benchmarks.tuning.compilers import Compilers
from benchmarks.tuning.ranking import prune, rank
from benchmarks.tuning.results import Candidate, Search, Tuning
from benchmarks.tuning.search import GpuClock, check, decide, halve, milliseconds
from benchmarks.tuning.space import TINY, candidates, splits, with_as_many_waves
from benchmarks.tuning.table import entry_of

COMPILING = 0.6
"""Of the time of a class, at most; checks and clocks have the rest."""

Step = Callable[[str], None]
"""Told what is being done."""


def tune(
    run: Tuning,
    classes: Sequence[CallClass],
    search: Callable[[Search, CallClass, float, Step], None],
    *,
    budget: float,
    started: float,
    save: Callable[[CallClass, Search], None],
    console: Console,
) -> None:
    """Search class after class into `run`, saved after each; what an interrupt or the budget leaves out is in `run.unfinished`.

    Args:
        search: fills one class's, until about a deadline.
    """
    run.unfinished = [call_class.name for call_class in classes]
    columns = (TextColumn("{task.completed}/{task.total}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(classes))
        for i, call_class in enumerate(classes):
            left = budget - (time.monotonic() - started)
            if left <= 0:
                break
            deadline = time.monotonic() + left / (len(classes) - i)
            today = entry_of(run.architecture, call_class).parameters
            found = Search(name=call_class.name, candidates=[Candidate(parameters=today)])
            run.classes.append(found)

            def step(what: str, name: str = call_class.name) -> None:
                progress.update(task, description=f"{name}: {what}")

            search(found, call_class, deadline, step)
            run.unfinished.remove(call_class.name)
            save(call_class, found)
            untried = sum(candidate.verdict == "waiting" for candidate in found.candidates)
            no_time = f" (no time for {untried} of {len(found.candidates)} candidates)" if untried else ""
            progress.console.print(f"{found.name}: {found.why}{no_time}")
            progress.advance(task)


def measured(
    found: Search,
    call_class: CallClass,
    deadline: float,
    step: Step,
    *,
    compilers: Compilers,
    architecture: str,
    device: torch.device,
) -> None:
    """Compile and prune, check, time in rounds that halve; then the same for splits of the keys with what is fastest."""
    today = found.candidates[0]
    found.candidates += _tried(candidates(call_class, architecture, today.parameters))
    compiling = time.monotonic() + COMPILING * (deadline - time.monotonic())
    for i, _ in enumerate(compilers.compile(call_class, found.candidates, deadline=compiling)):
        step(f"{i + 1} of {len(found.candidates)} candidates compiled")
    prune(found)
    ready = [each for each in found.candidates[1:] if each.verdict == "waiting" and each.facts is not None]
    _timed(found, [today, *ready], call_class, device, GpuClock(call_class.timed, device), deadline, step)
    finalists = [each for each in found.candidates[1:] if each.verdict == "final"]
    if today.verdict == "final":
        fastest = min((today, *finalists), key=milliseconds)
        other_splits = _tried(splits(call_class, architecture, fastest.parameters), but=found.candidates)
        if other_splits:
            found.candidates += other_splits
            clock = GpuClock(call_class.timed, device)
            _timed(found, [today, *finalists, *other_splits], call_class, device, clock, deadline, step)
    decide(found)


def interpreted(found: Search, call_class: CallClass, deadline: float, step: Step, *, architecture: str) -> None:
    """The same with few candidates in tiny cases on a CPU, without a compiler: no time has any value."""
    device = torch.device("cpu")
    today = found.candidates[0]
    found.candidates += _tried(candidates(call_class, architecture, today.parameters))[:TINY]
    clock = GpuClock([case.tiny() for case in call_class.timed], device, most_replays=2)
    _timed(found, found.candidates, call_class, device, clock, deadline, step)
    decide(found)


def derived(
    found: Search, call_class: CallClass, deadline: float, step: Step, *, compilers: Compilers, architecture: str
) -> None:
    """Compile, and rank by the facts of the binaries."""
    today = found.candidates[0].parameters
    # how deep loads are pipelined, no binary tells
    alike = (each for each in candidates(call_class, architecture, today) if each.num_stages == today.num_stages)
    found.candidates += _tried(with_as_many_waves(each, today) for each in alike)
    for i, _ in enumerate(compilers.compile(call_class, found.candidates, deadline=deadline)):
        step(f"{i + 1} of {len(found.candidates)} candidates compiled")
    prune(found)
    rank(found, architecture)


def chosen_entry(run: Tuning, call_class: CallClass, found: Search) -> Entry | None:
    """What replaces today's entry of a class; None: nothing does."""
    if found.chosen is None:
        return None
    chosen = next(each for each in found.candidates if each.parameters == found.chosen)
    reason = run.source if chosen.verdict == "final" else f"derived: {chosen.facts} ({run.source})"
    return Entry(
        phase=call_class.phase,
        itemsize=call_class.itemsize,
        most_block_d=call_class.most_block_d,
        quantized=call_class.quantized,
        parameters=found.chosen,
        source=reason,
    )


def _timed(
    found: Search,
    contenders: Sequence[Candidate],
    call_class: CallClass,
    device: torch.device,
    clock: GpuClock,
    deadline: float,
    step: Step,
) -> None:
    """Check those that have not been timed before, and time what is right; past the deadline no more are checked."""
    right = []
    for i, candidate in enumerate(contenders):
        step(f"{i + 1} of {len(contenders)} candidates checked")
        if not candidate.rounds and (not right or time.monotonic() < deadline):
            check(candidate, call_class, device)
            if candidate.verdict == "waiting":
                right.append(candidate)
        elif candidate.rounds:
            right.append(candidate)
        if not right:  # today's is the first
            return
    step(f"{len(right)} candidates timed")
    halve(right, clock, deadline=deadline)


def _tried(parameters: Iterable[Parameters], but: Sequence[Candidate] = ()) -> list[Candidate]:
    known = {candidate.parameters for candidate in but}
    return [Candidate(parameters=each) for each in parameters if each not in known]
