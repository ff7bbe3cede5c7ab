"""The cache write: the bytes of the reference's, and not a byte elsewhere."""

from dataclasses import replace

import attn_optimized
import attn_reference
import pytest
import torch
from attn_contract import ContractError, KVCacheView, Layer, Layout, PhysicalOrder, UnsupportedError
from attn_optimized import kv_cache
from attn_optimized.signature_cache import SignatureCache

LAYOUTS = [layout for layout in Layout if not layout.has_latent_value]
NUM_BLOCKS, BLOCK_SIZE, NUM_KV_HEADS, HEAD_SIZE = 5, 16, 3, 32
SLOTS = [79, -1, 0, 37, -1, 16, 15]
CACHE_DTYPES = [torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.int8]


@pytest.fixture
def layer_of():
    """A layer with fixed scales of 1, or with the scales of each token in a cache of the view's size."""

    def build(view: KVCacheView, dtype: torch.dtype | None = None, *, device="cpu", per_token=False, **fields) -> Layer:
        if per_token and not view.layout.has_inline_scales:
            scales = torch.full((2, view.num_kv_heads, view.num_blocks, view.block_size + 1), 7.0, device=device)
            # any strides: heads outside, padded blocks
            k_scale_cache, v_scale_cache = scales[..., : view.block_size].permute(0, 2, 3, 1)
            fields = {"k_scale_cache": k_scale_cache, "v_scale_cache": v_scale_cache, **fields}
        elif dtype is not None and not view.layout.has_inline_scales:
            fields = {"k_scale": torch.ones((), device=device), "v_scale": torch.ones(1, device=device), **fields}
        return Layer(
            num_heads=view.num_kv_heads,
            num_kv_heads=view.num_kv_heads,
            head_size=view.head_size,
            scale=1.0,
            layout=view.layout,
            kv_cache_dtype=dtype,
            **fields,
        )

    return build


def dense_view(layout: Layout, itemsize: int, **sizes: int) -> KVCacheView:
    sizes = {
        "num_blocks": NUM_BLOCKS, "block_size": BLOCK_SIZE, "num_kv_heads": NUM_KV_HEADS, "head_size": HEAD_SIZE,
    } | sizes  # fmt: skip
    return KVCacheView.dense(layout, itemsize=itemsize, **sizes)


