"""`attn-parity ways`: put known bugs back, and say which way of looking finds which of them."""

import functools
import itertools
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import TypeVar, get_args

import click
import msgspec
from attn_fuzz import extras, inputs
from attn_fuzz.errors import ExecutorError
from attn_fuzz.exhaustive import first
from attn_fuzz.exhaustive.scope import SCOPES
from attn_fuzz.report import results_file, ways_page
from attn_fuzz.report.ways_page import Caught, Looked, Results, Row, Way
from attn_fuzz.run import prepared, runner
from attn_fuzz.run.shard import FuzzPlan, Progress
from attn_fuzz.run.trial import NOT_CARRIED
from attn_fuzz.run.ways import TRIALS, Drawn, target_of
from attn_fuzz.targets import registry
from attn_fuzz.zoo import mutants
from attn_fuzz.zoo.mutants import KnownBug, MutantError
from attn_parity import mutant_pages
from attn_parity.console import notes, results
from attn_parity.fuzz import PROFILES
from attn_parity.options import (
    PAGES,
    Duration,
    MaintainedCommand,
    MaintainersOption,
    Positive,
    Shard,
    check_option,
    check_page_writable,
    check_writable,
    default_workers,
    first_seed_option,
    json_option,
    limit_option,
    page_option,
    plain_table,
    progress_bar,
    seeds_option,
    workers_option,
    write_json,
)

T = TypeVar("T")
PAGE = PAGES / "zoo-ways.md"
DEVICE = "cpu"
"""All ways but one need the interpreter, or no device at all."""


@dataclass(frozen=True, kw_only=True)
class _Search:
    """What all ways are told: how many examples and seeds, which scope, how many processes, and when to stop."""

    examples: int
    seeds: range
    scope: str
    workers: int
    limit: float
    until: float | None


@click.command("ways", cls=MaintainedCommand)
@click.argument("ways", nargs=-1, type=click.Choice(get_args(Way)), metavar="[WAY]...")
@click.option("--only", multiple=True, metavar="NAME", help="Run only this mutant; may be given more than once.")
@click.option(
    "--examples", type=Positive, default=PROFILES["ci"], show_default=True, help="The most examples of a mutant and seed."
)
@first_seed_option
@seeds_option
@click.option("--scope", type=click.Choice(list(SCOPES)), default="ci", show_default=True, help="Of the way `exhaust`.")
@click.option("--shard", type=Shard(), default=(1, 1), help="Run only this share of the mutants, on one of N machines.")
@click.option("--minutes", type=Duration, help="Stop after this many minutes; mutants that are left are unfinished.")
@click.option(
    "--take",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Run nothing; take the results that --json has written, of several runs.",
)
@click.option(
    "--write",
    "writes",
    is_flag=True,
    cls=MaintainersOption,
    help="Write the page, and beside it the JSON file from which the page is made. Other results in this file stay.",
)
@check_option
@page_option(PAGE)
@workers_option
@limit_option
@json_option
def command(
    ways: tuple[Way, ...],
    only: tuple[str, ...],
    examples: int,
    seed: int,
    seeds: int,
    scope: str,
    shard: tuple[int, int],
    minutes: float | None,
    take: tuple[Path, ...],
    writes: bool,
    check: bool,
    page: Path,
    workers: int | None,
    limit: float,
    json_file: Path | None,
) -> int:
    """Put known bugs back, one at a time, and look for each in each way alone, on the CPU.

    WAY is one or more of judge, property, sanitizer, exact, exhaust, proof; without any, all of them.
    Exit 2 if a mutant does not run.
    """
    # before the mutants, whose reading takes a second
    checked = mutant_pages.kept(page, Results, "ways") if check else None
    taken = [results_file.load(path, Results) for path in take]
    everybody = mutants.load_all()
    names = [mutant.name for mutant in everybody]
    chosen = mutant_pages.chosen(everybody, only)
    if checked is not None:
        return _check(page, checked, everybody)
    check_writable(json_file)
    if writes:
        check_page_writable(page)
    search = _Search(
        examples=examples,
        seeds=range(seed, seed + seeds),
        scope=scope,
        workers=workers or default_workers(DEVICE),
        limit=limit,
        until=time.time() + 60 * minutes if minutes else None,
    )
    data = page.with_suffix(".json")
    kept = [results_file.load(data, Results)] if writes and data.is_file() else []
    interrupted = False
    if take:
        found = ways_page.merged(taken, names)
    else:
        of_shard = chosen[shard[0] - 1 :: shard[1]]
        found, interrupted = _found([way for way in get_args(Way) if not ways or way in ways], of_shard, search)
    _print(found, everybody)
    if json_file:
        write_json(json_file, msgspec.to_builtins(found))
    if writes:
        whole = ways_page.merged([*kept, found], names)
        mutant_pages.write(page, whole, ways_page.text(whole, everybody))
    if broken := [caught.error for row in found.mutants for caught in row.ways.values() if caught.error]:
        raise MutantError("; ".join(broken))
    return 130 if interrupted else 0


