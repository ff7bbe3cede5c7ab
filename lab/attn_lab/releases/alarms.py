"""Runs every interpreted target of a package on every release of it, and counts the failures that no finding explains.

Each target draws by what it declares of the release, and runs on it, as `attn-parity fuzz` does. A release runs in a process of
its own, since targets read a release once. alarms.toml says what somebody who read the release's code takes failures for, and
which release mends it. Each failing case then runs on that release: it is mended if it agrees there.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from attn_fuzz import inputs, outputs
from attn_fuzz.cases import case_file
from attn_fuzz.errors import InputError
from attn_fuzz.run import shard
from attn_fuzz.run.processes import prepared
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.targets import registry
from attn_lab.releases import runner
from attn_lab.releases.runner import Results, Run

RESULTS = runner.RESULTS.with_name("releases-alarms.json")
READ = Path(__file__).with_name("alarms.toml")
SEEDS = (54, 5477, 5478)
"""The first seed's false alarms were mended and its cases ran again. Each later seed was drawn once, after the false alarms of
the one before were mended."""
MENDED, FALSE_ALARM, NOT_READ = WHAT = ("mended", "false alarm", "not read")
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


class _Entries(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    alarm: list[Entry]


class Summary(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """The number of releases on which a target ran, and its cases there. `alarms` counts them by WHAT."""

    releases: int
    cases: int
    known: int = 0
    left_out: int = 0
    alarms: dict[str, int] = {}


def keep(file: Path) -> None:
    """Put the summary of what FILE holds, which must be there, in the place of its seed's."""
    if not file.is_file():
        raise InputError(f"FILE: got {file}, which does not exist, expected results of `releases alarms --sources`")
    kept = runner.stored(file)
    by_seed = summaries() | {kept.seed: summary(kept)}
    outputs.write(RESULTS, msgspec.json.encode(dict(sorted(by_seed.items()))) + b"\n")


def summaries() -> dict[int, dict[str, Summary]]:
    """The summaries by seed and target."""
    return inputs.read_json_as(RESULTS, dict[int, dict[str, Summary]]) if RESULTS.is_file() else {}


def summary(kept: Results) -> dict[str, Summary]:
    """The summary of each target that ran on a release."""
    read, found = entries(), {}
    for name, by_release in sorted(kept.runs.items()):
        if ran := {release: run for release, run in by_release.items() if run.examples}:
            told = [_read_as(read, name, release, run, index) for release, run in ran.items() for index in run.alarms]
            known, left_out = (
                sum(len(indices) for run in ran.values() for indices in getattr(run, field).values())
                for field in ("known", "limits")
            )
            cases = sum(run.examples for run in ran.values())
            found[name] = Summary(len(ran), cases, known, left_out, {what: told.count(what) for what in WHAT if what in told})
    return found


def entry_of(entries: Sequence[Entry], name: str, release: str, kind: str, message: str) -> Entry | None:
    def is_about(entry: Entry) -> bool:
        is_so = kind in (entry.kinds or (kind,)) and entry.says in message
        return name in entry.targets and is_so and runner.version(release) < runner.version(entry.before)

    return next(filter(is_about, entries), None)


def _read_as(entries: Sequence[Entry], name: str, release: str, run: Run, index: int) -> str:
    alarm = run.alarms[index]
    entry = entry_of(entries, name, release, run.failed[index], alarm.message)
    fails_after = alarm.after[1] not in ("", "agree") and "-" not in alarm.after[1]
    return NOT_READ if entry is None or (entry.what == MENDED and fails_after) else entry.what


def entries() -> list[Entry]:
    return inputs.read_toml_as(READ, _Entries).alarm


def run_all(sources: Path, examples: int, seconds: float, only: Sequence[str], file: Path, seed: int) -> Iterator[str]:
    """Go on with each target on each release in a folder, up to a number of cases or a time for each."""
    for package in runner.PACKAGES:
        names = [name for name in registry.packages()[package].attributes if not only or name in only]
        for release in runner.releases(sources, package) if names else ():
            with runner.using_release(sources, package, release):
                process = prepared.start("cpu", _run_release, package, release, names, examples, seconds, file, seed)
            process.join()
            yield f"{package} {release}"


def _run_release(
    package: str, release: str, names: Sequence[str], examples: int, seconds: float, file: Path, seed: int
) -> None:
    for name in names:
        kept = runner.stored(file)
        kept.seed, run = seed, kept.runs.setdefault(name, {}).setdefault(release, Run())
        if run.examples < examples and not run.error:
            try:
                plan = _plan(name, seed, examples)
                cases = shard.drawn(plan)
                runner.run_target(name, run, plan, cases, examples=examples, seconds=seconds, alarms_of=package)
            except (Exception, SystemExit) as error:  # of a release that an adapter was not written for
                run.error = f"{type(error).__name__}: {runner.last_line(error)}"
            runner.save(kept, file)


def _plan(name: str, seed: int, first: int) -> FuzzPlan:
    return FuzzPlan(target=name, device="cpu", examples=runner.MAX_EXAMPLES, first=first, seed=seed, folder=Path())


def run_after(sources: Path, only: Sequence[str], file: Path) -> Iterator[str]:
    """Run each failing case on the release that mends it, by alarms.toml."""
    for name in only or [*runner.stored(file).runs]:
        package = next(package for package in runner.PACKAGES if name in registry.packages()[package].attributes)
        waiting = _waiting(name, runner.stored(file), runner.releases(sources, package))
        for later in sorted(set(waiting.values()), key=runner.version):
            cases = [case for case, release in waiting.items() if release == later]
            with runner.using_release(sources, package, later):
                process = prepared.start("cpu", _run_after, name, later, cases, file)
            process.join()
            yield f"{name} {later}"


def _waiting(name: str, kept: Results, known: Sequence[str]) -> dict[tuple[str, int], str]:
    """The release that mends a failing case and on which it has not run, by its release and number."""
    read, found = entries(), {}
    for release, run in kept.runs.get(name, {}).items():
        for index, alarm in run.alarms.items():
            entry = entry_of(read, name, release, run.failed[index], alarm.message)
            asked = entry and entry.what == MENDED and runner.version(entry.asked or entry.before)
            later = next((each for each in known if asked and runner.version(each) >= asked), None)
            if later and alarm.after[0] != later:
                found[release, index] = later
    return found


def _run_after(name: str, later: str, cases: Sequence[tuple[str, int]], file: Path) -> None:
    kept = runner.stored(file)
    waiting = [kept.runs[name][release].alarms[index] for release, index in cases]
    with tempfile.TemporaryDirectory() as folder:
        plan = msgspec.structs.replace(_plan(name, kept.seed, 1), folder=Path(folder))
        of_alarms = ((index, case_file.loads(alarm.case)) for index, alarm in enumerate(waiting))
        for index, verdict, finding in runner.judged(name, plan, of_alarms):
            waiting[index].after = later, finding.name if finding else verdict.kind
    runner.save(kept, file)
