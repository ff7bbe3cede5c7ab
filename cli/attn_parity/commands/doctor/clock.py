"""Times on a GPU, as doctor's report has them."""

from collections.abc import Callable, Sequence

import msgspec
from attn_parity.timing import EventLoop, Positive, side_by_side

ROUNDS, SECONDS = 40, 3.0


class Time(msgspec.Struct, frozen=True):
    """Milliseconds of a call, as in the report: the median, the 10th and the 90th percentile."""

    ms: Positive
    p10: Positive
    p90: Positive


def in_turns(runs: Sequence[Callable[[], object]]) -> list[Time]:
    """Time calls in turns, each at least 5 times."""
    for run in runs:
        run()  # compiles
    found = side_by_side([EventLoop(run) for run in runs], seconds=SECONDS, rounds=ROUNDS)
    return [Time(each.ms, each.p10, each.p90) for each in found]
