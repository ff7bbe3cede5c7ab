"""A step of paged attention as one device has it, and as ranks that share its keys do.

Every rank makes the same numbers from the same seed.
"""

from dataclasses import replace

import torch
from attn_reference import context_parallel

from benchmarks.steps.calls import LOGIT_STD, Call, attention_call
from benchmarks.steps.cases import Attention

SEED = 0
BLOCK_SIZE = 16


def cache_bytes(attention: Attention, dtype: torch.dtype) -> int:
    row = attention.head_size + (0 if attention.is_latent else attention.v_head_size)
    return sum(attention.seq_lens) * attention.num_kv_heads * row * dtype.itemsize


def whole_call(attention: Attention, dtype: torch.dtype, device: torch.device) -> Call:
    """The step on one device."""
    call = attention_call(attention, device, SEED, dtype=dtype)
    return replace(call, q=call.q / LOGIT_STD)


def local_call(interleave: int, whole: Call, rank: int, num_ranks: int) -> Call:
    """A rank's part of a step: the queries of its heads, its keys, and its block table."""
    case, device, dealing = whole.case, whole.q.device, (num_ranks, interleave)
    lengths = [context_parallel.local_length(length, rank, *dealing) for length in case.seq_lens]
    counts = [-(-length // BLOCK_SIZE) for length in lengths]
    table = torch.zeros(len(counts), max(1, *counts), dtype=torch.int32)
    kv_cache = whole.cache.new_zeros((max(1, sum(counts)), *whole.cache.shape[1:]))
    assert whole.batch.block_table is not None
    first = 0
    for r, (length, count) in enumerate(zip(case.seq_lens, counts, strict=True)):
        table[r, :count] = torch.arange(first, first + count)
        tokens = context_parallel.tokens_of_rank(length, rank, *dealing).to(device)
        blocks = whole.batch.block_table[r].long()[tokens // BLOCK_SIZE]
        local = first * BLOCK_SIZE + torch.arange(len(tokens), device=device)
        by_slot, all_by_slot = (_slots_second(cache, case) for cache in (kv_cache, whole.cache))
        by_slot[local // BLOCK_SIZE, local % BLOCK_SIZE] = all_by_slot[blocks, tokens % BLOCK_SIZE]
        first += count
    heads = case.num_heads // num_ranks
    q = whole.q[:, rank * heads : (rank + 1) * heads].contiguous()
    return replace(whole, q=q, kv_cache=kv_cache, batch=replace(whole.batch, block_table=table.to(device)))


def _slots_second(kv_cache: torch.Tensor, case: Attention) -> torch.Tensor:
    """The cache with its blocks and their slots as its first dimensions."""
    return kv_cache if case.is_latent else kv_cache.transpose(1, 2)
