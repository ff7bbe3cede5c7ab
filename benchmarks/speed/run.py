"""A run: case by case all participants side by side, then what a call of each costs on the host."""

import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from attn_contract import UnsupportedError
from attn_fuzz.text import one_line
from attn_parity.console import progress_bar, results
from attn_parity.timing import Loop, side_by_side

from benchmarks.measuring import check
from benchmarks.measuring.clock import Budget, host_us, loop_of
from benchmarks.measuring.device import check_device, free
from benchmarks.measuring.machine import Rates
from benchmarks.participants.attention import BEFORE, OURS, Participant, Prepared
from benchmarks.participants.index import index_op, step_of
from benchmarks.participants.rows import row_op
from benchmarks.speed.results import CaseResult, Result, Run
from benchmarks.steps.calls import attention_call
from benchmarks.steps.cases import HOST, Attention, Case, IndexOp, RowOp, copies


class Sizes(NamedTuple):
    """The sizes of a run: the whole, or `--tiny`. `seconds` are the most for the replays of one case."""

    copies: int | None
    rounds: int
    seconds: float
    host_batches: int
    host_calls: int


WHOLE = Sizes(copies=None, rounds=200, seconds=4.0, host_batches=20, host_calls=100)
TINY = Sizes(copies=2, rounds=2, seconds=0.0, host_batches=2, host_calls=2)


class Problem(NamedTuple):
    """A case on a device: several copies of its inputs, each put to each participant, and what some rows are to be."""

    prepare: dict[str, Callable[[], list[Prepared]]]
    rows: list[int]
    expected: torch.Tensor


def measure(
    run: Run,
    cases: Sequence[Case],
    participants: Sequence[Participant],
    device: torch.device,
    *,
    sizes: Sizes,
    budget: Budget,
    host: bool = True,
    json_file: Path | None = None,
    fatal: Mapping[tuple[str, str], str] | None = None,
) -> None:
    """Measure into `run`, saved after each case; what an interrupt or the budget leaves out is in `run.unmeasured`.

    Args:
        host: whether to measure what a call costs the host, too.
        fatal: see `ahead.compile_ahead`: calls that are not made, because they would take the GPU from this process, too.

    Raises:
        DeviceError: the GPU no longer runs anything; what was measured before is saved.
    """
    run.unmeasured = [case.name for case in cases]
    with progress_bar(len(cases)) as show_bar:
        for i, case in enumerate(cases):
            if (left := budget.left) <= 0:
                break
            out = {name: why for (of_case, name), why in (fatal or {}).items() if of_case == case.name}
            joining = [participant for participant in participants if participant.name not in out]
            run.cases.append(measured(case, joining, device, run.rates, sizes=sizes, case_seconds=left / (len(cases) - i)))
            run.cases[-1].results.update({name: Result(verdict="failed", why=why) for name, why in out.items()})
            run.unmeasured.remove(case.name)
            free()
            run.write(json_file)
            results.print(_line(run.cases[-1]))
            show_bar(i + 1)
    if host:
        run.host_us = overheads(participants, device, sizes)
    run.write(json_file)


def measured(
    case: Case, participants: Sequence[Participant], device: torch.device, rates: Rates, *, sizes: Sizes, case_seconds: float
) -> CaseResult:
    """Check every participant, and time those that are right, within about `case_seconds` seconds."""
    deadline = time.monotonic() + case_seconds
    flops, moved = case.flops, case.bytes
    floor = rates.floor_ms(flops, moved)
    found: dict[str, Result] = {}
    loops: dict[str, Loop] = {}
    firsts: dict[str, Prepared] = {}
    with _recorded(found, OURS):
        problem = problem_of(case, participants, device, sizes.copies or copies(case))
        for name, prepare in problem.prepare.items():
            with _recorded(found, name):
                prepared = prepare()
                error = error_of(prepared[0], problem)
                found[name] = _judged(error)
                if found[name].verdict == "measured":
                    loops[name], firsts[name] = loop_of(device, [each.run for each in prepared]), prepared[0]
    seconds = max(0.0, min(sizes.seconds, deadline - time.monotonic()))
    times = side_by_side(list(loops.values()), seconds=seconds, rounds=sizes.rounds)
    for (name, loop), spread in zip(loops.items(), times, strict=True):
        found[name] = Result(verdict="measured", error=found[name].error, time=spread, calls=loop.calls)
        if isinstance(case, Attention) and (again := _judged(error_again(firsts[name], problem))).verdict != "measured":
            found[name] = again
    return CaseResult(name=case.name, flops=flops, bytes=moved, floor_ms=floor, results=found, traffic=case.traffic)


