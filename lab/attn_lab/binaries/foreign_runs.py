"""Drawn cases of other packages' kernels on the emulator: how many ran, and how many agree.

Each case has a layer of its own, and each dtype of a target has cases. Triton's cache keeps what it makes of the kernels. One
process runs all targets: its start takes longer than most cases.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
from attn_fuzz.cases.case import Case
from attn_fuzz.errors import ExecutorError, LimitError
from attn_fuzz.findings.finding import explanation
from attn_fuzz.run import drawing
from attn_fuzz.run.executor import HARMLESS, Executor
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.run.trial import try_case
from attn_fuzz.strategies.tally import Tally
from attn_fuzz.targets import registry
from attn_fuzz.targets.registry import UnknownTargetError
from attn_fuzz.targets.target import Target
from attn_fuzz.verdict.verdict import Verdict
from attn_parity.versions import version

CACHE, RUNS = "cache", "runs.jsonl"
"""What a folder of runs holds: a cache of Triton, and a line for each target on an architecture."""
TRIAL = f"{__name__}:try_on"
CASE_SECONDS = 240.0
SPARE = 4
"""So many times as many cases are drawn, because some have no query."""
KNOWN = "known"
"""Counts cases whose failure a known finding explains, beside kinds of verdicts."""
AGREE = ("agree", KNOWN)
NOT_RUN = ("limit", "hung", "refused", "fault")
"""Kinds of what this tool cannot run, or not in time, of code that Triton makes wrong (`miscompiled`), and of our faults."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """Cases of a target on an architecture.

    Attributes:
        package: of the kernels.
        verdicts: how many cases have each kind of verdict.
        said: what each failure and limit said, with its kind.
    """

    package: str
    target: str
    architecture: str
    triton: str
    verdicts: dict[str, int]
    said: tuple[str, ...] = ()

    @property
    def cases(self) -> int:
        return sum(self.verdicts.values())

    @property
    def ran(self) -> int:
        return sum(count for kind, count in self.verdicts.items() if kind not in NOT_RUN)

    @property
    def agree(self) -> int:
        """How many cases agree, or fail by a known finding of the kernel alone."""
        return sum(self.verdicts.get(kind, 0) for kind in AGREE)


def try_on(case: Case, harmless: Target, device: str, *, target: str) -> Verdict:
    """The trial of an Executor that runs cases of any target."""
    return try_case(case, registry.load(target), device)


def run(folder: Path, targets: Sequence[str], architectures: Sequence[str], examples: int, seed: int) -> Iterator[Run]:
    """Run cases of each dtype of targets on architectures, and add a line to the folder for each target and architecture.

    What the folder already has is left out, and so are targets of no Triton kernels here, and architectures without code.
    """
    triton = version("triton") or ""
    done = {(each.target, each.architecture, each.triton) for each in stored([folder])}
    with Executor(HARMLESS, "cpu", CASE_SECONDS, folder / "case.json", trial=TRIAL) as executor:
        for architecture, name in itertools.product(architectures, targets):
            if (name, architecture, triton) in done or (package := _package_of(name, architecture)) is None:
                continue
            verdicts = _verdicts(executor, f"{name}@{architecture}", examples, seed)
            kinds, said = Counter(kind for kind, _ in verdicts), dict.fromkeys(": ".join(each) for each in verdicts if each[1])
            found = Run(
                package=package, target=name, architecture=architecture, triton=triton, verdicts=dict(kinds), said=tuple(said)
            )
            with (folder / RUNS).open("ab") as end:
                end.write(msgspec.json.encode(found) + b"\n")
            yield found


def _package_of(name: str, architecture: str) -> str | None:
    """The package of a target's kernels; None if it has none of Triton, or cannot run here."""
    try:
        target, compiled = registry.load(name), registry.load(f"{name}@{architecture}")
    except UnknownTargetError:
        return None
    if target.modules is None or compiled.unavailable("cpu"):
        return None
    return next(iter(target.modules())).__name__.partition(".")[0]


def stored(folders: Iterable[Path]) -> list[Run]:
    """The runs that folders have."""
    files = sorted(path for folder in folders for path in folder.rglob(RUNS))
    return [msgspec.json.decode(each, type=Run) for path in files for each in path.read_bytes().splitlines()]


def _verdicts(executor: Executor, name: str, examples: int, seed: int) -> list[tuple[str, str]]:
    """Kind and message of each case of a target."""
    target, found = registry.load(name), []
    try:
        cases = [*_cases(target, examples, seed)]
    except LimitError as error:
        return [("limit", str(error))]
    for case in cases:
        try:
            verdict = executor.run(case, target=name)
        except ExecutorError as error:
            found.append(("fault", str(error).splitlines()[-1]))
            continue
        known = explanation(target.findings_on("cpu"), case, verdict)
        kind = KNOWN if known else verdict.kind
        found.append((kind, known.name if known else "" if kind in AGREE else f"{case.dtype}: {verdict.message}"))
    return found


def _cases(target: Target, examples: int, seed: int) -> Iterator[Case]:
    """Drawn cases of each dtype, each with a query."""
    support = target.support("cpu")
    for dtype in support.dtypes:
        found: list[Case] = []
        one = dataclasses.replace(support, dtypes=(dtype,), steps_per_layer=1)
        narrow = dataclasses.replace(target, support=lambda device, one=one: one)
        plan = FuzzPlan(target=target.name, device="cpu", examples=SPARE * examples, seed=seed, folder=Path("unused"))
        drawing.draw_cases(plan, narrow, found.append, Tally())
        yield from [case for case in found if case.has_work][:examples]
