"""`python -m attn_lab zoo`: put known bugs back, one at a time, and look for them."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import click
import msgspec
from attn_fuzz import outputs
from attn_fuzz.corpus import files
from attn_fuzz.errors import ExecutorError
from attn_fuzz.patches.mutant import MutantError
from attn_fuzz.run import runner
from attn_fuzz.run.runner import Outcome
from attn_fuzz.run.shard import FuzzPlan, Progress
from attn_fuzz.targets import registry
from attn_fuzz.targets.registry import UnknownTargetError
from attn_lab import results_file
from attn_lab.options import check_option, check_pages_writable, first_seed_option, seeds_option
from attn_lab.pages import PAGES, write_or_check
from attn_lab.zoo import known_bugs
from attn_lab.zoo import page as zoo_page
from attn_lab.zoo.known_bugs import KnownBug
from attn_lab.zoo.page import Results, Row
from attn_lab.zoo.unreached import is_unreached
from attn_parity.console import notes, plain_table, progress_bar, results
from attn_parity.device import check_exact, default_workers, device_name, sanitizes, say_what_runs_kernels, use_device
from attn_parity.files import check_writable, write_json
from attn_parity.options import (
    Positive,
    case_seconds_option,
    device_option,
    exact_option,
    json_option,
    sanitize_option,
    workers_option,
)

EXAMPLES = 500
PAGE = PAGES / "zoo.md"


@click.command("zoo", epilog=f"Classes of bugs: {', '.join(get_args(known_bugs.Kind))}.")
@click.option("--only", multiple=True, metavar="NAME", help="Run only this bug; may be given more than once.")
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="A folder with bugs of your own, *.toml, whose Python is run.",
)
@click.option(
    "--target",
    metavar="T|@ARCH",
    help="Run the bugs of kernels of `triton` alone, and on this target instead. @gfx942: run the bugs of all kernels, each on "
    "its own target compiled for gfx942.",
)
@click.option("--examples", type=Positive, default=EXAMPLES, show_default=True, help="The most examples for each bug and seed.")
@first_seed_option
@seeds_option
@click.option("--shrink/--no-shrink", "shrinks", default=True, help="Shrink the failing case of the first seed.")
@click.option(
    "--write",
    "writes",
    is_flag=True,
    help="Write the page, and beside it the JSON file from which the page is made.",
)
@click.option(
    "--rewrite",
    "rewrites",
    is_flag=True,
    help="Run nothing; write the page again from its JSON and the bugs.",
)
@check_option
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
def command(
    only: tuple[str, ...],
    folder: Path | None,
    target: str | None,
    examples: int,
    seed: int,
    seeds: int,
    shrinks: bool,
    writes: bool,
    rewrites: bool,
    check: bool,
    corpus: Path | None,
    workers: int | None,
    case_seconds: float,
    device: str,
    sanitize: bool | None,
    exactly: bool,
    json_file: Path | None,
) -> int:
    """Put known bugs back, one at a time, and see whether the fuzzer finds each.

    Exit 1 if a bug survives, 2 if a bug's mutant does not run, and 130 if the run is interrupted. With --only and --write, the
    results of the other bugs stay. An interrupted run writes the results of those that have ended, and names the others.
    """
    # before the bugs, whose reading takes a second
    stored = results_file.kept(PAGE, Results, "zoo") if check or rewrites else None
    all_bugs = known_bugs.load_all(folder) if folder else known_bugs.load_all()
    if stored is not None:
        return _check(stored, all_bugs, rewrites=rewrites)
    on_target, left_out = _on_target(all_bugs, target) if target else (all_bugs, {})
    for name, why in left_out.items():
        notes.print(f"{name} is left out: {why}", soft_wrap=True)
    bugs = _chosen(on_target, only)
    data = results_file.data_of(PAGE, re.sub(r"[^\w.-]", "-", (target or "").removeprefix("@")))
    check_writable(json_file)
    if writes:
        check_pages_writable((PAGE, data))
    device = use_device(device)
    check_exact(exactly, device)
    found = zoo_page.results(device_name(device), range(seed, seed + seeds), examples, (), target or "")
    before = results_file.load(data, Results) if writes and only and data.is_file() else found
    zoo_page.check_alike(before, found)
    with tempfile.TemporaryDirectory() as scratch:
        plan = FuzzPlan(
            target="",
            device=device,
            examples=examples,
            seed=seed,
            folder=Path(scratch),
            case_seconds=case_seconds,
            exact_every=int(exactly),
        )
        runs, outcome = _run(plan, bugs, seeds, workers or default_workers(device), sanitize=sanitize, shrinks=shrinks)
    rows = tuple(zoo_page.row(bug.name, runs.get(bug.name, [])) for bug in bugs)
    found = msgspec.structs.replace(found, mutants=rows)
    _print(rows, bugs)
    if not outcome.interrupted:
        _tell_unreached(rows, bugs, seed)
    if corpus:
        first = {name: progress[0].failure for name, progress in runs.items() if progress}
        files.write(corpus, {name: failure.case for name, failure in first.items() if failure and failure.minimal})
    if json_file:
        write_json(json_file, msgspec.to_builtins(found))
    if outcome.error:
        raise ExecutorError(outcome.error)
    if writes and not any(row.error for row in rows):
        ended = tuple(row for row in rows if row.found or not outcome.interrupted)
        whole = zoo_page.updated(before, msgspec.structs.replace(found, mutants=ended), [bug.name for bug in on_target])
        outputs.write(data, results_file.dumps(whole))
        _check(results_file.kept(PAGE, Results, "zoo"), all_bugs, rewrites=True)
    return _exit_code(rows, interrupted=outcome.interrupted)


def _run(
    plan: FuzzPlan, bugs: list[KnownBug], seeds: int, workers: int, *, sanitize: bool | None, shrinks: bool
) -> tuple[dict[str, list[Progress]], Outcome]:
    """Look for each bug with as many seeds, from that of the plan.

    Returns:
        The runs of each bug by its name, one for each seed; none for a bug whose runs have not ended.
    """
    missing = _missing_targets(bugs, plan.device)
    running = [bug for bug in bugs if bug.name not in missing and (plan.device != "cpu" or not bug.needs_gpu)]
    say_what_runs_kernels(plan.device, [registry.load(bug.target) for bug in running])
    plans = _plans(plan, running, range(plan.seed, plan.seed + seeds), sanitize=sanitize, shrinks=shrinks)
    outcome = run_plans(plans, workers)
    runs = {bug.name: _ended(outcome, range(i * seeds, (i + 1) * seeds)) for i, bug in enumerate(running)}
    return runs | {name: [Progress(broken=why)] for name, why in missing.items()}, outcome


def _exit_code(rows: Sequence[Row], *, interrupted: bool) -> int:
    """
    Raises:
        MutantError: a bug's mutant does not run.
    """
    if interrupted:
        if left := [row.name for row in rows if not row.found and not row.error]:
            notes.print(f"without a result: {' '.join(f'--only {name}' for name in left)}", soft_wrap=True)
        return 130
    if broken := [row.error for row in rows if row.error]:
        raise MutantError("; ".join(broken))
    return int(any(row.survived for row in rows))


def _tell_unreached(rows: Sequence[Row], bugs: Sequence[KnownBug], seed: int) -> None:
    """Name the surviving bugs whose patches no drawn case runs."""
    for row, bug in zip(rows, bugs, strict=True):
        if row.survived and is_unreached(bug, seed, Path()):
            notes.print(f"{bug.name}: no case of {bug.target} runs what it patches", soft_wrap=True)


def _chosen(bugs: Sequence[KnownBug], only: Sequence[str]) -> list[KnownBug]:
    """The bugs with these names; all if no name is given.

    Raises:
        MutantError: there is no bug of a name.
    """
    names = [bug.name for bug in bugs]
    if unknown := sorted(set(only) - set(names)):
        raise MutantError(f"--only: got {', '.join(unknown)}, expected some of {', '.join(names)}")
    return [bug for bug in bugs if not only or bug.name in only]


def _on_target(bugs: list[KnownBug], target: str) -> tuple[list[KnownBug], dict[str, str]]:
    """The bugs of kernels on another target, or on their own targets compiled for an architecture: `@` and its name.

    Returns:
        The bugs, and by name why others are left out: a target cannot be compiled, or no emulated GPU shows the bug.
    """
    if not target.startswith("@"):
        return known_bugs.on_target(bugs, target, compiles=registry.load(target).compiles), {}
    chosen, left_out = list[KnownBug](), dict[str, str]()
    for bug in known_bugs.compiled_for(bugs, target.removeprefix("@")):
        try:
            registry.load(bug.target)
        except UnknownTargetError as error:
            left_out[bug.name] = str(error)
        else:
            if bug.not_emulated:
                left_out[bug.name] = bug.not_emulated
            else:
                chosen.append(bug)
    return chosen, left_out


def _plans(plan: FuzzPlan, running: list[KnownBug], seeds: range, *, sanitize: bool | None, shrinks: bool) -> list[FuzzPlan]:
    """A plan for each bug and seed; the failing case of the first seed is shrunk if `shrinks`."""
    return [
        msgspec.structs.replace(
            plan,
            target=bug.target,
            mutant=bug.mutant,
            seed=seed,
            sanitize=sanitizes(sanitize, registry.usable(bug.target, plan.device), plan.device),
            on_failure="shrink" if shrinks and seed == seeds[0] else "stop",
        )
        for bug in running
        for seed in seeds
    ]


def run_plans(plans: list[FuzzPlan], workers: int) -> Outcome:
    """Run every plan while a progress bar counts findings and examples. Each finding is told when it is made."""
    done = [Progress() for _ in plans]
    with progress_bar(len(plans)) as show_bar:

        def show(index: int, progress: Progress) -> None:
            mutant, failure, before = plans[index].mutant, progress.failure, done[index].failure
            done[index] = progress
            if mutant is not None and failure is not None and before is None:
                notes.print(f"{mutant.name}: {failure.first_verdict.kind} after {failure.found_after} examples")
            show_bar(sum(p.failure is not None for p in done), sum(p.examples + p.shrinking for p in done))

        return runner.run(plans, workers, stop_at_failure=False, report=show)


def _missing_targets(bugs: list[KnownBug], device: str) -> dict[str, str]:
    """The reason why a bug's target cannot run on this device, by the bug's name. On a CPU, bugs that need a GPU are passed
    over."""
    found = {}
    for bug in bugs:
        try:
            if device != "cpu" or not bug.needs_gpu:
                registry.usable(bug.target, device)
        except UnknownTargetError as error:
            found[bug.name] = f"{bug.name}: {error}"
    return found


def _ended(outcome: Outcome, plans: range) -> list[Progress]:
    """The runs of a bug, by the indices of its plans; none if the run ended before one of them had its result."""
    runs = [outcome.progress[index] for index in plans]
    has_result = (i in outcome.finished or outcome.progress[i].failure or outcome.progress[i].broken for i in plans)
    return runs if all(has_result) else []


def _print(rows: Sequence[Row], bugs: Sequence[KnownBug]) -> None:
    sizes = ("requests", "queries", "keys")
    table = plain_table("bug", "class", "origin", "examples", "seconds", "by", *sizes, right=("examples", "seconds", *sizes))
    for row, bug in zip(rows, bugs, strict=True):
        counts = ["" if number is None else f"{number:g}" for number in (row.examples, row.seconds)]
        origin = zoo_page.real_bug(bug.origin) or "own"
        table.add_row(bug.name, bug.kind, origin, *counts, zoo_page.by(row, bug), *map(str, row.size or ()))
    results.print(table)
    results.print(zoo_page.summary(rows, bugs), soft_wrap=True)


def _check(found: Mapping[Path, Results], all_bugs: list[KnownBug], *, rewrites: bool) -> int:
    """The exit code: 0 if the page follows from its JSON and the bugs, and every bug has results; else 1.

    Args:
        all_bugs: on their own targets.
    """
    of_runs = [(each, _on_target(all_bugs, each.target) if each.target else (all_bugs, {})) for each in found.values()]
    texts = {PAGE: zoo_page.text([(each, left_out) for each, (_, left_out) in of_runs], all_bugs)}
    code = write_or_check(texts, "python -m attn_lab zoo --rewrite", checks=not rewrites)
    if rewrites:
        return code
    wrong = [line for each, (bugs, _) in of_runs for line in zoo_page.differences(each, bugs)]
    summary = "; ".join(zoo_page.summary(each.mutants, bugs) for each, (bugs, _) in of_runs)
    return max(code, results_file.checked(wrong, summary))
