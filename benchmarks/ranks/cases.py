"""Steps of decode, and the caches that ranks have of them. Every rank makes the same numbers from the same seed."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from attn_contract import Batch, Layer, Layout
from attn_reference import context_parallel

SEED = 0
BLOCK_SIZE = 16


class Sizes(Protocol):
    """What the tensors of a step are made of."""

    @property
    def query_lens(self) -> Sequence[int]: ...
    @property
    def seq_lens(self) -> Sequence[int]: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_size(self) -> int: ...
    @property
    def head_size_v(self) -> int | None: ...
    @property
    def scale(self) -> float: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def interleave(self) -> int: ...


@dataclass(frozen=True)
class Case:
    """A step of attention alone.

    Args:
        seq_len: keys of each request; `uneven` lowers them, one by one more, so that shards are of unlike lengths.
        head_size_v: the width of V in a latent cache (MLA); None: K and V are stored apart.
        interleave: how many tokens a rank is dealt at a time.
    """

    name: str
    requests: int
    seq_len: int
    query_len: int = 1
    num_heads: int = 64
    num_kv_heads: int = 8
    head_size: int = 128
    head_size_v: int | None = None
    dtype: torch.dtype = torch.bfloat16
    interleave: int = BLOCK_SIZE
    uneven: bool = False

    @property
    def scale(self) -> float:
        return self.head_size**-0.5

    @property
    def query_lens(self) -> list[int]:
        return [self.query_len] * self.requests

    @property
    def seq_lens(self) -> list[int]:
        return [max(1, self.seq_len - (37 * r if self.uneven else 0)) for r in range(self.requests)]

    @property
    def cache_bytes(self) -> int:
        rows = 2 if self.head_size_v is None else 1
        return rows * sum(self.seq_lens) * self.num_kv_heads * self.head_size * self.dtype.itemsize


CHECKS = (
    Case("float32, one token at a time", 5, 300, num_heads=8, num_kv_heads=2, dtype=torch.float32, interleave=1, uneven=True),
    Case("float32, drafts", 7, 200, 3, num_heads=8, num_kv_heads=2, dtype=torch.float32, interleave=3, uneven=True),
    Case("float32, a prefill", 1, 130, 130, num_heads=8, num_kv_heads=2, dtype=torch.float32, interleave=16),
    Case("float32, empty shards", 9, 5, num_heads=8, num_kv_heads=2, dtype=torch.float32, interleave=64),
)
"""Small steps of float32, whose error is told from a wrong key or a wrong weight."""
TIMED = (
    Case("1 request of 1M keys", 1, 1 << 20),
    Case("8 requests of 128K keys", 8, 1 << 17),
    Case("8 requests of 128K keys, 4 drafts", 8, 1 << 17, 4),
    Case("64 requests of 8K keys", 64, 1 << 13),
    Case("64 requests of 1K keys", 64, 1 << 10),
    Case("8 requests of 128K keys, one token at a time", 8, 1 << 17, interleave=1),
    Case("MLA, 1 request of 512K keys", 1, 1 << 19, num_heads=128, num_kv_heads=1, head_size=576, head_size_v=512),
    Case("MLA, 8 requests of 128K keys", 8, 1 << 17, num_heads=128, num_kv_heads=1, head_size=576, head_size_v=512),
    Case("MLA, 64 requests of 8K keys", 64, 1 << 13, num_heads=128, num_kv_heads=1, head_size=576, head_size_v=512),
)
TINY = (Case("4 requests of 60 keys", 4, 60, num_heads=8, num_kv_heads=2, head_size=16, dtype=torch.float32, interleave=4),)


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of paged attention."""

    q: torch.Tensor
    kv_cache: torch.Tensor
    layer: Layer
    batch: Batch


def whole_call(case: Sizes, device: torch.device) -> Call:
    """The step on one device. The blocks of a request lie in a row: how blocks are shuffled is no subject here."""
    generator = torch.Generator(device).manual_seed(SEED)
    counts = [-(-length // BLOCK_SIZE) for length in case.seq_lens]
    table = torch.zeros(len(counts), max(counts), dtype=torch.int32)
    first = 0
    for row, count in zip(table, counts, strict=True):
        row[:count] = torch.arange(first, first + count)
        first += count
    is_latent = case.head_size_v is not None
    row = (BLOCK_SIZE, case.head_size) if is_latent else (2, BLOCK_SIZE, case.num_kv_heads, case.head_size)
    kv_cache = torch.randn((first, *row), generator=generator, device=device, dtype=case.dtype)
    starts = [0, *itertools.accumulate(case.query_lens)]
    num_rows = starts[-1]
    q = torch.randn(num_rows, case.num_heads, case.head_size, generator=generator, device=device, dtype=case.dtype)
    layer = Layer(
        num_heads=case.num_heads,
        num_kv_heads=case.num_kv_heads,
        head_size=case.head_size,
        scale=case.scale,
        head_size_v=case.head_size_v,
        layout=Layout.LATENT if is_latent else Layout.BLOCKS_FIRST_NHD,
    )
    batch = Batch(
        query_start_loc=torch.tensor(starts, dtype=torch.int32, device=device),
        seq_lens=torch.tensor(case.seq_lens, dtype=torch.int32, device=device),
        max_query_len=max(case.query_lens),
        max_seq_len=max(case.seq_lens),
        num_actual_tokens=num_rows,
        causal=True,
        block_table=table.to(device),
    )
    return Call(q, kv_cache, layer, batch)


def local_call(case: Sizes, whole: Call, rank: int, num_ranks: int) -> Call:
    """What a rank has of a step: the queries of its heads, its keys, and its block table."""
    device, dealing = whole.q.device, (num_ranks, case.interleave)
    lengths = [context_parallel.local_length(length, rank, *dealing) for length in case.seq_lens]
    counts = [-(-length // BLOCK_SIZE) for length in lengths]
    table = torch.zeros(len(counts), max(1, *counts), dtype=torch.int32)
    kv_cache = whole.kv_cache.new_zeros((max(1, sum(counts)), *whole.kv_cache.shape[1:]))
    assert whole.batch.block_table is not None
    first = 0
    for r, (length, count) in enumerate(zip(case.seq_lens, counts, strict=True)):
        table[r, :count] = torch.arange(first, first + count)
        tokens = context_parallel.tokens_of_rank(length, rank, *dealing).to(device)
        blocks = whole.batch.block_table[r].long()[tokens // BLOCK_SIZE]
        local = first * BLOCK_SIZE + torch.arange(len(tokens), device=device)
        by_slot, all_by_slot = (_slots_second(cache, case) for cache in (kv_cache, whole.kv_cache))
        by_slot[local // BLOCK_SIZE, local % BLOCK_SIZE] = all_by_slot[blocks, tokens % BLOCK_SIZE]
        first += count
    heads = case.num_heads // num_ranks
    q = whole.q[:, rank * heads : (rank + 1) * heads].contiguous()
    return Call(q, kv_cache, whole.layer, replace(whole.batch, block_table=table.to(device)))


def _slots_second(kv_cache: torch.Tensor, case: Sizes) -> torch.Tensor:
    """The cache with its blocks and their slots as its first dimensions."""
    return kv_cache.transpose(1, 2) if case.head_size_v is None else kv_cache
