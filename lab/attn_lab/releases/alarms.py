"""Runs every interpreted target of a package on every release of it, and counts the failures that no finding explains.

Each target draws by what it declares of the release, and runs on it, as `attn-parity fuzz` does. A release runs in a process of
its own, since targets read a release once. alarms.toml says what somebody who read the release's code takes failures for, and
which release mends it. Each failing case then runs on that release: it is mended if it agrees there.
"""

import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from attn_fuzz import outputs
from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import Case
from attn_fuzz.errors import ExecutorError
from attn_fuzz.findings.finding import Finding
from attn_fuzz.run import shard
from attn_fuzz.run.processes import prepared
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.targets import registry
from attn_fuzz.verdict.verdict import Verdict
from attn_lab.releases import runner
from attn_parity.adapters import misfit

RESULTS = runner.RESULTS.with_name("releases-alarms.json")
READ = Path(__file__).with_name("alarms.toml")
SEEDS = (54, 5477, 5478)
"""False alarms of the first were mended, and its cases ran again. The others were drawn after that, each
after the false alarms of the one before were mended, and counted once."""
WHAT = ("mended", "false alarm", "not read")
"""`mended` is a defect that a later release has not. `not read` is what no entry of alarms.toml is about."""


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The reading of a target's failures on the releases before one: one of WHAT, and the reason.

    Attributes:
        kinds: kinds of verdicts; none: all.
        says: a part of the verdict's message.
        asked: the release on which the failing cases run; "": the first one that does not fail so.
    """

    targets: list[str]
    before: str
    what: str
    why: str
    kinds: list[str] = []
    says: str = ""
    asked: str = ""


class Alarm(msgspec.Struct, forbid_unknown_fields=True):
    """A failing case that no finding explains.

    Attributes:
        index: its number in the draw.
        kind, message: the kind and the message of its verdict.
        case: its file.
        after: the release that mends it, and what the verdict there is of: a known finding, by name, or else its kind.
    """

    index: int
    kind: str
    message: str
    case: str = ""
    after: tuple[str, str] = ("", "")


class Counted(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """The first cases of a target's draw on a release.

    Attributes:
        examples: the number of examples that ran.
        known: the number of them that a known finding explains.
        left_out: how many a limit of this tool kept from running, or the adapter, which does not fit the release.
        alarms: the others that failed.
        error: why the target does not load.
    """

    examples: int = 0
    known: dict[str, int] = {}
    left_out: dict[str, int] = {}
    alarms: list[Alarm] = []
    error: str = ""


Kept = dict[str, dict[str, Counted]]
"""The counts by target and release."""


class Summary(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """The number of releases on which a target ran, and its cases there. `alarms` counts them by WHAT."""

    releases: int
    cases: int
    known: int = 0
    left_out: int = 0
    alarms: dict[str, int] = {}


def results(file: Path) -> Kept:
    return msgspec.json.decode(file.read_bytes(), type=Kept) if file.is_file() else {}


def keep(seed: int, file: Path) -> None:
    """Put the summary of what FILE holds in the place of the seed's."""
    kept = summaries() | {seed: summary(results(file))}
    outputs.write(RESULTS, msgspec.json.encode(dict(sorted(kept.items()))) + b"\n")


def summaries() -> dict[int, dict[str, Summary]]:
    """The summaries by seed and target."""
    return msgspec.json.decode(RESULTS.read_bytes(), type=dict[int, dict[str, Summary]]) if RESULTS.is_file() else {}


def summary(kept: Kept) -> dict[str, Summary]:
    """The summary of each target that ran on a release."""
    read, found = entries(), {}
    for name, by_release in sorted(kept.items()):
        ran = {release: counted for release, counted in by_release.items() if counted.examples}
        told = [_read_as(read, name, release, alarm) for release, each in ran.items() for alarm in each.alarms]
        known, left_out = (sum(sum(getattr(each, field).values()) for each in ran.values()) for field in ("known", "left_out"))
        if ran:
            cases = sum(each.examples for each in ran.values())
            found[name] = Summary(len(ran), cases, known, left_out, {what: told.count(what) for what in WHAT if what in told})
    return found


def entry_of(entries: Sequence[Entry], name: str, release: str, alarm: Alarm) -> Entry | None:
    def is_about(entry: Entry) -> bool:
        is_so = alarm.kind in (entry.kinds or (alarm.kind,)) and entry.says in alarm.message
        return name in entry.targets and is_so and runner.version(release) < runner.version(entry.before)

    return next(filter(is_about, entries), None)


def _read_as(entries: Sequence[Entry], name: str, release: str, alarm: Alarm) -> str:
    entry = entry_of(entries, name, release, alarm)
    fails_after = alarm.after[1] not in ("", "agree") and "-" not in alarm.after[1]
    return WHAT[-1] if entry is None or (entry.what == WHAT[0] and fails_after) else entry.what


