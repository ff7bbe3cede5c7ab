"""Writing and gathering a cache, against loops that index the tensor's own dimensions."""

import functools
from dataclasses import replace

import pytest
import torch
from attn_contract import FLOAT_DTYPES, QUANTIZED_DTYPES, KVCacheView, Layer, Layout, PhysicalOrder
from attn_contract.layouts import K, V
from attn_reference import dequantize, gather_kv_cache, quantize, row_scales, write_kv_cache

NB, HK = 5, 2
BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
"""Integers as wide as each dtype. Viewed as floats, random ones include NaN of many payloads, infinities and subnormals."""

LAYOUTS = [layout for layout in Layout if not layout.has_latent_value]
"""Layouts of K and V apart. `test_latent` has the other one."""
FLOAT_LAYOUTS = [layout for layout in LAYOUTS if not layout.has_inline_scales]


@pytest.mark.parametrize(("head_size", "head_size_v"), [(8, 4), (4, 8)])
def test_addresses_of_two_widths(head_size, head_size_v):
    """Rows of 12: those of block 1, slot 5, head 1 begin at 192 + 96 + 60 = 348. V is behind K, however wide it is."""
    sizes = {"num_blocks": 2, "block_size": 8, "num_kv_heads": 2, "itemsize": 4}
    view = KVCacheView.dense(Layout.CONTENT_PACKED, head_size=head_size, head_size_v=head_size_v, **sizes)
    raw, layer = torch.zeros(view.end), replace(layer_of(view, torch.float32), head_size_v=head_size_v)
    k, v = torch.zeros(1, 2, head_size), torch.zeros(1, 2, head_size_v)
    k[:, 1], v[:, 1] = torch.arange(1.0, head_size + 1), torch.arange(21.0, head_size_v + 21)
    write_kv_cache(k, v, view.tensor(raw), layer, torch.tensor([13]))
    assert raw[348:360].tolist() == [*range(1, head_size + 1), *range(21, head_size_v + 21)]
    assert raw.count_nonzero() == 12
    keys, values = gather_kv_cache(view.tensor(raw), layer, torch.tensor([1], dtype=torch.int32), 6, torch.float32)
    assert torch.equal(keys[5], k[0])
    assert torch.equal(values[5], v[0])


def layer_of(view: KVCacheView, dtype: torch.dtype, **scales: torch.Tensor) -> Layer:
    return Layer(
        num_heads=view.num_kv_heads,
        num_kv_heads=view.num_kv_heads,
        head_size=view.head_size,
        scale=1.0,
        layout=view.layout,
        kv_cache_dtype=dtype if dtype in QUANTIZED_DTYPES else None,
        **scales,
    )


