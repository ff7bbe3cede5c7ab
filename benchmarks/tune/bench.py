"""A case on a device: several copies of its tensors, launched with any parameters, checked and then timed."""

import functools
from collections.abc import Callable, Sequence

import attn_fuzz.cases.call
import torch
from attn_fuzz.verdict.judge import Judgement, judge_call
from attn_fuzz.verdict.rounding import Rounding
from attn_optimized import plan_of
from attn_optimized.kernel_call import KernelCall
from attn_optimized.launch.table import Parameters
from attn_parity.timing import Loop, Spread, side_by_side

from benchmarks.measuring import check
from benchmarks.measuring.clock import loop_of
from benchmarks.participants.launches import launches
from benchmarks.steps.calls import Call, attention_call
from benchmarks.steps.cases import Attention, copies

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

    def loop(self, parameters: Parameters) -> Loop:
        """The launches with these parameters, of which the first copy's output is checked.

        Raises:
            WrongError: a row of it is wrong.
        """
        of_calls = [list(launches(call, parameters, out=self._out)) for call in self._calls]
        runs = [functools.partial(_launch, each, self._device) for each in of_calls]
        self._check(runs[0])
        return loop_of(self._device, runs)

    def time(self, parameters: Parameters, replays: int) -> Spread:
        return side_by_side([self.loop(parameters)], seconds=SECONDS, rounds=replays)[0]

    def _check(self, run: Callable[[], object]) -> None:
        self._out.fill_(torch.nan)
        run()
        error = check.relative_error(self._out, self._rows, self._expected)
        if error > check.MAX_ERROR:
            raise WrongError(check.too_large(error))


_EXPECTED: dict[Attention, tuple[list[int], torch.Tensor]] = {}


def expected_of(case: Attention, call: Call) -> tuple[list[int], torch.Tensor]:
    """Rows of the output and what they are to be, computed once: a case is made anew for each stage of a search."""
    if case not in _EXPECTED:
        rows = check.sampled_rows(call)
        _EXPECTED[case] = rows, check.expected_rows(call, rows)
    return _EXPECTED[case]


def judged(case: Attention, parameters: Parameters, device: torch.device) -> Judgement:
    """A case run with these parameters, beside the reference."""
    call = attention_call(case, device, seed=1)
    out = torch.full_like(call.q, torch.nan)
    lse = torch.full(call.q.shape[1::-1], torch.nan, device=device)
    for launch in launches(call, parameters, out=out, lse=lse):
        launch.run(device)
    splits = plan_of(call.q, call.layer, call.batch, parameters=parameters).splits
    rounding = Rounding(keys_per_tile=parameters.block_n, dot_is_chained=device.type != "cpu", splits=splits)
    given = attn_fuzz.cases.call.Call(q=call.q, layer=call.layer, batch=call.batch, kv_cache=call.kv_cache)
    return judge_call(given, out, lse, rounding, generic=True)


def _launch(calls: Sequence[KernelCall], device: torch.device) -> None:
    for call in calls:
        call.run(device)
