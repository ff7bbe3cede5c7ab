"""`attn-parity hunt`: go on past each new failure, and end with a table of distinct failures."""

import contextlib
import platform
import re
import secrets
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
from attn_fuzz import outputs, report
from attn_fuzz.corpus import files
from attn_fuzz.errors import ExecutorError
from attn_fuzz.report.drawn import drawn
from attn_fuzz.report.hunted import Distinct, Hunted, declarations
from attn_fuzz.run import runner, sources
from attn_fuzz.run.hunt import SHARD_EXAMPLES, Entry, Hunt
from attn_fuzz.run.shard import FuzzPlan, Progress
from attn_fuzz.targets import registry
from attn_fuzz.targets.target import Target
from attn_parity import failing, places
from attn_parity.console import notes, results
from attn_parity.failing import EarlyFiles
from attn_parity.options import (
    Duration,
    Positive,
    Seed,
    check_writable,
    corpus_option,
    device_option,
    ignore_signals,
    json_option,
    limit_option,
    needs_option,
    plain_table,
    ray_option,
    sanitize_option,
    sanitizes,
    say_what_runs_kernels,
    workers_option,
    working_dir_option,
    write_json,
)
from attn_parity.places import Place
from msgspec.structs import replace
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar

EXAMPLES, MINUTES = 100_000, 10.0
DRAWING = 2 / 3
"""The share of the time in which cases are drawn. In the rest, failures that wait are shrunk."""
FOLDER = Path("attn-parity-runs")


@click.command("hunt")
@click.argument("names", nargs=-1, required=True, metavar="TARGET...")
@click.option("--minutes", type=Duration, help=f"Begin nothing new after these minutes; default: {MINUTES:g}, or --examples.")
@click.option("--examples", type=Positive, help="Number of cases to draw for each target.")
@click.option("--seed", type=Seed, help="The same seed draws the same cases; default: a new seed, which is printed.")
@workers_option
@limit_option
@device_option
@sanitize_option
@json_option
@click.option(
    "--report",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=FOLDER,
    show_default=True,
    help="Write failing cases and their declarations as findings into this folder.",
)
@corpus_option
@ray_option
@needs_option
@working_dir_option
def command(
    names: tuple[str, ...],
    minutes: float | None,
    examples: int | None,
    seed: int | None,
    workers: int | None,
    limit: float,
    device: str,
    sanitize: bool | None,
    json_file: Path | None,
    folder: Path,
    corpus: str | None,
    address: str | None,
    needs: tuple[str, ...],
    working_dir: Path | None,
) -> int:
    """Draw cases, and go on past each failure; end with the distinct failures. Exit 1 if there is one.

    A failure that no finding explains is shrunk. It becomes a provisional entry, which counts later failures of the same cause.
    """
    check_writable(json_file, made=folder)
    with places.chosen(address, needs, working_dir, names, device, workers) as place:
        targets = _targets(names)
        say_what_runs_kernels(place.device, targets.values())
        folder.mkdir(parents=True, exist_ok=True)
        minutes = MINUTES if minutes is None and examples is None else minutes
        plan = FuzzPlan(
            target="",
            device=place.device,
            examples=examples or EXAMPLES,
            seed=secrets.randbelow(1 << 31) if seed is None else seed,
            folder=folder,
            limit=limit,
            on_failure="go on",
            until=time.time() + 60 * minutes * DRAWING if minutes else None,
        )
        until = time.time() + 60 * minutes if minutes else None
        plans = [
            replace(plan, target=name, sanitize=sanitizes(sanitize, target, place.device)) for name, target in targets.items()
        ]
        shards = [[*_replays(corpus, plan, place), *runner.shards(plan, SHARD_EXAMPLES)] for plan in plans]
        place = place.of_shards(sum(map(len, shards)))
        words = [
            f"hunt {', '.join(target.name for target in targets.values())} on {place.device_name}",
            *([f"{minutes:g} minutes"] if minutes else []),
            *([f"{examples} examples each"] if examples else []),
            place.words,
        ]
        results.print(f"{', '.join(words)}, --seed {plan.seed}", soft_wrap=True)
        prefixes = {name: f"{_safe(target.name)}-{plan.seed}" for name, target in targets.items()}
        files_of = _Files(folder, prefixes, earlier=frozenset(folder.iterdir()))
        return _hunt(Hunt(shards, until, files_of.changed, files_of.dropped), files_of, plan.seed, place, json_file)