def row(cache: torch.Tensor, view: KVCacheView, kv: int, slot: int) -> torch.Tensor:
    """A view of a slot's K or V: [HK, D], or [HK, D / x, x] where the layout packs it like this."""
    D, BS, x = view.head_size, view.block_size, view.x
    b, o = divmod(slot, BS)
    match view.layout:
        case Layout.BLOCKS_FIRST_NHD:
            return cache[b, kv, o]
        case Layout.BLOCKS_FIRST_HND:
            return cache[b, kv, :, o]
        case Layout.KV_FIRST_NHD:
            return cache[kv, b, o]
        case Layout.KV_FIRST_HND:
            return cache[kv, b, :, o]
        case Layout.CONTENT_PACKED | Layout.CONTENT_PACKED_SCALED:
            return cache[b, :, o].unflatten(-1, (2, -1))[:, kv, :D]
        case Layout.X_PACKED | Layout.SHUFFLED if kv == K:
            return cache[K, b].view(HK, D // x, BS, x)[:, :, o]
        case Layout.X_PACKED:
            return cache[V, b].view(HK, D, BS)[..., o]
        case Layout.SHUFFLED:
            return cache[V, b].view(HK, BS // x, D, x)[:, o // x, :, o % x]


def inline_scale(cache: torch.Tensor, view: KVCacheView, kv: int, slot: int) -> torch.Tensor:
    """[HK, 4]: the bytes of the scales of a slot's K or V."""
    b, o = divmod(slot, view.block_size)
    return cache[b, :, o].unflatten(-1, (2, -1))[:, kv, view.head_size :]


def dense(layout, dtype):
    block_size, head_size = (16, 32) if layout.is_x_packed else (3, 4)
    sizes = {"num_blocks": NB, "block_size": block_size, "num_kv_heads": HK, "head_size": head_size}
    return KVCacheView.dense(layout, **sizes, itemsize=dtype.itemsize)


def padded(layout, dtype):
    """The view of the second of three layers, which share every block (or plane) with gaps between them."""
    view = dense(layout, dtype)
    outer = "kv_stride" if view.block_stride < view.kv_stride else "block_stride"
    layer = view.end // (2 if outer == "kv_stride" else NB) + 16
    return replace(view, **{outer: 3 * layer}, offset=layer)


def ordered(order, layout, dtype):
    """The view of the second of three layers in one of vLLM 0.33's physical orders."""
    sizes = {"num_blocks": NB, "block_size": 3, "num_kv_heads": HK, "head_size": 4, "itemsize": dtype.itemsize}
    return KVCacheView.content_packed(layout, order, num_layers=3, layer=1, **sizes)


BUILDS = {"dense": dense, "padded": padded, **{str(order): functools.partial(ordered, order) for order in PhysicalOrder}}


def views(layouts):
    return [
        pytest.param(layout, build, id=f"{layout}-{name}")
        for layout in layouts
        for name, build in BUILDS.items()
        if name in ("dense", "padded") or "content" in layout.dims
    ]


def random_bits(shape, dtype, seed):
    info = torch.iinfo(dtype)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(info.min, info.max + 1, shape, dtype=dtype, generator=generator)


SLOTS = [4, -1, 14, 0, -1, 8]


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize(("layout", "build"), views(FLOAT_LAYOUTS))
def test_write_moves_the_bits_of_mapped_rows_and_no_others(layout, build, dtype):
    view = build(layout, dtype)
    raw = random_bits((view.end + 7,), BITS[dtype], seed=1)
    k, v = (random_bits((7, HK, view.head_size), BITS[dtype], seed=seed) for seed in (2, 3))
    expected = raw.clone()
    for token, slot in enumerate(SLOTS):
        if slot != -1:
            for kv, values in ((K, k), (V, v)):
                target = row(view.tensor(expected), view, kv, slot)
                target.copy_(values[token].view(target.shape))
    cache = view.tensor(raw.view(dtype))
    write_kv_cache(k.view(dtype), v.view(dtype), cache, layer_of(view, dtype), torch.tensor(SLOTS))
    assert torch.equal(raw, expected)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize(("layout", "build"), views(FLOAT_LAYOUTS))
def test_gather_follows_the_block_table_as_far_as_the_sequence(layout, build, dtype):
    view = build(layout, dtype)
    raw = random_bits((view.end + 7,), BITS[dtype], seed=1)
    cache, layer = view.tensor(raw.view(dtype)), layer_of(view, dtype)
    for seq_len in (0, 1, view.block_size, 2 * view.block_size + 1):
        used = [4, 0, 2][: -(-seq_len // view.block_size)]
        block_table = torch.tensor([*used, -1, 2**31 - 1], dtype=torch.int32)
        key, value = gather_kv_cache(cache, layer, block_table, seq_len, dtype)
        assert key.shape == value.shape == (seq_len, HK, view.head_size)
        assert key.dtype == value.dtype == dtype
        for j in range(seq_len):
            slot = used[j // view.block_size] * view.block_size + j % view.block_size
            for kv, got in ((K, key), (V, value)):
                assert torch.equal(got[j].view(BITS[dtype]).flatten(), row(view.tensor(raw), view, kv, slot).flatten())
        exact, _ = gather_kv_cache(cache, layer, block_table, seq_len, torch.float64)
        torch.testing.assert_close(exact, key.double(), rtol=0, atol=0, equal_nan=True)


def quantized_caches():
    for layout in LAYOUTS:
        for dtype in QUANTIZED_DTYPES:
            if layout.has_inline_scales:
                kinds = ["inline"]
            else:
                kinds = ["per token"] if dtype == torch.int8 else ["per tensor", "per head", "per token"]
            for kind in kinds:
                for name, build in BUILDS.items():
                    if name in ("dense", "padded") or "content" in layout.dims:
                        label = f"{layout}-{str(dtype).removeprefix('torch.')}-{kind}-{name}"
                        yield pytest.param(layout, dtype, kind, build, id=label)


@pytest.mark.parametrize(("layout", "dtype", "kind", "build"), list(quantized_caches()))
def test_quantized_rows_are_stored_and_gathered(layout, dtype, kind, build):
    """A write stores the bytes of `quantize` where the layout says, and changes no others; a gather reads stored * scale."""
    view = build(layout, dtype)
    raw = random_bits((view.end + 7,), torch.uint8, seed=1)
    expected = raw.clone()
    generator = torch.Generator().manual_seed(2)
    k, v = (spread * torch.randn(7, HK, view.head_size, generator=generator) for spread in (3, 500))
    k[0, 0, 0], v[2, 1, 3] = torch.inf, -torch.inf
    scale_caches = [torch.full((HK, NB, view.block_size), -1.0).permute(1, 2, 0) for _ in (K, V)]
    scales = {
        "inline": {},
        "per tensor": {"k_scale": torch.tensor(0.3), "v_scale": torch.tensor([7.0])},
        "per head": {"k_scale": torch.tensor([0.3, 0.1]), "v_scale": torch.tensor([7.0, 11.0])},
        "per token": {"k_scale_cache": scale_caches[K], "v_scale_cache": scale_caches[V]},
    }[kind]
    layer = layer_of(view, dtype, **scales)

    read = {}
    for token, slot in enumerate(SLOTS):
        if slot == -1:
            continue
        for kv, name, values in ((K, "k_scale", k[token]), (V, "v_scale", v[token])):
            scale = scales[name].reshape(-1, 1) if name in scales else row_scales(values, dtype)
            stored = quantize(values, scale, dtype)
            target = row(view.tensor(expected), view, kv, slot)
            target.copy_(stored.view(torch.uint8).view(target.shape))
            if kind == "inline":
                inline_scale(view.tensor(expected), view, kv, slot).copy_(scale.view(torch.uint8))
            read[kv, slot] = dequantize(stored, scale, torch.float64), scale

    cache = view.tensor(raw.view(dtype))
    write_kv_cache(k, v, cache, layer, torch.tensor(SLOTS))
    assert torch.equal(raw, expected)
    for kv, scale_cache in enumerate(scale_caches):
        for slot in range(NB * view.block_size):
            kept = scale_cache[slot // view.block_size, slot % view.block_size]
            written = kind == "per token" and slot in SLOTS
            assert torch.equal(kept, read[kv, slot][1].flatten() if written else -torch.ones(HK))

    block_table = torch.arange(NB, dtype=torch.int32)
    for kv, got in enumerate(gather_kv_cache(cache, layer, block_table, 15, torch.float64)):
        for slot in set(SLOTS) - {-1}:
            assert torch.equal(got[slot], read[kv, slot][0])


@pytest.mark.parametrize("k_dtype", FLOAT_DTYPES)
def test_models_of_any_dtype_quantize_their_exact_values(k_dtype):
    view = dense(Layout.KV_FIRST_NHD, torch.float8_e4m3fn)
    k = torch.randn(1, HK, 4, generator=torch.Generator().manual_seed(0)).to(k_dtype)
    scale = torch.tensor(0.3)
    layer, cache = layer_of(view, torch.float8_e4m3fn, k_scale=scale, v_scale=scale), torch.zeros(view.end, dtype=torch.uint8)
    write_kv_cache(k, k, view.tensor(cache.view(torch.float8_e4m3fn)), layer, torch.tensor([0]))
    assert torch.equal(view.tensor(cache)[K, 0, 0], quantize(k[0].float(), scale, torch.float8_e4m3fn).view(torch.uint8))


def test_a_nan_row_of_int8_reads_as_nan():
    view = dense(Layout.CONTENT_PACKED_SCALED, torch.int8)
    cache, layer = view.tensor(torch.zeros(view.end, dtype=torch.int8)), layer_of(view, torch.int8)
    k = torch.ones(1, HK, 4)
    k[0, 1, 2] = torch.nan
    write_kv_cache(k, torch.ones(1, HK, 4), cache, layer, torch.tensor([0]))
    key, value = gather_kv_cache(cache, layer, torch.tensor([0], dtype=torch.int32), 1, torch.float32)
    assert key[0].isnan().tolist() == [[False] * 4, [True] * 4]
    assert torch.equal(value, torch.ones(1, HK, 4))


@pytest.mark.parametrize("slots", [[], [-1, -1, -1]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
def test_no_slot_writes_nothing(dtype, slots):
    view = dense(Layout.CONTENT_PACKED_SCALED if dtype == torch.int8 else Layout.KV_FIRST_NHD, dtype)
    cache, rows = view.tensor(torch.zeros(view.end, dtype=dtype)), torch.ones(3, HK, 4)
    write_kv_cache(rows, rows, cache, layer_of(view, dtype), torch.tensor(slots, dtype=torch.int64))
    assert not cache.any()


def test_rows_of_a_fused_qkv_tensor():
    qkv = torch.arange(2.0 * 6 * 4).view(2, 6, 4)
    view = dense(Layout.BLOCKS_FIRST_NHD, torch.float32)
    cache = view.tensor(torch.zeros(view.end))
    write_kv_cache(qkv[:, 2:4], qkv[:, 4:], cache, layer_of(view, torch.float32), torch.tensor([7, 2]))
    assert torch.equal(cache[2, K, 1], qkv[0, 2:4])
    assert torch.equal(cache[0, V, 2], qkv[1, 4:])
