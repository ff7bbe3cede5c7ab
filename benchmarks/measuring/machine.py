"""The GPU's best rates, measured in the same run: the floors of cases are made of them."""

import statistics
import time
from typing import Any

import msgspec
import torch
import triton
import triton.language as tl
from attn_parity.timing import Positive

from benchmarks.measuring.clock import eager_loop_of, loop_of, median_ms

READ: dict[str, Any] = {"BLOCK": 8192, "num_warps": 8}
REPEATS = 20
CALLS = 50
"""Products between two looks at the clock."""


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes and FLOPs per second; a copy's bytes are those read and those written.

    Attributes:
        matmul: of products of matrices that follow each other for seconds.
        launch: milliseconds of a kernel that does nothing, in a graph of such kernels.
    """

    read: Positive
    copy: Positive
    matmul: Positive
    launch: Positive

    def __str__(self) -> str:
        rates = f"read {self.read / 1e12:.3g} TB/s, copy {self.copy / 1e12:.3g} TB/s, matmul {self.matmul / 1e12:.4g} TFLOP/s"
        return f"{rates}, an empty launch {1e3 * self.launch:.3g} us"

    def floor_ms(self, flops: float, bytes: float) -> float:
        """A launch, and the longer of moving the bytes and computing the FLOPs."""
        return self.launch + 1e3 * max(bytes / self.copy, flops / self.matmul)

    def sum_ms(self, flops: float, bytes: float) -> float:
        """A launch, moving the bytes, and computing the FLOPs, none beside another."""
        return self.launch + 1e3 * (bytes / self.copy + flops / self.matmul)


@triton.jit
def read_kernel(sum_ptr, data_ptr, BLOCK: tl.constexpr):
    block = tl.program_id(0).to(tl.int64)
    # [BLOCK]
    data = tl.load(data_ptr + block * BLOCK + tl.arange(0, BLOCK))
    tl.store(sum_ptr + block, tl.sum(data, axis=0))


@triton.jit
def empty_kernel(data_ptr):
    pass


def rates(device: torch.device, *, tiny: bool) -> Rates:
    """Rates of reading and copying 4 GiB, and of products of bfloat16 matrices of 8192 x 8192."""
    num_blocks, size, seconds = (8, 64, 0.05) if tiny else (2**17, 8192, 2.0)
    read, copy = _bandwidths(device, num_blocks)
    return Rates(read=read, copy=copy, matmul=_matmul_rate(device, size, seconds), launch=_launch_ms(device))


def _launch_ms(device: torch.device) -> float:
    data = torch.zeros(1, dtype=torch.int32, device=device)
    return median_ms(loop_of(device, [lambda: empty_kernel[(1,)](data)]), REPEATS)


def _bandwidths(device: torch.device, num_blocks: int) -> tuple[float, float]:
    data = torch.ones(num_blocks * READ["BLOCK"], dtype=torch.int32, device=device)
    sums, copied = torch.empty(num_blocks, dtype=torch.int32, device=device), torch.empty_like(data)
    reading = median_ms(eager_loop_of(device, lambda: read_kernel[(num_blocks,)](sums, data, **READ)), REPEATS)
    assert bool((sums == READ["BLOCK"]).all()), "not everything was read"
    copying = median_ms(eager_loop_of(device, lambda: copied.copy_(data)), REPEATS)
    return 1e3 * data.nbytes / reading, 2e3 * data.nbytes / copying


def _matmul_rate(device: torch.device, size: int, seconds: float) -> float:
    """The rate of the last CALLS products, after products that follow each other for some seconds."""
    a, b = torch.randn((2, size, size), device=device).bfloat16()
    product = torch.empty_like(a)
    loop, deadline = eager_loop_of(device, lambda: torch.mm(a, b, out=product)), time.monotonic() + seconds
    times: list[float] = []
    while not times or time.monotonic() < deadline:
        for _ in range(CALLS):
            loop.replay()
        times = loop.times()
    return 2e3 * size**3 / statistics.median(times)