def _targets(names: tuple[str, ...]) -> dict[str, Target]:
    targets = {name: registry.load(name) for name in names}
    named = Counter(targets[name].name for name in names)
    if repeated := [name for name, count in named.items() if count > 1]:
        raise click.UsageError(f"TARGET: got {repeated[0]} more than once, expected targets of different names")
    return targets


def _safe(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text)[:80]


def _replays(corpus: str | None, plan: FuzzPlan, place: Place) -> list[FuzzPlan]:
    """Plans that run the past cases that a target supports."""
    admitted = files.admitted(files.chosen(corpus), plan.target, place.supports[plan.target])
    if admitted.sentence:
        notes.print(f"{plan.target}: {admitted.sentence}", soft_wrap=True)
    return runner.replays(plan, list(admitted.cases))


@dataclass
class _Files:
    """The files of the failures of a hunt, and what is said of a failure when it is found.

    Args:
        folder: of all files.
        prefixes: of the names of a target's files, by target.
        earlier: what lay in the folder before the hunt.
    """

    folder: Path
    prefixes: Mapping[str, str]
    earlier: frozenset[Path]
    _early: dict[Entry, EarlyFiles] = field(default_factory=dict)

    def name(self, entry: Entry) -> str:
        return _safe("-".join((self.prefixes[entry.target], *filter(None, entry.way), str(entry.number))))

    def changed(self, entry: Entry) -> None:
        """Write the smallest case so far, and say so when a failure is new."""
        name, failure = self.name(entry), entry.failure
        if entry not in self._early:
            self._early[entry] = EarlyFiles(failing.saved(failure.first, self.folder, f"{name}-first"))
        self._early[entry].save_smallest(failure.case, self.folder, f"{name}-smallest")
        if not entry.is_open:
            results.print(f"new: {name}: {failure.verdict.kind}: {failure.verdict.message}", soft_wrap=True)

    def dropped(self, entry: Entry) -> None:
        """Delete the files of a failure whose smallest case has the cause of another one."""
        files = self._early.pop(entry, EarlyFiles())
        files.drop_smallest()
        if files.first is not None and files.first not in self.earlier:
            files.first.unlink(missing_ok=True)

    def written(self, entry: Entry, errors: list[str]) -> Distinct:
        """Write the smallest case and its script. A file that cannot be written adds an error."""
        name, files = self.name(entry), self._early[entry]
        case_file, script = failing.kept(entry.failure, self.folder, name, errors)
        if case_file is not None:
            files.drop_smallest()
            name = case_file.stem
        return Distinct(name=name, entry=entry, case_file=case_file, script=script, first_file=files.first)

    def declared(self, failures: Sequence[Distinct], errors: list[str]) -> Iterator[Path]:
        """Write declarations of each target's failures as findings, and return where."""
        for target, prefix in self.prefixes.items():
            own = [distinct for distinct in failures if distinct.entry.target == target and distinct.case_file]
            path = self.folder / f"findings_{re.sub(r'[^0-9a-zA-Z]+', '_', prefix)}.py"
            try:
                if own:
                    yield outputs.keep(outputs.numbered(path, "_"), declarations(own))
            except OSError as error:
                errors.append(f"{error.filename}: {error.strerror}")


