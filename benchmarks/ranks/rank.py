"""What each rank runs: it makes its part of each case, checks the ranks' output against one device's, and times both."""

import os
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import torch
import torch.distributed as dist

from benchmarks.ranks.cases import Case, local_call, whole_call

REPLAYS, WARM_UP = 40, 5
TIMEOUT = timedelta(seconds=120)


@dataclass
class Found:
    """What rank 0 reports of a case. Times are milliseconds a step, the median over replays of the slowest rank.

    Args:
        one_device: `paged_attention` of the whole step on one device, replayed as a CUDA graph.
        exchanges: by the exchange and how it was run ("graph" or "eager").
        error: by the exchange, the difference from one device's output, as a share of `allowed`.
    """

    name: str
    cache_gigabytes: float
    one_device: float | None
    exchanges: dict[str, float]
    error: dict[str, float]
    problem: str | None = None


def main(rank: int, num_ranks: int, folder: Path, device_type: str, checks: list[Case], timed: list[Case]) -> None:
    """Run the cases and have rank 0 write a JSON line after each."""
    import json

    device = torch.device(device_type, rank) if device_type == "cuda" else torch.device("cpu")
    if device_type == "cuda":
        torch.cuda.set_device(device)
    else:
        _interpret()
    backend = "nccl" if device_type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=num_ranks, timeout=TIMEOUT)
    group = dist.group.WORLD
    assert group is not None
    with (folder / f"{rank}.jsonl").open("w") as lines:
        for case in (*checks, *timed):
            found = Found(case.name, case.cache_bytes / 1e9, None, {}, {})
            try:
                _run(case, group, device, found, is_timed=case in timed)
            except Exception:
                found.problem = traceback.format_exc()
            lines.write(json.dumps(asdict(found)) + "\n")
            lines.flush()
            if found.problem:
                os._exit(1)  # the other ranks may wait for this one: their timeout ends them
    dist.destroy_process_group()


def _interpret() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    from attn_fuzz.interpreted.interpreter import install

    install()


def _run(case: Case, group: dist.ProcessGroup, device: torch.device, found: Found, *, is_timed: bool) -> None:
    """Add to `found` as it is found."""
    from attn_optimized import paged_attention
    from attn_optimized.context_parallel import Dealing, Exchange, attend_over_ranks, local_step

    whole = whole_call(case, device)
    own = local_call(case, whole, group.rank(), group.size())
    step = local_step(own.batch, Dealing(num_ranks=group.size(), rank=group.rank(), interleave=case.interleave))
    expected = paged_attention(whole.q, whole.kv_cache, whole.layer, whole.batch)
    heads = case.num_heads // group.size()
    expected = expected[:, group.rank() * heads : (group.rank() + 1) * heads]
    for exchange in get_args(Exchange):

        def attend(exchange: Any = exchange, compare: bool = False) -> Any:
            return attend_over_ranks(group, own.q, own.kv_cache, own.layer, step, exchange=exchange, compare=compare)

        out = attend(compare=True).out
        difference = (out.double() - expected.double()).norm() / expected.double().norm()
        found.error[exchange] = float(difference) / allowed(case)
        if is_timed:
            found.exchanges[f"{exchange}, eager"] = _slowest(_eager_ms(attend, device), group, device)
            if device.type == "cuda":
                found.exchanges[f"{exchange}, graph"] = _slowest(_graph_ms(attend), group, device)
    if is_timed:
        alone = lambda: paged_attention(whole.q, whole.kv_cache, whole.layer, whole.batch)  # noqa: E731
        found.one_device = _graph_ms(alone) if device.type == "cuda" else _eager_ms(alone, device)
        dist.barrier(group=group)


def allowed(case: Case) -> float:
    """How far two right outputs may be apart, relative to their Euclidean norm: see `benchmarks.speed.check`.

    Each rounds its weights and its output to 16 bits, and the ranks round their outputs once more. In float32 the logits' own
    roundings count more than those.
    """
    eps = torch.finfo(case.dtype).eps
    return 64 * eps if case.dtype == torch.float32 else 3 * eps


def _graph_ms(run: Callable[[], Any]) -> float:
    """Every rank captures and replays equally often: collectives wait for each other."""
    for _ in range(WARM_UP):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # thread_local: NCCL's watchdog asks for events in a thread of its own
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        run()
    return _event_ms(graph.replay)


def _eager_ms(run: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        return _event_ms(run)
    started = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - started)


def _event_ms(run: Callable[[], Any]) -> float:
    for _ in range(WARM_UP):
        run()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(REPLAYS)]
    for start, end in events:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events)


def _slowest(ms: float, group: dist.ProcessGroup, device: torch.device) -> float:
    slowest = torch.tensor(ms, device=device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX, group=group)
    return float(slowest)
