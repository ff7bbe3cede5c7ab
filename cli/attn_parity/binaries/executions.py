"""What came of running the launches that ship on the emulator: found in processes of their own, and kept as a CSV file."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from attn_parity.binaries.assembly import digest
from attn_parity.binaries.build import Job, in_processes
from attn_parity.binaries.results import csv_of, records_of

if TYPE_CHECKING:
    from attn_parity.binaries.compilation import Binary

AGREES = "agree"
_COLUMNS = ("triton", "architecture", "launch", "verdict", "error", "why")


class Execution(NamedTuple):
    """What came of a launch on small cases.

    Attributes:
        verdict: "agree"; a kind of failure of `attn_fuzz.verdict.verdict`, such as "value" or "raised"; or "not run".
        error: the largest error / bound of outputs; 0 where what is written is compared bitwise.
        why: why it does not agree, or did not run; empty if it agrees.
        counts: what it executed in all of them, by the names of COUNTED in `attn_amdgcn.counts`. A file does not keep it.
    """

    verdict: str
    error: float
    why: str = ""
    counts: Mapping[str, int] = {}

    @property
    def agrees(self) -> bool:
        return self.verdict == AGREES


@dataclass
class Executions:
    """What came of launches, by architecture and name. An interrupted run has some of them."""

    triton: str
    found: dict[Job, Execution] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def wrong(self) -> list[str]:
        """The launches that do not agree, in words."""
        return [f"{' '.join(job)}: {one.verdict}: {one.why}" for job, one in self.found.items() if not one.agrees]

    def json(self) -> list[dict[str, object]]:
        """Each execution as plain data for `compile --json`."""
        return [{"architecture": job[0], "call": job[1], **one._asdict()} for job, one in self.found.items()]

    def csv(self) -> str:
        """The text of a CSV file, one line for each launch."""
        return csv_of(
            _COLUMNS, ([self.triton, *job, one.verdict, f"{one.error:.2g}", one.why] for job, one in sorted(self.found.items()))
        )


def loads(text: str, name: str) -> Executions:
    """Read the text of a CSV file.

    Raises:
        ValueError: the text is not such a file.
    """
    records = records_of(text, _COLUMNS, name)
    found = {
        (record["architecture"], record["launch"]): Execution(record["verdict"], float(record["error"]), record["why"])
        for record in records
    }
    return Executions(records[0]["triton"], found)


Call = tuple[str, str, tuple[tuple[str, str], ...]]
"""An architecture, the name of a call, and the name of each of its launches with the digest of the launch's assembly."""


def calls_of(binaries: "Mapping[Job, Binary]") -> list[Call]:
    """The calls whose launches binaries are. NVIDIA's are left out: there is no emulator for them."""
    from attn_parity.binaries.shipped_calls import name_of_call

    launches: dict[Job, dict[str, str]] = {}
    for (architecture, name), binary in binaries.items():
        if architecture.startswith("gfx"):
            launches.setdefault((architecture, name_of_call(name)), {})[name] = digest(binary.assembly, binary.name)
    return [(*call, tuple(of_call.items())) for call, of_call in launches.items()]


def run(jobs: Sequence[Call], triton: str, workers: int, report: Callable[[int], None] = lambda done: None) -> Executions:
    """Run the launches of calls, and judge what they compute.

    Args:
        report: called with the number of finished calls.
    """
    at_once = max(1, min(workers, len(jobs)))
    found, interrupted = in_processes(_executed, jobs, at_once, report, interpreter=True)
    executions = Executions(triton, interrupted=interrupted)
    for architecture, name, instructions in jobs:
        result = found.get((architecture, name, instructions))
        if result is None:
            continue  # interrupted
        for launch, _ in instructions:
            one = Execution("not run", 0, result) if isinstance(result, str) else result[launch]
            executions.found[architecture, launch] = one
    return executions


def differences(executions: Executions, triton: str, names: Mapping[str, Sequence[str]]) -> list[str]:
    """What is wrong with executions that are kept beside the facts of all launches.

    Args:
        triton: the version of Triton that compiled the launches.
        names: every launch, by architecture.
    """
    wrong = [
        f"{job[0]} {job[1]}: an execution without a launch" for job in executions.found if job[1] not in names.get(job[0], ())
    ]
    if executions.triton != triton:
        wrong.append(f"launches were run with Triton {executions.triton}, and compiled with {triton}")
    return wrong


def _executed(architecture: str, name: str, instructions: Iterable[tuple[str, str]]) -> dict[str, Execution]:
    from attn_parity.binaries.execution import execute
    from attn_parity.binaries.shipped_calls import CALLS

    (shipped,) = (call for call in CALLS if call.name == name)
    return execute(shipped, architecture, dict(instructions))
