"""The cache's write and gather against loops over slots that index the tensor, dimension by dimension."""

import pytest
import torch
from attn_contract import FLOAT_DTYPES, KVCacheView, Layout
from attn_contract.layouts import K, V
from attn_reference import gather_kv_cache, write_kv_cache

NB, BS, HK, D = 5, 3, 2, 4
BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
"""Integers of a dtype's size: random ones, seen as floats, are NaN of many payloads, infinities and subnormals too."""

ROW = {
    Layout.BLOCKS_FIRST_NHD: lambda cache, kv, b, o: cache[b, kv, o],
    Layout.BLOCKS_FIRST_HND: lambda cache, kv, b, o: cache[b, kv, :, o],
    Layout.KV_FIRST_NHD: lambda cache, kv, b, o: cache[kv, b, o],
    Layout.KV_FIRST_HND: lambda cache, kv, b, o: cache[kv, b, :, o],
}
"""[HK, D]: K or V of slot o of block b."""


def dense(layout, dtype):
    return KVCacheView.dense(layout, num_blocks=NB, block_size=BS, num_kv_heads=HK, head_size=D, itemsize=dtype.itemsize)


def padded(layout, dtype):
    """The second of three layers that take turns in every block (or plane), with five elements between them."""
    view = dense(layout, dtype)
    sizes = {"num_blocks": NB, "block_size": BS, "num_kv_heads": HK, "head_size": D, "itemsize": dtype.itemsize}
    layer = view.end // (2 if view.block_stride < view.kv_stride else NB) + 5
    outer = "kv_stride" if view.block_stride < view.kv_stride else "block_stride"
    strides = {name: getattr(view, name) for name in ("kv_stride", "block_stride", "slot_stride", "head_stride")}
    return KVCacheView(layout=layout, **sizes, **(strides | {outer: 3 * layer}), offset=layer)


def random_bits(shape, dtype, seed):
    info = torch.iinfo(BITS[dtype])
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(info.min, info.max + 1, shape, dtype=BITS[dtype], generator=generator)


@pytest.fixture(params=[dense, padded])
def allocation(request):
    """A view, and a raw allocation of random bits that is longer than it."""

    def build(layout, dtype):
        view = request.param(layout, dtype)
        return view, random_bits((view.end + 7,), dtype, seed=1)

    return build


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("layout", Layout)
def test_write_moves_the_bits_of_mapped_rows_and_no_others(layout, dtype, allocation):
    view, raw = allocation(layout, dtype)
    k, v = (random_bits((7, HK, D), dtype, seed=seed) for seed in (2, 3))
    slots = [4, -1, 14, 0, -1, 8]
    expected = raw.clone()
    for row, slot in enumerate(slots):
        if slot != -1:
            ROW[layout](view.tensor(expected), K, slot // BS, slot % BS).copy_(k[row])
            ROW[layout](view.tensor(expected), V, slot // BS, slot % BS).copy_(v[row])
    write_kv_cache(k.view(dtype), v.view(dtype), view.tensor(raw.view(dtype)), layout, torch.tensor(slots))
    assert torch.equal(raw, expected)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("seq_len", [0, 1, 3, 7])
def test_gather_follows_the_block_table_as_far_as_the_sequence(seq_len, layout, dtype, allocation):
    view, raw = allocation(layout, dtype)
    used = [4, 0, 2][: -(-seq_len // BS)]
    block_table = torch.tensor([*used, -1, 2**31 - 1], dtype=torch.int32)
    key, value = gather_kv_cache(view.tensor(raw.view(dtype)), layout, block_table, seq_len)
    assert key.shape == value.shape == (seq_len, HK, D)
    assert key.dtype == value.dtype == dtype
    for j in range(seq_len):
        block, slot = used[j // BS], j % BS
        assert torch.equal(key[j].view(BITS[dtype]), ROW[layout](view.tensor(raw), K, block, slot))
        assert torch.equal(value[j].view(BITS[dtype]), ROW[layout](view.tensor(raw), V, block, slot))


def test_nothing_to_write():
    cache = torch.zeros(2, NB, BS, HK, D)
    rows = torch.ones(3, HK, D)
    for slots in ([], [-1, -1, -1]):
        write_kv_cache(rows, rows, cache, Layout.KV_FIRST_NHD, torch.tensor(slots, dtype=torch.int64))
    assert not cache.any()


def test_rows_of_a_fused_qkv_tensor():
    qkv = torch.arange(2.0 * 6 * D).view(2, 6, D)
    cache = torch.zeros(NB, 2, BS, HK, D)
    write_kv_cache(qkv[:, 2:4], qkv[:, 4:], cache, Layout.BLOCKS_FIRST_NHD, torch.tensor([7, 2]))
    assert torch.equal(cache[2, K, 1], qkv[0, 2:4])
    assert torch.equal(cache[0, V, 2], qkv[1, 4:])


def test_a_layer_writes_none_of_another_ones_blocks():
    """Two layers of one allocation, in layouts of one footprint, own other blocks. With blocks-first beside K/V-first, block 0
    would lie over blocks 0 and 1 of both planes (vLLM #43945)."""
    nhd, hnd = (dense(layout, torch.float32) for layout in (Layout.KV_FIRST_NHD, Layout.KV_FIRST_HND))
    raw = torch.zeros(nhd.end)
    rows = torch.ones(2 * BS, HK, D)
    write_kv_cache(rows, rows, nhd.tensor(raw), nhd.layout, torch.arange(2 * BS))
    write_kv_cache(2 * rows, 2 * rows, hnd.tensor(raw), hnd.layout, torch.arange(2 * BS, 4 * BS))
    assert nhd.tensor(raw)[:, :2].eq(1).all()
    assert hnd.tensor(raw)[:, 2:4].eq(2).all()
    assert not hnd.tensor(raw)[:, 4].any()
