"""`attn-parity compile`: compile every kernel that ships, for GPUs that need not be here, check the binaries, and run them."""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from attn_fuzz import inputs, outputs
from attn_parity.binaries import budgets, executions, page
from attn_parity.binaries.architectures import ARCHITECTURES
from attn_parity.binaries.assembly import DIGITS, digest
from attn_parity.binaries.budgets import Budgets
from attn_parity.binaries.build import LIMIT, Outcome, OverLimit, build
from attn_parity.binaries.executions import Executions
from attn_parity.binaries.results import Results, Row, differences, loads, updated
from attn_parity.console import notes, results
from attn_parity.options import (
    PAGES,
    Duration,
    MaintainedCommand,
    MaintainersOption,
    Positive,
    Seed,
    check_option,
    check_page_writable,
    check_writable,
    default_workers,
    json_option,
    plain_table,
    progress_bar,
    workers_option,
    write_json,
)
from attn_parity.versions import version

if TYPE_CHECKING:
    from attn_optimized.kernel_call import KernelCall

    Calls = dict[str, dict[str, KernelCall]]
    """Each launch by its architecture and then by its name."""

PAGE = PAGES / "binaries.md"
EXECUTED = ("error / bound", "instructions", "matrix", "lines / least", "conflicts / phases")
"""Columns of what launches did on the emulator."""


@click.command("compile", cls=MaintainedCommand)
@click.option("--arch", "architectures", metavar="A,B,...", help="Architectures to compile for; default: all.")
@click.option("--only", default="", metavar="TEXT", help="Compile only launches whose name contains TEXT.")
@click.option("--main", is_flag=True, help="Compile only the launches that every change compiles.")
@click.option("--drawn", type=Positive, metavar="N", help="Compile the launches of N drawn steps instead of those that ship.")
@click.option("--seed", type=Seed, default=0, show_default=True, help="The seed of --drawn.")
@click.option("--limit", type=Duration, default=LIMIT, show_default=True, help="Seconds that a launch may take to compile.")
@click.option(
    "--save",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write code objects into this folder, with a description of how to launch them.",
)
@click.option("--run", "runs", is_flag=True, help="Run AMD's launches on the emulator, and judge what they compute.")
@click.option(
    "--write",
    "writes",
    is_flag=True,
    cls=MaintainersOption,
    help="Write the page, and beside it the CSV files that it is made of.",
)
@check_option
@click.option(
    "--page",
    "path",
    cls=MaintainersOption,
    type=click.Path(dir_okay=False, path_type=Path),
    default=PAGE,
    show_default=True,
    help="The page.",
)
@click.option(
    "--budgets",
    "budget_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file of budgets to use instead of the project's.",
)
@workers_option
@json_option
def command(
    architectures: str | None,
    only: str,
    main: bool,
    drawn: int | None,
    seed: int,
    limit: float,
    save: Path | None,
    runs: bool,
    writes: bool,
    check: bool,
    path: Path,
    budget_file: Path | None,
    workers: int | None,
    json_file: Path | None,
) -> int:
    """Compile every kernel that ships: registers, spills, LDS, matrix instructions.

    Exit 1 when one is over its budget, or computes something else; else 2 when one has no code after --limit.

    With --write, what came of other launches is kept; and with --run, too, a launch is left out that agreed before, in the code
    that it has now. So an interrupted run goes on.
    """
    partly = bool(architectures or only or main)
    if partly and check:
        raise click.UsageError("--check is about all launches: leave out --arch, --only and --main")
    if check and (writes or save or json_file or budget_file or runs):
        raise click.UsageError("--check compiles and writes nothing: leave out --write, --save, --json, --budgets and --run")
    if drawn and (only or main or check or writes or save or runs):
        others = "--only, --main, --save, --run, --write and --check"
        raise click.UsageError(f"--drawn: leave out {others}, which are about shipped launches")
    allowed = budgets.load(budget_file)
    check_writable(json_file)
    if any(name.startswith("gfx") for name in chosen_architectures(architectures)) and not check:
        import attn_amdgcn  # noqa: F401  # needs the extra `emulated`
    if drawn:
        return _of_drawn(chosen_architectures(architectures), (seed, drawn), allowed, workers, limit, json_file)
    kept = _read_before(path, check=check, writes=writes, partly=partly)
    if runs:
        import attn_fuzz.strategies.cases  # noqa: F401  # needs the extra `fuzz`
    from attn_parity.binaries.shipped_calls import chosen  # imports Triton

    calls = {name: chosen(name, only=only, main=main) for name in chosen_architectures(architectures)}
    if not any(calls.values()):
        raise click.UsageError(f"--only: no launch is named so: {only}")
    if runs and not any(name.startswith("gfx") for name in calls):
        raise click.UsageError("--run: there is an emulator for AMD's architectures only: see --arch")
    if check:
        return _check(path, calls, allowed)
    if kept is not None and kept.triton != version("triton"):
        here = f"Triton {kept.triton}, and here is {version('triton')}"
        raise click.UsageError(f"--write: the other launches of {_data_of(path)} were compiled with {here}: write them all")
    if save is not None:
        save.mkdir(parents=True, exist_ok=True)
        check_writable(save / "launches.json", "--save")
    outcome = _built(calls, workers, limit)
    found = _judged(outcome, calls, allowed)
    _tell(found, outcome, calls, allowed, partly)
    if save is not None:
        from attn_parity.binaries.saving import save_binaries

        written = save_binaries(save, outcome.binaries, calls)
        notes.print(f"{written} code objects in {save}, described by launches.json")
    ran = _ran(outcome, found.triton, workers, path if writes else None) if runs and not outcome.interrupted else None
    if json_file:
        write_json(json_file, found.json() | ({} if ran is None else {"executions": ran.json()}))
    if outcome.interrupted:
        return 130
    if writes and not found.errors:
        whole = found if kept is None else updated(kept, found, {name: list(chosen(name)) for name in ARCHITECTURES})
        outputs.write(_data_of(path), whole.csv())
        _write_page(path, allowed, ran)
    if ran is not None and ran.interrupted:
        return 130
    return 1 if ran and ran.wrong else _code(found, outcome)


