"""The pages of generated mutants, such as docs/generated/mutants.md: rates, and survivors by class."""

import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from statistics import median

import msgspec
from attn_lab import results_file
from attn_lab.finders import PARTS_OF_FUZZER
from attn_lab.miscompile import page as miscompiled
from attn_lab.mutate import line_coverage, suite
from attn_lab.mutate.campaign import Log, Trial, order
from attn_lab.mutate.generate import Generated
from attn_lab.pages import PAGES, table, write_or_check

PAGE = PAGES / "mutants.md"
SCHEMA = "attn-parity.mutants/2"
SURVIVED, NOT_RUN_BY_ANY, UNFINISHED = "survived", "no target runs it", "unfinished"
BROKEN, EQUIVALENT = "does not run", "equivalent"


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The results of one mutant.

    Attributes:
        name, change: as in `attn_lab.mutate.generate.Generated`; in a file "#" and a digest of a change that no page lists, and
            nothing of one that equivalent.toml tells.
        examples: for each seed, after how many examples it was found; None where it survived.
        by: the kind of the verdict that found it first.
        tests: True if the test suite found it; None if the suite was not run to its end.
        always: True if it raised in every case.
        state: why it is in no rate, or why no target could find it; empty if there is nothing to say.
        why: the reason in words: of an equivalent mutant, of one that does not run, or of one that is not found.
    """

    name: str
    change: str = ""
    examples: tuple[int | None, ...] = ()
    by: str | None = None
    tests: bool | None = None
    always: bool = False
    state: str = ""
    why: str = ""

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: of a file: the name is none of a generated mutant.
        """
        if not re.fullmatch(r"[\w.]+:[\w-]+:\w+", self.name):
            raise ValueError(f"mutant {self.name!r}: expected module.function:operator:number")

    @property
    def operator(self) -> str:
        return self.name.split(":")[1]

    @property
    def package(self) -> str:
        """The folder of the module, or the module where it lies in none."""
        module = self.name.split(":")[0].split(".")[1:]
        return module[0] if module else "attn_optimized"

    @property
    def digest(self) -> str:
        return self.change if self.change.startswith("#") else digest_of(self.change)

    def is_of(self, mutant: Generated) -> bool:
        """True if a mutant of this name makes the same change."""
        return self.digest == digest_of(mutant.change)

    @property
    def counts(self) -> bool:
        """True if it is in the rates."""
        return self.state in ("", NOT_RUN_BY_ANY)

    @property
    def is_listed(self) -> bool:
        """True if a page lists it: a seed of the fuzzer does not find it or it is in no rate, and no test finds it."""
        return not self.tests and (bool(self.state) or None in self.examples)


def digest_of(change: str) -> str:
    return f"#{zlib.crc32(change.encode()):08x}"


