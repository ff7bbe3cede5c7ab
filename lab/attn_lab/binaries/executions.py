"""Run the launches that ship on the emulator, in processes of their own, and judge what they compute."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from attn_binaries.assembly import digest
from attn_binaries.build import LaunchName, in_processes
from attn_binaries.rows import Execution

if TYPE_CHECKING:
    from attn_binaries.compilation import Binary

Call = tuple[str, str, tuple[tuple[str, str], ...]]
"""An architecture, the name of a call, and the name of each of its launches with the digest of the launch's assembly."""


def calls_of(binaries: "Mapping[LaunchName, Binary]") -> list[Call]:
    """The calls whose launches binaries are. NVIDIA's are left out: there is no emulator for them."""
    from attn_binaries.shipped_calls import name_of_call

    launches: dict[LaunchName, dict[str, str]] = {}
    for (architecture, name), binary in binaries.items():
        if architecture.startswith("gfx"):
            launches.setdefault((architecture, name_of_call(name)), {})[name] = digest(binary.assembly, binary.name)
    return [(architecture, call, tuple(of_call.items())) for (architecture, call), of_call in launches.items()]


def run(
    jobs: Sequence[Call],
    workers: int,
    report: Callable[[int], None] = lambda done: None,
    option: str = "",
) -> tuple[dict[LaunchName, Execution], bool]:
    """The executions of the calls' launches, and whether an interrupt left calls out.

    Args:
        report: called after each call, with the number of finished calls.
        option: see `execute`.
    """

    at_once = max(1, min(workers, len(jobs)))
    work = functools.partial(_executed, option=option)
    found, interrupted = in_processes(work, jobs, at_once, lambda found: report(len(found)), interpreter=True)
    ran = {launch: one for job in jobs if job in found for launch, one in _of_launches(job, found[job]).items()}
    return ran, interrupted


def _of_launches(job: Call, result: dict[str, Execution] | str) -> dict[LaunchName, Execution]:
    """The executions of a call's launches. A text in place of them says why none ran."""
    architecture, _, instructions = job
    return {
        (architecture, launch): Execution("not run", 0, result) if isinstance(result, str) else result[launch]
        for launch, _ in instructions
    }


def _executed(architecture: str, name: str, instructions: Iterable[tuple[str, str]], option: str) -> dict[str, Execution]:
    from attn_binaries.shipped_calls import CALLS
    from attn_lab.binaries.execute import execute

    (shipped,) = (call for call in CALLS if call.name == name)
    return execute(shipped, architecture, dict(instructions), option)