def _of_drawn(
    architectures: Sequence[str],
    drawn: tuple[int, int],
    allowed: Budgets,
    workers: int | None,
    limit: float,
    json_file: Path | None,
) -> int:
    """Compile the launches of drawn steps, and tell which spill, and what no launch may do. The exit code."""
    import attn_fuzz.strategies.cases  # noqa: F401  # needs the extra `fuzz`
    from attn_parity.binaries import drawn_calls  # imports Triton

    calls = {name: drawn_calls.all_of(name, *drawn) for name in architectures}
    outcome = _built(calls, workers, limit, drawn)
    found = _judged(
        outcome, calls, dataclasses.replace(allowed, **dict.fromkeys(budgets.MOST, math.inf), waves={}, exceptions=())
    )
    spilling = sorted((row for row in found.binaries if row.facts.vgpr_spills), key=lambda row: -(row.facts.vgpr_spills or 0))
    for row in spilling:
        results.print(f"{row.architecture} {row.call}: {row.facts.vgpr_spills} registers are spilled", soft_wrap=True)
    for line in (*found.over, *found.errors):
        results.print(line, soft_wrap=True)
    begun = "interrupted; so far: " if outcome.interrupted else ""
    of_steps = f"{len(found.binaries)} launches of {drawn[1]} drawn steps, --seed {drawn[0]}"
    wrong = f"{len(found.over)} do what no launch may, {_uncompiled(outcome)}"
    results.print(f"{begun}{of_steps}, compiled with Triton {found.triton}: {len(spilling)} spill registers, {wrong}")
    if json_file:
        write_json(json_file, found.json())
    return 130 if outcome.interrupted else _code(found, outcome)


def chosen_architectures(given: str | None) -> tuple[str, ...]:
    """The architectures of A,B,...; if none is given, all whose facts are known and that this Triton serves."""
    from attn_optimized.device import missing_compiler

    served = tuple(name for name in ARCHITECTURES if not missing_compiler(name))
    chosen = tuple(dict.fromkeys(given.split(","))) if given else served
    if unknown := [name for name in chosen if name not in ARCHITECTURES]:
        raise click.UsageError(f"--arch: got {', '.join(unknown)}, expected some of {', '.join(ARCHITECTURES)}")
    if missing := next(filter(None, map(missing_compiler, chosen)), None):
        raise click.UsageError(f"--arch: {missing}")
    return chosen


