"""The keys of requests one after the other, as some functions take them."""

import itertools
from typing import NamedTuple

import torch
from attn_contract import Batch, Indexer
from attn_contract.layouts import BYTES_OF_SCALE
from attn_reference.indexer import request_rows


class GatheredKeys(NamedTuple):
    """The index keys of all requests, one after the other, as engines gather them for a prefill.

    Attributes:
        codes: [keys, D], as they are stored.
        scales: [keys] float32.
        starts, ends: [T] int32: the keys that each row sees are `[starts, ends)`; of rows of no request 0 and 0.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    starts: torch.Tensor
    ends: torch.Tensor


def gathered_keys(index_cache: torch.Tensor, indexer: Indexer, batch: Batch, rows: int) -> GatheredKeys:
    """Gather the keys of a cache with scales for `rows` rows of q."""
    assert batch.block_table is not None
    assert indexer.cache_dtype is not None
    view, lengths = indexer.view_of(index_cache), (batch.seq_lens // indexer.key_unit).tolist()
    request = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.int64))
    before = [0, *itertools.accumulate(lengths)]
    i = torch.arange(before[-1]) - torch.tensor(before)[request]
    block, slot = batch.block_table[request, i // view.block_size].long()[:, None], (i % view.block_size)[:, None]
    memory = index_cache.as_strided((index_cache.untyped_storage().nbytes() - index_cache.storage_offset(),), (1,))
    codes = memory[view.element(block, slot, torch.arange(indexer.head_size))].view(indexer.cache_dtype)
    scales = memory[view.scale(block, slot) + torch.arange(BYTES_OF_SCALE)].view(torch.float32).flatten()
    starts, ends = torch.zeros(rows, dtype=torch.int32), torch.zeros(rows, dtype=torch.int32)
    for r in range(batch.num_requests):
        own, p = request_rows(batch, r)
        starts[own], ends[own] = before[r], (before[r] + (p + 1).clamp(min=0) // indexer.key_unit).int()
    return GatheredKeys(codes, scales, starts, ends)


def of_ranges(logits: torch.Tensor, keys: GatheredKeys, units: int) -> torch.Tensor:
    """[1, T, units]: logits [T, keys] of gathered keys, with each row's own ones first, and NaN after them."""
    found = torch.full((1, len(logits), units), torch.nan)
    for row, (start, end) in enumerate(zip(keys.starts.tolist(), keys.ends.tolist(), strict=True)):
        found[0, row, : end - start] = logits[row, start:end]
    return found


def drafts_of(batch: Batch) -> int:
    """The number of queries of each request, in a step in which all requests have the same number."""
    return int(batch.query_start_loc[-1]) // max(batch.num_requests, 1)
