"""What came of running the launches that ship on the emulator: found in processes of their own, and kept as a CSV file."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from attn_fuzz.text import one_line
from attn_parity.binaries.assembly import DIGITS, digest
from attn_parity.binaries.build import Job, in_processes
from attn_parity.binaries.results import SHOWN, check_once, code_of, csv_of, records_of

if TYPE_CHECKING:
    from attn_parity.binaries.compilation import Binary

AGREES = "agree"
_COLUMNS = ("triton", "architecture", "launch", "verdict", "error", "why", "code")


class Execution(NamedTuple):
    """What came of a launch on small cases.

    Attributes:
        verdict: "agree"; a kind of failure of `attn_fuzz.verdict.verdict`, such as "value" or "raised"; or "not run".
        error: the largest error / bound of outputs; 0 where what is written is compared bitwise.
        why: why it does not agree, or did not run; empty if it agrees.
        code: the first digits of the digest of the launch's assembly; empty if nobody noted it.
        counts: what it executed in all of them, by the names of COUNTED in `attn_amdgcn.counts`. A file does not keep it.
    """

    verdict: str
    error: float
    why: str = ""
    code: str = ""
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
            _COLUMNS,
            (
                [self.triton, *job, one.verdict, f"{one.error:.2g}", one.why, one.code]
                for job, one in sorted(self.found.items())
            ),
        )

    def updated(self, others: "Executions") -> "Executions":
        """These, and what came of others in the place of what is kept of them here. One version of Triton compiled them."""
        return Executions(others.triton, (self.found if self.triton == others.triton else {}) | others.found)


def loads(text: str, name: str) -> Executions:
    """Read the text of a CSV file.

    Raises:
        ValueError: the text is not such a file.
    """
    records = records_of(text, _COLUMNS, name)
    check_once(((record["architecture"], record["launch"]) for record in records), name)
    for record in records:
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?|inf", record["error"]):
            raise ValueError(f"{name}: error: got {one_line(repr(record['error']), SHOWN)}, expected a ratio")
    found = {
        (record["architecture"], record["launch"]): Execution(
            record["verdict"], float(record["error"]), record["why"], code_of(record, name)
        )
        for record in records
    }
    return Executions(records[0]["triton"], found)


Call = tuple[str, str, tuple[tuple[str, str], ...]]
"""An architecture, the name of a call, and the name of each of its launches with the digest of the launch's assembly."""


def calls_of(binaries: "Mapping[Job, Binary]", kept: Executions | None = None) -> list[Call]:
    """The calls whose launches binaries are. NVIDIA's are left out: there is no emulator for them.

    Args:
        kept: what came of launches before. A call is left out if all of its launches agreed, in the code that they have now.
    """
    from attn_parity.binaries.shipped_calls import name_of_call

    launches: dict[Job, dict[str, str]] = {}
    for (architecture, name), binary in binaries.items():
        if architecture.startswith("gfx"):
            launches.setdefault((architecture, name_of_call(name)), {})[name] = digest(binary.assembly, binary.name)
    agreed = {(*job, one.code) for job, one in kept.found.items() if one.agrees} if kept else set()
    return [
        (architecture, call, tuple(of_call.items()))
        for (architecture, call), of_call in launches.items()
        if not all((architecture, name, code[:DIGITS]) in agreed for name, code in of_call.items())
    ]


def run(
    jobs: Sequence[Call],
    triton: str,
    workers: int,
    report: Callable[[int, Executions], None] = lambda done, executions: None,
) -> Executions:
    """Run the launches of calls, and judge what they compute.

    Args:
        report: called after each call, with the number of finished calls and with what came of their launches.
    """

    def executions_of(found: Mapping[Call, dict[str, Execution] | str]) -> Executions:
        executions = Executions(triton)
        for job in jobs:
            if job in found:
                executions.found |= _of_launches(job, found[job])
        return executions

    at_once = max(1, min(workers, len(jobs)))
    found, interrupted = in_processes(
        _executed, jobs, at_once, lambda found: report(len(found), executions_of(found)), interpreter=True
    )
    return replace(executions_of(found), interrupted=interrupted)


def _of_launches(job: Call, result: dict[str, Execution] | str) -> dict[Job, Execution]:
    """What came of the launches of a call. A text says why none of them ran."""
    architecture, _, instructions = job
    return {
        (architecture, launch): Execution("not run", 0, result, code[:DIGITS])
        if isinstance(result, str)
        else result[launch]._replace(code=code[:DIGITS])
        for launch, code in instructions
    }


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
