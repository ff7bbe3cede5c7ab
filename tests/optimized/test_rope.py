"""Rotation with the cache write: bit by bit what separately rounded float32 products and sums give, and q in place."""

import attn_optimized
import pytest
import torch
from attn_contract import ContractError, Layer, Layout

NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE = 6, 2, 32
NUM_BLOCKS, BLOCK_SIZE = 3, 16
NUM_ROWS = 11
POSITIONS = [5, 0, 49, 6, 6, 7, 31, 2, 48, 1]
SLOTS = [40, -1, 0, 17, 16, -1, 3, 47]


@pytest.fixture
def qkv(dtype, device) -> torch.Tensor:
    """More rows than positions, and more positions than slots."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(NUM_ROWS, NUM_HEADS + 2 * NUM_KV_HEADS, HEAD_SIZE, generator=generator).to(device, dtype)


def split(qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k, v = qkv.split([NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS], dim=1)
    return q, k, v


def layer_of(layout: Layout = Layout.KV_FIRST_NHD, **fields) -> Layer:
    return Layer(num_heads=NUM_HEADS, num_kv_heads=NUM_KV_HEADS, head_size=HEAD_SIZE, scale=1.0, layout=layout, **fields)


def cache_of(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """KV_FIRST_NHD"""
    return torch.full((2, NUM_BLOCKS, BLOCK_SIZE, NUM_KV_HEADS, HEAD_SIZE), 7, device=device).to(dtype)


def cos_sin_cache_of(rotary_dim: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Fifty positions; numbers of any size, which round in every product."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(50, rotary_dim, generator=generator).to(device, dtype)


def rotated(x: torch.Tensor, cos_sin: torch.Tensor, *, is_neox: bool) -> torch.Tensor:
    """[rows, heads, D] by [rows, rotary_dim]; each of torch's operations rounds its result."""
    half = cos_sin.shape[1] // 2
    cos, sin = cos_sin.float()[:, None, :half], cos_sin.float()[:, None, half:]
    first = slice(0, half) if is_neox else slice(0, 2 * half, 2)
    second = slice(half, 2 * half) if is_neox else slice(1, 2 * half, 2)
    x1, x2 = x[..., first].float(), x[..., second].float()
    out = x.clone()
    out[..., first] = (x1 * cos - x2 * sin).to(x.dtype)
    out[..., second] = (x2 * cos + x1 * sin).to(x.dtype)
    return out


@pytest.mark.parametrize("is_neox", [True, False], ids=["neox", "interleaved"])
@pytest.mark.parametrize("rotary_dim", [2, 12, 32])
@pytest.mark.parametrize("cos_sin_dtype", ["float32", "q's"])
def test_rotates_q_in_place_and_writes_the_rotated_k(cos_sin_dtype, rotary_dim, is_neox, qkv, device):
    cos_sin_cache = cos_sin_cache_of(rotary_dim, torch.float32 if cos_sin_dtype == "float32" else qkv.dtype, device)
    positions = torch.tensor(POSITIONS, device=device)
    slot_mapping = torch.tensor(SLOTS, device=device)
    q, k, v = split(qkv)
    expected = qkv.clone()
    expected[: len(POSITIONS), :NUM_HEADS] = rotated(q[: len(POSITIONS)], cos_sin_cache[positions], is_neox=is_neox)
    kv_cache = cache_of(qkv.dtype, device)
    expected_cache = kv_cache.clone()
    written = slot_mapping >= 0
    rotated_k = rotated(k[: len(SLOTS)], cos_sin_cache[positions[: len(SLOTS)]], is_neox=is_neox)
    expected_cache.flatten(1, 2)[0, slot_mapping[written]] = rotated_k[written]
    expected_cache.flatten(1, 2)[1, slot_mapping[written]] = v[: len(SLOTS)][written]

    attn_optimized.rope_and_write_kv_cache(
        q, k, v, positions, cos_sin_cache, kv_cache, layer_of(), slot_mapping, is_neox=is_neox, validate=True
    )
    assert torch.equal(qkv, expected), "q is rotated; k, v and the rows without a position are not"
    assert torch.equal(kv_cache, expected_cache)


