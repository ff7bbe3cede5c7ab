"""Attention over ranks that are processes: `attend_over_ranks`, its comparison of calls, both exchanges and its merges.

Each rank has a part of the heads of q, and gets the outputs of these heads. What the ranks return is judged against the
undivided reference.
"""

import dataclasses
import functools
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args

import torch
from attn_contract import Batch, ContractError, Layer, UnsupportedError
from attn_fuzz.exact import followed_call
from attn_fuzz.extras import triton_unavailable
from attn_fuzz.targets.ranks.local_calls import TRITON_RANKS
from attn_fuzz.targets.ranks.processes import TIMEOUT, RankProcesses
from attn_fuzz.targets.ranks.shards import Shard, dealt, interleave, refuse_without_a_cache
from attn_fuzz.targets.rng import rng_of_call
from attn_fuzz.targets.rows import rows_of
from attn_fuzz.targets.triton import TRITON

MAX_RANKS = 3


class RankCall(NamedTuple):
    """The call of one rank: its heads of q, its part of the cache, its step, and options of `attend_over_ranks`."""

    q: torch.Tensor
    own: Shard
    step: Any
    options: dict[str, Any]


@functools.cache
def _processes() -> RankProcesses:
    from attn_optimized.context_parallel import RanksError

    return RankProcesses(MAX_RANKS, (ContractError, UnsupportedError, RanksError))


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    refuse_without_a_cache(kv_cache, layer)
    rng = rng_of_call(q, batch)
    results = on_all_ranks(_attend, _calls(q, kv_cache, layer, batch, out.dtype, rng))
    rows = int(batch.query_start_loc[-1])
    by_head, of_heads = torch.cat([own for own, _ in results], dim=1), torch.cat([own for _, own in results])
    # rows that no request owns have an output of 0 and an LSE of -inf: what breaks that is not to be hidden
    is_shown = (by_head.float() != 0).flatten(1).any(1) | (of_heads != -torch.inf).any(0)
    is_shown[:rows] = True
    rows_of(out, layer, len(out))[is_shown] = by_head[is_shown]
    if lse is not None:
        lse[:, is_shown] = of_heads[:, is_shown]


def _calls(q, kv_cache, layer: Layer, batch: Batch, out_dtype: torch.dtype, rng: random.Random) -> list[RankCall]:
    from attn_optimized.context_parallel import Dealing, Exchange

    num_ranks = rng.choice([count for count in range(1, MAX_RANKS + 1) if layer.num_heads % count == 0])
    numbers = {"num_ranks": num_ranks, "interleave": interleave(rng, layer)}
    options = {"exchange": rng.choice(get_args(Exchange)), "compare": rng.random() < 0.5}
    if layer.output_scale is not None:
        options["out_dtype"] = out_dtype
    if rng.random() < 0.5:
        options["attention"] = _attention_of_another_library
    calls = []
    for rank, heads in enumerate(q.chunk(num_ranks, dim=1)):
        calls.append(RankCall(heads, *dealt(kv_cache, layer, batch, Dealing(**numbers, rank=rank), rng), options))
    return calls


def on_all_ranks(
    function: Callable[..., tuple[torch.Tensor, torch.Tensor]], calls: Sequence[tuple[Any, ...]]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The results of `function(group, *call)` on each rank, in its process.

    Raises:
        ContractError, UnsupportedError: a rank's, which is no other rank's.
        NotCarriedError: the call is followed in exact mode, which no process of a rank is.
    """
    followed_call.refuse("what processes of ranks compute")
    try:
        results = _processes().call(function, calls)
    except BaseException:
        _processes().close()
        _processes.cache_clear()
        raise
    errors = [result for result in results if isinstance(result, Exception)]
    if not errors:
        return results
    raise min(errors, key=lambda error: not isinstance(error, ContractError | UnsupportedError))


def _attend(group: Any, q: torch.Tensor, own: Shard, step: Any, options: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """One rank's call, in its process."""
    from attn_optimized.context_parallel import attend_over_ranks

    out, lse = attend_over_ranks(group, q, own.kv_cache, own.layer, step, **{"timeout": TIMEOUT, **options})
    return out, lse


def _attention_of_another_library(*arguments: Any, lse: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Attention as another library may do it: where a rank has no key, its LSE is +inf or NaN, and its output NaN."""
    import attn_optimized

    out = attn_optimized.paged_attention(*arguments, out=out, lse=lse)
    is_empty = lse == -torch.inf
    lse[::2].masked_fill_(is_empty[::2], torch.inf)
    lse[1::2].masked_fill_(is_empty[1::2], torch.nan)
    return out.masked_fill_(is_empty.T[..., None], torch.nan)


def _forget() -> None:
    """Drop what is kept between calls, here and in the processes of ranks."""
    TRITON.forget()
    if _processes.cache_info().currsize:
        _processes().call(_forget_on_rank, [()] * MAX_RANKS)


def _forget_on_rank(group: Any) -> None:
    TRITON.forget()


def unavailable(device: str) -> str | None:
    return triton_unavailable(device) or ("its ranks are processes on a CPU, which meet by gloo" if device != "cpu" else None)


TRITON_OVER_RANKS = dataclasses.replace(
    TRITON_RANKS,
    name="triton-over-ranks",
    description="the Triton kernels over ranks that are processes: attend_over_ranks by gloo, both exchanges",
    attention=_attention,
    unavailable=unavailable,
    checks_arguments=False,
    forget=_forget,
    repeats=False,  # the network may add in any order
    modules=None,  # launches are emulated and planned in this process, and its ranks are others
    modes={},
    planned=None,
)
