"""`attn-parity emulate`: run saved launches on the emulator, and compare what hardware makes of them, bit by bit."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
from attn_binaries.build import in_processes
from attn_fuzz.errors import InputError
from attn_fuzz.text import how_many, one_line
from attn_parity import MAX_ERROR_CHARACTERS
from attn_parity.console import notes, plain_table, progress_bar, results
from attn_parity.launches import architectures_option, chosen_architectures, only_option
from attn_parity.options import cpu_workers_option, seconds_option

if TYPE_CHECKING:
    from attn_binaries.build import LaunchName
    from attn_binaries.comparison import Difference
    from attn_binaries.run_folder import EmulatedLaunch
    from attn_binaries.saved import SavedLaunch
    from attn_binaries.saved_execution import Emulated

FOLDER = "emulated"
"""Beside launches.json: the folder in which each launch and case has a folder."""


@click.command("emulate")
@click.argument("file", metavar="LAUNCHES.JSON", type=click.Path(path_type=Path))
@architectures_option
@only_option
@click.option(
    "--compare",
    "out",
    metavar="OUT",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Run nothing: compare the buffers that a GPU left in this folder with those of the emulator.",
)
@seconds_option("--case-seconds", 600.0, "Seconds that a case of a launch may take.")
@cpu_workers_option
def command(file: Path, architectures: str | None, only: str, out: Path | None, case_seconds: float, workers: int) -> int:
    """Run launches for AMD's GPUs that `compile --save` wrote on the emulator, on small ragged batches, from the saved code.

    Each launch and case gets a folder in `emulated`, beside LAUNCHES.JSON, with all that it takes to launch the same code on a
    GPU. Exit 1 when a launch computes something else than attention, or with --compare when a bit differs; 2 when a folder
    cannot be compared, when the emulator does not know the code, or when a case takes longer than --case-seconds, which says
    nothing about its launch.
    """
    import attn_amdgcn  # noqa: F401  # needs the extra `emulated`
    import attn_fuzz.strategies.cases  # noqa: F401  # needs the extra `fuzz`

    launches = _chosen(file, architectures, only)
    if out is not None:
        return _compare(file, launches, out)
    return _emulate(file, launches, case_seconds, workers)


def _chosen(file: Path, architectures: str | None, only: str) -> "dict[LaunchName, SavedLaunch]":
    from attn_binaries.saved import check_files, read

    wanted = chosen_architectures(architectures)
    launches = {
        job: launch
        for job, launch in read(file).items()
        if launch.architecture in wanted and launch.architecture.startswith("gfx") and only in launch.call
    }
    if not launches:
        raise click.UsageError(f"{file} has no launch for AMD's GPUs that --arch and --only name")
    for launch in launches.values():
        check_files(file.parent, launch)
    return launches


def _emulate(file: Path, launches: "dict[LaunchName, SavedLaunch]", case_seconds: float, workers: int) -> int:
    from attn_binaries.saved_execution import emulate_saved
    from attn_binaries.shipped_calls import CALLS, name_of_call

    names: dict[tuple[str, str], list[str]] = {}
    for architecture, name in launches:
        names.setdefault((architecture, name_of_call(name)), []).append(name)
    known = {call.name for call in CALLS}
    if unknown := [" ".join(call) for call in names if call[1] not in known]:
        raise InputError(f"{file}: {unknown[0]}: this version has no such launch, and so no cases of it")
    jobs = [(file, file.parent / FOLDER, *call, tuple(of_call), case_seconds) for call, of_call in names.items()]
    at_once = min(workers, len(jobs))
    with progress_bar(len(jobs)) as show_bar:
        found, interrupted = in_processes(emulate_saved, jobs, at_once, lambda found: show_bar(len(found)), interpreter=True)
    runs = [(job[2], run) for job in jobs if not isinstance(of_job := found.get(job, []), str) for run in of_job]
    if runs:
        _tell_runs(runs, file.parent / FOLDER)
    errors = [error for error in found.values() if isinstance(error, str)]
    for error in errors:
        words = error.removeprefix("SavedFileError: ").removeprefix("OutOfTimeError: ")
        notes.print(f"attn-parity: {one_line(words, MAX_ERROR_CHARACTERS)}")
    if errors:
        return 2
    return 130 if interrupted else int(not all(run.execution.agrees for _, run in runs))


def _tell_runs(runs: "list[tuple[str, Emulated]]", folder: Path) -> None:
    table = plain_table("", "launch", "case", "run", "error / bound", "hardware may round", right=("error / bound",))
    for architecture, run in runs:
        open_roundings = "" if run.launch is None else ", ".join(run.launch.inexact) or "nothing"
        table.add_row(architecture, run.name, run.case, run.execution.verdict, f"{run.execution.error:.2f}", open_roundings)
    results.print(table)
    for architecture, run in runs:
        if not run.execution.agrees:
            results.print(f"{architecture} {run.name}, {run.case}: {run.execution.verdict}: {run.execution.why}")
    written = sum(run.launch is not None for _, run in runs)
    agree = sum(run.execution.agrees for _, run in runs)
    results.print(f"{agree} of {len(runs)} runs agree; {written} folders written in {folder}")


def _compare(file: Path, launches: "dict[LaunchName, SavedLaunch]", out: Path) -> int:
    """The exit code: 2 if a folder cannot be compared, else 1 if some bit differs. The others are compared, too."""
    from attn_binaries import run_folder
    from attn_binaries.comparison import compared
    from attn_binaries.saved import SavedFileError

    here = file.parent / FOLDER
    folders = sorted(path for path in here.iterdir() if path.is_dir()) if here.is_dir() else []
    if not folders:
        raise SavedFileError(f"{here}: nothing was emulated: run `attn-parity emulate {file}` first")
    extra = sorted({path.name for path in out.iterdir() if path.is_dir()} - {path.name for path in folders})
    errors = [f"{out / name}: {here} has no folder of this name" for name in extra]
    found: list[tuple[EmulatedLaunch, list[Difference]]] = []
    for folder in folders:
        try:
            launch = run_folder.read(folder)
            if (saved := launches.get((launch.architecture, launch.call))) is None:
                continue
            if launch.sha256 != saved.sha256.file:
                raise SavedFileError(
                    f"{folder}: emulated with other code than {file} names: run `attn-parity emulate {file}` again"
                )
            found.append(compared(folder, out / folder.name))
        except InputError as error:
            errors.append(str(error))
    for launch, differences in found:
        if differences:
            _tell_differences(launch, differences)
    for error in errors:
        notes.print(f"attn-parity: {one_line(error, MAX_ERROR_CHARACTERS)}")
    if not found and not errors:
        raise SavedFileError(f"{here}: --arch and --only name no launch that was emulated")
    equal = sum(not differences for _, differences in found)
    failed = f"; {how_many(len(errors), 'folder')} could not be compared" if errors else ""
    results.print(f"{equal} of {len(found)} launches left the same bits in every buffer{failed}")
    return 2 if errors else int(equal < len(found))


def _shown(distance: float | None) -> str:
    return "-" if distance is None else str(distance) if isinstance(distance, int) else f"{distance:.3g}"


def _tell_differences(launch: "EmulatedLaunch", differences: "list[Difference]") -> None:
    results.print(launch.folder, style="bold")
    numbers = ("differ", "of", "off by", "ULP", "most ULP")
    columns = ("where", "differ", "of", "first at", "worst at", "emulated", "there", *numbers[2:])
    table = plain_table(*columns, right=numbers)
    for one in differences:
        distances = map(_shown, (one.difference, one.ulps, one.most_ulps))
        table.add_row(one.where, str(one.count), str(one.of), one.first, one.worst, one.here, one.there, *distances)
    results.print(table)
    if launch.inexact:
        results.print(f"hardware may round: {', '.join(launch.inexact)}\n")
    else:
        results.print("no executed instruction leaves its rounding open: one of the two machines is wrong\n")
