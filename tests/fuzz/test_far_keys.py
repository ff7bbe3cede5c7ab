"""Attention that reads positions in 16 bits is found where keys stand far behind the beginning of a sequence."""

import dataclasses
import random
from functools import partial

import attn_optimized
import pytest
import torch
from attn_contract import AttentionType, Batch, KVCacheView, Layer, Layout
from attn_fuzz.targets import far_keys

LAYER = Layer(
    num_heads=2,
    num_kv_heads=1,
    head_size=16,
    scale=0.25,
    attn_type=AttentionType.DECODER,
    layout=Layout.BLOCKS_FIRST_NHD,
)
BATCH = Batch(
    query_start_loc=torch.tensor([0, 3], dtype=torch.int32),
    seq_lens=torch.tensor([40], dtype=torch.int32),
    max_query_len=3,
    max_seq_len=40,
    num_actual_tokens=3,
    causal=True,
    block_table=torch.tensor([[3, 0, 2]], dtype=torch.int32),
)
RANGES = torch.tensor([[[2, 39], [5, 4], [-1, 3]]], dtype=torch.int32)
RULES = {
    "a window": (LAYER, BATCH),
    "a chunk": (dataclasses.replace(LAYER, chunked_local=24), BATCH),
    "ranges": (LAYER, dataclasses.replace(BATCH, bidirectional_ranges=RANGES)),
    "slopes": (dataclasses.replace(LAYER, alibi_slopes=torch.tensor([0.5, 0.25])), BATCH),
}


def _check(attend, rules: str, seed: int) -> None:
    layer, batch = RULES[rules]
    generator = torch.Generator().manual_seed(seed)
    view = KVCacheView.dense(LAYER.layout, num_blocks=4, block_size=16, num_kv_heads=1, head_size=16, itemsize=4)
    kv_cache, q = view.tensor(torch.randn(view.end, generator=generator)), torch.randn(3, 2, 16, generator=generator)
    far_keys.check(partial(attend, q), q, kv_cache, layer, batch, torch.zeros(2, 3), random.Random(seed))


def _shipped(q, *, kv_cache, layer, batch, out, lse):
    attn_optimized.paged_attention(q, kv_cache, layer, batch, out=out, lse=lse, batch_invariant=True)


def _of_one_key_less(q, *, layer, batch, **tensors):
    """Of a far window one key is left out."""
    left, right = layer.window
    if batch.max_seq_len > 1 << 15:
        layer = dataclasses.replace(layer, window=(left - 1, right))
    _shipped(q, layer=layer, batch=batch, **tensors)


@pytest.mark.parametrize("rules", RULES)
def test_the_shipped_kernels_give_the_same_bits(rules):
    _check(_shipped, rules, seed=1)


def test_a_key_that_is_left_out_is_found():
    with pytest.raises(AssertionError, match="another output of 1 requests"):
        _check(_of_one_key_less, "a window", seed=1)