def _found(ways: Sequence[Way], residents: Sequence[KnownBug], search: _Search) -> tuple[Results, bool]:
    """Look for mutants in some ways. Returns what came of it, and whether an interrupt ended it: no other way is begun then."""
    if "proof" in ways:
        extras.require("proofs")
    fuzzed: list[Drawn] = [way for way in TRIALS if way in ways]
    unusable = _unusable(residents) if {*ways} - {"proof"} else {}
    caught = {(way, name): Caught(note=reason) for way in ways for name, reason in unusable.items() if way != "proof"}
    running = [mutant for mutant in residents if mutant.name not in unusable]
    interrupted = False
    if fuzzed:
        of_runs, interrupted = _fuzzed(fuzzed, running, search)
        caught |= of_runs
    drawn = Looked(seeds=tuple(search.seeds), at_most=search.examples, versions=_versions("hypothesis"))
    looked: dict[Way, Looked] = {}
    looked |= dict.fromkeys(fuzzed, drawn)
    if "exhaust" in ways and not interrupted:
        caught |= _exhausted(running, search)
        looked["exhaust"] = Looked(scope=search.scope, versions=_versions("triton"))
    if "proof" in ways and not interrupted:
        caught |= _proved(residents, search)
        looked["proof"] = Looked(versions=_versions("z3-solver"))
    rows = (Row(mutant.name, {way: caught[way, mutant.name] for way in ways if way in looked}) for mutant in residents)
    return Results(looked=looked, mutants=tuple(rows)), interrupted


def _unusable(residents: Sequence[KnownBug]) -> dict[str, str]:
    """Why mutants cannot run here, by name. They stay without a result, and the others run."""
    reasons = {target: registry.load(target).unavailable(DEVICE) for target in {mutant.target for mutant in residents}}
    for target, reason in sorted((target, reason) for target, reason in reasons.items() if reason):
        notes.print(f"target {target}: {reason}: its mutants do not run", soft_wrap=True)
    return {mutant.name: reason for mutant in residents if (reason := reasons[mutant.target])}


def _versions(package: str) -> dict[str, str]:
    try:
        return {"python": platform.python_version(), package: metadata.version(package)}
    except metadata.PackageNotFoundError:
        return {"python": platform.python_version()}


def _fuzzed(
    ways: Sequence[Drawn], residents: Sequence[KnownBug], search: _Search
) -> tuple[dict[tuple[Way, str], Caught], bool]:
    """Draw the cases of each seed for each way and mutant, until one fails. Returns also whether an interrupt ended it."""
    places: list[tuple[Drawn, KnownBug, str, int]] = [
        (way, mutant, target, seed)
        for way, mutant in itertools.product(ways, residents)
        if not mutant.needs_gpu and (target := target_of(way, mutant.target))
        for seed in search.seeds
    ]
    with tempfile.TemporaryDirectory() as scratch, progress_bar(len(places)) as show:
        plans = [_plan(*place, search, Path(scratch)) for place in places]
        ended = itertools.count(1)
        outcome = runner.run(plans, search.workers, stop_at_failure=False, ended=lambda index, progress: show(next(ended), 0))
    if outcome.error:
        raise ExecutorError(outcome.error)
    runs: dict[tuple[Drawn, str], list[Progress | None]] = {(way, mutant.name): [] for way in ways for mutant in residents}
    for index, (way, mutant, _, _) in enumerate(places):
        progress = outcome.progress[index]
        is_whole = index in outcome.finished and (progress.examples >= search.examples or not _is_late(search))
        runs[way, mutant.name].append(progress if progress.failure or progress.broken or is_whole else None)
    by_name = {mutant.name: mutant for mutant in residents}
    return {key: _of_runs(key[0], by_name[key[1]], each) for key, each in runs.items()}, outcome.interrupted


def _plan(way: Drawn, mutant: KnownBug, target: str, seed: int, search: _Search, folder: Path) -> FuzzPlan:
    return FuzzPlan(
        target=target,
        device=DEVICE,
        examples=search.examples,
        seed=seed,
        folder=folder,
        limit=search.limit,
        until=search.until,
        mutant=mutant,
        sanitize=way == "sanitizer",
        exact_every=int(way == "exact"),
        trial=TRIALS[way],
        on_failure="stop",
    )


def _is_late(search: _Search) -> bool:
    return search.until is not None and time.time() > search.until


def _of_runs(way: Drawn, mutant: KnownBug, runs: Sequence[Progress | None]) -> Caught:
    """What came of the runs of a mutant, one for each seed; None is a run without an end."""
    if not runs and not mutant.needs_gpu:
        missing = {"sanitizer": "no address can be checked", "property": "no property is promised"}
        return Caught(found=(None,), note=f"of target {mutant.target} {missing[way]}")
    whole = [progress for progress in runs if progress is not None]
    if error := next((progress.broken for progress in whole if progress.broken), None):
        return Caught(error=error)
    if not runs or len(whole) < len(runs):
        return Caught()
    failures = [progress.failure for progress in whole if progress.failure is not None]
    return Caught(
        found=tuple(progress.failure and progress.failure.found_after for progress in whole),
        seconds=round(median(failure.found_seconds for failure in failures), 1) if failures else None,
        by=failures[0].verdict.kind if failures else None,
        note=_not_carried(whole) if way == "exact" and not failures else "",
    )


