"""Our kernels with a block id in the block table that no cache has: the address is in no memory of the process."""

import dataclasses

import attn_optimized
from attn_fuzz.targets.triton import TRITON


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    wild = dataclasses.replace(batch, block_table=batch.block_table.clone().fill_(2**31 - 1))
    attn_optimized.paged_attention(q, kv_cache, layer, wild, out=out, lse=lse)


TARGET = dataclasses.replace(TRITON, name="wild", attention=_attention)
