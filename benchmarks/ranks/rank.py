"""The process of a rank: it makes its part of each case, checks the ranks' output against one device's, and times both."""

import json
import math
import signal
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
import torch.distributed as dist

from benchmarks.measuring.clock import GraphLoop, eager_loop_of, host_us, median_ms
from benchmarks.measuring.device import interpret
from benchmarks.ranks.cases import AttentionCase
from benchmarks.ranks.results import ONE, RanksCase
from benchmarks.steps import latent_steps
from benchmarks.steps.latent_steps import LatentCase
from benchmarks.steps.ranks import local_call, whole_call

REPLAYS, BUILDS = 40, 5
TIMEOUT = timedelta(seconds=120)


def main(
    rank: int,
    num_ranks: int,
    folder: Path,
    file: Path,
    device_type: str,
    checks: list[AttentionCase | LatentCase],
    timed: list[AttentionCase | LatentCase],
) -> None:
    """Run the cases. Rank 0 adds a JSON line to a file after each. `folder` is where the ranks meet."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all ranks; the process that started this one ends it
    device = torch.device(device_type, rank) if device_type == "cuda" else torch.device("cpu")
    if device_type == "cuda":
        torch.cuda.set_device(device)
    else:
        interpret()
    backend = "nccl" if device_type == "cuda" else "gloo"
    torch.set_num_threads(1)  # as engines start their workers: all threads of all ranks would fight for the CPUs
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=num_ranks, timeout=TIMEOUT)
    group = dist.group.WORLD
    assert group is not None
    for case in (*checks, *timed):
        found = _found(case, group, device, is_timed=case in timed)
        if rank == 0:
            with file.open("a") as lines:
                lines.write(json.dumps(asdict(found)) + "\n")
    dist.destroy_process_group()


class Way(NamedTuple):
    """One way to make a case's output.

    Args:
        run: makes [T, H / N, D], the output of this rank's heads. The argument says whether ranks compare their calls first.
        build: makes the metadata of a step.
        captures: True if a CUDA graph can hold `run`.
    """

    run: Callable[[bool], torch.Tensor]
    build: Callable[[], Any] | None = None
    captures: bool = True


Ways = dict[str, Way]  # by name


def _found(case: AttentionCase | LatentCase, group: dist.ProcessGroup, device: torch.device, *, is_timed: bool) -> RanksCase:
    found = RanksCase(case.name, case.cache_bytes / 1e9)
    ways_of = partial(_ways_of_step, case) if isinstance(case, LatentCase) else partial(_ways_of_attention, case)
    expected, ways = ways_of(group, device)
    for name, way in ways.items():
        error = difference_of_rows(way.run(True), expected) / allowed(case)
        found.error[name] = _largest(error if math.isfinite(error) else math.inf, group, device)
        if is_timed:
            run = partial(way.run, False)
            replays = REPLAYS if device.type == "cuda" else 1
            found.eager[name] = _largest(median_ms(eager_loop_of(device, run), replays), group, device)
            if way.captures and device.type == "cuda":
                found.graph[name] = _largest(median_ms(GraphLoop([run], replay_ms=0.0), replays), group, device)
            if way.build is not None:
                found.build[name] = _largest(host_us(way.build, batches=BUILDS, calls=1) / 1e3, group, device)
    return found


def _ways_of_attention(case: AttentionCase, group: dist.ProcessGroup, device: torch.device) -> tuple[torch.Tensor, Ways]:
    from attn_optimized import paged_attention
    from attn_optimized.context_parallel import Dealing, Exchange, attend_over_ranks, local_step

    whole = whole_call(case.attention, case.dtype, device)
    own = local_call(case.interleave, whole, group.rank(), group.size())
    step = local_step(own.batch, Dealing(num_ranks=group.size(), rank=group.rank(), interleave=case.interleave))
    heads = own_heads(case, group)

    def alone(compare: bool) -> torch.Tensor:
        return paged_attention(whole.q, whole.cache, whole.layer, whole.batch)[:, heads]

    def attend(exchange: Exchange, compare: bool) -> torch.Tensor:
        return attend_over_ranks(group, own.q, own.cache, own.layer, step, exchange=exchange, compare=compare).out

    over_ranks = {exchange: Way(partial(attend, exchange)) for exchange in get_args(Exchange)}
    return alone(False), {ONE: Way(alone), **over_ranks}


def _ways_of_step(case: LatentCase, group: dist.ProcessGroup, device: torch.device) -> tuple[torch.Tensor, Ways]:
    """Through the backend, and by `attend_over_ranks` alone, to which each query of a prefill is a request of its own.

    What is expected is absorbed attention to the whole cache.
    """
    from attn_optimized import paged_attention
    from attn_optimized.backends import BACKENDS
    from attn_optimized.context_parallel import Dealing, Exchange, attend_over_ranks, local_step

    dealing = Dealing(num_ranks=group.size(), rank=group.rank(), interleave=case.interleave)
    undivided, divided = BACKENDS["TRITON_MLA"], BACKENDS["TRITON_MLA"].over_ranks()
    whole = latent_steps.whole_step(case, device)
    own = latent_steps.local_step_of(case, whole, group.rank(), group.size())
    heads, call = own_heads(case, group), whole.absorbed
    latent = paged_attention(call.q, call.cache, call.layer, call.batch)[:, heads].contiguous()
    expected = latent_steps.up_projected(case, latent, own.kv_b_proj)
    for step in (whole, own):
        latent_steps.forget(step)
    build_whole = latent_steps.built(case, whole, undivided)
    build_own = latent_steps.built(case, own, divided, dealing=dealing)
    build_rows = partial(local_step, own.absorbed.batch, dealing)
    layer, metadata, own_metadata, by_row = (
        latent_steps.layer_of(case, whole, undivided),
        build_whole(),
        build_own(),
        build_rows(),
    )

    def alone(compare: bool) -> torch.Tensor:
        return latent_steps.through_layer(case, whole, layer, metadata)[:, heads]

    def through_backend(layers: tuple[Any, Any], compare: bool) -> torch.Tensor:
        return latent_steps.through_layer(case, own, layers[compare], own_metadata)

    def through_function(exchange: Exchange, compare: bool) -> torch.Tensor:
        def attend(q: torch.Tensor) -> torch.Tensor:
            cache, layer = own.absorbed.cache, own.absorbed.layer
            return attend_over_ranks(group, q, cache, layer, by_row, exchange=exchange, compare=compare).out

        return latent_steps.through_function(case, own, attend)

    captures = not case.has_prefill
    ways = {ONE: Way(alone, build_whole, captures)}
    for exchange in get_args(Exchange):
        options = {"group": group, "exchange": exchange}
        layers = tuple(latent_steps.layer_of(case, own, divided, validate=compare, **options) for compare in (False, True))
        ways[f"TRITON_MLA, {exchange}"] = Way(partial(through_backend, layers), build_own, captures)
        ways[f"attend_over_ranks, {exchange}"] = Way(partial(through_function, exchange), build_rows)
    return expected, ways


def own_heads(case: AttentionCase | LatentCase, group: dist.ProcessGroup) -> slice:
    """The heads of this rank."""
    heads = case.num_heads // group.size()
    return slice(group.rank() * heads, (group.rank() + 1) * heads)


def difference_of_rows(out: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference of a row, relative to its Euclidean norm."""
    out, expected = (rows.double().flatten(1) for rows in (out, expected))
    difference = (out - expected).norm(dim=1)
    # rows without a key are 0
    return float(torch.where(difference == 0, 0, difference / expected.norm(dim=1)).max())


def allowed(case: AttentionCase | LatentCase) -> float:
    """The largest distance of two right outputs, relative to their Euclidean norm: see `benchmarks.measuring.check`.

    Both computations round their weights and their outputs to 16 bits, and the ranks round outputs once more. In float32 the
    roundings of the logits count more than those.
    """
    eps = torch.finfo(case.dtype).eps
    return 64 * eps if case.dtype == torch.float32 else 3 * eps


def _largest(number: float, group: dist.ProcessGroup, device: torch.device) -> float:
    """The largest number of all ranks."""
    largest = torch.tensor(number, device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    return float(largest)