@pytest.mark.parametrize("is_neox", [True, False], ids=["neox", "interleaved"])
@pytest.mark.parametrize("cache_dtype", [torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.int8], ids=str)
@pytest.mark.parametrize("layout", [Layout.SHUFFLED, Layout.X_PACKED, Layout.CONTENT_PACKED_SCALED])
def test_what_is_quantized_are_the_rotated_rows(layout, cache_dtype, is_neox, qkv, device):
    """Rounded to q's dtype first, as if they had been rotated before an ordinary write."""
    positions, slot_mapping = torch.tensor(POSITIONS, device=device), torch.tensor(SLOTS, device=device)
    cos_sin_cache = cos_sin_cache_of(24, torch.float32, device)
    q, k, v = split(qkv)
    rotated_k = k.clone()
    rotated_k[: len(POSITIONS)] = rotated(k[: len(POSITIONS)], cos_sin_cache[positions], is_neox=is_neox)
    size = 2 * NUM_BLOCKS * BLOCK_SIZE * NUM_KV_HEADS * HEAD_SIZE
    shape = (2, NUM_BLOCKS, size // 2 // NUM_BLOCKS)
    if layout.has_inline_scales:
        shape = (NUM_BLOCKS, NUM_KV_HEADS, BLOCK_SIZE, 2 * (HEAD_SIZE + 4))
    caches, scales = [], []
    for rotate in (False, True):
        kv_cache = torch.zeros(shape, dtype=torch.uint8, device=device).view(cache_dtype)
        token_scales = torch.zeros(2, NUM_BLOCKS, BLOCK_SIZE, NUM_KV_HEADS, device=device)
        given = {} if layout.has_inline_scales else {"k_scale_cache": token_scales[0], "v_scale_cache": token_scales[1]}
        layer = layer_of(layout, kv_cache_dtype=cache_dtype, **given)
        if rotate:
            attn_optimized.rope_and_write_kv_cache(
                q, k, v, positions, cos_sin_cache, kv_cache, layer, slot_mapping, is_neox=is_neox
            )
        else:
            attn_optimized.write_kv_cache(rotated_k, v, kv_cache, layer, slot_mapping)
        caches.append(kv_cache.view(torch.uint8))
        scales.append(token_scales)
    assert torch.equal(*caches)
    assert torch.equal(*scales)
    assert caches[0].any()


def test_what_is_not_rotated_keeps_its_bits(dtype, device):
    """Dims from rotary_dim on, v, and rows without a position: NaNs of any payload too."""
    bits = torch.randint(0, 256, (NUM_ROWS, 10, HEAD_SIZE * dtype.itemsize), dtype=torch.uint8, device=device)
    qkv = bits.view(dtype)
    before = bits.clone().view(dtype)
    q, k, v = split(qkv)
    kv_cache = cache_of(dtype, device)
    positions, slot_mapping = torch.tensor(POSITIONS, device=device), torch.tensor(SLOTS, device=device)
    attn_optimized.rope_and_write_kv_cache(
        q, k, v, positions, cos_sin_cache_of(12, dtype, device), kv_cache, layer_of(), slot_mapping, is_neox=True
    )
    rows = len(POSITIONS)
    integer = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    assert torch.equal(qkv[:, :, 12:].view(integer), before[:, :, 12:].view(integer))
    assert torch.equal(qkv[rows:].view(integer), before[rows:].view(integer))
    assert torch.equal(qkv[:, NUM_HEADS:].view(integer), before[:, NUM_HEADS:].view(integer))
    for row, slot in enumerate(SLOTS):
        if slot >= 0:
            stored_k, stored_v = kv_cache.flatten(1, 2)[:, slot]
            assert torch.equal(stored_k[:, 12:].view(integer), k[row, :, 12:].view(integer))
            assert torch.equal(stored_v.view(integer), v[row].view(integer))


def test_several_tiles_of_queries_and_of_keys(device):
    """In place: a dim that another thread of the program had rotated already would rotate its partner wrongly."""
    num_rows, head_size = 300, 128
    qkv = torch.randn(num_rows, NUM_HEADS + 2 * NUM_KV_HEADS, head_size, device=device)
    q, k, v = split(qkv)
    positions = torch.arange(num_rows, device=device) % 50
    cos_sin_cache = cos_sin_cache_of(head_size, torch.float32, device)
    expected_q, expected_k = (rotated(x, cos_sin_cache[positions], is_neox=True) for x in (q, k))
    expected_v = v.clone()
    kv_cache = torch.zeros(2, 20, BLOCK_SIZE, NUM_KV_HEADS, head_size, device=device)
    slot_mapping = torch.randperm(320).to(device)[:num_rows]
    layer = Layer(num_heads=NUM_HEADS, num_kv_heads=NUM_KV_HEADS, head_size=head_size, scale=1.0, layout=Layout.KV_FIRST_NHD)
    attn_optimized.rope_and_write_kv_cache(q, k, v, positions, cos_sin_cache, kv_cache, layer, slot_mapping, is_neox=True)
    assert torch.equal(q, expected_q)
    assert torch.equal(kv_cache.flatten(1, 2)[:, slot_mapping], torch.stack([expected_k, expected_v]))


@pytest.mark.parametrize("num_positions", [0, 4])
def test_nothing_to_write(num_positions, qkv, device):
    """Without slots q is rotated all the same; without positions nothing happens."""
    q, k, v = split(qkv)
    before = qkv.clone()
    cos_sin_cache = cos_sin_cache_of(HEAD_SIZE, torch.float32, device)
    positions = torch.tensor(POSITIONS[:num_positions], dtype=torch.int64, device=device)
    kv_cache = cache_of(qkv.dtype, device)
    no_slots = torch.empty(0, dtype=torch.int64, device=device)
    attn_optimized.rope_and_write_kv_cache(q, k, v, positions, cos_sin_cache, kv_cache, layer_of(), no_slots, is_neox=False)
    expected = before.clone()
    rows = before[:num_positions, :NUM_HEADS]
    expected[:num_positions, :NUM_HEADS] = rotated(rows, cos_sin_cache[positions], is_neox=False)
    assert torch.equal(qkv, expected)
    assert (kv_cache == 7).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"positions": torch.tensor([50, *POSITIONS[1:]])}, r"positions\[0\]: got 50"),
        ({"positions": torch.tensor(POSITIONS[:7])}, "slot_mapping: got 8 slots"),
        ({"positions": torch.arange(NUM_ROWS + 1)}, "positions: got 12 positions"),
        ({"cos_sin_cache": torch.ones(50, 34)}, "cos_sin_cache"),
        ({"cos_sin_cache": torch.ones(50, 7)}, "cos_sin_cache"),
        ({"cos_sin_cache": torch.ones(50, 8, dtype=torch.float64)}, "cos_sin_cache"),
        ({"slot_mapping": torch.tensor([3, 3])}, "slot 3 twice"),
        ({"is_neox": 1}, "is_neox"),
    ],
)
@pytest.mark.parametrize("is_first", [True, False], ids=["first", "after a right call"])
def test_bad_input_writes_nothing(is_first, change, words, device):
    qkv = torch.ones(NUM_ROWS, NUM_HEADS + 2 * NUM_KV_HEADS, HEAD_SIZE, device=device)
    q, k, v = split(qkv)
    kv_cache = cache_of(qkv.dtype, device)
    right = {
        "positions": torch.tensor(POSITIONS),
        "cos_sin_cache": torch.full((50, 8), 0.5),
        "slot_mapping": torch.tensor(SLOTS),
        "is_neox": True,
    }
    right, call = (
        {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in each.items()}
        for each in (right, right | change)
    )
    if not is_first:
        attn_optimized.rope_and_write_kv_cache(q, k, v, kv_cache=kv_cache, layer=layer_of(), **right)
        qkv.fill_(1)
        kv_cache.fill_(7)
    with pytest.raises(ContractError, match=words):
        attn_optimized.rope_and_write_kv_cache(q, k, v, kv_cache=kv_cache, layer=layer_of(), validate=True, **call)
    assert (qkv == 1).all()
    assert (kv_cache == 7).all()
