"""Writes of latent vectors and rotated keys, beside the reference's."""

import dataclasses

import attn_optimized
import attn_reference
import pytest
import torch
from attn_contract import ContractError, KVCacheView, Layer, Layout
from attn_contract.layer import FLOAT8_DTYPES
from attn_contract.layouts import LATENT_FORMATS

from tests.support.latent_formats import latent_sizes

NUM_BLOCKS, POISON = 5, 0xEE
WIDTHS = [(512, 64), (256, 32), (40, 17), (8, 0), (1, 1)]


def layer_of(widths, *, float8=None, device="cpu") -> Layer:
    return Layer(
        num_heads=4,
        num_kv_heads=1,
        head_size=sum(widths),
        head_size_v=widths[0],
        scale=1.0,
        layout=Layout.LATENT,
        kv_cache_dtype=float8,
        k_scale=torch.tensor([0.3], device=device) if float8 else None,
    )


def poisoned_cache(widths, dtype, block_size, device) -> torch.Tensor:
    """[NB, BS, D] between padding: blocks and slots of an allocation that has more of both, and starts later."""
    shape = (NUM_BLOCKS, block_size + 1, sum(widths) + 3)
    size = torch.Size(shape).numel() + 5
    raw = torch.full((size * dtype.itemsize,), POISON, dtype=torch.uint8, device=device).view(dtype)
    return raw[5:].view(shape)[:, :block_size, :-3]