def problem_of(case: Case, participants: Sequence[Participant], device: torch.device, count: int) -> Problem:
    if isinstance(case, RowOp):
        made = [row_op(case, device, seed) for seed in range(count)]
        return Problem({OURS: lambda: [prepared for prepared, _ in made]}, [0], made[0][1])
    if isinstance(case, IndexOp):
        calls_of, expected = index_op(case, [step_of(case, device, seed) for seed in range(count)])
        return Problem(dict(calls_of), [0], expected)
    calls = [attention_call(case, device, seed) for seed in range(count)]
    rows = check.sampled_rows(calls[0])
    prepare = {
        participant.name: lambda participant=participant: [participant.prepare(call) for call in calls]
        for participant in participants
        if participant.joins(case)
    }
    return Problem(prepare, rows, check.expected_rows(calls[0], rows))


def error_of(prepared: Prepared, problem: Problem) -> float:
    return check.relative_error(prepared.output(prepared.run()), problem.rows, problem.expected)


def error_again(prepared: Prepared, problem: Problem) -> float:
    """The relative error of a repeated call. A kernel that relies on a counter of its first call would write fewer rows."""
    prepared.output(prepared.run()).fill_(torch.nan)
    return error_of(prepared, problem)


def overheads(participants: Sequence[Participant], device: torch.device, sizes: Sizes) -> dict[str, float]:
    """Microseconds of one call, for all participants that can make it."""
    call = attention_call(HOST, device, seed=0)
    found = {}
    for participant in participants:
        if not participant.joins(HOST):
            continue
        with contextlib.suppress(UnsupportedError, RuntimeError):
            run = participant.prepare(call).run
            found[participant.name] = host_us(run, batches=sizes.host_batches, calls=sizes.host_calls)
    return found


@contextlib.contextmanager
def _recorded(found: dict[str, Result], name: str) -> Iterator[None]:
    """Make a result of an exception, so that one participant's error does not end the others."""
    try:
        yield
    except UnsupportedError as error:
        found[name] = Result(verdict="refused", why=str(error))
    except Exception as error:  # kernels of others raise anything, compilers too
        found[name] = Result(verdict="failed", why=one_line(f"{type(error).__name__}: {error}", 300))
        check_device(error)


def _judged(error: float) -> Result:
    if error <= check.MAX_ERROR:
        return Result(verdict="measured", error=error)
    return Result(verdict="wrong", error=error if error < float("inf") else None, why=check.too_large(error))


def _line(case: CaseResult) -> str:
    parts = [f"{case.name}: floor {case.floor_ms:.4g} ms"]
    for name, result in case.results.items():
        if result.time is not None:
            parts.append(f"{name} {result.time.ms:.4g} ({case.floor_ms / result.time.ms:.0%})")
        elif result.verdict != "refused":
            parts.append(f"{name} {result.verdict}: {result.why}")
    return "; ".join(parts)


def gains(cases: Sequence[CaseResult]) -> Iterator[str]:
    """For each kind of traffic, the time before over the time now: the geometric mean, and the cases at both ends."""
    found: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for case in cases:
        before, now = (case.results[name].time if name in case.results else None for name in (BEFORE, OURS))
        if before is not None and now is not None:
            found[case.traffic or "all cases"].append((before.ms / now.ms, case.name))
    for traffic, ratios in found.items():
        (least, slower), (most, faster) = min(ratios), max(ratios)
        mean = statistics.geometric_mean(ratio for ratio, _ in ratios)
        ends = f"{least:.2f} in {slower}, {most:.2f} in {faster}"
        yield f"{traffic}: time before / now {mean:.2f} in {len(ratios)} cases; {ends}"