class Suite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The test suite that met the mutants.

    Attributes:
        versions: what it ran under.
        passed, skipped, failed: numbers of tests, without a mutant.
        running: the number of passing tests that run a statement of the package in their own process, beyond imports.
        others: the number of tests that did not end in time.
    """

    versions: dict[str, str]
    passed: int
    running: int
    skipped: int
    failed: int
    others: int


class Results(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="schema", tag=SCHEMA):
    """The results of a campaign: its device, Hypothesis, sample, seeds and examples for each target, and each mutant.

    `suite` is None if no tests ran.
    """

    device: str
    hypothesis: str
    sample: int
    sample_seed: int
    seeds: tuple[int, ...]
    examples: int
    suite: Suite | None
    mutants: tuple[Row, ...]


def row(mutant: Generated, log: Log, seeds: Sequence[int], examples: int, equivalent: dict[str, str]) -> Row:
    """The results of a mutant in a log.

    Args:
        examples: for each target.
        equivalent: reasons by name.
    """
    found = Row(mutant.name, mutant.change, tests=of_tests(mutant, log))
    if mutant.name in equivalent:
        return msgspec.structs.replace(found, state=EQUIVALENT, why=equivalent[mutant.name])
    targets = line_coverage.targets_of(mutant.module, mutant.line, [*log.reaches.values()])
    by_seed = [[log.trials.get(key) for key in order(mutant, seed, targets, examples)] for seed in seeds]
    trials = [trial for trials in by_seed for trial in trials if trial is not None]
    if broken := next((trial for trial in trials if trial.broken), None):
        return msgspec.structs.replace(found, state=BROKEN, why=broken.message)
    counts = [_found_after(trials) for trials in by_seed]
    if UNFINISHED in counts:
        return msgspec.structs.replace(found, state=UNFINISHED)
    first = next((trial for trial in trials if trial.by), None)
    return msgspec.structs.replace(
        found,
        examples=tuple(map(_number, counts)),
        by=first.by if first else None,
        always=first.always if first else False,
        state="" if targets else NOT_RUN_BY_ANY,
    )


def explained(row: Row, causes: dict[str, str]) -> Row:
    """A row with the cause why its mutant survived, if the mutant did and a cause is known."""
    survived = row.counts and (row.state == NOT_RUN_BY_ANY or None in row.examples)
    return msgspec.structs.replace(row, why=causes.get(row.name, "")) if survived else row


def _found_after(trials: Sequence[Trial | None]) -> int | str:
    """The number of examples until a mutant was found; SURVIVED, or UNFINISHED if it was not and a shard is missing.

    Shards of several targets run at once. If a later target finds the mutant first, the others need not run.
    """
    examples = 0
    for trial in trials:
        examples += trial.examples if trial is not None else 0
        if trial is not None and trial.by:
            return max(1, examples)
    return UNFINISHED if None in trials else SURVIVED


def _number(found: int | str) -> int | None:
    return found if isinstance(found, int) else None


def of_tests(mutant: Generated, log: Log) -> bool | None:
    """True if the test suite finds a mutant; None if the log does not hold the end of its tests."""
    tests = suite.tests_of(mutant, [*log.tests.values()])
    trial = log.trials.get(suite.key(mutant, tests))
    if trial is None or trial.broken:
        return None
    if trial.by:
        return True
    return False if trial.examples == len(tests) else None


def suite_of(log: Log) -> Suite | None:
    """The tests that a log holds, and what they ran under; None if it holds none."""
    if not log.tests:
        return None
    recorded = [*log.tests.values()]
    files = {each.file: each.count for each in recorded}
    passed = Counter(file for each in recorded for file in [each.file] * len(each.tests))
    return Suite(
        versions=recorded[-1].under,
        passed=passed.total(),
        running=sum(len({at for lines in each.runs.values() for tests in lines.values() for at in tests}) for each in recorded),
        skipped=sum(each.skipped for each in recorded),
        failed=sum(len(each.failed) for each in recorded),
        others=sum(files.values()) - passed.total() - sum(each.skipped + len(each.failed) for each in recorded),
    )


_PARTS = PARTS_OF_FUZZER
FINDERS = {
    "judge": (*_PARTS["value"], *_PARTS["poison"], *_PARTS["stray writes"]),
    **{name: _PARTS[name] for name in ("property", "sanitizer", "exact")},
    "exception": (*_PARTS["exception"], *_PARTS["dead process"]),
    "refusal": _PARTS["no refusal"],
}
"""The kinds of verdicts by what finds a mutant in drawn calls. A user's own kernel gets all of these checks."""
_ON_OUTPUTS = (*FINDERS["judge"], *FINDERS["property"], *FINDERS["sanitizer"], *FINDERS["exact"])


KERNELS_OR_HOST: dict[str, Callable[[Row], bool]] = {
    "kernels and launches": lambda row: row.package in ("kernels", "launch"),
    "other host code": lambda row: row.package not in ("kernels", "launch"),
}


Judge = Callable[[Row], list[bool] | None]
"""Says of each seed if it found a mutant; None if that is not known."""

RATES: dict[str, Judge] = {
    "fuzzer": lambda row: [each is not None for each in row.examples] or None,
    "judge, property and sanitizer": lambda row: [each is not None and row.by in _ON_OUTPUTS for each in row.examples] or None,
    "tests": lambda row: None if row.tests is None else [row.tests],
    "fuzzer and tests": lambda row: (
        None if row.tests is None else [each is not None or row.tests for each in row.examples] or None
    ),
}


def rate(rows: Iterable[Row], judge: str) -> str:
    """The share of its mutants that a judge found, as a mean over the seeds; empty if it judged none."""
    judged = shares(rows, judge)
    return f"{100 * sum(judged) / len(judged):.0f} % of {len(judged)}" if judged else ""


def shares(rows: Iterable[Row], judge: str) -> list[float]:
    """The share of seeds that found a mutant, for each mutant that counts and that a judge judged."""
    return [sum(found) / len(found) for row in rows if row.counts and (found := RATES[judge](row)) is not None]


