"""Compile ahead: processes make the calls of a run once, so that Triton's cache on disk holds all kernels before it begins.

A call that reads where it may not takes the GPU from its process. It is found here, where it takes nothing from the others.
"""

import contextlib
import multiprocessing
from collections.abc import Sequence
from typing import NamedTuple

import torch
from attn_parity.console import notes, progress_bar

from benchmarks.measuring.device import free, why_gone
from benchmarks.participants.attention import Participant
from benchmarks.participants.everybody import Given, everybody
from benchmarks.steps.calls import attention_call
from benchmarks.steps.cases import Attention, Case

_participants: list[Participant] = []
"""In a process of the pool."""


class Fatal(NamedTuple):
    """A call after which a process has no GPU any more."""

    case: str
    participant: str
    why: str


def compile_ahead(cases: Sequence[Case], processes: int, given: Given) -> dict[tuple[str, str], str]:
    """Make each participant's call of each case once. Other errors are left to the run, which makes the same calls.

    A process whose GPU is gone makes no more calls: what it would have compiled is compiled by the run.

    Returns:
        Why calls took the GPU from their process, by the names of the case and of the participant.
    """
    context, fatal = multiprocessing.get_context("spawn"), {}
    with context.Pool(processes, _load, (given,)) as pool, progress_bar(len(cases)) as show_bar:
        for done, found in enumerate(pool.imap_unordered(_call_once, cases), 1):
            show_bar(done)
            if found is not None:
                fatal[found.case, found.participant] = found.why
                notes.print(f"{found.participant} takes the GPU from its process in {found.case}: {found.why}")
    return fatal


def _load(given: Given) -> None:
    found, _ = everybody(given, lambda _: None)
    _participants.extend(found)


def _call_once(case: Case) -> Fatal | None:
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
