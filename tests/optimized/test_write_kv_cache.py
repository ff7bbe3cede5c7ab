"""The cache write: bits where the slot mapping says, and not a byte elsewhere."""

import math

import attn_optimized
import pytest
import torch
from attn_contract import Layout

NUM_BLOCKS, BLOCK_SIZE, NUM_KV_HEADS, HEAD_SIZE = 7, 5, 3, 24
SIZES = {"block": NUM_BLOCKS, "kv": 2, "slot": BLOCK_SIZE, "head": NUM_KV_HEADS, "dim": HEAD_SIZE}
SLOTS = [34, -1, 0, 16, -1, 5, 4]


def random_bits(*shape, dtype, device):
    """NaNs of every payload included."""
    integer = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    info = torch.iinfo(integer)
    return torch.randint(info.min, info.max, shape, dtype=integer, device=device).view(dtype)


def bits(tensor):
    return tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


@pytest.mark.parametrize("element", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", Layout)
def test_writes_its_slots_and_nothing_else(layout, element, device):
    shape = [SIZES[dim] for dim in layout.dims]
    raw = random_bits(10_000, dtype=element, device=device)
    padded = raw[3000:][: math.prod(shape) // HEAD_SIZE * (HEAD_SIZE + 3)].view(*shape[:-1], HEAD_SIZE + 3)
    kv_cache = padded[..., :HEAD_SIZE]
    qkv = random_bits(len(SLOTS) + 2, 4 * NUM_KV_HEADS, HEAD_SIZE, dtype=element, device=device)
    k, v = qkv[:, NUM_KV_HEADS : 2 * NUM_KV_HEADS], qkv[:, 2 * NUM_KV_HEADS : 3 * NUM_KV_HEADS]
    expected_raw = raw.clone()
    expected = expected_raw.as_strided(padded.shape, padded.stride(), padded.storage_offset())
    for row, slot in enumerate(SLOTS):
        if slot < 0:
            continue
        at = {"block": slot // BLOCK_SIZE, "slot": slot % BLOCK_SIZE, "head": slice(None), "dim": slice(HEAD_SIZE)}
        for kv, tensor in enumerate((k, v)):
            expected[tuple((at | {"kv": kv})[dim] for dim in layout.dims)] = tensor[row]

    slot_mapping = torch.tensor([*SLOTS, 7, 8], device=device)[: len(SLOTS)]
    attn_optimized.write_kv_cache(k, v, kv_cache, layout, slot_mapping, validate=True)
    assert torch.equal(bits(raw), bits(expected_raw))


def test_several_tiles_of_rows(device):
    kv_cache = torch.zeros(2, 100, 2, 2, 16, device=device)
    k, v = torch.randn(2, 150, 2, 16, device=device)
    slot_mapping = torch.randperm(200, device=device)[:150]
    attn_optimized.write_kv_cache(k, v, kv_cache, Layout.KV_FIRST_NHD, slot_mapping)
    assert torch.equal(kv_cache.flatten(1, 2)[:, slot_mapping], torch.stack([k, v]))


def test_no_slot(device):
    kv_cache = torch.zeros(2, 3, 4, 2, 16, device=device)
    k, v = torch.randn(2, 5, 2, 16, device=device)
    attn_optimized.write_kv_cache(k, v, kv_cache, Layout.KV_FIRST_NHD, torch.empty(0, dtype=torch.int64, device=device))
    assert not kv_cache.any()
