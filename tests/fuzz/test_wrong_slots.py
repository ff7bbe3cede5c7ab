"""A write that follows a slot which its cache does not have is found."""

import dataclasses
import random
from functools import partial

import attn_optimized
import pytest
import torch
from attn_contract import AttentionType, KVCacheView, Layer, Layout
from attn_fuzz.targets import wrong_slots

ROWS, HEADS, HEAD_SIZE = 2, 2, 16
LAYER = Layer(
    num_heads=HEADS,
    num_kv_heads=HEADS,
    head_size=HEAD_SIZE,
    scale=1.0,
    attn_type=AttentionType.DECODER,
    layout=Layout.BLOCKS_FIRST_NHD,
)
LAYERS = [LAYER, dataclasses.replace(LAYER, layout=Layout.KV_FIRST_HND)]
SIZES = {"block_size": 4, "num_kv_heads": HEADS, "head_size": HEAD_SIZE, "itemsize": 4}
SEEDS = range(20)


def _check(layer: Layer, write, seed: int) -> None:
    view = KVCacheView.dense(layer.layout, num_blocks=3, **SIZES)
    kv_cache = view.tensor(torch.zeros(view.end))
    wrong_slots.check(partial(write, layer), ROWS, kv_cache, layer, random.Random(seed))


def _shipped(layer: Layer, kv_cache: torch.Tensor, slots: torch.Tensor) -> None:
    rows = torch.ones(ROWS, HEADS, HEAD_SIZE)
    attn_optimized.write_kv_cache(rows, rows, kv_cache, layer, slots)


def _following(layer: Layer, kv_cache: torch.Tensor, slots: torch.Tensor) -> None:
    """Writes V to each slot wherever it is."""
    view = KVCacheView.of(kv_cache, layer.layout, num_kv_heads=HEADS, head_size=HEAD_SIZE)
    memory = kv_cache.as_strided((kv_cache.untyped_storage().nbytes() // 4,), (1,), 0)
    for slot in slots.tolist():
        block, offset = divmod(slot, view.block_size)
        memory[view.element(1, block, offset, 0, 0)] = 1.0


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.layout)
@pytest.mark.parametrize("seed", SEEDS[:5])
def test_the_shipped_write_follows_none(layer, seed):
    _check(layer, _shipped, seed)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.layout)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_write_that_follows_one_is_found(layer, seed):
    with pytest.raises(AssertionError, match="bytes were written"):
        _check(layer, _following, seed)
