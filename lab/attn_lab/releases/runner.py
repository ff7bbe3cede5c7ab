"""Runs targets and scripts of findings on releases of other projects, one after the other, and keeps each result at once.

A target's examples are the general draw of one seed, the same on each release. A fix is shown by an example that fails on the
release before it and agrees on the release that has it, on a target that loads the file of the fix.
"""

import contextlib
import functools
import hashlib
import itertools
import math
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from attn_fuzz import inputs, outputs
from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import Case
from attn_fuzz.errors import ExecutorError
from attn_fuzz.findings.finding import Finding, explanation
from attn_fuzz.foreign import loading
from attn_fuzz.run import shard
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.targets import registry
from attn_fuzz.verdict.verdict import Verdict
from attn_lab.findings import scripts
from attn_lab.findings.places import names, package_of
from attn_lab.pages import PAGES
from attn_parity.adapters import misfit

FIXES = Path(__file__).with_name("fixes.toml")
RESULTS = PAGES / "releases.json"
PACKAGES = ("aiter", "lmdeploy", "sglang", "vllm")
SEED = 1
MAX_EXAMPLES = 1000
FAILURES_OF_A_WRONG_ADAPTER = 4
"""If the first examples up to this number all raise, the adapter does not fit."""
NUM_DIGESTED = 100
SCRIPT_SECONDS = 120.0
_REFUSALS = ("AssertionError", "NotImplementedError")
"""The exceptions by which an earlier release refuses a call that it does not support yet."""


