"""The failing cases of `attn-parity fuzz`: shown when they are found, written to files, and listed at the end of the run."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from attn_fuzz import report
from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import Case
from attn_fuzz.explain import in_process
from attn_fuzz.report.run import Found
from attn_fuzz.run.shard import Failure, FuzzPlan, Progress
from attn_parity.commands.fuzz import never_sent
from attn_parity.console import results

EXPLAINING = 60.0
"""The time after which no further failure of a run is explained."""


@dataclass
class EarlyFiles:
    """The files that a failure is written to before the run ends. A file that could not be written is None.

    Args:
        first: the file of the case as it was found. It stays.
        smallest: the file of the smallest case so far. It is removed when the run has written all failures.
    """

    first: Path | None = None
    smallest: Path | None = None

    def save_smallest(self, case: Case, folder: Path, name: str) -> None:
        """Write the smallest case so far over the one before it. A full disk is no error yet, as in `saved`."""
        with contextlib.suppress(OSError):
            self.smallest = report.save_draft(case, folder, name, self.smallest)

    def drop_smallest(self) -> None:
        if self.smallest is not None:
            self.smallest.unlink(missing_ok=True)


def saved(case: Case, folder: Path, name: str) -> Path | None:
    """Write a case file. A full disk is no error yet: the case is written again when the run has ended."""
    try:
        return report.save(case, folder, name)
    except OSError:
        return None


def kept(failure: Failure, folder: Path, name: str, errors: list[str]) -> tuple[Path | None, Path | None]:
    """Write a failing case and its script for good. What cannot be written is None, and adds an error."""
    path = script = None
    try:
        path = report.save(failure.case, folder, name, failure.verdict)
        script = report.save_script(failure.case, failure.verdict, path)
    except OSError as error:
        errors.append(f"{error.filename}: {error.strerror}")
    return path, script


def with_explanations(found: Sequence[Found], plans: Mapping[str, FuzzPlan]) -> list[Found]:
    """Failures with what explains them. Those whose output is not wrong have no explanation, nor have those of wrong calls.

    Args:
        plans: by the name of the target.
    """
    until = time.monotonic() + EXPLAINING
    return [_explained(each, plans[each.failure.case.target]) if time.monotonic() < until else each for each in found]


def _explained(found: Found, plan: FuzzPlan) -> Found:
    if plan.malformed:
        return found
    reason = never_sent.why(found.failure.case, plan.device, plan.case_seconds)
    return found._replace(explanation=in_process.of_failure(found.failure, plan), never_sent=reason)


def show_first(failure: Failure, folder: Path, name: str) -> Path | None:
    """Write and show a failure as it was found, before it is shrunk."""
    path = saved(failure.first, folder, f"{name}-first")
    verdict = failure.first_verdict
    results.print(f"failing case, as it was found: {path or 'it could not be written'}")
    results.print(f"{verdict.kind}: {verdict.message}")
    return path


def written(
    progress: Sequence[Progress],
    files_of: Sequence[EarlyFiles],
    folder: Path,
    name: str,
    past: Mapping[Case, str],
    errors: list[str],
) -> list[Found]:
    """Write each failing case once into the folder. A case that cannot be written adds an error.

    Shrunk cases come first, and then the order is that of the shards. A failure that was met while another one was shrunk
    follows that one.
    """
    found: dict[Case, Found] = {}
    of_shards = [(p.failure, p.others, files) for p, files in zip(progress, files_of, strict=True) if p.failure is not None]
    for first, others, files in sorted(of_shards, key=lambda of_shard: not of_shard[0].minimal):
        for failure in (first, *others):
            if failure.case in found:
                continue
            path, script = kept(failure, folder, name, errors)
            first_file = files.first if failure is first else None
            found[failure.case] = Found(failure, path, script, first_file, past.get(failure.first), failure is not first)
    if all(each.case_file for each in found.values()):
        for files in files_of:
            files.drop_smallest()
    return list(found.values())


def tell(found: Found, *, is_first: bool) -> None:
    """Print a failure: its smallest case, its files, and how it was found."""
    failure = found.failure
    if found.while_shrinking:
        results.print("another failure, which was met while this one was shrunk:")
    elif not is_first:
        results.print("another shard failed too, perhaps for the same reason:")
    if found.past:
        results.print(f"{found.past} fails")
    if found.never_sent:
        results.print(f"no engine sends this: {found.never_sent}")
    results.print(report.summary(failure.case, failure.verdict))
    for line in found.explanation:
        results.print(line)
    size = "smallest case" if failure.minimal else "failing case, not yet the smallest"
    if found.case_file is None:
        results.print(f"{size}, which could not be written:\n{case_file.dumps(failure.case)}")
        return
    results.print(f"{size}: {found.case_file}   script: {found.script or 'it could not be written'}")
    if found.first_file is not None and failure.case != failure.first:
        results.print(f"as it was found: {found.first_file}")
    if (first := failure.first_verdict).kind != failure.verdict.kind:
        symptom = f"{first.kind}: {first.message}"
        results.print(f"it was found by another symptom, perhaps of another cause: {symptom}")
    results.print(f"again: {report.pasted(report.again(failure.case, found.case_file, failure.verdict))}")
