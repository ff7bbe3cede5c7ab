"""The GPU's best rates, measured in the same run: the floors of cases are made of them."""

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import msgspec
import torch
import triton
import triton.language as tl

from benchmarks.speed.clock import Positive

READ: dict[str, Any] = {"BLOCK": 8192, "num_warps": 8}
REPEATS = 20
BURST_CALLS = 10


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes and FLOPs per second; a copy's bytes are those read and those written."""

    read: Positive
    copy: Positive
    matmul_burst: Positive
    matmul_sustained: Positive


@triton.jit
def read_kernel(sum_ptr, data_ptr, BLOCK: tl.constexpr):
    block = tl.program_id(0).to(tl.int64)
    # [BLOCK]
    data = tl.load(data_ptr + block * BLOCK + tl.arange(0, BLOCK))
    tl.store(sum_ptr + block, tl.sum(data, axis=0))


def rates(device: torch.device, *, tiny: bool) -> Rates:
    """Rates of reading and copying 4 GiB, and of products of bfloat16 matrices of 8192 x 8192, after a pause and after work."""
    num_blocks, size, seconds = (8, 64, 0.05) if tiny else (2**17, 8192, 2.0)
    read, copy = _bandwidths(device, num_blocks)
    burst, sustained = _matmul_rates(device, size, seconds)
    return Rates(read=read, copy=copy, matmul_burst=burst, matmul_sustained=sustained)


def _bandwidths(device: torch.device, num_blocks: int) -> tuple[float, float]:
    data = torch.ones(num_blocks * READ["BLOCK"], dtype=torch.int32, device=device)
    sums, copied = torch.empty(num_blocks, dtype=torch.int32, device=device), torch.empty_like(data)
    reading = _median(device, lambda: read_kernel[(num_blocks,)](sums, data, **READ))
    assert bool((sums == READ["BLOCK"]).all()), "not everything was read"
    return data.nbytes / reading, 2 * data.nbytes / _median(device, lambda: copied.copy_(data))


def _matmul_rates(device: torch.device, size: int, seconds: float) -> tuple[float, float]:
    a, b = torch.randn((2, size, size), device=device).bfloat16()
    product = torch.empty_like(a)

    def multiply() -> None:
        torch.mm(a, b, out=product)

    _median(device, multiply)
    time.sleep(seconds / 2)
    burst = statistics.median(_seconds(device, multiply, BURST_CALLS))
    started, times = time.monotonic(), [burst]
    while time.monotonic() - started < seconds:
        times = _seconds(device, multiply, 5 * BURST_CALLS)
    flops = 2.0 * size**3
    return flops / burst, flops / statistics.median(times)


def _median(device: torch.device, run: Callable[[], object]) -> float:
    """Seconds, after a first call that compiles."""
    run()
    return statistics.median(_seconds(device, run, REPEATS))


def _seconds(device: torch.device, run: Callable[[], object], repeats: int) -> list[float]:
    """The seconds of each call."""
    if device.type != "cuda":
        times = [time.perf_counter()]
        for _ in range(repeats):
            run()
            times.append(time.perf_counter())
        return [end - start for start, end in itertools.pairwise(times)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in itertools.pairwise(events)]
