"""Results of a campaign: the records of its mutants, which are made from a log, and kept in a file."""

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
from attn_lab.mutate import line_coverage, suite
from attn_lab.mutate.campaign import order
from attn_lab.mutate.generate import Generated
from attn_lab.mutate.log import Log, Trial

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
