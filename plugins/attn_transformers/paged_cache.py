"""A cache for transformers' models whose keys and values lie in pages, in any layout of the contract, quantized or not."""

from typing import Any

import attn_reference
import torch
from attn_contract import ContractError, KVCacheView, Layer, Layout
from attn_contract.arguments import check_int
from attn_fuzz import extras

try:
    from transformers.cache_utils import Cache, CacheLayerMixin
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(extras.missing("transformers"), name="transformers") from error


class PagedCache(Cache):
    """The `past_key_values` of a model with full or windowed attention, for any `attn_implementation`.

    A model's new keys and values are written into pages, and attention gets the numbers that are read back: rounded ones, if
    the cache is quantized. Rows of beam search share the pages that are full, as in a serving engine.

    Args:
        layout: the layout of the pages.
        block_size: tokens of a page.
        kv_cache_dtype: None: the model's dtype; or torch.int8, torch.float8_e4m3fn or torch.float8_e4m3fnuz, with one scale per
            token and head, which are computed when tokens are written.

    Raises:
        ContractError: the block size is no positive number, the layout is LATENT, or it cannot hold such elements; where the
            head size matters, at the first token.
    """

    def __init__(
        self,
        layout: Layout | str = Layout.BLOCKS_FIRST_NHD,
        *,
        block_size: int = 16,
        kv_cache_dtype: torch.dtype | None = None,
    ) -> None:
        if layout not in set(Layout):
            raise ContractError("layout", repr(layout), f"a Layout: {', '.join(Layout)}")
        if Layout(layout).has_latent_value:
            raise ContractError("layout", layout, "one that stores K and V apart, as models of transformers do")
        check_int("block_size", block_size, minimum=1)
        super().__init__(layers=[])
        self.pages_of = {"layout": Layout(layout), "block_size": block_size, "kv_cache_dtype": kv_cache_dtype}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values [B, HK, K, D] of a layer, after the new ones [B, HK, Q, D] were written."""
        while len(self.layers) <= layer_idx:
            self.layers.append(PagedLayer(**self.pages_of))
        layer = self.layers[layer_idx]
        assert isinstance(layer, PagedLayer)
        return layer.update(key_states, value_states)


class PagedLayer(CacheLayerMixin):
    """The pages of one layer, and a table of them for each row of the batch. Their number doubles when none is free."""

    is_sliding = False

    def __init__(self, layout: Layout, block_size: int, kv_cache_dtype: torch.dtype | None) -> None:
        super().__init__()
        self.layout, self.block_size, self.kv_cache_dtype = layout, block_size, kv_cache_dtype
        self.seq_len, self.num_blocks = 0, 0
        self.tables: list[list[int]] = []

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        rows, self.num_kv_heads, _, self.head_size = key_states.shape
        if value_states.shape != key_states.shape:
            raise ContractError(
                "value_states", f"shape {tuple(value_states.shape)}", f"that of keys, {tuple(key_states.shape)}"
            )
        self.dtype, self.device = key_states.dtype, key_states.device
        self.tables = [[] for _ in range(rows)]
        self._allocate(2 * rows)
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """All keys and values [B, HK, K, D], read from the pages, after the new ones [B, HK, Q, D] were written."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        first, self.seq_len = self.seq_len, self.seq_len + key_states.shape[2]
        wanted = -(-self.seq_len // self.block_size)
        free = self._free(sum(wanted - len(table) for table in self.tables))
        for table in self.tables:
            table.extend(free.pop() for _ in range(wanted - len(table)))
        tables = torch.tensor(self.tables, dtype=torch.int32, device=self.device)
        at = torch.arange(first, self.seq_len, device=self.device)
        slots = tables[:, at // self.block_size].long() * self.block_size + at % self.block_size
        k, v = (states.detach().transpose(1, 2).flatten(0, 1).contiguous() for states in (key_states, value_states))
        attn_reference.write_kv_cache(k, v, self.pages, self.layer, slots.flatten())
        rows = [attn_reference.gather_kv_cache(self.pages, self.layer, row, self.seq_len, self.dtype) for row in tables]
        # copied, not stacked: autocast to another type of 16 bits stacks no tensors of this one
        self.keys, self.values = (part.new_empty(len(rows), *part.shape) for part in rows[0])
        for row, (own_keys, own_values) in enumerate(rows):
            self.keys[row], self.values[row] = own_keys, own_values
        self.keys, self.values = self.keys.transpose(1, 2), self.values.transpose(1, 2)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seq_len + query_length, 0

    def get_seq_length(self) -> int:
        return self.seq_len

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:  # the name in transformers before 5.23
        return -1

    def reset(self) -> None:
        self.seq_len, self.num_blocks, self.tables, self.is_initialized = 0, 0, [], False

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row r continues row `beam_idx[r]`. Full pages are shared; the last page, to which a row will write, is copied."""
        tables = [list(self.tables[row]) for row in beam_idx.tolist()]
        if self.seq_len % self.block_size:
            shared, own = [table[-1] for table in tables], self._free(len(tables))[: len(tables)]
            for tensor, dim in self._by_block():
                tensor.index_copy_(dim, self._index(own), tensor.index_select(dim, self._index(shared)))
            for table, block in zip(tables, own, strict=True):
                table[-1] = block
        self.tables = tables

    def _index(self, blocks: list[int]) -> torch.Tensor:
        return torch.tensor(blocks, device=self.device)

    def _free(self, wanted: int) -> list[int]:
        """At least `wanted` pages that no row has."""
        taken = {block for table in self.tables for block in table}
        while self.num_blocks - len(taken) < wanted:
            self._allocate(2 * self.num_blocks)
        return [block for block in range(self.num_blocks) if block not in taken]

    def _allocate(self, num_blocks: int) -> None:
        """Room for `num_blocks` pages, the first of which are the existing ones."""
        old = self._by_block() if self.num_blocks else []
        stored = self.kv_cache_dtype or self.dtype
        sizes = {"block_size": self.block_size, "num_kv_heads": self.num_kv_heads, "head_size": self.head_size}
        view = KVCacheView.dense(self.layout, num_blocks=num_blocks, itemsize=stored.itemsize, **sizes)
        self.pages = view.tensor(torch.zeros(view.end, dtype=stored, device=self.device))
        has_scales = self.kv_cache_dtype is not None and not self.layout.has_inline_scales
        k_scales, v_scales = (
            torch.zeros(num_blocks, self.block_size, self.num_kv_heads, device=self.device) if has_scales else None
            for _ in range(2)
        )
        self.layer = Layer(
            num_heads=self.num_kv_heads,
            num_kv_heads=self.num_kv_heads,
            head_size=self.head_size,
            scale=1.0,
            layout=self.layout,
            kv_cache_dtype=self.kv_cache_dtype,
            k_scale_cache=k_scales,
            v_scale_cache=v_scales,
        )
        for (new, dim), (kept, _) in zip(self._by_block(), old, strict=False):
            new.narrow(dim, 0, self.num_blocks).copy_(kept)
        self.num_blocks = num_blocks

    def _by_block(self) -> list[tuple[torch.Tensor, int]]:
        """The tensors of pages as numbers that can be copied, each with the dimension that counts pages."""
        raw = self.pages.view(torch.uint8) if self.pages.dtype.itemsize == 1 else self.pages
        return [(raw, self.layout.dims.index("block")), *((scales, 0) for scales in self.layer.tensors.values())]
