"""The results of a run, from which the page, the JSON file and the closing line are made."""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from attn_fuzz.account import account, gaps
from attn_fuzz.account.account import Accounts
from attn_fuzz.findings.finding import Finding
from attn_fuzz.interpreted import dynamo
from attn_fuzz.report import declared
from attn_fuzz.report.drawn import Drawn, drawn
from attn_fuzz.run.shard import Failure, Progress
from attn_fuzz.targets.support import Support
from attn_fuzz.text import how_many
from attn_fuzz.verdict import ratios
from attn_fuzz.verdict.verdict import COMPILED, EARLIER_CALL, EARLIER_WRITE, IN_EAGER

if TYPE_CHECKING:
    from attn_fuzz.run.distinct import Entry

SCHEMA = "attn-parity.fuzz/1"
LIMIT_SHARE = 0.03
"""The share of cases that could not be run above which a run warns."""
PATHS = {
    "split": "in {} the keys were split",
    "cascade": "in {} the requests' common prefix was attended to once",
    COMPILED: "in {} Dynamo had compiled frames",
    IN_EAGER: "in {} it had left frames to eager",
}
"""The words in which a run's last line counts examples that took a path of the kernels. It names other events by themselves."""


class Found(NamedTuple):
    """A failure, and the files that were written about it. A file that could not be written is None.

    Args:
        case_file, script: the case file and the script of the smallest case.
        first_file: the file of the case as it was found.
        past: the name of the past case that fails, if it is one.
        while_shrinking: True if the failure was met while another failure was shrunk.
        entry: the entry of the failure's cause in a run that keeps going; None in any other run.
        name: the name of this failure and of its files, in a run that keeps going.
        met_in: the name of the failure whose shrinking met this one, in such a run, if no drawn case did.
        explanation: lines about where its outputs are wrong, and which mistake explains them.
        never_sent: why no engine sends the case, if it is one of a target in the mode beyond.
    """

    failure: Failure
    case_file: Path | None
    script: Path | None
    first_file: Path | None = None
    past: str | None = None
    while_shrinking: bool = False
    entry: "Entry | None" = None
    name: str = ""
    met_in: str | None = None
    explanation: tuple[str, ...] = ()
    never_sent: str | None = None

    @property
    def remarks(self) -> list[str]:
        """Remarks on the case of a distinct failure, in words."""
        assert self.entry is not None
        found = []
        if not self.entry.again:
            found.append("it did not fail again when it was run once more")
        elif not self.failure.minimal:
            found.append("not yet the smallest case")
        if self.failure.needs is None and self.entry.again:
            found.append("what it needs was not asked")
        if self.met_in is not None:
            found.append(f"no drawn case: it was met while {self.met_in} was shrunk")
        return found

    def to_json(self) -> dict[str, Any]:
        """The failure as plain data, with its case."""
        case_file, script, first_file = (str(path) if path else None for path in (self.case_file, self.script, self.first_file))
        found = failure_json(self.failure) | {"past": self.past, "while_shrinking": self.while_shrinking}
        found |= {"first_file": first_file, "case_file": case_file, "script": script}
        found |= {"explanation": list(self.explanation), "never_sent": self.never_sent}
        if (entry := self.entry) is not None:
            from attn_fuzz.findings.aspects import in_order

            found |= {"name": self.name, "about": self.failure.verdict.about, "needs": in_order(entry.needs)}
            found |= {"found_after": entry.after, "later": entry.explained, "again": entry.again, "met_in": self.met_in}
        return found


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of `attn-parity fuzz`.

    Args:
        target, device: names for people.
        support: the support of the target on the machine of the run.
        versions: the versions of the packages that matter to the run, by name.
        command: the command that runs it again, without the database and the machines.
        seed, workers, planned: as given. `planned` is the number of examples.
        seconds: from beginning to end.
        progress: the progress of every shard of the target in no mode.
        in_modes: the progress of every shard in a mode, by mode.
        failures: failing cases, shrunk ones first. A failure that was met while another one was shrunk follows that one.
        fixed: known findings whose stored case no longer fails.
        restarted: number of shards that ran again because their worker process died.
        interrupted: True if Ctrl-C or SIGTERM ended the run.
        error: the error that ended the run, or None.
        counts_launches: True if the target names modules of Triton kernels, whose launches are counted on this device.
        keeps_going: True if the run went on past failures, so that each of `failures` has its entry.
    """

    target: str
    device: str
    support: Support
    versions: dict[str, str]
    command: Sequence[str]
    seed: int
    workers: int
    planned: int
    seconds: float
    progress: Sequence[Progress]
    failures: Sequence[Found]
    in_modes: Mapping[str, Sequence[Progress]] = field(default_factory=dict)
    fixed: Sequence[Finding] = ()
    restarted: int = 0
    interrupted: bool = False
    error: str | None = None
    counts_launches: bool = False
    keeps_going: bool = False

    @property
    def all_progress(self) -> list[Progress]:
        return [*self.progress, *(p for of_mode in self.in_modes.values() for p in of_mode)]

    @property
    def examples(self) -> int:
        return sum(p.examples for p in self.all_progress)

    @property
    def examples_in_modes(self) -> dict[str, int]:
        """By mode of the target, how many of the examples were in it."""
        return {mode: sum(p.examples for p in progress) for mode, progress in self.in_modes.items()}

    @property
    def layers(self) -> int:
        return sum(p.layers for p in self.all_progress)

    @property
    def replayed(self) -> int:
        return sum(p.replayed for p in self.all_progress)

    @property
    def refused(self) -> int:
        return sum(p.refused for p in self.all_progress)

    @property
    def wrong_calls(self) -> dict[str, int]:
        return counted([p.wrong_calls for p in self.all_progress])

    @property
    def limits(self) -> dict[str, int]:
        return counted([p.limits for p in self.all_progress])

    @property
    def max_ratio(self) -> float:
        return max((p.ratio for p in self.all_progress), default=0.0)

    @property
    def events(self) -> dict[str, int]:
        return counted([p.events for p in self.progress])

    @property
    def frames(self) -> dict[str, int]:
        return counted([p.frames for p in self.all_progress])

    @property
    def launches(self) -> dict[str, int]:
        return counted([p.launches for p in self.all_progress])

    @property
    def largest(self) -> dict[str, int]:
        names = dict.fromkeys(name for p in self.all_progress for name in p.largest)
        return {name: max(p.largest.get(name, 0) for p in self.all_progress) for name in names}

    @property
    def ran(self) -> list[str]:
        """Lines on what ran, how large it was, and what the target declares away."""
        sizes = ", ".join(f"{count} {name}" for name, count in self.largest.items())
        kernels = ", ".join(f"{name} {how_many(count, 'time')}" for name, count in self.launches.items())
        launched = [f"launched: {kernels}"] * bool(kernels)
        some = [f"{count} {mode}" for mode, count in self.examples_in_modes.items() if count]
        none = [mode for mode, count in self.examples_in_modes.items() if not count]
        through = [f"examples in modes: {', '.join(some)}"] * bool(some)
        through += [f"no example in modes: {', '.join(none)}"] * bool(none)
        return [*launched, *([f"at most {sizes}"] * bool(sizes)), *through, *declared.line(self.support)]

    @property
    def left_out(self) -> dict[str, dict[str, int]]:
        """By property, earlier call or earlier write, and by reason, in how many examples the target was not asked."""
        found: dict[str, Counter[str]] = {}
        for name, reasons in (each for p in self.progress for each in p.left_out.items()):
            found.setdefault(name, Counter()).update(reasons)
        return {name: dict(sorted(reasons.items())) for name, reasons in sorted(found.items())}

    @property
    def never_asked(self) -> list[str]:
        """The properties that were left out of all examples."""
        return [
            name for name in self.left_out if name not in self.events and not name.startswith((EARLIER_CALL, EARLIER_WRITE))
        ]

    @property
    def accounts(self) -> Accounts:
        return account.together([p.accounts for p in self.all_progress])

    @property
    def not_seen(self) -> list[str]:
        """Lines on the mistakes that the run could not have seen; none if it failed, or corrupted calls."""
        return [] if self.failures or self.wrong_calls else gaps.lines(self.accounts, declared.subjects(self.support))

    @property
    def known(self) -> dict[str, int]:
        return counted([p.known for p in self.all_progress])

    @property
    def known_by_predicate(self) -> dict[str, int]:
        return counted([p.known_by_predicate for p in self.all_progress])

    @property
    def has_drawn(self) -> bool:
        """True if there is something to say of what was drawn: not of a run that a past case ended, or in which nothing ran."""
        has_run = bool(self.examples) and sum(self.limits.values()) < self.examples + self.replayed
        return has_run and (self.keeps_going or not any(found.past for found in self.failures))

    @property
    def drawn(self) -> Drawn:
        return drawn(self.progress, self.support)

    @property
    def spent(self) -> dict[str, float]:
        """The seconds of all workers together, by kind of work."""
        return {
            name: sum(p.spent.get(name, 0.0) for p in self.all_progress) for name in ("build", "target", "judge", "account")
        }

    @property
    def outcome(self) -> str:
        """The end of the run in a few words: "all agree", "2 failing", "interrupted: no failure so far"."""
        if self.failures:
            many = len(self.failures)
            words = how_many(many, "distinct failure") if self.keeps_going else f"{many} failing"
        elif not self.examples + self.replayed:
            words = "nothing was checked"
        elif self.interrupted or self.error:
            words = "no failure so far"
        elif sum(self.limits.values()) == self.examples + self.replayed:
            words = "nothing could be run"
        elif self.refused == self.examples + self.replayed:
            words = "all were refused"
        else:
            words = "nothing new" if self.known else "all that ran agree" if self.limits else "all agree"
            words += ", not all of it compiled" * bool(self.frames.get(dynamo.EAGER))
        return f"interrupted: {words}" if self.interrupted else words

    @property
    def not_run(self) -> list[str]:
        """The lines of `not_run` for the run's limits, of `of_frames`, and one on code that the compiler made wrong."""
        wrong = next((p.miscompiled for p in self.all_progress if p.miscompiled), "")
        refused = [f"refused, the first of them: {wrong}"] * bool(wrong)
        nothing = ["warning: no Triton kernel was launched; nothing is said of the target's kernels"] * self.launches_nothing
        return [*not_run(self.limits, self.replayed + self.examples), *of_frames(self.frames), *refused, *nothing]

    @property
    def launches_nothing(self) -> bool:
        """True if no example launched any of the target's Triton kernels."""
        return self.counts_launches and bool(self.examples) and not self.launches

    @property
    def sentence(self) -> str:
        """The line that a run ends with."""
        past = f"{how_many(self.replayed, 'past case')}, " if self.replayed else ""
        rate = (self.replayed + self.examples) / max(self.seconds, 1e-9)
        of_layers = f" of {how_many(self.layers, 'layer')}" if self.layers < self.examples else ""
        parts = [f"{past}{how_many(self.examples, 'example')}{of_layers} in {self.seconds:.1f} s ({rate:.1f}/s)", self.outcome]
        parts += ["wrong calls: " + ", ".join(f"{count} {what}" for what, count in self.wrong_calls.items())] * bool(
            self.wrong_calls
        )
        if not self.failures:
            parts += [f"{self.refused} refused"] if self.refused and not self.wrong_calls else []
            # a target without an oracle has no ratio
            parts += (
                [f"largest error {self.max_ratio:.2f} of its bound (the most that rounding explains)"] if self.max_ratio else []
            )
        if later := sum(found.entry.explained for found in self.failures if found.entry):
            parts.append(f"{later} later cases fail likewise")
        if not_run := sum(self.limits.values()):
            parts.append(f"{not_run} of {self.replayed + self.examples} not run, by limits of this tool")
        alone = Counter(self.known_by_predicate)
        ways = {"and agree once repaired": Counter(self.known) - alone, "explained by a predicate alone": alone}
        for how, known in ways.items():
            listed = ", ".join(f"{count} {name}" for name, count in known.items())
            parts += [f"{known.total()} fail by known findings, {how} ({listed})"] if known else []
        paths = [PATHS.get(name, f"{{}} {name}").format(count) for name, count in self.events.items()]
        never = [f"left out of all examples: {', '.join(names)}"] if (names := self.never_asked) else []
        return ", ".join([*parts, *paths, *never])

    def to_json(self) -> dict[str, Any]:
        """The run as plain data, with the cases of its failures."""
        return {
            "schema": SCHEMA,
            "target": self.target,
            "device": self.device,
            "versions": self.versions,
            "seed": self.seed,
            "workers": self.workers,
            "planned": self.planned,
            "examples": self.examples,
            "layers": self.layers,
            "replayed": self.replayed,
            "restarted": self.restarted,
            "refused": self.refused,
            "wrong_calls": self.wrong_calls,
            "limits": self.limits,
            "drawn": self.drawn.to_json(),
            "events": self.events,
            "launches": self.launches,
            "largest": self.largest,
            "in_modes": self.examples_in_modes,
            "declared_away": declared.away(self.support),
            "left_out": self.left_out,
            "account": gaps.to_json(self.accounts),
            "known": self.known,
            "known_by_predicate": self.known_by_predicate,
            "known_after": _known_after(self.all_progress),
            "no_longer_failing": [finding.name for finding in self.fixed],
            "seconds": round(self.seconds, 3),
            "spent": {name: round(value, 3) for name, value in self.spent.items()},
            "max_ratio": self.max_ratio,
            "ratios": functools.reduce(ratios.added, (p.ratios for p in self.all_progress), {}),
            "interrupted": self.interrupted,
            "error": self.error,
            "failures": [found.to_json() for found in self.failures],
        }