def random_bits(count: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """NaNs of every payload included."""
    return torch.randint(0, 256, (count * dtype.itemsize,), dtype=torch.uint8).view(dtype).to(device)


@pytest.mark.parametrize("block_size", [48, 80, 544])
@pytest.mark.parametrize("layout", [Layout.KV_FIRST_NHD, Layout.X_PACKED, Layout.SHUFFLED])
def test_block_sizes_that_are_no_power_of_two(layout, block_size, layer_of, device):
    """Whatever the layout, a permutation: all slots of all blocks, in several tiles of rows, fill the allocation."""
    view = dense_view(layout, 2, num_blocks=3, block_size=block_size, num_kv_heads=2, head_size=8)
    raw = torch.zeros(view.end, dtype=torch.float16, device=device)
    k, v = torch.arange(2 * view.num_slots * 16, device=device).to(torch.int16).add(1).view(torch.float16).view(2, -1, 2, 8)
    attn_optimized.write_kv_cache(k, v, view.tensor(raw), layer_of(view), torch.randperm(view.num_slots).to(device))
    expected = torch.cat([k, v]).view(torch.int16).flatten()
    assert torch.equal(raw.view(torch.int16).sort().values, expected.sort().values)


def awkward_rows(element: torch.dtype) -> torch.Tensor:
    """[7, 2 * HK, D], one row for each slot: ordinary ones, zeros of both signs, NaN, infinities, the smallest and largest."""
    rows = torch.randn(len(SLOTS), 2 * NUM_KV_HEADS, HEAD_SIZE) * 100
    rows[0, 0] = 0
    rows[0, 1] = -0.0
    rows[0, 2] = torch.nan
    rows[2, 0, 5] = -torch.nan
    rows[2, 1, 7:9] = torch.tensor([torch.inf, -torch.inf])
    rows[2, 2] = torch.inf
    rows[3, 0] = torch.finfo(element).smallest_normal
    rows[3, 1] = torch.finfo(element).max
    rows[3, 2] = 1e-5
    rows[5, 3, 0], rows[5, 4] = torch.nan, 0
    return rows.to(element)


def assert_writes_as_the_reference(
    view: KVCacheView,
    rows: torch.Tensor | tuple[torch.Tensor, ...],
    layer_of,
    device: torch.device,
    dtype: torch.dtype | None = None,
    **fields,
) -> None:
    """The same bytes of the cache, and the same scales, where K and V are [T, 2 * HK, D] or a pair."""
    element = dtype or rows[0].dtype
    before, found = random_bits(view.end, element, device), []
    k, v = rows.to(device).split(NUM_KV_HEADS, dim=1) if isinstance(rows, torch.Tensor) else rows
    for package in (attn_optimized, attn_reference):
        layer, raw = layer_of(view, dtype, device=device, **fields), before.clone()
        package.write_kv_cache(k, v, view.tensor(raw), layer, torch.tensor(SLOTS, device=device))
        if view.layout.has_inline_scales:  # a NaN is a NaN, whatever its bits
            raw.view(torch.float32).nan_to_num_(nan=torch.nan, posinf=torch.inf, neginf=-torch.inf)
        found.append((raw, layer.tensors))
    (raw, scales), (expected, expected_scales) = found
    assert torch.equal(raw.view(torch.uint8), expected.view(torch.uint8))
    for name, scale in scales.items():
        torch.testing.assert_close(scale, expected_scales[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("element", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if not layout.has_inline_scales])
def test_every_bit_of_padded_blocks(layout, element, layer_of, device):
    """Keys and values are slices of a fused tensor with more rows than slots."""
    view = dense_view(layout, element.itemsize)
    view = replace(view, offset=24, block_stride=view.block_stride + 24)
    if layout.dims[0] == "kv":
        view = replace(view, kv_stride=NUM_BLOCKS * view.block_stride + 8)
    fused = random_bits((len(SLOTS) + 2) * 4 * NUM_KV_HEADS * HEAD_SIZE, element, device)
    _, k, v, _ = fused.view(-1, 4 * NUM_KV_HEADS, HEAD_SIZE).split(NUM_KV_HEADS, dim=1)
    assert_writes_as_the_reference(view, (k, v), layer_of, device)


@pytest.mark.parametrize("order", PhysicalOrder)
def test_every_physical_order_is_written_as_by_the_reference(order, layer_of, device):
    """Layer 1 of two; block sizes that are no power of two."""
    rows = torch.randn(2, len(SLOTS), NUM_KV_HEADS, HEAD_SIZE, device=device)
    view = second_of_two_layers(Layout.CONTENT_PACKED, 4, order, num_blocks=14, block_size=6, head_size=HEAD_SIZE)
    assert_writes_as_the_reference(view, tuple(rows), layer_of, device)


SCALES = {"for all": (0.3, [0.7]), "by head": ([0.3, 0.9, 0.5], [0.7, 0.2, 0.4]), "mixed": (0.3, [0.7, 0.2, 0.4])}


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("cache_dtype", CACHE_DTYPES[:2], ids=str)
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if not layout.has_inline_scales])
def test_fixed_scales_are_applied_as_by_the_reference(layout, cache_dtype, scales, dtype, layer_of, device):
    k_scale, v_scale = (torch.tensor(scale, device=device) for scale in SCALES[scales])
    fixed = {"k_scale": k_scale, "v_scale": v_scale}
    assert_writes_as_the_reference(dense_view(layout, 1), awkward_rows(dtype), layer_of, device, cache_dtype, **fixed)


