"""Run the launches that ship on the emulator, in processes of their own, and judge what they compute."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from attn_binaries.assembly import DIGITS, digest
from attn_binaries.build import LaunchName, in_processes
from attn_binaries.rows import Execution
from attn_lab.binaries.results import Results

if TYPE_CHECKING:
    from attn_binaries.compilation import Binary

Call = tuple[str, str, tuple[tuple[str, str], ...]]
"""An architecture, the name of a call, and the name of each of its launches with the digest of the launch's assembly."""


def calls_of(binaries: "Mapping[LaunchName, Binary]", kept: Results | None = None) -> list[Call]:
    """The calls whose launches binaries are. NVIDIA's are left out: there is no emulator for them.

    Args:
        kept: the earlier results of launches. A call is left out if all of its launches agreed, in the code that they have now.
    """
    from attn_binaries.shipped_calls import name_of_call

    launches: dict[LaunchName, dict[str, str]] = {}
    for (architecture, name), binary in binaries.items():
        if architecture.startswith("gfx"):
            launches.setdefault((architecture, name_of_call(name)), {})[name] = digest(binary.assembly, binary.name)
    agreed = {(*job, one.code) for job, one in kept.ran.items() if one.agrees} if kept else set()
    return [
        (architecture, call, tuple(of_call.items()))
        for (architecture, call), of_call in launches.items()
        if not all((architecture, name, code[:DIGITS]) in agreed for name, code in of_call.items())
    ]


def run(
    jobs: Sequence[Call],
    workers: int,
    report: Callable[[int, dict[LaunchName, Execution]], None] = lambda done, ran: None,
    option: str = "",
) -> tuple[dict[LaunchName, Execution], bool]:
    """The executions of the calls' launches, and whether an interrupt left calls out.

    Args:
        report: called after each call, with the number of finished calls and with what came of their launches.
        option: see `execute`.
    """

    def executions_of(found: Mapping[Call, dict[str, Execution] | str]) -> dict[LaunchName, Execution]:
        return {launch: one for job in jobs if job in found for launch, one in _of_launches(job, found[job]).items()}

    at_once = max(1, min(workers, len(jobs)))
    work = functools.partial(_executed, option=option)
    found, interrupted = in_processes(
        work, jobs, at_once, lambda found: report(len(found), executions_of(found)), interpreter=True
    )
    return executions_of(found), interrupted


def _of_launches(job: Call, result: dict[str, Execution] | str) -> dict[LaunchName, Execution]:
    """The executions of a call's launches. A text in place of them says why none ran."""
    architecture, _, instructions = job
    return {
        (architecture, launch): Execution("not run", 0, result, code[:DIGITS])
        if isinstance(result, str)
        else result[launch]._replace(code=code[:DIGITS])
        for launch, code in instructions
    }


def _executed(architecture: str, name: str, instructions: Iterable[tuple[str, str]], option: str) -> dict[str, Execution]:
    from attn_binaries.shipped_calls import CALLS
    from attn_lab.binaries.execute import execute

    (shipped,) = (call for call in CALLS if call.name == name)
    return execute(shipped, architecture, dict(instructions), option)