def summary(rows: Sequence[Row]) -> str:
    """All in one line."""
    reached = [row for row in rows if row.state != NOT_RUN_BY_ANY]
    parts = [f"{judge} {found}" for judge in RATES if (found := rate(rows, judge))]
    if found := rate(reached, "fuzzer"):
        parts.append(f"of those that a target runs fuzzer {found}")
    examples = [count for row in rows for count in row.examples if count is not None]
    if examples:
        parts.append(f"examples until found: median {median(examples):g}, most {max(examples)}")
    left_out = {state: sum(row.state == state for row in rows) for state in (BROKEN, EQUIVALENT, UNFINISHED)}
    parts += [f"{count} {state}" for state, count in left_out.items() if count]
    if always := sum(row.always for row in rows):
        parts.append(f"{always} of the found ones raise in every case")
    return "found: " + "; ".join(parts) if parts else "nothing was run"


PREFACE = """\
# Generated mutants

Operators (`attn_lab.mutate.operators`) make a small change at every place of the optimized side where they apply. Samples of
these mutants, which nobody chose, are run. All modules and operators have their share. [mutants.md](../reference/mutants.md)
says how.

Kernels and launches are what the fuzzer is for: their rate is that of judge, property and sanitizer, which a user's own kernel
gets as well. The rate of the other host code is that of the tests.

A rate counts the mutants that are found. A mutant is in no rate if it does not import or compile, if it is equivalent, or if
the run ended before the mutant had met all of its targets. Mutants without an end are mostly survivors: a mutant that is found
ends at once. A mutant that no target runs is in the rates, and survives. The lists leave out mutants that a test finds.
`equivalent.toml` says of each equivalent mutant why.
`python -m attn_lab mutate page --check` fails if this page is not made of the JSON files beside it, or if an operator does not
make one of their mutants any more.
"""
OF_SAMPLE = """
## {sample} mutants of seed {sample_seed}

`python -m attn_lab mutate run` ran them on {device}, with Hypothesis {hypothesis} and seed {seeds}. Each target that runs the
changed statement drew at most {examples} cases.
"""
UNENDED = """
The run ended before {unended} of the mutants had met all of their targets. If no seed found any of them, the rate would be
{least:.0f} %.
"""
SUITE = """
The column `tests` is of the project's own tests under {versions}. Without a mutant {passed} of them
pass, and {running} of these run a statement of the optimized side in their own process. The others count for nothing: {skipped}
are skipped, {failed} fail, and {others} did not end in time. A mutant meets the tests that run its statement, the cheap ones
first, until one fails that passes alone without the mutant.
"""
UNMET = """
{unmet} of the {count} mutants are in no rate of the tests: time was over before they had met a test, or before they had met all
of theirs, or they make another change by now than the one that the fuzzer met. Those whose tests were cut are mostly survivors,
because a mutant that is found ends at once. If none of the {unmet} were found, the tests' rate would be {least:.0f} %.
"""
GONE = """
{gone} of these mutants are left out: what they changed is not written like this any more. The code around some others has
changed since they ran.
"""


def write() -> None:
    """Write the page of the results beside it."""
    write_or_check({PAGE: text(results_file.kept(PAGE, Results, "mutate").values())}, "", checks=False)


def short(results: Results) -> Results:
    """Results for a file, without reasons that other files have and without the changes of mutants that no page shows."""

    def kept(row: Row) -> Row:
        if row.state == EQUIVALENT:
            return Row(row.name)
        return msgspec.structs.replace(row, change=row.change if row.is_listed else row.digest)

    return msgspec.structs.replace(results, mutants=tuple(map(kept, results.mutants)))


def whole(results: Results) -> Results:
    """Undo `short`: mark the mutants without a change as equivalent."""

    def of_row(row: Row) -> Row:
        return row if row.change else msgspec.structs.replace(row, state=EQUIVALENT)

    return msgspec.structs.replace(results, mutants=tuple(map(of_row, results.mutants)))


def text(samples: Iterable[Results]) -> str:
    """The page, whole: what the files beside it say, and nothing else."""
    of_samples = (line for results in samples for line in _of_sample(whole(results)))
    of_compiled = miscompiled.text(*miscompiled.read(), miscompiled.read_reasons()) if miscompiled.DATA.is_file() else []
    return "\n".join([*PREFACE.splitlines(), *of_samples, *of_compiled]) + "\n"


