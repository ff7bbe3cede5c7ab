"""`python -m attn_lab zoo`: put known bugs back, one at a time, and look for them."""

import tempfile
from collections.abc import Sequence
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
from attn_lab import pages, results_file
from attn_lab.options import first_seed_option, seeds_option
from attn_lab.zoo import known_bugs, run
from attn_lab.zoo import page as zoo_page
from attn_lab.zoo import results as zoo_results
from attn_lab.zoo.known_bugs import KnownBug
from attn_lab.zoo.page import DATA, PAGE
from attn_lab.zoo.results import Results, Row
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
    folder: Path
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
    default=known_bugs.FOLDER,
    help="A folder with bugs of your own, *.toml, whose Python is run.",
)


@click.group("zoo")
def command() -> None:
    """Put known bugs back, one at a time, and see whether the fuzzer finds each."""


@command.command("page")
@_folder_option
def _page(folder: Path) -> None:
    """Write docs/generated/zoo.md of the JSON file beside it, and of the bugs."""
    stored = results_file.load(DATA, Results)  # before the bugs, whose reading takes a second
    pages.write(PAGE, zoo_page.text(stored, known_bugs.load_all(folder)))


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
@click.option("--write", "writes", is_flag=True, help="Keep the results in docs/generated/zoo.json.")
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
    if options.writes and options.target:
        raise click.UsageError("--write keeps what each bug's own target finds: leave out --target")
    on_target, left_out = run.on_target(known_bugs.load_all(options.folder), options.target)
    for name, why in left_out.items():
        notes.print(f"{name} is left out: {why}")
    bugs = run.chosen(on_target, options.only)
    check_writable(options.json_file)
    check_writable(DATA if options.writes else None, "--write")
    device = use_device(options.device)
    check_exact(options.exactly, device)
    seeds = range(options.seed, options.seed + options.seeds)
    found = zoo_results.of_run(device_name(device), seeds, options.examples, (), options.target)
    before = results_file.load(DATA, Results) if options.writes and options.only and DATA.is_file() else found
    zoo_results.check_alike(before, found)
    runs, outcome = _runs(options, bugs, device)
    rows = tuple(zoo_results.row(bug.name, runs.get(bug.name, [])) for bug in bugs)
    found = msgspec.structs.replace(found, mutants=rows)
    _print(rows, bugs)
    if options.corpus:
        first = {name: progress[0].failure for name, progress in runs.items() if progress}
        files.write(options.corpus, {name: failure.case for name, failure in first.items() if failure and failure.minimal})
    if options.json_file:
        write_json(options.json_file, msgspec.to_builtins(found))
    if outcome.error:
        raise ExecutorError(outcome.error)
    if options.writes and not any(row.error for row in rows):
        ended = tuple(row for row in rows if row.found or not outcome.interrupted)
        whole = zoo_results.updated(before, msgspec.structs.replace(found, mutants=ended), [bug.name for bug in on_target])
        outputs.write(DATA, results_file.dumps(whole))
    return _exit_code(rows, interrupted=outcome.interrupted)


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


def _print(rows: Sequence[Row], bugs: Sequence[KnownBug]) -> None:
    sizes = ("requests", "queries", "keys")
    table = plain_table("bug", "class", "origin", "examples", "seconds", "by", *sizes, right=("examples", "seconds", *sizes))
    for row, bug in zip(rows, bugs, strict=True):
        counts = ["" if number is None else f"{number:g}" for number in (row.examples, row.seconds)]
        origin = zoo_results.real_bug(bug.origin) or "own"
        table.add_row(bug.name, bug.kind, origin, *counts, zoo_results.found_by(row, bug), *map(str, row.size or ()))
    results.print(table)
    results.print(zoo_results.summary(rows, bugs))
