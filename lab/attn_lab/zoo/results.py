"""Results of the zoo: the records of a run and of each bug, and a run in one line."""

import re
from collections import Counter
from collections.abc import Sequence
from statistics import median

import hypothesis
import msgspec
from attn_fuzz.cases.case import Case
from attn_fuzz.patches.mutant import MutantError
from attn_fuzz.run.shard import Progress
from attn_lab.finders import PARTS_OF_FUZZER
from attn_lab.zoo.known_bugs import KnownBug

SCHEMA = "attn-parity.zoo/3"
SURVIVED, NEEDS_GPU, UNFINISHED, DOES_NOT_RUN = "SURVIVED", "needs a GPU", "unfinished", "DOES NOT RUN"
REAL_BUG = re.compile(r"[\w.-]+/[\w.-]+#\d+")
"""owner/repo#number."""


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The results of one bug.

    Attributes:
        name: the bug's name. Its file says everything else about the bug.
        found: after how many examples each seed found it, None where it survived; empty if it was not run to its end.
        seconds: the median over the seeds, None unless all found it.
        by: the kind of the verdict of the first seed that found it, on its smallest case if it was made small.
        size: requests, query rows and keys of the smallest failing case; None unless it was made as small as it gets.
        error: why the bug's mutant does not run, if it does not.
    """

    name: str
    found: tuple[int | None, ...] = ()
    seconds: float | None = None
    by: str | None = None
    size: tuple[int, int, int] | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: of a file: no verdict is of the kind that found the bug.
        """
        is_found = any(count is not None for count in self.found)
        if (is_found or self.by is not None) and self.by not in (kind for kinds in PARTS_OF_FUZZER.values() for kind in kinds):
            raise ValueError(f"bug {self.name!r}: by: got {self.by!r}, expected a kind of verdict")

    @property
    def survived(self) -> bool:
        return None in self.found

    @property
    def examples(self) -> float | None:
        """The median over the seeds; None unless all found it."""
        counts = [count for count in self.found if count is not None]
        return median(counts) if counts and len(counts) == len(self.found) else None


class Results(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True, tag_field="schema", tag=SCHEMA
):
    """A run of the zoo: where, with which Hypothesis and seeds, of how many examples at most, and each bug by name.

    Attributes:
        target: the target that ran the bugs of kernels in place of `triton`; empty if each bug ran on its own target.
    """

    device: str
    hypothesis: str
    seeds: tuple[int, ...]
    at_most: int
    target: str = ""
    mutants: tuple[Row, ...]


def row(name: str, runs: Sequence[Progress]) -> Row:
    """The results of a bug; the case is of the first seed that found it.

    Args:
        runs: the runs of all seeds. If a seed was interrupted, the bug is unfinished: give no runs.
    """
    if error := next((progress.broken for progress in runs if progress.broken), None):
        return Row(name, error=error)
    if not runs:
        return Row(name)
    failures = [progress.failure for progress in runs]
    found = [failure for failure in failures if failure is not None]
    return Row(
        name,
        found=tuple(failure and failure.found_after for failure in failures),
        seconds=round(median(each.found_seconds for each in found), 1) if found and len(found) == len(runs) else None,
        by=found[0].verdict.kind if found else None,
        size=_size(found[0].case) if found and found[0].minimal else None,
    )


def _size(case: Case) -> tuple[int, int, int]:
    return len(case.requests), case.query_start_loc[-1], sum(request.seq_len for request in case.requests)


def of_run(device: str, seeds: Sequence[int], at_most: int, rows: Sequence[Row], target: str = "") -> Results:
    """The results of a run with this Hypothesis."""
    return Results(
        device=device,
        hypothesis=hypothesis.__version__,
        seeds=tuple(seeds),
        at_most=at_most,
        target=target,
        mutants=tuple(rows),
    )


def check_alike(kept: Results, run: Results) -> None:
    """
    Raises:
        MutantError: what was kept is of another device, Hypothesis, number of examples, seeds or target than a run of other
            bugs.
    """
    if msgspec.structs.replace(kept, mutants=()) != msgspec.structs.replace(run, mutants=()):
        where = f"{kept.target} on {kept.device}" if kept.target else kept.device
        was = f"{where}, Hypothesis {kept.hypothesis}, seeds {kept.seeds} and {kept.at_most} examples"
        raise MutantError(f"--write: the other bugs ran with {was}: run these so, too, or leave out --only")


def updated(kept: Results, found: Results, names: Sequence[str]) -> Results:
    """Join new results with the stored ones of all other bugs, in the order of `names`. Both are of runs alike."""
    rows = {row.name: row for row in (*kept.mutants, *found.mutants)}
    return msgspec.structs.replace(found, mutants=tuple(rows[name] for name in names if name in rows))


def found_by(row: Row, bug: KnownBug) -> str:
    """The kind of the verdict that found a bug, or why there is none."""
    if row.error:
        return DOES_NOT_RUN
    if not row.found:
        return NEEDS_GPU if bug.needs_gpu else UNFINISHED
    if not row.survived:
        return str(row.by)
    return SURVIVED if row.by is None else f"{SURVIVED} {row.found.count(None)} of {len(row.found)}"


def summary(rows: Sequence[Row], bugs: Sequence[KnownBug]) -> str:
    """One line: how many bugs were found, of which classes, how soon and by what. The README repeats its first half."""
    by_name = {bug.name: bug for bug in bugs}
    run = [row for row in rows if row.found]
    caught = [row for row in run if not row.survived]
    origins = {number for row in caught if (number := real_bug(by_name[row.name].origin))}
    classes = {by_name[row.name].kind for row in caught}
    text = f"{len(caught)} of {len(run)} found: {len(classes)} classes, {len(origins)} real bugs"
    if caught:
        examples = [row.examples for row in caught if row.examples is not None]
        parts = Counter(next(part for part, kinds in PARTS_OF_FUZZER.items() if row.by in kinds) for row in caught)
        text += f"; examples until found: median {median(examples):g}, most {max(examples):g}"
        text += "; by " + ", ".join(f"{part} {parts[part]}" for part in PARTS_OF_FUZZER if parts[part])
    return text


def real_bug(origin: str) -> str | None:
    """The owner/repo#number that an origin names, if any."""
    match = REAL_BUG.search(origin)
    return match[0] if match else None