def _built(calls: "Calls", workers: int | None, limit: float, drawn: tuple[int, int] | None = None) -> Outcome:
    jobs = [(architecture, name) for architecture, some in calls.items() for name in some]
    with progress_bar(len(jobs)) as show_bar:
        return build(jobs, min(workers or default_workers("cpu"), len(jobs)), lambda done: show_bar(done, 0), drawn, limit)


def _uncompiled(outcome: Outcome) -> str:
    """How many launches have no code, in words. The limit is the tool's, and no fault of a launch."""
    limits = outcome.limits
    words = f"{len(outcome.errors) - limits} do not compile"
    return f"{words}, {limits} have no code after --limit" if limits else words


def _code(found: Results, outcome: Outcome) -> int:
    """The exit code: 1 if a launch is wrong, 2 if no more is known than that one has no code after --limit."""
    return 1 if found.over or len(outcome.errors) > outcome.limits else 2 * bool(outcome.limits)


def _judged(outcome: Outcome, calls: "Calls", allowed: Budgets) -> Results:
    rows = [
        Row(architecture, name, binary.name, binary.num_warps, binary.facts, digest(binary.assembly, binary.name)[:DIGITS])
        for (architecture, name), binary in outcome.binaries.items()
    ]
    errors = [
        f"{architecture} {name}: {error if isinstance(error, OverLimit) else f'does not compile: {error}'}"
        for (architecture, name), error in outcome.errors.items()
    ]
    found = Results(version("triton") or "", tuple(rows), errors=tuple(errors))
    return dataclasses.replace(found, over=tuple(_over(found, calls, allowed)))


def _ran(outcome: Outcome, triton: str, workers: int | None, path: Path | None) -> Executions:
    """Run what was compiled, and tell what came of it.

    Args:
        path: a page. What came of each launch goes at once into the file beside it, and what agrees there does not run again.
    """
    started = time.monotonic()
    kept = _kept(_runs_of(path), triton) if path else Executions(triton)
    calls = executions.calls_of(outcome.binaries, kept)
    with progress_bar(len(calls)) as show_bar:

        def report(done: int, ran: Executions) -> None:
            show_bar(done, 0)
            if path:
                outputs.write(_runs_of(path), kept.updated(ran).csv())

        ran = executions.run(calls, triton, workers or default_workers("cpu"), report)
    for architecture in dict.fromkeys(architecture for architecture, _ in ran.found):
        table = plain_table("launch", "run", *EXECUTED, right=EXECUTED)
        for (one, name), execution in ran.found.items():
            if one == architecture:
                table.add_row(name, execution.verdict, f"{execution.error:.2f}", *_executed(execution.counts))
        results.print(f"\n{architecture}, emulated", style="bold")
        results.print(table)
    for line in ran.wrong:
        results.print(line, soft_wrap=True)
    begun = "interrupted; so far: " if ran.interrupted else ""
    agree = sum(execution.agrees for execution in ran.found.values())
    if path and (before := len(executions.calls_of(outcome.binaries)) - len(calls)):
        notes.print(f"{before} calls agreed before, and were not run again: {_runs_of(path)}", soft_wrap=True)
    results.print(f"{begun}{agree} of {len(ran.found)} launches agree, in {time.monotonic() - started:.0f} s")
    return ran


def _executed(counts: Mapping[str, int]) -> tuple[str, ...]:
    """The cells of what a launch executed: counts, and no times (docs/reference/emulator.md)."""
    if not counts:
        return ("", "", "", "")
    from attn_amdgcn.counts import CLASSES

    lines, least, conflicts, phases = (
        counts[name] for name in ("lines of 128", "least lines of 128", "LDS conflicts", "LDS phases")
    )
    ratios = (f"{part / whole:.2f}" if whole else "" for part, whole in ((lines, least), (conflicts, phases)))
    return (str(sum(counts[name] for name in CLASSES)), str(counts["matrix"]), *ratios)