def _not_carried(runs: Iterable[Progress]) -> str:
    """How many examples exact mode did not carry, and the most frequent reason."""
    reasons: dict[str, int] = {}
    for progress in runs:
        for event, count in progress.events.items():
            if event.startswith(NOT_CARRIED):
                reasons[event] = reasons.get(event, 0) + count
    if not reasons:
        return ""
    most = max(reasons, key=lambda reason: reasons[reason])
    return f"{sum(reasons.values())} of {sum(progress.examples for progress in runs)} examples not carried: {most[:160]}"


def _exhausted(residents: Sequence[KnownBug], search: _Search) -> dict[tuple[Way, str], Caught]:
    """Run the launches of a scope for each mutant, until one fails."""
    found: dict[tuple[Way, str], Caught] = {("exhaust", m.name): Caught() for m in residents if m.needs_gpu}
    running = [mutant for mutant in residents if not mutant.needs_gpu]
    for target in dict.fromkeys(mutant.target for mutant in running):
        if not registry.load(target).oracle:
            note = f"target {target} has no oracle"
            found |= {("exhaust", m.name): Caught(found=(None,), note=note) for m in running if m.target == target}
    running = [mutant for mutant in running if ("exhaust", mutant.name) not in found]
    look = functools.partial(first.first_failure, scope=search.scope, device=DEVICE, limit=search.limit, until=search.until)
    with ThreadPoolExecutor(search.workers) as pool:  # a thread waits for the process that runs its launches
        for mutant, came in _each(pool, look, running):
            count = came.launches if came.kind else None
            found["exhaust", mutant.name] = Caught(
                found=(count,) if came.is_whole and not came.error else (),
                seconds=round(came.seconds, 1) if came.kind else None,
                by=came.kind,
                error=came.error,
            )
    return found


def _proved(residents: Sequence[KnownBug], search: _Search) -> dict[tuple[Way, str], Caught]:
    """State all theorems about each mutant's source."""
    found: dict[tuple[Way, str], Caught] = {}
    with ProcessPoolExecutor(search.workers, prepared.spawn, prepared.end_with_parent) as pool:
        for mutant, came in _each(pool, functools.partial(_broken, until=search.until), residents):
            refused = came.refused or {}
            why = next(iter(refused.values()), "").rpartition("not understood: ")[2]
            found["proof", mutant.name] = Caught(
                found=(came.claims if came.theorems else None,) if came.is_whole else (),
                seconds=round(came.seconds, 1) if came.theorems else None,
                by=", ".join(came.theorems) or None,
                note=f"refused by {len(refused)} theorems: {why}" if refused else "",
            )
    return found


def _broken(mutant: KnownBug, until: float | None):
    from attn_proofs.theorems import THEOREMS
    from attn_proofs.zoo import broken

    return broken(mutant, THEOREMS, until)


def _each(pool: Executor, look: Callable[[KnownBug], T], residents: Sequence[KnownBug]) -> list[tuple[KnownBug, T]]:
    """What a function makes of each mutant. An interrupt ends the process, and so those that it has started.

    A pool that is left by an exception waits for all that it was given.
    """
    try:
        with progress_bar(len(residents)) as show:
            with prepared.interrupts_later():  # the first submissions start the processes
                futures = {pool.submit(look, mutant): mutant for mutant in residents}
            for done, _ in enumerate(as_completed(futures), 1):
                show(done, 0)
    except KeyboardInterrupt:
        os._exit(130)
    return [(mutant, future.result()) for future, mutant in futures.items()]


def _print(found: Results, everybody: Sequence[KnownBug]) -> None:
    looked: list[Way] = [way for way in ways_page.COUNTED if way in found.looked]
    table = plain_table("mutant", *looked, "earliest", "cheapest", right=tuple(looked))
    by_name = {mutant.name: mutant for mutant in everybody}
    for row in found.mutants:
        cells = [ways_page.in_words(row.ways.get(way), way, by_name[row.name]) for way in looked]
        table.add_row(row.name, *cells, ", ".join(ways_page.earliest(row.ways)), ways_page.cheapest(row.ways) or "")
    results.print(table)
    results.print(ways_page.summary(found), soft_wrap=True)


def _check(page: Path, found: Results, everybody: Sequence[KnownBug]) -> int:
    """The exit code: 0 if the page follows from its JSON and the mutants, whose reasons are needed; else 1."""
    wrong = [*ways_page.differences(found, everybody), *ways_page.needless(found, everybody)]
    if not page.is_file() or inputs.read_text(page) != ways_page.text(found, everybody):
        data = page.with_suffix(".json")
        wrong.append(f"{page} is not what {data} and the mutants make: run `attn-parity ways --take {data} --write`")
    return mutant_pages.checked(wrong, ways_page.summary(found))