def _hunt(hunt: Hunt, files_of: _Files, seed: int, place: Place, json_file: Path | None) -> int:
    """Run the hunt's plans at a place, and report. Returns the exit code."""
    started = time.monotonic()
    with _progress(hunt, started) as show:

        def noted(index: int, progress: Progress) -> None:
            hunt.report(index, progress)
            show()

        outcome = runner.run(hunt.plans, place.workers, stop_at_failure=False, report=noted, ended=hunt.ended, place=place.run)
    hunt.finish()
    if hunt.entries:
        ignore_signals()  # they would lose the failures that are about to be reported
    errors = [outcome.error] if outcome.error else []
    failures = [files_of.written(entry, errors) for entry in hunt.entries]
    hunted = Hunted(
        device=place.device_name,
        versions={"python": platform.python_version()} | sources.versions(),
        seed=seed,
        workers=place.workers,
        seconds=time.monotonic() - started,
        targets={target: hunt.of_target(target) for target in files_of.prefixes},
        failures=failures,
        interrupted=outcome.interrupted,
        error=outcome.error,
    )
    _tell(hunted)
    for target, shards in hunted.targets.items():
        for line in drawn(shards, place.supports[target]).rejections:
            results.print(f"{target}: {line}", soft_wrap=True)
    for path in files_of.declared(failures, errors):
        results.print(f"declarations as findings: {path}", soft_wrap=True)
    results.print(hunted.sentence, soft_wrap=True)
    if json_file is not None:
        try:
            write_json(json_file, hunted.to_json())
        except click.ClickException as error:
            errors.append(error.message)
    return _exit_code(hunted, errors)


def _exit_code(hunted: Hunted, errors: list[str]) -> int:
    """The exit code: 1 if something new was found, 130 after an interruption, NOT_RUN if a limit was met.

    Errors are printed, or raised if nothing was found.

    Raises:
        ExecutorError: there are errors, and no failure.
    """
    if errors and not hunted.failures:
        raise ExecutorError("\n".join(errors))
    for error in errors:
        notes.print(f"attn-parity: {error}", soft_wrap=True)
    if hunted.failures:
        return 1
    return 130 if hunted.interrupted else failing.NOT_RUN if hunted.limits else 0


def _tell(hunted: Hunted) -> None:
    """Print the table of distinct failures, and the words and files of each."""
    if not hunted.failures:
        return
    table = plain_table("", "target", "kind", "about", "needs", "first at", "later", right=("first at", "later"))
    for i, distinct in enumerate(hunted.failures, 1):
        entry, verdict = distinct.entry, distinct.entry.failure.verdict
        needs = ", ".join(distinct.needs) if entry.failure.needs is not None else "not asked"
        table.add_row(str(i), entry.target, verdict.kind, verdict.about, needs, str(entry.after), str(entry.explained))
    results.print(table)
    for i, distinct in enumerate(hunted.failures, 1):
        failure, path = distinct.entry.failure, distinct.case_file
        results.print(f"{i}. {failure.verdict.kind}: {failure.verdict.message}", soft_wrap=True)
        for remark in distinct.remarks(hunted.names):
            results.print(f"   {remark}", soft_wrap=True)
        again = shlex.join(report.again(failure.case, path, failure.verdict)) if path else "its case could not be written"
        results.print(f"   {again}", soft_wrap=True)


@contextlib.contextmanager
def _progress(hunt: Hunt, started: float) -> Iterator[Callable[[], None]]:
    """A progress bar: of the time, or of the examples where no time is given. Call it when something has happened."""
    columns = (SpinnerColumn(), BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    seconds = hunt.until - time.time() if hunt.until else None
    total = seconds or sum(each.examples for each in hunt.plans)
    with ProgressBar(*columns, console=notes, transient=True, disable=not notes.is_terminal) as bar:
        task = bar.add_task("starting", total=total)

        def show() -> None:
            ran = sum(p.examples for p in hunt.progress.values())
            open_ones = sum(entry.is_open for entry in hunt.entries)
            words = f"{ran} examples, {len(hunt.entries)} distinct failures" + f", {open_ones} being shrunk" * bool(open_ones)
            bar.update(task, completed=time.monotonic() - started if seconds else ran, description=words)

        yield show
