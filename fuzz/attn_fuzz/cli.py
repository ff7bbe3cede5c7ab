"""The command `attn-parity`. Exit codes: 0 agreement, 1 a mismatch, 2 usage or set-up, 130 interrupted with nothing found."""

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
import msgspec
from attn_fuzz import case as case_file
from attn_fuzz import engine, report, runner, targets
from attn_fuzz.case import CaseError
from attn_fuzz.engine import Plan
from attn_fuzz.executor import Executor, ExecutorError
from attn_fuzz.targets import UnknownTargetError
from attn_fuzz.zoo import mutants
from attn_fuzz.zoo.mutants import Mutant, MutantError
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

FUZZ_SCHEMA = "attn-parity.fuzz/1"
ZOO_SCHEMA = "attn-parity.zoo/1"
PROFILES = {"ci": 300, "nightly": 20_000, "soak": 1_000_000}
ZOO_EXAMPLES = 500

notes = Console(stderr=True, highlight=False, markup=False)
results = Console(highlight=False, markup=False)
if not results.is_terminal:
    results.width = 140
Positive = click.IntRange(min=1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; every foreseeable error is one line and exit code 2."""
    sys.path.insert(0, str(Path.cwd()))  # a target given as module:attribute is often a file of this folder
    try:
        code = cli.main(arguments, prog_name="attn-parity", standalone_mode=False)
    except click.ClickException as error:
        _fail(error.format_message())
    except click.Abort:
        sys.exit(130)
    except (CaseError, MutantError, UnknownTargetError) as error:
        _fail(str(error))
    except ExecutorError as error:
        notes.print(f"attn-parity: {error}", soft_wrap=True)
        sys.exit(2)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> NoReturn:
    notes.print(f"attn-parity: {' '.join(message.split())}", soft_wrap=True)
    sys.exit(2)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Two implementations of one attention contract, and a fuzzer that proves they agree."""


device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    help="auto: a GPU if there is one (HIP's is cuda too).",
)
workers_option = click.option("--workers", type=Positive, help="Processes at once; one per core, on one GPU one.")
limit_option = click.option("--limit", type=click.FloatRange(min=0, min_open=True), default=60.0, help="Seconds per case.")
json_option = click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the result here."
)


@cli.command()
@click.option("--target", "target_name", default="triton", show_default=True, help="What to check; see `targets`.")
@click.option("--profile", type=click.Choice(list(PROFILES)), default="ci", show_default=True, help=f"Examples: {PROFILES}.")
@click.option("--examples", type=Positive, help="Cases to draw, instead of the profile's number.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Stop drawing after so long.")
@click.option("--seed", type=click.IntRange(min=0), help="Repeats a run; drawn and printed if not given.")
@workers_option
@limit_option
@device_option
@json_option
@click.option(
    "--report",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("attn-parity-runs"),
    help="For failures.",
)
def fuzz(
    target_name: str,
    profile: str,
    examples: int | None,
    minutes: float | None,
    seed: int | None,
    workers: int | None,
    limit: float,
    device: str,
    json_file: Path | None,
    folder: Path,
) -> int:
    """Draw cases, run them on a target, judge them. The main job."""
    device = _device(device)
    target = _available(target_name, device)
    _check_writable(json_file)
    folder.mkdir(parents=True, exist_ok=True)
    seed = secrets.randbelow(1 << 31) if seed is None else seed
    plan = Plan(
        target=target_name,
        device=device,
        examples=examples or PROFILES[profile],
        seed=seed,
        folder=folder,
        limit=limit,
        minutes=minutes,
    )
    plans = runner.shards(plan)
    workers = workers or _workers(device)
    results.print(f"target {target.name} on {_device_name(device)}, {plan.examples} examples, {workers} workers, --seed {seed}")
    started = time.monotonic()
    with _bar(plan.examples) as show_bar:
        done = [engine.Progress() for _ in plans]

        def show(index: int, progress: engine.Progress) -> None:
            done[index] = progress
            show_bar(sum(p.examples for p in done), sum(p.shrinking for p in done))

        outcome = runner.run(plans, workers, stop_at_failure=True, report=show)
    if outcome.error:
        raise ExecutorError(outcome.error)
    seconds = time.monotonic() - started
    failures = list({p.failure.case: p.failure for p in outcome.progress if p.failure is not None}.values())
    written = []
    for i, failure in enumerate(failures):
        name = f"{target.name}-{seed}" + (f"-{i + 1}" if len(failures) > 1 else "")
        case_path, script_path = report.write(failure.case, failure.verdict, folder, name)
        written.append((case_path, script_path))
        results.print(report.summary(failure.case, failure.verdict))
        size = "smallest case" if failure.minimal else "failing case, not yet the smallest"
        results.print(f"{size}: {case_path}   script: {script_path}", soft_wrap=True)
        results.print(f"again: attn-parity replay {case_path}", soft_wrap=True)
    total = sum(p.examples for p in outcome.progress)
    spent = {name: sum(p.spent.get(name, 0.0) for p in outcome.progress) for name in ("build", "target", "judge")}
    ratio = max((p.ratio for p in outcome.progress), default=0.0)
    verdict = f"{len(failures)} failing" if failures else f"all agree, largest error {ratio:.2f} of its bound"
    results.print(
        f"{total} examples in {seconds:.1f} s ({total / seconds:.1f}/s), {verdict}"
        + (", interrupted" if outcome.interrupted else "")
    )
    if json_file:
        _write_json(
            json_file,
            {
                "schema": FUZZ_SCHEMA,
                "target": target.name,
                "device": _device_name(device),
                "profile": profile,
                "seed": seed,
                "workers": workers,
                "examples": total,
                "seconds": round(seconds, 3),
                "spent": {name: round(value, 3) for name, value in spent.items()},
                "max_ratio": ratio,
                "interrupted": outcome.interrupted,
                "failures": [
                    {
                        "kind": failure.verdict.kind,
                        "message": failure.verdict.message,
                        "found_after": failure.found_after,
                        "minimal": failure.minimal,
                        "case": msgspec.to_builtins(failure.case),
                        "case_file": str(paths[0]),
                        "script": str(paths[1]),
                    }
                    for failure, paths in zip(failures, written, strict=True)
                ],
            },
        )
    if failures:
        return 1
    return 130 if outcome.interrupted else 0


