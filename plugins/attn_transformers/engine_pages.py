"""The pages of continuous batching: the engine's own cache as a cache of the contract, and its block table.

transformers passes no block table to a function of attention, except for FlashAttention on a GPU. It passes the physical index
of each key of the step, and the cache that these indices lead into. In a layer of full attention each request has a list of
pages, and several requests may share a page. This is the block table, which is read back from the indices. A layer with a
sliding window has a ring for each request, which is no list of pages.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from attn_contract import Batch

from attn_transformers.arguments import Step

FULL_ATTENTION, SLIDING_ATTENTION = "full_attention", "sliding_attention"
"""The engine's names of kinds of layers."""


@dataclass(frozen=True, eq=False)
class EnginePages:
    """The pages of one layer, and the places of a step's keys in them.

    Args:
        kv_cache: [NB, 2, BS, HK, D], a view of the engine's cache: BLOCKS_FIRST_NHD.
        key_rows: [K] int64, for each of the step's keys `block * rows_of_block + slot`.
        rows_of_block: the rows of a block. It has pages for all layers, and a page has rows of K and of V.
    """

    kv_cache: torch.Tensor
    key_rows: torch.Tensor
    rows_of_block: int

    def batch(self, step: Step) -> Batch | None:
        """The step over these pages; None if a request's keys are no list of pages. Its last page may be partial.

        Args:
            step: the step, whose block table has blocks of one slot with the ids of `key_rows`.
        """
        assert step.batch.block_table is not None
        block_size = self.kv_cache.shape[2]
        seq_lens = step.batch.seq_lens.tolist()
        table = torch.zeros(len(seq_lens), -(-max(seq_lens, default=0) // block_size), dtype=torch.int32, device="cpu")
        key_rows = self.key_rows.cpu()
        for entries, keys, seq_len in zip(table, step.batch.block_table.cpu().long(), seq_lens, strict=True):
            rows = key_rows[keys[:seq_len]]
            blocks, slots = rows // self.rows_of_block, rows % self.rows_of_block
            entries[: -(-seq_len // block_size)] = blocks[::block_size]
            place = torch.arange(seq_len, device="cpu")
            if not torch.equal(slots, place % block_size) or not torch.equal(blocks, entries[place // block_size].long()):
                return None
        return dataclasses.replace(step.batch, block_table=table.to(step.q.device))


def pages_of(cache: Any, layer_index: int, arguments: dict[str, Any]) -> EnginePages | None:
    """The pages of a layer; None if it has none.

    Args:
        cache: transformers' PagedAttentionCache, after the step's keys and values were written.
        arguments: the arguments of the step: `read_index` and `write_index`, for each group of layers.
    """
    of_group = getattr(cache, "layer_to_allocator", {}).get(layer_index)
    if of_group is None or of_group.layer_type != FULL_ATTENTION:
        return None
    size, heads, dims = of_group.tokens_per_page, of_group.num_key_value_heads, of_group.head_dim
    whole = of_group.cache_tensor.view(-1, of_group.pages_per_block, 2, size, heads, dims)
    read, write = (arguments[name][of_group.index] for name in ("read_index", "write_index"))
    # no keys were there before: the step's keys are those that it wrote
    key_rows = read if len(read) else write
    return EnginePages(whole[:, of_group.layer_indices.index(layer_index)], key_rows, of_group.block_physical_stride)
