"""`attn-parity fuzz --keep-going`: go on past each new failure, and end with a table of distinct failures."""

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from attn_fuzz import outputs, report
from attn_fuzz.cases.case import Case
from attn_fuzz.findings.aspects import in_order
from attn_fuzz.report.declarations import declarations
from attn_fuzz.report.run import Found
from attn_fuzz.run import runner
from attn_fuzz.run.distinct import DistinctFailures, Entry
from attn_fuzz.run.runner import Outcome
from attn_fuzz.run.shard import Progress
from attn_parity.commands.fuzz import failing
from attn_parity.commands.fuzz.failing import EarlyFiles
from attn_parity.commands.fuzz.machines import Machines
from attn_parity.console import plain_table, results, task
from attn_parity.files import name_part
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn


@dataclass
class Files:
    """The files of distinct failures, and the lines that are printed when one is found.

    Args:
        folder: the folder of all files.
        prefixes: the prefixes of the names of a target's files, by target.
        earlier: the files in the folder before the run.
    """

    folder: Path
    prefixes: Mapping[str, str]
    earlier: frozenset[Path]
    _early: dict[Entry, EarlyFiles] = field(default_factory=dict)

    def name(self, entry: Entry) -> str:
        return name_part("-".join((self.prefixes[entry.target], *filter(None, entry.way), str(entry.number))))

    def changed(self, entry: Entry) -> None:
        """Write the smallest case so far, and say so when a failure is new."""
        name, failure = self.name(entry), entry.failure
        if entry not in self._early:
            self._early[entry] = EarlyFiles(failing.saved(failure.first, self.folder, f"{name}-first"))
        self._early[entry].save_smallest(failure.case, self.folder, f"{name}-smallest")
        if not entry.is_open:
            results.print(f"new: {name}: {failure.verdict.kind}: {failure.verdict.message}")

    def dropped(self, entry: Entry) -> None:
        """Delete the files of a failure whose smallest case has the cause of another one."""
        files = self._early.pop(entry, EarlyFiles())
        files.drop_smallest()
        if files.first is not None and files.first not in self.earlier:
            files.first.unlink(missing_ok=True)

    def written(self, entries: Sequence[Entry], past: Mapping[str, Mapping[Case, str]], errors: list[str]) -> list[Found]:
        """Write the smallest case and the script of each entry. A file that cannot be written adds an error.

        Args:
            past: the names of past cases, by target.
        """
        found: dict[Entry, Found] = {}
        for entry in entries:
            name, files = self.name(entry), self._early[entry]
            path, script = failing.kept(entry.failure, self.folder, name, errors)
            if path is not None:
                files.drop_smallest()
                name = path.stem
            met_in = found[entry.met_in].name if entry.met_in else None
            past_name = past[entry.target].get(entry.failure.first)
            found[entry] = Found(entry.failure, path, script, files.first, past_name, met_in is not None, entry, name, met_in)
        return [*found.values()]

    def declared(self, failures: Sequence[Found], errors: list[str]) -> Iterator[Path]:
        """Write declarations of each target's failures as findings, and return where."""
        for target, prefix in self.prefixes.items():
            own = [each for each in failures if each.entry and each.entry.target == target and each.case_file]
            path = self.folder / f"findings_{re.sub(r'[^0-9a-zA-Z]+', '_', prefix)}.py"
            try:
                if own:
                    yield outputs.keep(outputs.numbered(path, "_"), declarations(own))
            except OSError as error:
                errors.append(f"{error.filename}: {error.strerror}")


def run(distinct: DistinctFailures, machines: Machines) -> Outcome:
    """Run the plans on machines."""
    with _progress(distinct, time.monotonic()) as show:

        def noted(index: int, progress: Progress) -> None:
            distinct.report(index, progress)
            show()

        outcome = runner.run(
            distinct.plans, machines.workers, stop_at_failure=False, report=noted, ended=distinct.ended, place=machines.run
        )
    distinct.finish()
    return outcome


def tell(failures: Sequence[Found]) -> None:
    """Print the table of distinct failures, and the words and files of each."""
    table = plain_table("", "target", "kind", "about", "needs", "first at", "later", right=("first at", "later"))
    for i, found in enumerate(failures, 1):
        entry, verdict = found.entry, found.failure.verdict
        assert entry is not None
        needs = ", ".join(in_order(entry.needs)) if found.failure.needs is not None else "not asked"
        table.add_row(str(i), entry.target, verdict.kind, verdict.about, needs, str(entry.after), str(entry.explained))
    results.print(table)
    for i, found in enumerate(failures, 1):
        failure, path = found.failure, found.case_file
        results.print(f"{i}. {failure.verdict.kind}: {failure.verdict.message}")
        sent = [f"no engine sends this: {found.never_sent}"] if found.never_sent else []
        for remark in (*sent, *found.remarks, *found.explanation):
            results.print(f"   {remark}")
        again = report.pasted(report.again(failure.case, path, failure.verdict)) if path else "its case could not be written"
        results.print(f"   {again}")


@contextlib.contextmanager
def _progress(distinct: DistinctFailures, started: float) -> Iterator[Callable[[], None]]:
    """A progress bar of the time, or of the examples if no time is given. Call it when something has happened."""
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    seconds = distinct.until - time.time() if distinct.until else None
    total = seconds or sum(each.examples for each in distinct.plans)
    with task(total, *columns, words="starting") as update:

        def show() -> None:
            ran = sum(p.examples for p in distinct.progress.values())
            open_ones = sum(entry.is_open for entry in distinct.entries)
            words = f"{ran} examples, {len(distinct.entries)} distinct failures" + f", {open_ones} being shrunk" * bool(
                open_ones
            )
            update(completed=time.monotonic() - started if seconds else ran, description=words)

        yield show