def _known_after(shards: Sequence[Progress]) -> dict[str, int]:
    """For each known finding, how many cases had been drawn, this one included, when the first failed because of it.

    The shards count in their order, so that the number of workers changes nothing.
    """
    found: dict[str, int] = {}
    drawn = 0
    for progress in shards:
        found = {**{name: drawn + after for name, after in progress.known_after.items()}, **found}
        drawn += progress.examples
    return found


def failure_json(failure: Failure) -> dict[str, Any]:
    """A failure as plain data, its case included."""
    return {
        "kind": failure.verdict.kind,
        "message": failure.verdict.message,
        "found_after": failure.found_after,
        "minimal": failure.minimal,
        "case": msgspec.to_builtins(failure.case),
        "first": {
            "kind": failure.first_verdict.kind,
            "message": failure.first_verdict.message,
            "case": msgspec.to_builtins(failure.first),
        },
    }


def not_run(limits: dict[str, int], cases: int) -> list[str]:
    """A line for each limit of this tool, and a warning if few of the cases could be run."""
    lines = [f"not run: {count} cases: {limit}" for limit, count in sorted(limits.items(), key=lambda each: -each[1])]
    if sum(limits.values()) > LIMIT_SHARE * cases:
        ran = 1 - sum(limits.values()) / cases
        lines.append(f"warning: {ran:.0%} of the cases ran; nothing is said of the others")
    return lines


def of_frames(frames: dict[str, int]) -> list[str]:
    """A line on what Dynamo compiled, and a warning if it has left frames to eager."""
    if not frames:
        return []
    counts = [f"{frames.get(name, 0)} {name}" for name in (dynamo.COMPILED, dynamo.EAGER)]
    breaks = how_many(frames.get(dynamo.BREAKS, 0), "graph break")
    lines = [f"frames of Dynamo: {', '.join(counts)}, {breaks}; nothing fills the new memory of a target that it compiles"]
    if frames.get(dynamo.EAGER):
        lines.append(
            "warning: Dynamo left frames to eager; nothing is said of what it would make of them (TORCH_LOGS=graph_breaks)"
        )
    return lines


def counted(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    return dict(sorted(sum(map(Counter, counts), Counter[str]()).items()))
