"""The backend TRITON_MLA over ranks that are processes: whole steps through the builder, and writes of a rank's own tokens.

Each rank has a part of the heads, and of the keys. What all ranks return is judged against the undivided reference.
"""

import dataclasses
import functools
from typing import Any, NamedTuple, get_args

import torch
from attn_contract import Batch, Layer
from attn_fuzz.targets.backends.layers import common_metadata
from attn_fuzz.targets.backends.mla import (
    MlaStep,
    Weights,
    attend_phases,
    builder_options,
    invariant_by,
    options_of_layer,
    own_rows,
    phases,
    rounding,
    support,
    weights_of,
)
from attn_fuzz.targets.ranks.attend_over_ranks import MAX_RANKS, TRITON_OVER_RANKS, on_all_ranks
from attn_fuzz.targets.ranks.processes import TIMEOUT
from attn_fuzz.targets.ranks.shards import INTERLEAVES, Shard, shard
from attn_fuzz.targets.rng import rng_of, rng_of_call
from attn_fuzz.targets.support import Support
from attn_reference import context_parallel


class RankStep(NamedTuple):
    """A step of one rank.

    Args:
        q: [T, N, Lkv + R], absorbed, of this rank's heads.
        latent: [T, Lkv + R], this step's rows.
        own: this rank's part of the cache, with all of its tokens.
        weights: the weights of this rank's heads.
        common: the step as an engine makes it. Its `slot_mapping` has the slots of this rank's tokens.
        builder, options: arguments of the builder, and of the layer.
    """

    q: torch.Tensor
    latent: torch.Tensor
    own: Shard
    weights: Weights
    common: Any
    builder: dict[str, Any]
    options: dict[str, Any]


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse, batch_invariant=False) -> None:
    results = on_all_ranks(_attend, _steps(q, kv_cache, layer, batch, batch_invariant=batch_invariant))
    outs, lses = zip(*results, strict=True)
    by_head, of_heads = torch.cat(outs, dim=1), torch.cat(lses)
    rows = int(batch.query_start_loc[-1])
    # what was written to a row that no request owns is not NaN any more, and is not to be hidden
    rows_written = by_head.isfinite().any(2).any(1)
    rows_written[:rows] = True
    out.view(len(out), layer.num_heads, layer.v_head_size)[rows_written] = by_head[rows_written]
    if lse is not None:
        lse[:, rows_written] = of_heads[:, rows_written]


def _steps(q: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, batch: Batch, *, batch_invariant: bool) -> list[RankStep]:
    """The step of each rank. The steps of a batch-invariant layer have the same ranks and chunks, as an engine has them."""
    from attn_optimized.context_parallel import Dealing, Exchange, local_layer

    rng = rng_of_call(q, batch)
    fixed = rng_of((layer.num_heads, layer.scale)) if batch_invariant else rng
    num_ranks = fixed.choice([count for count in range(1, MAX_RANKS + 1) if layer.num_heads % count == 0])
    interleave = fixed.choice(INTERLEAVES)
    exchange = "all_to_all" if batch_invariant else rng.choice(get_args(Exchange))
    options_of = options_of_layer if batch_invariant else builder_options
    options = {
        "exchange": exchange,
        "batch_invariant": batch_invariant or (exchange == "all_to_all" and rng.random() < 0.5),
        "validate": rng.random() < 0.5,
    }
    latent, of_layer = own_rows(q, kv_cache, layer, batch), weights_of(layer, q)
    steps = []
    for rank in range(num_ranks):
        dealt = rank, num_ranks, interleave
        dealing = Dealing(num_ranks=num_ranks, rank=rank, interleave=interleave)
        local_layer(layer, dealing)  # a layer that is refused has no parts: those of several tokens a key have fewer blocks
        tokens = [context_parallel.tokens_of_rank(length, *dealt) for length in batch.seq_lens.tolist()]
        own = shard(kv_cache, layer, batch, tokens, rng)
        slots = _slots(own, batch, len(q), dealt)
        local = dataclasses.replace(batch, block_table=own.block_table, slot_mapping=slots)
        heads = slice(layer.num_heads // num_ranks * rank, layer.num_heads // num_ranks * (rank + 1))
        builder = {**options_of(layer, batch), "dealing": dealing}
        common = common_metadata(local, layer.attn_type)
        steps.append(RankStep(q[:, heads], latent, own, of_layer.of_heads(heads), common, builder, options))
    return steps


def _slots(own: Shard, batch: Batch, num_rows: int, dealt: tuple[int, int, int]) -> torch.Tensor:
    """[T] int64: where a rank writes each row's token; -1 if it is another rank's, or none."""
    slots = torch.full((num_rows,), -1, dtype=torch.int64)
    ends, query_lens = batch.query_start_loc[1:].tolist(), batch.query_start_loc.diff().tolist()
    for r, (end, query_len, seq_len) in enumerate(zip(ends, query_lens, batch.seq_lens.tolist(), strict=True)):
        new = min(query_len, seq_len)
        positions = torch.arange(seq_len - new, seq_len)
        slots[end - new : end] = context_parallel.local_slots(positions, own.block_table[r], own.kv_cache.shape[1], *dealt)
    return slots


def _attend(
    group: Any,
    q: torch.Tensor,
    latent: torch.Tensor,
    own: Shard,
    weights: Weights,
    common: Any,
    builder: dict[str, Any],
    options: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor]:
    """One rank's step, in its process: it writes this step's tokens, and attends."""
    from attn_optimized.backends import BACKENDS

    backend: Any = BACKENDS["TRITON_MLA"].over_ranks()
    layer = dataclasses.replace(own.layer, num_heads=q.shape[1])
    impl = backend.impl(
        layer,
        group=group,
        dtype=q.dtype,
        block_size=own.kv_cache.shape[1],
        kv_b_proj=weights.kv_b_proj,
        v_head_dim=weights.v_head_dim,
        timeout=TIMEOUT,
        **options,
    )
    kv_c, k_pe = latent.tensor_split((layer.v_head_size,), dim=1)
    if layer.kv_cache_dtype is None:  # rounded again, a number may be another one
        slots = common.slot_mapping
        own.kv_cache.flatten(0, 1)[slots[slots >= 0]] = torch.nan
        impl.do_kv_cache_update(kv_c, k_pe, own.kv_cache, slots)
    out = q.new_full((*q.shape[:2], layer.v_head_size), torch.nan)
    lse = torch.full((q.shape[1], len(q)), torch.nan)
    metadata = backend.builder(layer.attn_type, **builder).build(common)
    attend_phases(impl, MlaStep(metadata, weights, q, latent, own.kv_cache, out, lse))
    return out, lse


def _support(device: str) -> Support:
    latent = support(device).latent
    sizes = {"max_tokens": 16, "max_seq_len": 128}
    return dataclasses.replace(
        support(device), latent=dataclasses.replace(latent, group_sizes=(6, 1, 12, 16)), long_seq_len=None, **sizes
    )


BACKEND_TRITON_MLA_OVER_RANKS = dataclasses.replace(
    TRITON_OVER_RANKS,
    name="backend-triton-mla-over-ranks",
    description="the backend TRITON_MLA over ranks that are processes: whole steps by gloo, with writes of a rank's own tokens",
    attention=_attention,
    support=_support,
    rounding=rounding,
    events=phases,
    sanitizes=False,
    exact=False,
    modes={"invariant": invariant_by(functools.partial(_attention, batch_invariant=True))},
)
