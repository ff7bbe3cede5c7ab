"""Our kernels that read an address in no memory of the process: a block id that no cache has, or no block table."""

import dataclasses

import attn_optimized
from attn_fuzz.targets.triton import TRITON


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    wild = dataclasses.replace(batch, block_table=batch.block_table.clone().fill_(2**31 - 1))
    attn_optimized.paged_attention(q, kv_cache, layer, wild, out=out, lse=lse)


TARGET = dataclasses.replace(TRITON, name="wild", attention=_attention)


def _without_table(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    step = dataclasses.replace(batch, block_table=batch.block_table.new_empty(len(batch.block_table), 0))
    assert step.block_table.data_ptr() == 0
    attn_optimized.paged_attention(q, kv_cache, layer, step, out=out, lse=lse)


NULL = dataclasses.replace(TRITON, name="null", attention=_without_table)