@pytest.mark.parametrize("cache_dtype", CACHE_DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_scale_per_token_and_head(layout, cache_dtype, dtype, layer_of, device):
    rows = awkward_rows(dtype)
    assert_writes_as_the_reference(dense_view(layout, 1), rows, layer_of, device, cache_dtype, per_token=True)


def second_of_two_layers(
    layout: Layout, itemsize: int, order: PhysicalOrder = PhysicalOrder.BLNHC, **sizes: int
) -> KVCacheView:
    sizes = {"num_blocks": NUM_BLOCKS, "block_size": BLOCK_SIZE, "num_kv_heads": NUM_KV_HEADS, **sizes}
    return KVCacheView.content_packed(layout, order, num_layers=2, layer=1, itemsize=itemsize, **sizes)


def test_inline_scales_in_another_physical_order(layer_of, device):
    """Rows of 2 * (32 + 4) bytes, not one of which is aligned to 16."""
    view = second_of_two_layers(Layout.CONTENT_PACKED_SCALED, 1, head_size=HEAD_SIZE)
    assert_writes_as_the_reference(view, awkward_rows(torch.float32), layer_of, device, torch.int8)


@pytest.mark.parametrize("cache_dtype", [None, *CACHE_DTYPES], ids=str)
@pytest.mark.parametrize("widths", [(192, 128), (48, 80), (9, 1)], ids=str)
def test_rows_of_two_widths(widths, cache_dtype, layer_of, device):
    """The rows of v are longer than its dims."""
    k, v = torch.randn(len(SLOTS), NUM_KV_HEADS, 512, device=device).bfloat16().split(256, dim=-1)
    rows = k[..., : widths[0]], v[..., : widths[1]]
    itemsize = 2 if cache_dtype is None else 1
    view = second_of_two_layers(Layout.CONTENT_PACKED, itemsize, head_size=widths[0], head_size_v=widths[1])
    options = {"per_token": cache_dtype == torch.int8, "head_size_v": widths[1]}
    assert_writes_as_the_reference(view, rows, layer_of, device, cache_dtype, **options)


@pytest.mark.parametrize(
    ("shape", "stride"),
    [((1, 2, 16, 40), (1283, 640, 40, 1)), ((3, 1, 16, 40), (640, 643, 40, 1)), ((3, 2, 1, 40), (80, 40, 41, 1))],
    ids=["one block", "one head", "one slot"],
)
def test_inline_scales_of_a_dimension_of_one(shape, stride, device):
    """Its stride is never taken, so it is no multiple of anything."""
    sizes = {"num_heads": 2, "num_kv_heads": shape[1], "head_size": 16, "scale": 1.0}
    layer = Layer(**sizes, layout=Layout.CONTENT_PACKED_SCALED, kv_cache_dtype=torch.int8)
    k, v = torch.randn(2, 1, shape[1], 16, device=device)
    slot = torch.zeros(1, dtype=torch.int64, device=device)
    got, expected = torch.zeros(2, 4000, dtype=torch.int8, device=device)
    attn_optimized.write_kv_cache(k, v, got.as_strided(shape, stride, 0), layer, slot)
    attn_reference.write_kv_cache(k, v, expected.as_strided(shape, stride, expected.storage_offset()), layer, slot)
    assert torch.equal(got, expected)


def test_an_empty_slot_mapping_writes_nothing(layer_of, device):
    kv_cache = torch.zeros(2, 3, 4, 2, 16, device=device)
    k, v = torch.randn(2, 5, 2, 16, device=device)
    layer = layer_of(dense_view(Layout.KV_FIRST_NHD, 4, num_kv_heads=2, head_size=16))
    attn_optimized.write_kv_cache(k, v, kv_cache, layer, torch.empty(0, dtype=torch.int64, device=device))
    assert not kv_cache.any()


def write_of(layer_of, device, layout=Layout.BLOCKS_FIRST_NHD, dtype=None, *, seed=0):
    """Arguments of a write of four rows; those of two seeds have one signature."""
    generator = torch.Generator().manual_seed(seed)
    view = dense_view(layout, (dtype or torch.float16).itemsize)
    k, v = (torch.randn(4, NUM_KV_HEADS, HEAD_SIZE, generator=generator).half().to(device) for _ in range(2))
    cache = view.tensor(torch.zeros(view.end + 16, dtype=dtype or torch.float16, device=device))
    slots = torch.randperm(view.num_slots, generator=generator)[:4].to(device)
    return {"k": k, "v": v, "kv_cache": cache, "layer": layer_of(view, dtype, device=device), "slot_mapping": slots}


def test_writes_of_one_signature_share_a_launch_but_no_tensors(layer_of, device, monkeypatch):
    launches = SignatureCache()
    monkeypatch.setattr(kv_cache, "_LAUNCHES", launches)
    first, second = (write_of(layer_of, device, dtype=torch.float8_e4m3fn, seed=seed) for seed in (0, 1))
    second["layer"] = replace(second["layer"], k_scale=torch.full((), 0.5, device=device))
    for write in (first, second, first):
        attn_optimized.write_kv_cache(**write)
        expected = {**write, "kv_cache": torch.zeros_like(write["kv_cache"])}
        attn_reference.write_kv_cache(**expected)
        assert torch.equal(write["kv_cache"].view(torch.uint8), expected["kv_cache"].view(torch.uint8))
        write["kv_cache"].view(torch.uint8).fill_(0)
    assert len(launches) == 1


def test_inline_scales_are_aligned_in_each_cache_of_a_signature(layer_of, device):
    write = write_of(layer_of, device, Layout.CONTENT_PACKED_SCALED, torch.int8)
    attn_optimized.write_kv_cache(**write)
    shifted = torch.as_strided(write["kv_cache"], write["kv_cache"].shape, write["kv_cache"].stride(), 2)
    with pytest.raises(ContractError, match="multiples of 4: scales are float32"):
        attn_optimized.write_kv_cache(**{**write, "kv_cache": shifted})


@pytest.mark.skipif(torch.cuda.is_available(), reason="GPUs compute bfloat16 rightly")
def test_the_interpreter_copies_bfloat16_but_does_not_quantize_it(layer_of, monkeypatch):
    monkeypatch.setattr("attn_optimized.device.interpreter_is_exact", lambda: False)
    view = dense_view(Layout.KV_FIRST_NHD, 1)
    kv_cache = view.tensor(torch.zeros(view.end, dtype=torch.int8))
    k, v = torch.ones(2, 3, NUM_KV_HEADS, HEAD_SIZE, dtype=torch.bfloat16)
    with pytest.raises(UnsupportedError, match="bfloat16 under Triton's interpreter"):
        attn_optimized.write_kv_cache(k, v, kv_cache, layer_of(view, torch.int8, per_token=True), torch.tensor([0, 1, 2]))
    assert not kv_cache.any()


def test_unchecked_slots_reach_no_other_memory(device):
    """Slots past the cache and below -1 write nothing."""
    sizes = {"num_blocks": 3, "block_size": 16, "num_kv_heads": 1, "head_size": 16}
    view = replace(KVCacheView.dense(Layout.BLOCKS_FIRST_NHD, itemsize=4, **sizes), offset=4096)
    raw = torch.zeros(64 * 512, device=device)
    layer = Layer(num_heads=1, num_kv_heads=1, head_size=16, scale=1.0, layout=view.layout)
    rows = torch.ones(2, 4, 1, 16, device=device)
    slots = torch.tensor([48, 100, -2, -200], device=device)
    attn_optimized.write_kv_cache(*rows, view.tensor(raw), layer, slots)
    assert not raw.any()