def entries() -> list[Entry]:
    return msgspec.convert(msgspec.toml.decode(READ.read_bytes())["alarm"], list[Entry])


def run_all(sources: Path, examples: int, seconds: float, only: Sequence[str], file: Path, seed: int) -> Iterator[str]:
    """Go on with each target on each release in a folder, up to a number of cases or a time for each."""
    for package in runner.PACKAGES:
        names = [name for name in registry.packages()[package].places if not only or name in only]
        for release in runner.releases(sources, package) if names else ():
            with runner.using_release(sources, package, release):
                process = prepared.start("cpu", _run_release, package, release, names, examples, seconds, file, seed)
            process.join()
            yield f"{package} {release}"


def _run_release(
    package: str, release: str, names: Sequence[str], examples: int, seconds: float, file: Path, seed: int
) -> None:
    for name in names:
        kept = results(file)
        counted = kept.setdefault(name, {}).setdefault(release, Counted())
        if counted.examples < examples and not counted.error:
            _run(name, package, counted, examples, seconds, seed)
            outputs.write(file, msgspec.json.encode(dict(sorted(kept.items()))) + b"\n")


def _run(name: str, package: str, counted: Counted, examples: int, seconds: float, seed: int) -> None:
    until = time.monotonic() + seconds
    try:
        if why := registry.load(name).unavailable("cpu"):
            counted.error = runner.line(why)
            return
        with tempfile.TemporaryDirectory() as folder:
            plan = FuzzPlan(
                target=name, device="cpu", examples=runner.MOST_EXAMPLES, first=examples, seed=seed, folder=Path(folder)
            )
            cases = shard.drawn(plan)
            waiting = itertools.takewhile(lambda _: time.monotonic() <= until, range(counted.examples, len(cases)))
            for index, verdict, finding in runner.judged(name, plan, ((index, cases[index]) for index in waiting)):
                _count(counted, package, verdict, finding, cases[index])
    except (Exception, SystemExit) as error:  # of a release that an adapter was not written for
        why = runner.last_line(error)
        counted.error = why if isinstance(error, ExecutorError) else f"{type(error).__name__}: {why}"


def _count(counted: Counted, package: str, verdict: Verdict, finding: Finding | None, case: Case) -> None:
    if finding:
        counted.known[finding.name] = counted.known.get(finding.name, 0) + 1
    other_fault = misfit(verdict.kind, verdict.message, package) if verdict.failed else None
    if why := verdict.about if verdict.kind == "limit" else other_fault:
        counted.left_out[runner.line(why)] = counted.left_out.get(runner.line(why), 0) + 1
    elif verdict.failed and not finding:
        counted.alarms.append(Alarm(counted.examples, verdict.kind, runner.line(verdict.message), case_file.dumps(case)))
    counted.examples += 1


def run_after(sources: Path, only: Sequence[str], file: Path) -> Iterator[str]:
    """Run each failing case on the release that mends it, by alarms.toml."""
    for name in only or [*results(file)]:
        package = next(package for package in runner.PACKAGES if name in registry.packages()[package].places)
        waiting = _waiting(name, results(file), runner.releases(sources, package))
        for later in sorted(set(waiting.values()), key=runner.version):
            cases = [case for case, release in waiting.items() if release == later]
            with runner.using_release(sources, package, later):
                process = prepared.start("cpu", _run_after, name, later, cases, file)
            process.join()
            yield f"{name} {later}"


def _waiting(name: str, kept: Kept, known: Sequence[str]) -> dict[tuple[str, int], str]:
    """The release that mends a failing case and on which it has not run, by its release and number."""
    read, found = entries(), {}
    for release, counted in kept.get(name, {}).items():
        for alarm in counted.alarms:
            entry = entry_of(read, name, release, alarm)
            asked = entry and entry.what == WHAT[0] and runner.version(entry.asked or entry.before)
            later = next((each for each in known if asked and runner.version(each) >= asked), None)
            if later and alarm.after[0] != later:
                found[release, alarm.index] = later
    return found


def _run_after(name: str, later: str, cases: Sequence[tuple[str, int]], file: Path) -> None:
    kept = results(file)
    waiting = [each for release, of in kept[name].items() for each in of.alarms if (release, each.index) in cases]
    with tempfile.TemporaryDirectory() as folder:
        plan = FuzzPlan(target=name, device="cpu", examples=1, first=1, seed=0, folder=Path(folder))
        of_alarms = ((index, case_file.loads(alarm.case)) for index, alarm in enumerate(waiting))
        for index, verdict, finding in runner.judged(name, plan, of_alarms):
            waiting[index].after = later, finding.name if finding else verdict.kind
    outputs.write(file, msgspec.json.encode(kept) + b"\n")
