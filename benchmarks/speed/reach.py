"""Compares a case with its aims: the `Reach` of its data, and for every case that no Triton peer is faster."""

from typing import NamedTuple

from attn_parity.timing import Spread

from benchmarks.measuring.machine import Rates
from benchmarks.participants.attention import AITER, OURS, SDPA, TRITON
from benchmarks.speed.results import CaseResult
from benchmarks.steps.cases import Reach

_UNITS = {
    "bandwidth": "of the copy bandwidth",
    "matmul": "of the sustained matmul rate",
    "floor": "of the floor's speed",
    "peers": "the better peer",
    "AITER": "AITER",
    "SDPA": "the better SDPA",
}


class Standing(NamedTuple):
    """`reached` is None if the case has no aim, or one that was not measured."""

    reached: bool | None
    text: str


def standing(reach: Reach | None, case: CaseResult, rates: Rates) -> Standing:
    ours = time_of(case, OURS)
    if ours is None:
        return Standing(None, "not measured")
    slower = [
        f"{peer} is {ours.ms / theirs.ms:.2f}x as fast"
        for peer in TRITON
        # beyond the spread: the intervals have nothing in common
        if (theirs := time_of(case, peer)) is not None and ours.p10 > theirs.p90
    ]
    if reach is None:
        has_peer = any(time_of(case, peer) is not None for peer in TRITON)
        return Standing(not slower if has_peer else None, "; ".join(slower))
    got = _figure(reach, case, rates, ours)
    if got is None:
        return Standing(False if slower else None, "; ".join([f"no {reach.of} to compare with", *slower]))
    figure, least, aim = (_shown(reach, number) for number in (got, reach.least, reach.aim))
    text = f"{figure} {_UNITS[reach.of]} (at least {least}, aim {aim})"
    return Standing(got >= reach.least and not slower, "; ".join([text, *slower]))


def time_of(case: CaseResult, name: str) -> Spread | None:
    return case.results[name].time if name in case.results else None


def _figure(reach: Reach, case: CaseResult, rates: Rates, ours: Spread) -> float | None:
    seconds = ours.ms / 1e3
    match reach.of:
        case "bandwidth":
            return case.bytes / seconds / rates.copy
        case "matmul":
            return case.flops / seconds / rates.matmul
        case "floor":
            return rates.floor_ms(case.flops, case.bytes) / ours.ms
    names = {"peers": TRITON, "AITER": (AITER,), "SDPA": tuple(SDPA)}[reach.of]
    times = [time.ms for name in names if (time := time_of(case, name)) is not None]
    return min(times) / ours.ms if times else None


def _shown(reach: Reach, figure: float) -> str:
    return f"{figure:.0%}" if reach.of in ("bandwidth", "matmul", "floor") else f"{figure:.2f}x"