class Fix(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fix of attention that others made.

    Attributes:
        package, release: the first release that has it.
        file: the file that it changed, in the package.
        what: the fault, in our words.
        pull: the number of the pull request; 0: not found.
        targets: our targets that load the file.
        shown_by: the target and the example, by number from 0, that somebody looked at and that shows it.
        why: the reason why no example shows it, or how the example shows it. `shown_by` and `why` are written after a run.
    """

    package: str
    release: str
    file: str
    what: str
    pull: int = 0
    targets: list[str] = []
    shown_by: tuple[str, int] | None = None
    why: str = ""

    @property
    def tried(self) -> list[str]:
        """Every target as it is, and then every target in the mode @far.

        A target for architectures is emulated for each of them.
        """
        return [
            f"{target}{mode}{architecture}"
            for mode in ("", "@far")
            for target in self.targets
            for architecture in ([f"@{each}" for each in registry.load(target).architectures] or [""])
        ]


class _Fixes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    fix: list[Fix]


class Alarm(msgspec.Struct, forbid_unknown_fields=True):
    """A failing example that no finding explains.

    Attributes:
        message: that of its verdict.
        case: its file.
        after: the release that mends it, and the result there: a known finding, by name, or else the verdict's kind.
    """

    message: str
    case: str
    after: tuple[str, str] = ("", "")


class Run(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """The results of the first `examples` of a target's draw, on one release.

    Attributes:
        draw: a digest of the first examples: another one says that the fuzzer draws others now, and the run begins again.
        extra: further examples that ran, since they fail on the release before, or were named by what a fix is about.
        failed: the examples that failed, by number from 0, each with the kind of its verdict.
        alarms: the message and the case of each failed example, if alarms are counted.
        known: the examples that a known finding explains.
        limits, refused: examples that a limit of this tool or of the adapter kept from running, and that the kernel refused.
        error: why the target does not load, or its adapter does not fit.
    """

    examples: int = 0
    draw: str = ""
    extra: list[int] = []
    failed: dict[int, str] = {}
    alarms: dict[int, Alarm] = {}
    known: dict[str, list[int]] = {}
    limits: dict[str, list[int]] = {}
    refused: list[int] = []
    error: str = ""

    @property
    def count(self) -> int:
        return self.examples + sum(index >= self.examples for index in self.extra)

    def agrees(self, index: int) -> bool:
        """True if an example ran and agreed: it was neither refused nor left out, did not fail, and met no known finding."""
        others = {*self.failed, *self.refused, *itertools.chain(*self.known.values(), *self.limits.values())}
        return not self.error and index not in others and (index < self.examples or index in self.extra)


class Results(msgspec.Struct, forbid_unknown_fields=True):
    """Releases of each package, in their order; runs by target and release; exit codes of scripts by finding and release."""

    seed: int = SEED
    releases: dict[str, list[str]] = {}
    runs: dict[str, dict[str, Run]] = {}
    findings: dict[str, dict[str, int]] = {}


def fixes() -> list[Fix]:
    return inputs.read_toml_as(FIXES, _Fixes).fix


def stored(file: Path = RESULTS) -> Results:
    return inputs.read_json_as(file, Results, inputs.MAX_LARGE_BYTES) if file.is_file() else Results()


def save(kept: Results, file: Path = RESULTS) -> None:
    outputs.write(file, msgspec.json.encode(kept) + b"\n")


def version(release: str) -> tuple[Any, ...]:
    """A release's place in PyPI's order, such as 0.5.10rc1, 0.5.10, 0.5.10.post1.dev2, 0.5.10.post1."""
    parts = {kind: int(number) for kind, number in re.findall(r"(a|b|rc|post|dev)(\d+)", release)}
    numbers = tuple(map(int, re.findall(r"\d+", re.split(r"[a-z+]", release)[0])))
    post, dev = parts.get("post", -1), parts.get("dev", math.inf)
    of_itself = ("", 0) if "dev" in parts and "post" not in parts else ("released", 0)  # 1.0.dev1 precedes 1.0a1
    stage = next(((kind, parts[kind]) for kind in ("a", "b", "rc") if kind in parts), of_itself)
    return numbers, stage, post, dev


def releases(sources: Path, package: str) -> list[str]:
    """The releases of a package in a folder with a folder PACKAGE-RELEASE for each, from the oldest on."""
    found = (folder.name.removeprefix(f"{package}-") for folder in sources.glob(f"{package}-*") if (folder / package).is_dir())
    return sorted(found, key=version)


def add_releases(kept: Results, sources: Path) -> None:
    """Add the releases in a folder to those that results know."""
    for package in PACKAGES:
        kept.releases[package] = sorted({*kept.releases.get(package, []), *releases(sources, package)}, key=version)


def before(known: Sequence[str], release: str) -> str | None:
    """The release before one; None if it is the oldest, or not known."""
    return known[known.index(release) - 1] if release in known[1:] else None


@contextlib.contextmanager
def using_release(sources: Path, package: str, release: str) -> Iterator[None]:
    """While this lasts, new processes take a package's sources from this release."""
    name = loading.variable(package)
    os.environ[name], earlier = str(sources / f"{package}-{release}"), os.environ.get(name)
    try:
        yield
    finally:
        os.environ.pop(name)
        os.environ.update({} if earlier is None else {name: earlier})


def judged(name: str, plan: FuzzPlan, cases: Iterable[tuple[int, Case]]) -> Iterator[tuple[int, Verdict, Finding | None]]:
    """The number of each case, the verdict, and the known finding that explains it. An error of a target that ran is a limit.

    Raises:
        ExecutorError: the target does not load.
    """
    findings, has_run = registry.load(name).findings_on("cpu"), False
    with shard.start_executor(plan) as executor:
        for index, case in cases:
            try:
                verdict = executor.run(case, exactly=False)
            except ExecutorError as error:
                if not has_run:
                    raise
                verdict = Verdict(kind="limit", about=last_line(error))
            has_run = True
            yield index, verdict, explanation(findings, case, verdict)


def run_target(
    name: str,
    found: Run,
    plan: FuzzPlan,
    cases: Sequence[Case],
    *,
    examples: int,
    seconds: float,
    first: Iterable[int] = (),
    alarms_of: str = "",
) -> None:
    """Go on with a target's examples on the sources of the environment: those of `first`, and then up to a number or a time.

    Args:
        alarms_of: the target's package, if alarms are counted: then a kernel's exception that refuses a call is an alarm, as it
            is in `attn-parity fuzz`, and an example that the adapter does not fit is left out.
    """
    until = time.monotonic() + seconds
    if why := registry.load(name).unavailable("cpu"):
        found.error = line(why)
        return
    ahead = [index for index in first if index >= found.examples and index not in found.extra]
    raised: list[str] = []

    def due() -> Iterator[tuple[int, Case]]:
        yield from ((index, cases[index]) for index in ahead)
        for index in range(found.examples, min(examples, len(cases))):
            if time.monotonic() > until:
                return
            if index in found.extra:
                found.examples = index + 1
            else:
                yield index, cases[index]

    with tempfile.TemporaryDirectory() as folder:
        try:
            for index, verdict, finding in judged(name, msgspec.structs.replace(plan, folder=Path(folder)), due()):
                _count(found, index, verdict, finding, alarms_of)
                if index in found.failed and alarms_of:
                    found.alarms[index] = Alarm(line(verdict.message), case_file.dumps(cases[index]))
                if index in ahead:
                    found.extra.append(index)
                else:
                    found.examples = index + 1
                raised.append(verdict.message if verdict.kind == "raised" else "")
                if not (ahead or alarms_of) and len(raised) == FAILURES_OF_A_WRONG_ADAPTER and all(raised):
                    found.error = line(raised[0])
                    found.failed.clear()
                    return
        except ExecutorError as error:
            found.error = last_line(error)


def digest(name: str) -> str:
    cases = _drawn(name, NUM_DIGESTED)
    return hashlib.sha256("".join(case_file.dumps(case) for case in cases).encode()).hexdigest()[:12]


def _plan(name: str) -> FuzzPlan:
    return FuzzPlan(target=name, device="cpu", examples=MAX_EXAMPLES, seed=SEED, folder=Path(), sanitize=False)


@functools.cache
def _drawn(name: str, examples: int) -> list[Case]:
    return shard.drawn(msgspec.structs.replace(_plan(name), first=examples))


def _count(found: Run, index: int, verdict: Verdict, finding: Finding | None, alarms_of: str) -> None:
    asserts = verdict.kind == "raised" and verdict.about.startswith(_REFUSALS) and not alarms_of
    left_out = misfit(verdict.kind, verdict.message, alarms_of) if alarms_of else None
    if asserts or verdict.kind == "refused":
        found.refused.append(index)
    elif finding is not None:
        found.known.setdefault(finding.name, []).append(index)
    elif why := verdict.about if verdict.kind == "limit" else left_out:
        found.limits.setdefault(line(why), []).append(index)
    elif verdict.failed:
        found.failed[index] = verdict.kind


def line(text: str) -> str:
    """One line, without folders of this machine."""
    return re.sub(r"(?<!\S)/\S+/", "", " ".join(text.split()))[:160]


def last_line(error: BaseException) -> str:
    return line(str(error).strip().rpartition("\n")[2])


def run_fixes(
    sources: Path,
    kept: Results,
    file: Path,
    *,
    examples: int,
    seconds: float,
    only: Sequence[str] = (),
    extra: Sequence[int] = (),
) -> Iterator[str]:
    """Run the targets of all fixes on the release before each and on its own, where both are in the folder of sources.

    What has run is not run again, unless the fuzzer draws others now.

    Args:
        kept: goes on; it is kept in `file` after each run.
        seconds: for one target on one release.
        only: these targets alone.
        extra: further examples, by number from 0.
    """
    wanted = [(each, target) for each in fixes() for target in each.tried if not only or target in only]
    for fix, target in wanted:
        known, runs = kept.releases[fix.package], kept.runs.setdefault(target, {})
        around = (before(known, fix.release), fix.release)
        if not {*around} <= {*releases(sources, fix.package)}:
            continue
        failed = [*extra]
        for release in around:
            assert release is not None
            if release not in runs or runs[release].draw != digest(target):
                runs[release] = Run(draw=digest(target))
            run = runs[release]
            to_run = {*range(run.examples, examples), *(index for index in failed if index >= run.examples)} - {*run.extra}
            if to_run and not run.error:
                cases = _drawn(target, max([examples, *(index + 1 for index in failed)]))  # of no release
                with using_release(sources, fix.package, release):
                    run_target(target, run, _plan(target), cases, examples=examples, seconds=seconds, first=failed)
                save(kept, file)
                yield f"{target} {release}: {run}"
            failed = sorted({*extra, *run.failed})


def run_findings(sources: Path, kept: Results, file: Path, only: Sequence[str] = ()) -> Iterator[str]:
    """Run the findings' scripts: on the newest release in the folder and the oldest, and between two that differ."""
    for name in names():
        package, codes = package_of(name), kept.findings.setdefault(name, {})
        known = releases(sources, package)
        if not known or (only and name not in only):
            continue
        waiting = [(0, len(known) - 1)]
        while waiting:
            low, high = waiting.pop()
            for at in (high, low):
                if known[at] not in codes:
                    codes[known[at]] = scripts.run(name, sources=sources / f"{package}-{known[at]}", seconds=SCRIPT_SECONDS)[0]
                    save(kept, file)
                    yield f"{name} {known[at]}: {codes[known[at]]}"
            if codes[known[low]] != codes[known[high]] and high - low > 1:
                middle = (low + high) // 2
                waiting += [(low, middle), (middle, high)]
