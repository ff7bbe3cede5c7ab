"""The part of a cache that a rank has: only its own keys, in blocks of its own.

All other slots are NaN, and the rank's block table leads astray after its last block.
"""

import dataclasses
import math
import random
from typing import Any, NamedTuple

import torch
from attn_contract import Batch, KVCacheView, Layer, UnsupportedError
from attn_contract.layouts import K, V
from attn_fuzz.cases.captures import elements_of_slots
from attn_fuzz.cases.poison import bits, poison
from attn_reference import context_parallel

INTERLEAVES = (1, 1, 2, 3, 16, 64)
NO_BLOCK = (-1, 2**31 - 1)


def interleave(rng: random.Random, layer: Layer) -> int:
    """The number of tokens that a rank is dealt at a time: whole units of a selection."""
    return math.lcm(rng.choice(INTERLEAVES), layer.selection_unit or 1)


class Shard(NamedTuple):
    """One rank's part of a cache: the layer with the rank's scales, its cache, and its block table [R, max_blocks]."""

    layer: Layer
    kv_cache: torch.Tensor
    block_table: torch.Tensor


def shard(kv_cache: torch.Tensor, layer: Layer, batch: Batch, tokens: list[torch.Tensor], rng: random.Random) -> Shard:
    """The keys of a rank in a cache of its own.

    Args:
        tokens: for each request, [local length] int64, which of its keys the rank has.
    """
    assert batch.block_table is not None
    view = layer.view_of(kv_cache)
    counts = [-(-len(own) // view.block_size) for own in tokens]
    blocks = rng.sample(range(sum(counts) + 2), sum(counts))
    table = torch.full((len(counts), max((1, *counts)) + rng.randint(0, 1)), rng.choice(NO_BLOCK), dtype=torch.int32)
    local = KVCacheView.dense(
        view.layout,
        num_blocks=sum(counts) + 2,
        block_size=view.block_size,
        num_kv_heads=view.num_kv_heads,
        head_size=view.head_size,
        head_size_v=view.head_size_v,
        itemsize=view.itemsize,
    )
    device = kv_cache.device
    raw = poison((local.end,), kv_cache.dtype, device)
    scales = {
        name: poison((local.num_blocks, local.block_size, local.num_kv_heads), torch.float32, device)
        for name in ("k_scale_cache", "v_scale_cache")
        if getattr(layer, name) is not None
    }
    source = bits(kv_cache.as_strided((kv_cache.untyped_storage().nbytes() // view.itemsize,), (1,), 0))
    for r, (own, count) in enumerate(zip(tokens, counts, strict=True)):
        table[r, :count] = torch.tensor([blocks.pop() for _ in range(count)], dtype=torch.int32)
        own = own.to(device)
        here = _places(table[r].to(device), torch.arange(len(own), device=device), local.block_size)
        there = _places(batch.block_table[r], own, view.block_size)
        for kv in (K, V):
            bits(raw)[elements_of_slots(local, kv, *here)] = source[elements_of_slots(view, kv, *there)]
        for name, cache in scales.items():
            cache[here] = getattr(layer, name)[there]
    return Shard(dataclasses.replace(layer, **scales), local.tensor(raw), table.to(device))


def _places(block_table: torch.Tensor, tokens: torch.Tensor, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The block and the slot of each token."""
    return block_table[tokens // block_size].long(), tokens % block_size


def refuse_without_a_cache(kv_cache: torch.Tensor | None, layer: Layer) -> None:
    if kv_cache is None:
        raise UnsupportedError("attention over ranks", f"{layer.attn_type} attention", "it has no cache that ranks could share")


def dealt(kv_cache: torch.Tensor, layer: Layer, batch: Batch, dealing: Any, rng: random.Random) -> tuple[Shard, Any]:
    """A rank's part of a cache, and the rank's step. A layer or a step that is refused is refused before anything is made."""
    from attn_optimized import context_parallel as ranks

    ranks.local_layer(layer, dealing)
    ranks.local_step(batch, dealing)
    lengths = batch.seq_lens.tolist()
    of_rank = dealing.rank, dealing.num_ranks, dealing.interleave
    own = shard(kv_cache, layer, batch, [context_parallel.tokens_of_rank(length, *of_rank) for length in lengths], rng)
    return own, ranks.local_step(dataclasses.replace(batch, block_table=own.block_table), dealing)