def _write_page(path: Path, allowed: Budgets, ran: Executions | None) -> None:
    """Write what came of launches that ran, and the page that follows from the files beside it."""
    from attn_parity.binaries.shipped_calls import main_names

    found, kept = _read(path)
    if ran is not None and ran.found:
        kept = kept.updated(ran)
        outputs.write(_runs_of(path), kept.csv())
    outputs.write(path, page.text(found, allowed, main_names(), kept))
    notes.print(f"{path} written")


def _read(path: Path) -> tuple[Results, Executions]:
    """What the files beside a page hold. No launch was run if there is no file of executions."""
    data = _data_of(path)
    if not data.is_file():
        raise click.ClickException(f"--page: {data} does not exist; `attn-parity compile --write` writes it")
    try:
        found = loads(inputs.read_text(data), str(data))
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    return found, _kept(_runs_of(path), found.triton)


def _read_before(path: Path, *, check: bool, writes: bool, partly: bool) -> Results | None:
    """The rest of the page, where only a part of it is written. It is read before Triton is imported, which takes seconds.

    Raises:
        click.ClickException: a file that is read later is missing or wrong, or one cannot be written.
    """
    if writes:
        check_page_writable(path)
    if check and not path.is_file():
        raise click.ClickException(f"--page: {path} does not exist; `attn-parity compile --write` writes it")
    if check or (writes and partly):
        return _read(path)[0]
    if writes:
        _kept(_runs_of(path), "")
    return None


def _kept(runs: Path, triton: str) -> Executions:
    """What a file of executions holds; none by this version of Triton if there is no such file."""
    try:
        return executions.loads(inputs.read_text(runs), str(runs)) if runs.is_file() else Executions(triton)
    except ValueError as error:
        raise click.ClickException(str(error)) from error


def _over(found: Results, calls: "Calls", allowed: Budgets) -> list[str]:
    return [
        f"{row.architecture} {row.call}: {sentence}"
        for row in found.binaries
        if (call := calls[row.architecture].get(row.call)) is not None
        for sentence in budgets.over(allowed, row.architecture, row.call, call, row.facts, found.triton)
    ]


def _tell(found: Results, outcome: Outcome, calls: "Calls", allowed: Budgets, partly: bool) -> None:
    if not allowed.knows(found.triton):
        notes.print(f"no exception of the budgets is of Triton {found.triton}: what it spills is over them", soft_wrap=True)
    for architecture in calls:
        table = plain_table(*page.COLUMNS, right=page.COLUMNS[2:])
        for row in found.binaries:
            if row.architecture == architecture:
                table.add_row(*page.cells(row))
        results.print(f"\n{architecture}", style="bold")
        results.print(table)
    facts = {job: binary.facts for job, binary in outcome.binaries.items()}
    for line in budgets.unneeded(allowed, facts, {} if partly else _names(calls), found.triton):
        notes.print(f"budgets: {line}", soft_wrap=True)
    for line in (*found.over, *found.errors):
        results.print(line, soft_wrap=True)
    begun = "interrupted; so far: " if outcome.interrupted else ""
    compiled = f"{len(found.binaries)} compiled with Triton {found.triton}"
    results.print(f"{begun}{compiled}, {len(found.over)} over budget, {_uncompiled(outcome)}")


def _check(path: Path, calls: "Calls", allowed: Budgets) -> int:
    """The exit code: 0 if the page follows from its CSV file, which has these launches and all within budget; else 1."""
    from attn_parity.binaries.shipped_calls import main_names

    found, kept = _read(path)
    names = _names(calls)
    wrong = [*differences(found, names), *executions.differences(kept, found.triton, names), *_over(found, calls, allowed)]
    if inputs.read_text(path) != page.text(found, allowed, main_names(), kept):
        wrong.append(f"{path} is not what {_data_of(path)} says: run `attn-parity compile --write`")
    for line in wrong:
        results.print(line, soft_wrap=True)
    results.print(f"{len(wrong)} wrong")
    return 1 if wrong else 0


def _data_of(path: Path) -> Path:
    return path.with_suffix(".csv")


def _runs_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}-run.csv")


def _names(calls: "Calls") -> dict[str, list[str]]:
    return {architecture: list(some) for architecture, some in calls.items()}
