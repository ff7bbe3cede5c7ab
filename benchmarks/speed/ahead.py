"""Compile ahead: processes make the calls of a run once, so that Triton's cache on disk holds all kernels before it begins."""

import contextlib
import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from rich.console import Console
from rich.progress import Progress

from benchmarks.speed import peers
from benchmarks.speed.calls import attention_call
from benchmarks.speed.cases import Attention, Case
from benchmarks.speed.participants import participants
from benchmarks.speed.run import free

_kernels: list[SimpleNamespace | None] = []
"""vLLM's and AITER's, in a process of the pool."""


def compile_ahead(cases: Sequence[Case], processes: int, *, vllm: Path | None, aiter: Path | None, console: Console) -> None:
    """Make each participant's call of each case once. Errors are left to the run, which makes the same calls."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, _load, (vllm, aiter)) as pool, Progress(console=console, transient=True) as progress:
        task = progress.add_task("compiling ahead", total=len(cases))
        for _ in pool.imap_unordered(_call_once, cases):
            progress.advance(task)


def _load(vllm: Path | None, aiter: Path | None) -> None:
    for load, folder in ((peers.load_vllm, vllm), (peers.load_aiter, aiter)):
        _kernels.append(peers.load_if_there(load, folder, lambda _: None))


def _call_once(case: Case) -> None:
    if not isinstance(case, Attention):
        return
    # kernels of others raise anything, and the processes share the GPU's memory
    with contextlib.suppress(Exception):
        call = attention_call(case, torch.device("cuda" if torch.cuda.is_available() else "cpu"), seed=0)
        for participant in participants(*_kernels):
            if participant.joins(case):
                with contextlib.suppress(Exception):
                    participant.prepare(call).run()
    free()
