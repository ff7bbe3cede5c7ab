"""Ragged batches built from plain per-request tensors, with poison wherever a call must not read."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from attn_contract import AttentionType, Batch, KVCacheView, Layer, Layout
from attn_reference import write_kv_cache

BLOCK_SIZE = 4
UNOWNED_ROWS = 2
LOOSENESS = 3
"""By how much max_query_len is above the longest query, and so the least that qq_bias is larger than it."""
GARBAGE_BLOCKS = torch.tensor([-1, 2**31 - 1], dtype=torch.int32)

Tokens = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""One request: query [q_len, H, D], key and value [seq_len, HK, D]."""


class PagedCall(NamedTuple):
    q: torch.Tensor
    kv_cache: torch.Tensor
    layer: Layer
    batch: Batch


class VarlenCall(NamedTuple):
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    layer: Layer
    batch: Batch


@pytest.fixture
def randn() -> Callable[..., torch.Tensor]:
    """Seeded torch.randn, float32."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator)


@pytest.fixture
def paged_call() -> Callable[..., PagedCall]:
    """Turns requests into a call of paged attention: shuffled blocks, NaN in unused slots and blocks, garbage block ids."""

    def build(
        requests: Sequence[Tokens],
        *,
        causal: bool | Sequence[bool] = True,
        layout: Layout = Layout.KV_FIRST_NHD,
        block_size: int = BLOCK_SIZE,
        bidirectional_ranges: torch.Tensor | None = None,
        qq_bias: torch.Tensor | None = None,
        **layer,
    ) -> PagedCall:
        query, key, _ = requests[0]
        blocks_used = [-(-len(key) // block_size) for _, key, _ in requests]
        num_blocks = sum(blocks_used) + 2
        dtype = layer.get("kv_cache_dtype") or key.dtype
        sizes = {"num_blocks": num_blocks, "block_size": block_size, "num_kv_heads": key.shape[1], "head_size": key.shape[2]}
        view = KVCacheView.dense(layout, **sizes, itemsize=dtype.itemsize)
        # all bits set: NaN in every floating type but e4m3fnuz
        kv_cache = view.tensor(torch.full((view.end * dtype.itemsize,), 0xFF, dtype=torch.uint8).view(dtype))
        if "kv_cache_dtype" in layer and "k_scale" not in layer and not layout.has_inline_scales:
            for name in ("k_scale_cache", "v_scale_cache"):
                layer[name] = torch.full((num_blocks, block_size, key.shape[1]), torch.nan)
        paged_layer = _layer(query, key, layout=layout, **layer)

        free = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(0)).tolist()
        block_table = GARBAGE_BLOCKS.repeat(len(requests), max(blocks_used) // 2 + 1)
        slots = []
        for r, (_, key, _) in enumerate(requests):
            for j in range(len(key)):
                if j % block_size == 0:
                    block_table[r, j // block_size] = free.pop()
                slots.append(int(block_table[r, j // block_size]) * block_size + j % block_size)
        k, v = (torch.cat([tokens[i] for tokens in requests]) for i in (1, 2))
        write_kv_cache(k, v, kv_cache, paged_layer, torch.tensor(slots, dtype=torch.int64))
        batch = _batch(
            requests,
            causal if isinstance(causal, bool) else torch.tensor(causal),
            block_table=block_table,
            bidirectional_ranges=bidirectional_ranges,
            qq_bias=qq_bias,
        )
        return PagedCall(_rows(requests, 0), kv_cache, paged_layer, batch)

    return build


@pytest.fixture
def varlen_call() -> Callable[..., VarlenCall]:
    """Turns requests into a call of dense varlen attention, with NaN in the rows that no request owns."""

    def build(requests: Sequence[Tokens], **layer) -> VarlenCall:
        query, key, _ = requests[0]
        q, k, v = (_rows(requests, i) for i in range(3))
        attn_type = layer.pop("attn_type", AttentionType.ENCODER_ONLY)
        return VarlenCall(q, k, v, _layer(query, key, attn_type=attn_type, **layer), _batch(requests, False))

    return build


def _rows(requests: Sequence[Tokens], i: int) -> torch.Tensor:
    rows = torch.cat([tokens[i] for tokens in requests])
    return torch.cat([rows, rows.new_full((UNOWNED_ROWS, *rows.shape[1:]), torch.nan)])


def _layer(query: torch.Tensor, key: torch.Tensor, **fields) -> Layer:
    fields.setdefault("scale", query.shape[2] ** -0.5)
    return Layer(num_heads=query.shape[1], num_kv_heads=key.shape[1], head_size=query.shape[2], **fields)


def _batch(requests: Sequence[Tokens], causal: bool | torch.Tensor, **tensors: torch.Tensor | None) -> Batch:
    query_lens = torch.tensor([len(query) for query, _, _ in requests])
    seq_lens = torch.tensor([len(key) for _, key, _ in requests], dtype=torch.int32)
    return Batch(
        query_start_loc=torch.cat([torch.zeros(1), query_lens.cumsum(0)]).int(),
        seq_lens=seq_lens,
        max_query_len=int(query_lens.max()) + LOOSENESS,
        max_seq_len=int(seq_lens.max()) + 5,
        num_actual_tokens=int(query_lens.sum()) + 1,
        causal=causal,
        **tensors,
    )
