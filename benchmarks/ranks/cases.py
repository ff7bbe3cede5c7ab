"""Steps of decode, and the caches that ranks have of them. Every rank makes the same numbers from the same seed."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from attn_contract import Layout
from attn_reference import context_parallel

from benchmarks.speed.calls import LOGIT_STD, Call, attention_call
from benchmarks.speed.cases import Attention

SEED = 0
BLOCK_SIZE = 16


@dataclass(frozen=True)
class Case:
    """A step of attention alone.

    Args:
        interleave: the number of tokens that a rank is dealt at a time.
    """

    attention: Attention
    dtype: torch.dtype = torch.bfloat16
    interleave: int = BLOCK_SIZE

    @property
    def name(self) -> str:
        return self.attention.name

    @property
    def num_heads(self) -> int:
        return self.attention.num_heads

    @property
    def cache_bytes(self) -> int:
        return cache_bytes(self.attention, self.dtype)


def cache_bytes(attention: Attention, dtype: torch.dtype) -> int:
    row = attention.head_size + (0 if attention.is_latent else attention.v_head_size)
    return sum(attention.seq_lens) * attention.num_kv_heads * row * dtype.itemsize


_GQA: dict[str, Any] = {"num_heads": 64, "num_kv_heads": 8}
_MLA: dict[str, Any] = {"num_heads": 128, "num_kv_heads": 1, "head_size": 576, "head_size_v": 512, "layout": Layout.LATENT}
_SMALL: dict[str, Any] = {"num_heads": 8, "num_kv_heads": 2}


def step(
    name: str,
    requests: int,
    seq_len: int,
    query_len: int = 1,
    *,
    dtype: torch.dtype = torch.bfloat16,
    interleave: int = BLOCK_SIZE,
    uneven: bool = False,
    **sizes: Any,
) -> Case:
    """A case of requests of one length; with `uneven` each is 37 keys shorter than the one before, so that shards differ."""
    seq_lens = tuple(max(1, seq_len - (37 * r if uneven else 0)) for r in range(requests))
    attention = Attention(name=name, query_lens=(query_len,) * requests, seq_lens=seq_lens, block_size=BLOCK_SIZE, **sizes)
    return Case(attention, dtype, interleave)


CHECKS = (
    step("float32, one token at a time", 5, 300, dtype=torch.float32, interleave=1, uneven=True, **_SMALL),
    step("float32, drafts", 7, 200, 3, dtype=torch.float32, interleave=3, uneven=True, **_SMALL),
    step("float32, a prefill", 1, 130, 130, dtype=torch.float32, interleave=16, **_SMALL),
    step("float32, empty shards", 9, 5, dtype=torch.float32, interleave=64, **_SMALL),
)
"""Small steps of float32, whose error is told from a wrong key or a wrong weight."""
TIMED = (
    step("1 request of 1M keys", 1, 1 << 20, **_GQA),
    step("8 requests of 128K keys", 8, 1 << 17, **_GQA),
    step("8 requests of 128K keys, 4 drafts", 8, 1 << 17, 4, **_GQA),
    step("64 requests of 8K keys", 64, 1 << 13, **_GQA),
    step("64 requests of 1K keys", 64, 1 << 10, **_GQA),
    step("8 requests of 128K keys, one token at a time", 8, 1 << 17, interleave=1, **_GQA),
    step("MLA, 1 request of 512K keys", 1, 1 << 19, **_MLA),
    step("MLA, 8 requests of 128K keys", 8, 1 << 17, **_MLA),
    step("MLA, 64 requests of 8K keys", 64, 1 << 13, **_MLA),
)
TINY = (step("4 requests of 60 keys", 4, 60, head_size=16, dtype=torch.float32, interleave=4, **_SMALL),)


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
