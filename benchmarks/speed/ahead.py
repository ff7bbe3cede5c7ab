"""Compile ahead: processes make the calls of a run once, so that Triton's cache on disk holds all kernels before it begins.

A call that reads where it may not takes the GPU from its process. It is found here, where it takes nothing from the others.
"""

import contextlib
import multiprocessing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import Progress

from benchmarks.speed import peers
from benchmarks.speed.before import load_before
from benchmarks.speed.calls import attention_call
from benchmarks.speed.cases import Attention, Bounded
from benchmarks.speed.participants import Participant
from benchmarks.speed.run import all_participants, free

Tries = Mapping[str, Sequence[int]]
_participants: list[Participant] = []
"""In a process of the pool."""


class Fatal(NamedTuple):
    """A call after which a process has no GPU any more."""

    case: str
    participant: str
    why: str


def compile_ahead(
    cases: Sequence[Bounded],
    processes: int,
    *,
    vllm: Path | None,
    aiter: Path | None,
    before: Path | None,
    tries: Tries,
    console: Console,
) -> dict[tuple[str, str], str]:
    """Make each participant's call of each case once. Other errors are left to the run, which makes the same calls.

    A process whose GPU is gone makes no more calls: what it would have compiled is compiled by the run.

    Returns:
        Why calls took the GPU from their process, by the names of the case and of the participant.
    """
    context, fatal = multiprocessing.get_context("spawn"), {}
    with (
        context.Pool(processes, _load, (vllm, aiter, before, tries)) as pool,
        Progress(console=console, transient=True) as progress,
    ):
        task = progress.add_task("compiling ahead", total=len(cases))
        for found in pool.imap_unordered(_call_once, cases):
            progress.advance(task)
            if found is not None:
                fatal[found.case, found.participant] = found.why
                console.print(f"{found.participant} takes the GPU from its process in {found.case}: {found.why}")
    return fatal


def _load(vllm: Path | None, aiter: Path | None, before: Path | None, tries: Tries) -> None:
    found = peers.load_all(vllm, aiter, lambda _: None)
    _participants.extend(all_participants(found, before and load_before(before), tries))


def _call_once(case: Bounded) -> Fatal | None:
    if not isinstance(case, Attention) or why_gone() is not None:
        return None
    # kernels of others raise anything, and the processes share the GPU's memory
    with contextlib.suppress(Exception):
        call = attention_call(case, torch.device("cuda" if torch.cuda.is_available() else "cpu"), seed=0)
        for participant in _participants:
            if participant.joins(case):
                with contextlib.suppress(Exception):
                    participant.prepare(call).run()
                if (why := why_gone()) is not None:
                    return Fatal(case.name, participant.name, why)
    free()
    return None


def why_gone() -> str | None:
    """The error of a GPU that runs nothing any more for this process."""
    if torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            return str(error).partition("\n")[0]
    return None
