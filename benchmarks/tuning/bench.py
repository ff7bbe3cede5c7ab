"""A case on a device: several copies of its tensors, launched with any parameters, checked and then timed."""

import functools
from collections.abc import Callable, Sequence

import attn_optimized
import torch
from attn_optimized.kernel_call import KernelCall
from attn_optimized.launch.table import Parameters

from benchmarks.speed import check
from benchmarks.speed.calls import Call, attention_call
from benchmarks.speed.cases import Attention, copies
from benchmarks.speed.clock import Loop, Spread, loop_of, side_by_side
from benchmarks.speed.machine import Rates
from benchmarks.tuning.launches import launches
from benchmarks.tuning.results import Kernel, Step, TimedCase

SECONDS, LAST_SECONDS = 0.3, 1.0
"""About the seconds for the replays of one call, and for all those of the last stage together."""


class WrongError(Exception):
    """A candidate computes something else than attention."""


class Bench:
    """A case's tensors, as long as this lives."""

    def __init__(self, case: Attention, device: torch.device, *, is_tiny: bool = False) -> None:
        self.case, self._device = case, device
        count = 1 if is_tiny else copies(case)
        self._calls = [attention_call(case, device, seed) for seed in range(count)]
        self._out = torch.empty_like(self._calls[0].q)
        self._rows, self._expected = expected_of(case, self._calls[0])

    def loop(self, parameters: Parameters | None) -> Loop:
        """The launches with these parameters, of which the first copy's output is checked.

        Raises:
            WrongError: a row of it is wrong.
        """
        runs = [self._run(call, parameters) for call in self._calls]
        self._check(runs[0])
        return loop_of(self._device, runs)

    def time(self, parameters: Parameters | None, replays: int) -> Spread:
        return side_by_side([self.loop(parameters)], seconds=SECONDS, rounds=replays)[0]

    def kernels(self, parameters: Parameters | None, replays: int) -> tuple[Kernel, ...]:
        """Each launch of a call alone, in its copies' memory in turn."""
        of_calls = [list(launches(call, parameters, out=self._out)) for call in self._calls]
        found = []
        for same in zip(*of_calls, strict=True):
            for each in same:  # the next kernel reads what this one writes
                each.run(self._device)
            loop = loop_of(self._device, [functools.partial(each.run, self._device) for each in same])
            ms = side_by_side([loop], seconds=SECONDS, rounds=replays)[0].ms
            launch = same[0].launch
            found.append(Kernel(name=launch.kernel.fn.__name__, grid=launch.grid, ms=ms))
        return tuple(found)

    def _run(self, call: Call, parameters: Parameters | None) -> Callable[[], object]:
        if parameters is None and call.case.common_prefix_len:
            # it cuts the batch in two on the device every time
            arguments = (call.q, call.kv_cache, call.layer, call.batch, call.case.common_prefix_len)
            return functools.partial(attn_optimized.cascade_attention, *arguments, out=self._out)
        return functools.partial(_launch, list(launches(call, parameters, out=self._out)), self._device)

    def _check(self, run: Callable[[], object]) -> None:
        self._out.fill_(torch.nan)
        run()
        if not bool(self._out.isfinite().all()):
            raise WrongError("a row is not written or not finite")
        error = check.relative_error(self._out[self._rows], self._expected)
        if error > check.LIMIT:
            raise WrongError(f"relative error {error:.2g}, at most {check.LIMIT:.2g} is allowed")


def step_of(bench: Bench, rates: Rates, replays: int) -> Step:
    """A drawn step as it is launched today."""
    case, spread = bench.case, bench.time(None, replays)
    kernels = bench.kernels(None, replays)
    return Step(name=case.name, traffic=case.traffic, floor_ms=timed_case(case, rates).floor_ms, ms=spread.ms, kernels=kernels)


@functools.cache
def timed_case(case: Attention, rates: Rates) -> TimedCase:
    return TimedCase(name=case.name, floor_ms=rates.floor_ms(case.flops, case.bytes))


_EXPECTED: dict[Attention, tuple[list[int], torch.Tensor]] = {}


def expected_of(case: Attention, call: Call) -> tuple[list[int], torch.Tensor]:
    """Rows of the output and what they are to be, computed once: a case is made anew for each stage of a search."""
    if case not in _EXPECTED:
        rows = check.sampled_rows(call)
        _EXPECTED[case] = rows, check.expected_rows(call, rows)
    return _EXPECTED[case]


def _launch(calls: Sequence[KernelCall], device: torch.device) -> None:
    for call in calls:
        call.run(device)