@cli.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--target", "target_name", help="Instead of the one that the case names.")
@limit_option
@device_option
def replay(files: tuple[Path, ...], target_name: str | None, limit: float, device: str) -> int:
    """Run cases again."""
    device = _device(device)
    cases = []
    for path in files:
        case = case_file.load(path)
        target = _available(target_name or case.target, device)
        if reason := target.support(device).limit(case):
            raise CaseError(f"{path}: target {target.name} cannot run this case on {device}: {reason}")
        cases.append((path, case, target_name or case.target))
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        for path, case, name in cases:
            with Executor(name, device, limit, Path(scratch, "in-flight.json")) as executor:
                verdict = executor.run(case)
            results.print(f"{path}: {verdict.kind}, largest error {verdict.ratio:.2f} of its bound", soft_wrap=True)
            if verdict.failed:
                failed = True
                results.print(report.summary(case, verdict))
    return int(failed)


@cli.command()
@click.option("--only", multiple=True, metavar="NAME", help="Just this mutant; may be given more than once.")
@click.option("--dir", "folder", type=click.Path(file_okay=False, path_type=Path), help="Mutants of your own, *.toml.")
@click.option("--examples", type=Positive, default=ZOO_EXAMPLES, show_default=True, help="Per mutant at most.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@workers_option
@limit_option
@device_option
@json_option
def zoo(
    only: tuple[str, ...],
    folder: Path | None,
    examples: int,
    seed: int,
    workers: int | None,
    limit: float,
    device: str,
    json_file: Path | None,
) -> int:
    """Put real bugs back, one at a time, and see whether the fuzzer finds each; exit 1 when one survives."""
    device = _device(device)
    _check_writable(json_file)
    animals = mutants.load_all(folder) if folder else mutants.load_all()
    if unknown := set(only) - {mutant.name for mutant in animals}:
        names = ", ".join(mutant.name for mutant in animals)
        raise MutantError(f"--only: got {', '.join(sorted(unknown))}, expected some of {names}")
    animals = [mutant for mutant in animals if not only or mutant.name in only]
    for mutant in animals:
        _available(mutant.target, device)
    with tempfile.TemporaryDirectory() as scratch, _bar(len(animals)) as show_bar:
        plans = [
            Plan(target=m.target, device=device, examples=examples, seed=seed, folder=Path(scratch), limit=limit, mutant=m)
            for m in animals
        ]
        done = [engine.Progress() for _ in plans]

        def show(index: int, progress: engine.Progress) -> None:
            done[index] = progress
            show_bar(sum(p.failure is not None for p in done), sum(p.examples + p.shrinking for p in done))

        outcome = runner.run(plans, workers or _workers(device), stop_at_failure=False, report=show)
    if outcome.error:
        raise ExecutorError(outcome.error)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("mutant", "origin", "found", "examples", "seconds", "by", "smallest case"):
        table.add_column(column, justify="right" if column in ("examples", "seconds") else "left")
    rows = [_zoo_row(mutant, progress) for mutant, progress in zip(animals, outcome.progress, strict=True)]
    for row in rows:
        case = row["case"]
        size = _size(case) if case else ""
        found = "found" if row["found"] else "SURVIVED"
        by = row["by"] or ""
        table.add_row(row["name"], row["origin"], found, str(row["examples"]), f"{row['seconds']:.1f}", by, size)
    results.print(table)
    if json_file:
        _write_json(json_file, {"schema": ZOO_SCHEMA, "seed": seed, "device": _device_name(device), "mutants": rows})
    return 130 if outcome.interrupted else int(not all(row["found"] for row in rows))


def _size(case: dict[str, Any]) -> str:
    requests = case.get("requests", [])
    queries, keys = (sum(request[name] for request in requests) for name in ("query_len", "seq_len"))
    return f"{len(requests)} request{'s' * (len(requests) != 1)}, {queries} query rows, {keys} keys"


def _zoo_row(mutant: Mutant, progress: engine.Progress) -> dict[str, Any]:
    failure = progress.failure
    return {
        "name": mutant.name,
        "origin": mutant.origin,
        "class": mutant.kind,
        "found": failure is not None,
        "examples": failure.found_after if failure else progress.examples,
        "seconds": round(failure.found_seconds if failure else progress.seconds, 3),
        "by": failure.verdict.kind if failure else None,
        "minimal": failure.minimal if failure else None,
        "case": msgspec.to_builtins(failure.case) if failure else None,
    }


@cli.command("targets")
@device_option
def list_targets(device: str) -> None:
    """What can be fuzzed here."""
    device = _device(device)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("target", "what", f"on {device}"):
        table.add_column(column)
    for name in targets.names():
        try:
            target = targets.load(name)
            support = target.support(device)
            state = target.unavailable(device) or ", ".join((*support.attn_types, *support.dtypes))
            table.add_row(name, target.description, state)
        except UnknownTargetError as error:
            table.add_row(name, "", str(error))
    results.print(table)


@cli.command()
def doctor() -> None:
    """What this machine has, and what to install for the rest."""
    table = Table(box=None, pad_edge=False, show_header=False)
    import torch

    table.add_row("python", platform.python_version())
    table.add_row("torch", torch.__version__)
    table.add_row("device", _device_name(_device("auto")))
    table.add_row("triton", _version("triton") or "missing: pip install 'attn-parity[cpu]'")
    if torch.cuda.is_available():
        table.add_row("kernels", "compiled")
    else:
        table.add_row("kernels", "interpreted on the CPU")
    table.add_row("hypothesis", _version("hypothesis") or "missing: pip install 'attn-parity[fuzz]'")
    amd = _version("amd-aiter")
    other = "the package named aiter here is not AMD's; " if importlib.util.find_spec("aiter") and not amd else ""
    table.add_row("AITER", amd or f"missing: {other}pip install 'attn-parity[aiter]'")
    table.add_row("cores", str(os.cpu_count()))
    results.print(table)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device(choice: str) -> str:
    import torch

    available = torch.cuda.is_available()
    if choice == "cuda" and not available:
        raise click.ClickException("--device cuda: torch sees no GPU here")
    if choice == "cpu" or not available:
        notes.print("no GPU in use: Triton interprets the kernels on the CPU")
        return "cpu"
    return "cuda"


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def _workers(device: str) -> int:
    return (os.cpu_count() or 1) if device == "cpu" else min(8, os.cpu_count() or 1)


def _available(name: str, device: str) -> targets.Target:
    target = targets.load(name)
    if reason := target.unavailable(device):
        raise UnknownTargetError(f"target {name}: {reason}")
    return target


def _check_writable(path: Path | None) -> None:
    if path is not None and not path.parent.is_dir():
        raise click.ClickException(f"--json: the folder {path.parent} does not exist")


def _write_json(path: Path, result: dict[str, Any]) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")


@contextlib.contextmanager
def _bar(total: int) -> Iterator[Callable[[int, int], None]]:
    """A progress bar; call it with how many are done and how many cases shrinking has tried."""
    columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn())
    with Progress(
        *columns, TextColumn("{task.description}"), console=notes, transient=True, disable=not notes.is_terminal
    ) as progress:
        task = progress.add_task("starting", total=total)

        def show(completed: int, tried: int) -> None:
            progress.update(task, completed=completed, description=f"{tried} cases tried to shrink" if tried else "")

        yield show
