"""Launches compiled in parallel processes, for a GPU that need not be there.

Where it is, the kernels that are run then find their binaries in Triton's cache.
"""

import contextlib
import io
import time
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import torch
from attn_binaries.build import in_processes
from attn_fuzz.text import one_line
from attn_optimized.launch.table import Parameters

from benchmarks.participants.launches import launches
from benchmarks.steps.calls import attention_call, float8_of
from benchmarks.steps.cases import Attention
from benchmarks.tune.classes import META
from benchmarks.tune.facts import WorstFacts, facts_of


class Job(NamedTuple):
    """A case to be compiled."""

    case: Attention
    parameters: Parameters


Compile = Callable[[Collection[Job], float, Callable[[int], None]], Mapping[Job, WorstFacts | str]]
"""The facts of jobs, or why they have none, until a deadline. What is not done by then is left out. The last argument is called
with how many are done."""


def compiled(
    case: Attention, parameters: Parameters, *, architecture: str, compute_units: int, cache_bytes: int = 0
) -> WorstFacts:
    """The worst facts of the attention kernels of a case, all of whose kernels are compiled.

    Args:
        cache_bytes: see `attention_call`. Beyond the 2 GiB of AMD's buffer instructions kernels are compiled otherwise.
    """
    call = attention_call(case, META, 1, float8_of(architecture), cache_bytes)
    gpu = {"architecture": architecture, "compute_units": compute_units}
    every = launches(call, parameters, out=torch.empty_like(call.q), **gpu)
    # Triton prints all of the code that an assembler refuses
    with contextlib.redirect_stdout(io.StringIO()):
        return WorstFacts.worst([facts for each in every if (facts := facts_of(each, architecture)) is not None])


def in_parallel(compiler: Callable[[Attention, Parameters], WorstFacts], workers: int) -> Compile:
    """Compile each job once. A job whose compiler crashes is lost, and no other.

    Args:
        compiler: gives the facts of a job; it is called in another process.
        workers: processes.
    """
    known: dict[Job, WorstFacts | str] = {}

    def compile_all(jobs: Collection[Job], deadline: float, step: Callable[[int], None]) -> Mapping[Job, WorstFacts | str]:
        new = [job for job in dict.fromkeys(jobs) if job not in known]
        before, seconds = len(jobs) - len(new), max(0.0, deadline - time.monotonic())
        if new:
            at_once = min(workers, len(new))
            found, interrupted = in_processes(compiler, new, at_once, lambda some: step(before + len(some)), seconds=seconds)
            if interrupted:
                raise KeyboardInterrupt
            known.update({job: one_line(one, 300) if isinstance(one, str) else one for job, one in found.items()})
        return {job: known[job] for job in jobs if job in known}

    return compile_all
