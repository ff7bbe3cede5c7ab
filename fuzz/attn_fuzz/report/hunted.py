"""The results of a hunt: its JSON, its last line, and declarations of what it found."""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attn_fuzz.findings.aspects import in_order
from attn_fuzz.report.run import counted, failure_json, not_run
from attn_fuzz.run.hunt import Entry
from attn_fuzz.run.shard import Progress
from attn_fuzz.text import one_line

SCHEMA = "attn-parity.hunt/1"


@dataclass(frozen=True, kw_only=True)
class Distinct:
    """A distinct failure of a hunt, and the files about it. A file that could not be written is None.

    Args:
        name: of the failure and of its files.
        entry: what the hunt knows of it.
        case_file, script: of the smallest case.
        first_file: of the case as it was found.
    """

    name: str
    entry: Entry
    case_file: Path | None
    script: Path | None
    first_file: Path | None

    @property
    def needs(self) -> list[str]:
        return in_order(self.entry.needs)

    def remarks(self, names: Mapping[Entry, str]) -> list[str]:
        """What is to be said of its case, in words."""
        found = []
        if not self.entry.again:
            found.append("it did not fail again when it was run once more")
        elif not self.entry.failure.minimal:
            found.append("not yet the smallest case")
        if self.entry.failure.needs is None and self.entry.again:
            found.append("what it needs was not asked")
        if self.entry.met_in is not None:
            found.append(f"no drawn case: it was met while {names[self.entry.met_in]} was shrunk")
        return found


@dataclass(frozen=True, kw_only=True)
class Hunted:
    """A run of `attn-parity hunt`.

    Args:
        device: name for people.
        versions: of the packages that matter to the run, by name.
        seed, workers: as given.
        seconds: from beginning to end.
        targets: by target, how far each of its shards has come.
        failures: by target and by when they were first hit.
        interrupted: whether Ctrl-C or SIGTERM ended the run.
        error: the error that ended the run, or None.
    """

    device: str
    versions: dict[str, str]
    seed: int
    workers: int
    seconds: float
    targets: Mapping[str, Sequence[Progress]]
    failures: Sequence[Distinct]
    interrupted: bool
    error: str | None

    @functools.cached_property
    def names(self) -> dict[Entry, str]:
        return {distinct.entry: distinct.name for distinct in self.failures}

    @property
    def cases(self) -> int:
        return sum(p.replayed + p.examples for shards in self.targets.values() for p in shards)

    @property
    def limits(self) -> dict[str, int]:
        return counted([p.limits for shards in self.targets.values() for p in shards])

    @property
    def sentence(self) -> str:
        """The line that a hunt ends with."""
        rate = self.cases / max(self.seconds, 1e-9)
        many, later = len(self.failures), sum(distinct.entry.explained for distinct in self.failures)
        known = sum(sum(p.known.values()) for shards in self.targets.values() for p in shards)
        found = f"{many or 'no'} distinct failure{'s' * (many != 1)}"
        parts = [f"{self.cases} cases in {self.seconds:.1f} s ({rate:.1f}/s)"]
        parts.append(f"interrupted: {found} so far" if self.interrupted else found)
        parts += [f"{later} later cases fail likewise"] if later else []
        parts += [f"{known} fail by known findings"] if known else []
        if limits := self.limits:
            parts.append(not_run(limits, self.cases))
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """As plain data, with the cases of its failures."""
        return {
            "schema": SCHEMA,
            "device": self.device,
            "versions": self.versions,
            "seed": self.seed,
            "workers": self.workers,
            "seconds": round(self.seconds, 3),
            "interrupted": self.interrupted,
            "error": self.error,
            "targets": {name: _counts(shards) for name, shards in self.targets.items()},
            "failures": [_failure_json(distinct, self.names) for distinct in self.failures],
        }


def _counts(shards: Sequence[Progress]) -> dict[str, Any]:
    known: Counter[str] = sum((Counter(p.known) for p in shards), Counter())
    rejected: Counter[str] = sum((Counter(p.rejected) for p in shards), Counter())
    return {
        "replayed": sum(p.replayed for p in shards),
        "examples": sum(p.examples for p in shards),
        "refused": sum(p.refused for p in shards),
        "limits": counted([p.limits for p in shards]),
        "failing": sum(len(p.passed) for p in shards),
        "rejected": dict(rejected.most_common()),
        "known": dict(known),
        "known_after": _known_after(shards),
    }


def _known_after(shards: Sequence[Progress]) -> dict[str, int]:
    """By known finding, how many cases had been drawn, this one included, when the first failed because of it.

    The shards count in their order, so that the number of workers changes nothing.
    """
    found: dict[str, int] = {}
    drawn = 0
    for progress in shards:
        found = {**{name: drawn + after for name, after in progress.known_after.items()}, **found}
        drawn += progress.examples
    return found


def _failure_json(distinct: Distinct, names: Mapping[Entry, str]) -> dict[str, Any]:
    entry, files = distinct.entry, (distinct.case_file, distinct.script, distinct.first_file)
    case_file, script, first_file = (str(path) if path else None for path in files)
    return {
        **failure_json(entry.failure),
        "name": distinct.name,
        "target": entry.target,
        "about": entry.failure.verdict.about,
        "needs": distinct.needs,
        "found_after": entry.after,
        "later": entry.explained,
        "again": entry.again,
        "met_in": names[entry.met_in] if entry.met_in else None,
        "case_file": case_file,
        "script": script,
        "first_file": first_file,
    }


def declarations(found: Sequence[Distinct]) -> str:
    """A module that declares what was found as findings, to be moved beside the target whose findings they become."""
    lines = [
        '"""Failures that a hunt has found, as findings: `findings=FINDINGS` in the target.',
        "",
        "Look at each predicate before you keep it: it hides every failure that it explains.",
        '"""',
        "",
        "from pathlib import Path",
        "",
        "from attn_fuzz.targets import Finding, needing",
        "",
        "CASES = Path(__file__).parent",
        "",
        "FINDINGS = (",
    ]
    for distinct in found:
        verdict = distinct.entry.failure.verdict
        needs = "".join(f"{name!r}, " for name in distinct.needs)
        kinds = tuple(sorted(distinct.entry.kinds))
        lines += [
            "    Finding(",
            f"        name={distinct.name!r},",
            f"        what={one_line(f'{verdict.kind}: {verdict.message}', 200)!r},",
            '        cause="not known yet",',
            '        seen_in="not known yet",',
            "        folder=CASES,",
            f"        explains=needing({needs}kinds={kinds!r}, about={verdict.about!r}),",
            "    ),",
        ]
    return "\n".join([*lines, ")", ""])
