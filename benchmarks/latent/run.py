"""A run: case by case our kernel, with other launch parameters if asked, and vLLM's."""

import contextlib
import dataclasses
import functools
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import TypeVar

import torch
from attn_optimized.device import architecture_of, compute_units_of
from attn_optimized.launch.table import Parameters
from rich.console import Console
from rich.progress import Progress

from benchmarks.latent import calls, expanded
from benchmarks.latent.cases import ExpandedCase, LatentCase
from benchmarks.speed.cases import copies
from benchmarks.speed.participants import OURS, VLLM, Prepared
from benchmarks.speed.results import CaseResult, Run
from benchmarks.speed.run import Problem, Sizes, free, measured_problem

SCHEMA = "attn-parity.latent-speed/1"
"""Of a run's file, which has the fields of one of `speed`."""
AnyCall = TypeVar("AnyCall", calls.LatentCall, expanded.ExpandedCall)
Tries = Mapping[str, Sequence[int]]
"""Values to try, by the names of the fields of Parameters."""


def measure(
    run: Run,
    cases: Sequence[LatentCase | ExpandedCase],
    tries: Tries,
    vllm: SimpleNamespace | None,
    device: torch.device,
    *,
    sizes: Sizes,
    budget: float,
    save: Callable[[Run], None],
    console: Console,
) -> None:
    """Measure into `run`, saved and told after each case; what an interrupt or the budget leaves out is in `run.unmeasured`."""
    started = time.monotonic()
    run.unmeasured = [case.name for case in cases]
    for i, case in enumerate(cases):
        left = budget - (time.monotonic() - started)
        if left <= 0:
            break
        make = functools.partial(problem_of, case, tries, vllm, device, sizes.copies or copies(case))
        run.cases.append(measured_problem(case, make, device, run.rates, sizes=sizes, box=left / (len(cases) - i)))
        run.unmeasured.remove(case.name)
        free()
        save(run)
        tell(run.cases[-1], console)


def problem_of(
    case: LatentCase | ExpandedCase, tries: Tries, vllm: SimpleNamespace | None, device: torch.device, count: int
) -> Problem:
    """Who is measured in a case. Other parameters and vLLM's kernel are for those over a latent cache."""
    if isinstance(case, ExpandedCase):
        prompts, rows = [expanded.expanded_call(case, device, seed) for seed in range(count)], expanded.sampled_rows(case)
        return Problem(_makers(expanded.participants(device), prompts), rows, expanded.expected_rows(prompts[0], rows))
    return _over_a_cache(case, tries, vllm, device, count)


def _over_a_cache(case: LatentCase, tries: Tries, vllm: SimpleNamespace | None, device: torch.device, count: int) -> Problem:
    """Ours first, then every candidate, then vLLM's kernel where the case is one of decodes of one length."""
    made = [calls.latent_call(case, device, seed) for seed in range(count)]
    rows = calls.sampled_rows(case)
    prepare: dict[str, Callable[[calls.LatentCall], Prepared]] = {OURS: calls.ours}
    today = calls.table_parameters(made[0], architecture_of(device, made[0].q.dtype), compute_units_of(device))
    for name, parameters in candidates(today, tries).items():
        prepare[name] = functools.partial(calls.ours_with, parameters)
    if vllm is not None and len(set(case.query_lens)) == 1:
        prepare[VLLM] = functools.partial(calls.vllm_triton, vllm, compute_units_of(device))
    return Problem(_makers(prepare, made), rows, calls.expected_rows(made[0], rows))


def candidates(today: Parameters, tries: Tries) -> dict[str, Parameters]:
    """Today's parameters with every combination of the values, by what differs."""
    found = {}
    for values in itertools.product(*tries.values()):
        changed = {name: value for name, value in zip(tries, values, strict=True) if getattr(today, name) != value}
        if changed:
            found[" ".join(f"{name}={value}" for name, value in changed.items())] = dataclasses.replace(today, **changed)
    return found


def compile_ahead(cases: Sequence[LatentCase | ExpandedCase], tries: Tries, processes: int, console: Console) -> None:
    """Make every call once in parallel processes, so that Triton's cache holds its kernels. Errors are left to the run."""
    jobs = [(case, tries, number, processes) for case in cases for number in range(processes)]
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes) as pool, Progress(console=console, transient=True) as progress:
        task = progress.add_task("compiling ahead", total=len(jobs))
        for _ in pool.imap_unordered(_call_some, jobs):
            progress.advance(task)


def tell(case: CaseResult, console: Console) -> None:
    """The floor, and who took how long, the fastest first."""
    console.print(f"{case.name}: floor {case.floor_ms:.4g} ms")
    timed = {name: result.time for name, result in case.results.items() if result.time is not None}
    for name, spread in sorted(timed.items(), key=lambda item: item[1].ms):
        console.print(
            f"    {case.floor_ms / spread.ms:6.1%}  {spread.ms:.4g} ms ({spread.p10:.4g} to {spread.p90:.4g})  {name}"
        )
    for name, result in case.results.items():
        if result.time is None:
            console.print(f"    {result.verdict}: {name}: {result.why}")


def _makers(
    prepare: Mapping[str, Callable[[AnyCall], Prepared]], made: Sequence[AnyCall]
) -> dict[str, Callable[[], list[Prepared]]]:
    """By participant: what puts all calls to it."""
    return {name: functools.partial(_each, one, made) for name, one in prepare.items()}


def _each(prepare: Callable[[AnyCall], Prepared], made: Sequence[AnyCall]) -> list[Prepared]:
    return [prepare(call) for call in made]


def _call_some(job: tuple[LatentCase | ExpandedCase, Tries, int, int]) -> None:
    """Every so manieth candidate of a case, once."""
    case, tries, number, processes = job
    os.environ["OMP_NUM_THREADS"] = "1"
    device = torch.device("cuda")
    with contextlib.suppress(Exception):
        if isinstance(case, ExpandedCase):
            if number == 0:
                expanded.ours(expanded.expanded_call(case, device, seed=0)).run()
            return
        call = calls.latent_call(case, device, seed=0)
        today = calls.table_parameters(call, architecture_of(device, call.q.dtype), compute_units_of(device))
        for parameters in [today, *candidates(today, tries).values()][number::processes]:
            with contextlib.suppress(Exception):
                calls.ours_with(parameters, call).run()
    free()