def _of_sample(results: Results) -> list[str]:
    seeds = ", ".join(map(str, results.seeds))
    fields = {name: getattr(results, name) for name in ("sample", "sample_seed", "device", "hypothesis", "examples")}
    rows = results.mutants
    lines = OF_SAMPLE.format(**fields, seeds=seeds).splitlines()
    if gone := results.sample - len(rows):
        lines += GONE.format(gone=gone).splitlines()
    lines += [*_of_unfinished(rows), *_of_suite(results), "", summary(rows) + ".", ""]
    lines += [*_finders(rows), "", *_rates("operator", rows, lambda row: row.operator), ""]
    lines += _rates("package", rows, lambda row: row.package)
    for state in ("", NOT_RUN_BY_ANY, BROKEN, UNFINISHED):
        lines += _survivors(state, [row for row in rows if row.state == state and row.is_listed])
    return lines


def _of_unfinished(rows: Sequence[Row]) -> list[str]:
    unended, judged = sum(row.state == UNFINISHED for row in rows), shares(rows, "fuzzer")
    if not unended or not judged:
        return []
    return UNENDED.format(unended=unended, least=100 * sum(judged) / (len(judged) + unended)).splitlines()


def _of_suite(results: Results) -> list[str]:
    if results.suite is None:
        return []
    facts = msgspec.structs.asdict(results.suite)
    versions = " and ".join(", ".join(f"{name} {number}" for name, number in facts["versions"].items()).rsplit(", ", 1))
    lines = SUITE.format(**{**facts, "versions": versions}).splitlines()
    met = [row.tests for row in results.mutants if row.counts]
    if unmet := met.count(None):
        lines += UNMET.format(unmet=unmet, count=len(met), least=100 * met.count(True) / len(met)).splitlines()
    return lines


def _finders(rows: Sequence[Row]) -> list[str]:
    """A table of the checks that find mutants first, for kernels with their launches and for all other host code."""
    columns = ("code", "mutants", *FINDERS, "tests alone", "nobody")
    cells = []
    for code, is_counted in KERNELS_OR_HOST.items():
        counted = [row for row in rows if row.counts and is_counted(row)]
        by = [sum(row.by in kinds for row in counted) for kinds in FINDERS.values()]
        alone = sum(row.by is None and bool(row.tests) for row in counted)
        cells.append([code, len(counted), *by, alone, len(counted) - sum(by) - alone])
    return table(columns, cells, columns[1:])


def _rates(name: str, rows: Sequence[Row], key: Callable[[Row], str]) -> list[str]:
    judges = [judge for judge in RATES if rate(rows, judge)]
    groups = {group: [row for row in rows if key(row) == group] for group in sorted(set(map(key, rows)))} | {"all": rows}
    cells = ([group, len(members), *(rate(members, judge) for judge in judges)] for group, members in groups.items())
    return table((name, "mutants", *judges), cells, ("mutants", *judges))


def _survivors(state: str, rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    columns, cells = ("mutant", "change", "seeds that found it", "tests", "why"), []
    for row in rows:
        seeds = f"{sum(each is not None for each in row.examples)} of {len(row.examples)}" if row.examples else ""
        tests = {None: "", True: "found", False: "survived"}[row.tests]
        name, why = row.name.removeprefix("attn_optimized."), re.sub(r"^attn_optimized\S*: ", "", row.why)
        cells.append((f"`{name}`", f"`{row.change}`", seeds, tests, why))
    return ["", f"### {(state or 'Survived').capitalize()}", "", *table(columns, cells, columns[2:3])]


def differences(results: Results, known: Iterable[Generated], equivalent: dict[str, str]) -> list[str]:
    """Entries that are out of date: mutants that no operator makes, or makes under another name; reasons that are new or gone.

    A change before a mutant's statement gives the mutant another number. Then the old name may be that of another mutant.
    """
    changes = {mutant.name: digest_of(mutant.change) for mutant in known}
    names: dict[tuple[str, str], list[str]] = {}
    for name, change in changes.items():
        names.setdefault((_without_number(name), change), []).append(name)
    wrong = [f"{row.name}: no operator makes it any more" for row in results.mutants if row.name not in changes]
    for row in results.mutants:
        if (others := names.get((_without_number(row.name), row.digest), [])) and row.name not in others:
            wrong.append(f"{row.name}: it makes another change by now; {' or '.join(others)} makes {row.change}")
        if (row.state == EQUIVALENT) != (row.name in equivalent):
            wrong.append(f"{row.name}: equivalent.toml and the results differ on it")
    return wrong


def _without_number(name: str) -> str:
    return name.rpartition(":")[0]
