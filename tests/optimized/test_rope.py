"""Rotation with the cache write: bit by bit what the reference gives, whose products and sums are rounded one by one."""

import attn_optimized
import attn_reference
import pytest
import torch
from attn_contract import KVCacheView, Layer, Layout

from tests.support.pairwise import parametrize_pairwise

NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE = 6, 2, 32
NUM_BLOCKS, BLOCK_SIZE = 3, 16
NUM_ROWS = 11
POSITIONS = [5, 0, 49, 6, 6, 7, 31, 2, 48, 1]
SLOTS = [40, -1, 0, 17, 16, -1, 3, 47]


def split(qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k, v = qkv.split([NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS], dim=1)
    return q, k, v


def cos_sin_cache_of(rotary_dim: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Fifty positions; numbers of any size, which round in every product."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(50, rotary_dim, generator=generator).to(device, dtype)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


def assert_is_the_reference(
    qkv: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    *,
    is_neox: bool,
    layout: Layout = Layout.KV_FIRST_NHD,
    cache_dtype: torch.dtype | None = None,
    num_blocks: int = NUM_BLOCKS,
    positions: list[int] = POSITIONS,
    slots: list[int] = SLOTS,
) -> torch.Tensor:
    """Rotate q, k and v of one tensor [T, H + 2 * HK, D] and write them, by the kernels and by the reference.

    Returns:
        The tensor as the kernel has left it.
    """
    head_size, element = qkv.shape[2], cache_dtype or qkv.dtype
    sizes = {"num_kv_heads": NUM_KV_HEADS, "head_size": head_size}
    view = KVCacheView.dense(layout, num_blocks=num_blocks, block_size=BLOCK_SIZE, itemsize=element.itemsize, **sizes)
    at = [torch.tensor(numbers, dtype=torch.int64, device=qkv.device) for numbers in (positions, slots)]
    found = []
    for package in (attn_optimized, attn_reference):
        rows, raw = qkv.clone(), torch.zeros(view.end * element.itemsize, dtype=torch.uint8, device=qkv.device)
        scales = torch.zeros(2, num_blocks, BLOCK_SIZE, NUM_KV_HEADS, device=qkv.device)
        of_tokens = (
            {} if cache_dtype is None or layout.has_inline_scales else {"k_scale_cache": scales[0], "v_scale_cache": scales[1]}
        )
        layer = Layer(num_heads=NUM_HEADS, scale=1.0, layout=layout, kv_cache_dtype=cache_dtype, **sizes, **of_tokens)
        cache = view.tensor(raw.view(element))
        package.rope_and_write_kv_cache(*split(rows), at[0], cos_sin_cache, cache, layer, at[1], is_neox=is_neox)
        found.append((bits(rows), raw, scales))
    assert all(map(torch.equal, *found))
    assert torch.equal(found[0][0][:, NUM_HEADS:], bits(qkv)[:, NUM_HEADS:]), "k and v are not rotated in place"
    assert torch.equal(found[0][0][len(positions) :], bits(qkv)[len(positions) :]), "nor rows without a position"
    assert found[0][1].any() == any(slot >= 0 for slot in slots)
    return found[0][0].view(qkv.dtype)


@pytest.fixture
def qkv(dtype, device) -> torch.Tensor:
    """More rows than positions, and more positions than slots."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(NUM_ROWS, NUM_HEADS + 2 * NUM_KV_HEADS, HEAD_SIZE, generator=generator).to(device, dtype)


@pytest.mark.parametrize("is_neox", [True, False], ids=["neox", "interleaved"])
@pytest.mark.parametrize("rotary_dim", [2, 12, 32])
@pytest.mark.parametrize("is_float32", [True, False], ids=["float32", "q's"])
def test_q_is_rotated_in_place_and_k_where_it_is_written(is_float32, rotary_dim, is_neox, qkv, device):
    cos_sin_cache = cos_sin_cache_of(rotary_dim, torch.float32 if is_float32 else qkv.dtype, device)
    rotated = assert_is_the_reference(qkv, cos_sin_cache, is_neox=is_neox)
    assert not torch.equal(rotated[:, :NUM_HEADS], qkv[:, :NUM_HEADS])


@parametrize_pairwise(
    is_neox={"neox": True, "interleaved": False},
    cache_dtype=[torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.int8],
    layout=[Layout.SHUFFLED, Layout.X_PACKED, Layout.CONTENT_PACKED_SCALED],
)
def test_rotated_rows_are_quantized(layout, cache_dtype, is_neox, qkv, device):
    """Rounded to q's dtype first, as if they had been rotated before an ordinary write."""
    cos_sin_cache = cos_sin_cache_of(24, torch.float32, device)
    assert_is_the_reference(qkv, cos_sin_cache, is_neox=is_neox, layout=layout, cache_dtype=cache_dtype)


def test_dims_that_are_not_rotated_keep_their_bits(dtype, device):
    """Dims from rotary_dim on, and v: NaNs of any payload too."""
    payloads = torch.randint(0, 256, (NUM_ROWS, 10, HEAD_SIZE * dtype.itemsize), dtype=torch.uint8, device=device)
    qkv = payloads.view(dtype)
    qkv[..., :12] = 1.0
    rotated = assert_is_the_reference(qkv, cos_sin_cache_of(12, dtype, device), is_neox=True)
    assert torch.equal(bits(rotated[..., 12:]), bits(qkv[..., 12:]))


def test_several_tiles_of_queries_and_of_keys(device):
    """In place: a dim that another thread of the program had rotated already would rotate its partner wrongly."""
    qkv = torch.randn(300, NUM_HEADS + 2 * NUM_KV_HEADS, 128, device=device)
    slots = torch.randperm(320)[:300].tolist()
    places = {"positions": [row % 50 for row in range(300)], "slots": slots, "num_blocks": 20}
    assert_is_the_reference(qkv, cos_sin_cache_of(128, torch.float32, device), is_neox=True, **places)


@pytest.mark.parametrize("num_positions", [0, 4])
def test_q_is_rotated_without_slots(num_positions, qkv, device):
    """Without slots q is rotated all the same; without positions nothing happens."""
    cos_sin_cache = cos_sin_cache_of(HEAD_SIZE, torch.float32, device)
    places = {"positions": POSITIONS[:num_positions], "slots": []}
    rotated = assert_is_the_reference(qkv, cos_sin_cache, is_neox=False, **places)
    assert torch.equal(rotated, qkv) == (num_positions == 0)
