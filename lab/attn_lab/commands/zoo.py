"""`python -m attn_lab zoo`: put known bugs back, one at a time, and look for them."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import click
import msgspec
from attn_fuzz import outputs
from attn_fuzz.corpus import files
from attn_fuzz.errors import ExecutorError
from attn_fuzz.patches.mutant import MutantError
from attn_fuzz.run.runner import Outcome
from attn_fuzz.run.shard import FuzzPlan, Progress
from attn_lab import results_file
from attn_lab.options import check_option, check_pages_writable, first_seed_option, seeds_option
from attn_lab.pages import write_or_check
from attn_lab.zoo import known_bugs, run
from attn_lab.zoo import page as zoo_page
from attn_lab.zoo.known_bugs import KnownBug
from attn_lab.zoo.page import PAGE, Results, Row
from attn_lab.zoo.unreached import is_unreached
from attn_parity.console import notes, plain_table, results
from attn_parity.device import check_exact, default_workers, device_name, use_device
from attn_parity.files import check_writable, write_json
from attn_parity.options import (
    Positive,
    case_seconds_option,
    device_option,
    exact_option,
    json_option,
    record_of,
    sanitize_option,
    workers_option,
)

EXAMPLES = 500


@dataclass(frozen=True)
class Options:
    only: tuple[str, ...]
    folder: Path | None
    target: str
    examples: int
    seed: int
    seeds: int
    shrinks: bool
    writes: bool
    corpus: Path | None
    workers: int | None
    case_seconds: float
    device: str
    sanitize: bool | None
    exactly: bool
    json_file: Path | None


_folder_option = click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="A folder with bugs of your own, *.toml, whose Python is run.",
)


@click.group("zoo")
def command() -> None:
    """Put known bugs back, one at a time, and see whether the fuzzer finds each."""


@command.command("page")
@_folder_option
@check_option
def _page(folder: Path | None, check: bool) -> int:
    """Write docs/generated/zoo.md of the JSON files beside it, and of the bugs.

    With --check, exit 1, too, unless every bug has results.
    """
    stored = results_file.kept(PAGE, Results, "zoo")  # before the bugs, whose reading takes a second
    return _check(stored, _all_bugs(folder)) if check else _write_page(stored, _all_bugs(folder))


@command.command("run", epilog=f"Classes of bugs: {', '.join(get_args(known_bugs.BugKind))}.")
@click.option("--only", multiple=True, metavar="NAME", help="Run only this bug; may be given more than once.")
@_folder_option
@click.option(
    "--target",
    default="",
    metavar="T|@ARCH",
    help="Run the bugs of kernels of `triton` alone, and on this target instead. @gfx942: run the bugs of all kernels, each on "
    "its own target compiled for gfx942.",
)
@click.option("--examples", type=Positive, default=EXAMPLES, show_default=True, help="The most examples for each bug and seed.")
@first_seed_option
@seeds_option
@click.option("--shrink/--no-shrink", "shrinks", default=True, help="Shrink the failing case of the first seed.")
@click.option("--write", "writes", is_flag=True, help="Write the page, and the JSON file beside it that it is made of.")
@click.option(
    "--corpus",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the smallest failing case of each bug into this folder, as NAME.json.",
)
@workers_option
@case_seconds_option
@device_option
@sanitize_option
@exact_option
@json_option
@record_of(Options)
def _run(options: Options) -> int:
    """Put known bugs back, one at a time, and see whether the fuzzer finds each.

    Exit 1 if a bug survives, 2 if a bug's mutant does not run, and 130 if the run is interrupted. With --only and --write, the
    results of the other bugs stay. An interrupted run writes the results of those that have ended, and names the others.
    """
    on_target, left_out = run.on_target(_all_bugs(options.folder), options.target)
    for name, why in left_out.items():
        notes.print(f"{name} is left out: {why}")
    bugs = run.chosen(on_target, options.only)
    data = results_file.data_of(PAGE, re.sub(r"[^\w.-]", "-", options.target.removeprefix("@")))
    check_writable(options.json_file)
    if options.writes:
        check_pages_writable((PAGE, data))
    device = use_device(options.device)
    check_exact(options.exactly, device)
    seeds = range(options.seed, options.seed + options.seeds)
    found = zoo_page.results(device_name(device), seeds, options.examples, (), options.target)
    before = results_file.load(data, Results) if options.writes and options.only and data.is_file() else found
    zoo_page.check_alike(before, found)
    runs, outcome = _runs(options, bugs, device)
    rows = tuple(zoo_page.row(bug.name, runs.get(bug.name, [])) for bug in bugs)
    found = msgspec.structs.replace(found, mutants=rows)
    _print(rows, bugs)
    if not outcome.interrupted:
        _tell_unreached(rows, bugs, options.seed)
    if options.corpus:
        first = {name: progress[0].failure for name, progress in runs.items() if progress}
        files.write(options.corpus, {name: failure.case for name, failure in first.items() if failure and failure.minimal})
    if options.json_file:
        write_json(options.json_file, msgspec.to_builtins(found))
    if outcome.error:
        raise ExecutorError(outcome.error)
    if options.writes and not any(row.error for row in rows):
        ended = tuple(row for row in rows if row.found or not outcome.interrupted)
        whole = zoo_page.updated(before, msgspec.structs.replace(found, mutants=ended), [bug.name for bug in on_target])
        outputs.write(data, results_file.dumps(whole))
        _write_page(results_file.kept(PAGE, Results, "zoo"), _all_bugs(options.folder))
    return _exit_code(rows, interrupted=outcome.interrupted)


def _all_bugs(folder: Path | None) -> list[KnownBug]:
    return known_bugs.load_all(folder) if folder else known_bugs.load_all()


def _runs(options: Options, bugs: list[KnownBug], device: str) -> tuple[dict[str, list[Progress]], Outcome]:
    with tempfile.TemporaryDirectory() as scratch:
        plan = FuzzPlan(
            target="",
            device=device,
            examples=options.examples,
            seed=options.seed,
            folder=Path(scratch),
            case_seconds=options.case_seconds,
            exact_every=int(options.exactly),
        )
        workers = options.workers or default_workers(device)
        return run.run(plan, bugs, options.seeds, workers, sanitize=options.sanitize, shrinks=options.shrinks)


def _exit_code(rows: Sequence[Row], *, interrupted: bool) -> int:
    """
    Raises:
        MutantError: a bug's mutant does not run.
    """
    if interrupted:
        if left := [row.name for row in rows if not row.found and not row.error]:
            notes.print(f"without a result: {' '.join(f'--only {name}' for name in left)}")
        return 130
    if broken := [row.error for row in rows if row.error]:
        raise MutantError("; ".join(broken))
    return int(any(row.survived for row in rows))


def _tell_unreached(rows: Sequence[Row], bugs: Sequence[KnownBug], seed: int) -> None:
    """Name the surviving bugs whose patches no drawn case runs."""
    for row, bug in zip(rows, bugs, strict=True):
        if row.survived and is_unreached(bug, seed, Path()):
            notes.print(f"{bug.name}: no case of {bug.target} runs what it patches")


def _print(rows: Sequence[Row], bugs: Sequence[KnownBug]) -> None:
    sizes = ("requests", "queries", "keys")
    table = plain_table("bug", "class", "origin", "examples", "seconds", "by", *sizes, right=("examples", "seconds", *sizes))
    for row, bug in zip(rows, bugs, strict=True):
        counts = ["" if number is None else f"{number:g}" for number in (row.examples, row.seconds)]
        origin = zoo_page.real_bug(bug.origin) or "own"
        table.add_row(bug.name, bug.kind, origin, *counts, zoo_page.found_by(row, bug), *map(str, row.size or ()))
    results.print(table)
    results.print(zoo_page.summary(rows, bugs))


def _text(found: Mapping[Path, Results], all_bugs: list[KnownBug]) -> dict[Path, str]:
    of_runs = [(each, run.on_target(all_bugs, each.target)[1]) for each in found.values()]
    return {PAGE: zoo_page.text(of_runs, all_bugs)}


def _write_page(found: Mapping[Path, Results], all_bugs: list[KnownBug]) -> int:
    return write_or_check(_text(found, all_bugs), "", checks=False)


def _check(found: Mapping[Path, Results], all_bugs: list[KnownBug]) -> int:
    """The exit code: 0 if the page follows from its JSON and the bugs, and every bug has results; else 1.

    Args:
        all_bugs: on their own targets.
    """
    of_runs = [(each, run.on_target(all_bugs, each.target)[0]) for each in found.values()]
    code = write_or_check(_text(found, all_bugs), "python -m attn_lab zoo page", checks=True)
    wrong = [line for each, bugs in of_runs for line in zoo_page.differences(each, bugs)]
    summary = "; ".join(zoo_page.summary(each.mutants, bugs) for each, bugs in of_runs)
    return max(code, results_file.checked(wrong, summary))