def rows_of(widths, count, dtype, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns of one tensor, in the middle: rows of both have strides of their own, and numbers of every size."""
    fused = torch.randn(count, sum(widths) + 6, generator=torch.Generator().manual_seed(0)) * 10
    fused[0] = torch.nan
    fused[-1] = 1e-6
    fused = fused.to(dtype).to(device)
    return fused[:, 2 : 2 + widths[0]], fused[:, 2 + widths[0] : 2 + sum(widths)]


def check(widths, dtype, device, *, float8=None, block_size=16, count=21) -> None:
    layer = layer_of(widths, float8=float8, device=device)
    kv_c, k_pe = rows_of(widths, count, dtype, device)
    slots = torch.randperm(NUM_BLOCKS * block_size, generator=torch.Generator().manual_seed(0))[: count - 2].to(device)
    slots[2] = -1
    expected, found = (poisoned_cache(widths, float8 or dtype, block_size, device) for _ in range(2))
    attn_reference.write_latent_cache(kv_c, k_pe, expected, layer, slots)
    attn_optimized.write_latent_cache(kv_c, k_pe, found, layer, slots, validate=True)
    everything = (found.untyped_storage(), expected.untyped_storage())
    assert torch.equal(*(torch.tensor([], dtype=torch.uint8, device=device).set_(storage) for storage in everything))


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_a_copy_is_bit_by_bit(widths, dtype, device):
    check(widths, dtype, device)


@pytest.mark.parametrize("float8", sorted(FLOAT8_DTYPES, key=str), ids=str)
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_float8_of_one_scale(widths, float8, dtype, device):
    check(widths, dtype, device, float8=float8)


@pytest.mark.parametrize("block_size", [1, 48, 64])
def test_every_block_size_is_written(block_size, device):
    check((24, 8), torch.float16, device, block_size=block_size, count=5)


def test_several_tiles_of_rows(device):
    """A tile of the interpreter has at most 256 rows."""
    check((8, 8), torch.float16, device, block_size=64, count=300)


def test_a_write_like_one_before_is_checked_like_that_one(device):
    """A signature that was right is not checked again; devices, gradients and memory are."""
    widths = (40, 17)
    (kv_c, k_pe), cache = rows_of(widths, 5, torch.float16, device), poisoned_cache(widths, torch.float16, 16, device)
    slots = torch.arange(5, device=device)
    right = {"kv_c": kv_c, "k_pe": k_pe, "kv_cache": cache, "layer": layer_of(widths, device=device), "slot_mapping": slots}
    attn_optimized.write_latent_cache(**right)
    before = cache.clone()
    for change, message in (
        ({"kv_c": cache[0, :5, :40]}, "kv_cache: got memory that reaches into kv_c's"),
        ({"k_pe": k_pe.clone().requires_grad_()}, "k_pe: got requires_grad=True"),
        ({"kv_c": kv_c.bfloat16()}, "k_pe: got torch.float16"),
        ({"kv_c": kv_c.bfloat16(), "k_pe": k_pe.bfloat16()}, "kv_cache: got torch.float16"),
        ({"slot_mapping": slots - 2, "validate": True}, r"slot_mapping\[0\]: got -2"),
        ({"validate": 1}, "validate: got 1"),
    ):
        with pytest.raises(ContractError, match=message):
            attn_optimized.write_latent_cache(**{**right, **change})
    assert torch.equal(cache.view(torch.int16), before.view(torch.int16))


def test_an_empty_slot_mapping_writes_nothing(device):
    layer, cache = layer_of((16, 8)), poisoned_cache((16, 8), torch.float16, 16, device)
    kv_c, k_pe = rows_of((16, 8), 3, torch.float16, device)
    attn_optimized.write_latent_cache(kv_c, k_pe, cache, layer, torch.empty(0, dtype=torch.int64, device=device))
    assert bool((cache.contiguous().view(torch.uint8) == POISON).all())


def test_unchecked_slots_reach_no_other_memory(device):
    layer, cache = layer_of((16, 8)), poisoned_cache((16, 8), torch.float16, 16, device)
    kv_c, k_pe = rows_of((16, 8), 3, torch.float16, device)
    beyond = torch.tensor([NUM_BLOCKS * 16, -2, 2**40], device=device)
    attn_optimized.write_latent_cache(kv_c, k_pe, cache, layer, beyond)
    assert bool((cache.contiguous().view(torch.uint8) == POISON).all())
    with pytest.raises(ContractError, match="slot_mapping"):
        attn_optimized.write_latent_cache(kv_c, k_pe, cache, layer, beyond, validate=True)


@pytest.mark.parametrize("float8", FLOAT8_DTYPES, ids=str)
@pytest.mark.parametrize(("scales", "block_size"), [(1, 16), (3, 3), (2, 1)])
@pytest.mark.parametrize("layout", LATENT_FORMATS)
def test_slots_with_scales_are_written_bit_by_bit(layout, scales, block_size, float8, device):
    """Padding behind a slot's scales is written, bytes between blocks are not, and a NaN that is copied keeps its bits."""
    sizes = latent_sizes(layout, scales)
    head_size, head_size_v = sizes["head_size"], sizes["head_size_v"]
    layer = Layer(num_heads=4, num_kv_heads=1, scale=1.0, layout=layout, kv_cache_dtype=float8, **sizes)
    kv_c, k_pe = rows_of((head_size_v, head_size - head_size_v), 21, torch.bfloat16, device)
    kept = LATENT_FORMATS[layout].kept_dims
    copied = k_pe if kept is None else kv_c[:, head_size_v - kept :]
    copied[1].view(torch.int16)[:] = torch.arange(0x7F81, 0x7F81 + copied.shape[1], device=device).to(torch.int16)
    slots = torch.randperm(NUM_BLOCKS * block_size, generator=torch.Generator().manual_seed(0))[:19].to(device)
    slots[2:3] = -1
    view = KVCacheView.dense(layout, num_blocks=NUM_BLOCKS, block_size=block_size, num_kv_heads=1, itemsize=1, **sizes)
    unit = layout.block_alignment(**sizes)
    view = dataclasses.replace(view, block_stride=view.block_stride + 4 * unit, offset=layout.stride_alignment)
    expected, found = (torch.full((view.end + 4,), POISON, dtype=torch.uint8, device=device) for _ in range(2))
    for write, raw in ((attn_reference.write_latent_cache, expected), (attn_optimized.write_latent_cache, found)):
        write(kv_c, k_pe, view.tensor(raw.view(float8)), layer, slots)
    assert torch.equal(found, expected)
