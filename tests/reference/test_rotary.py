"""Rotation against complex numbers and hand-made roundings, and the tensors that the fused cache write leaves alone."""

import pytest
import torch
from attn_contract import FLOAT_DTYPES, KVCacheView, Layer, Layout
from attn_reference import gather_kv_cache, rope_and_write_kv_cache, write_kv_cache
from attn_reference.rotary import rotate

H, HK, D = 4, 2, 8
MAX_POSITION = 50


def angles(rotary_dim):
    """[max_position, rotary_dim / 2] float64."""
    frequencies = 10000.0 ** (-torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim)
    return torch.arange(MAX_POSITION, dtype=torch.float64)[:, None] * frequencies


def cos_sin_cache(rotary_dim, dtype=torch.float32):
    return torch.cat([angles(rotary_dim).cos(), angles(rotary_dim).sin()], dim=-1).to(dtype)


def pairs(x, rotary_dim, is_neox):
    """The pairs of dims as complex numbers, [T, heads, rotary_dim / 2]."""
    if is_neox:
        first, second = [*range(rotary_dim // 2)], [*range(rotary_dim // 2, rotary_dim)]
    else:
        first, second = [*range(0, rotary_dim, 2)], [*range(1, rotary_dim, 2)]
    return torch.complex(x[..., first].double(), x[..., second].double())


@pytest.mark.parametrize("rotary_dim", [2, 4, D])
@pytest.mark.parametrize("is_neox", [False, True])
def test_rotation_is_a_product_of_complex_numbers(is_neox, rotary_dim, randn):
    """cos, sin, two products and a sum are rounded. Each error is at most 2^-24 times abs(x1) + abs(x2)."""
    x, positions = randn(5, 3, D), torch.tensor([0, 1, 7, 49, 7])
    cos, sin = cos_sin_cache(rotary_dim)[positions].chunk(2, dim=-1)
    rotated = rotate(x, cos, sin, is_neox=is_neox)
    turns = torch.polar(torch.ones(5, 1, rotary_dim // 2, dtype=torch.float64), angles(rotary_dim)[positions][:, None])
    expected = pairs(x, rotary_dim, is_neox) * turns
    error = (pairs(rotated, rotary_dim, is_neox) - expected).abs()
    assert (error <= 3 * 2**-24 * 2 * pairs(x, rotary_dim, is_neox).abs()).all()
    assert torch.equal(rotated[..., rotary_dim:], x[..., rotary_dim:])
    assert torch.equal(rotated[0], x[0])


def test_neox_and_interleaved_pairs():
    """A quarter turn takes (1, 0) to (0, 1)."""
    x = torch.tensor([1.0, 2, 3, 4, 5, 6]).view(1, 1, 6)
    cos, sin = torch.zeros(1, 2), torch.ones(1, 2)
    assert rotate(x, cos, sin, is_neox=True).flatten().tolist() == [-3, -4, 1, 2, 5, 6]
    assert rotate(x, cos, sin, is_neox=False).flatten().tolist() == [-2, 1, -4, 3, 5, 6]


def test_products_are_rounded_before_they_are_added():
    """(1 + 2^-12)^2 - (1 + 2^-11) is 2^-24. A fused multiply-add keeps it; rounded by itself, the square is 1 + 2^-11."""
    a = 1 + 2.0**-12
    x, cos, sin = torch.tensor([[[a, 1.0]]]), torch.tensor([[a]]), torch.tensor([[1 + 2.0**-11]])
    assert rotate(x, cos, sin, is_neox=True)[0, 0, 0] == 0
    x, cos, sin = torch.tensor([[[1.0, a]]]), torch.tensor([[a]]), torch.tensor([[-(1 + 2.0**-11)]])
    assert rotate(x, cos, sin, is_neox=True)[0, 0, 1] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_arithmetic_is_float32_and_rounded_once(dtype, randn):
    """Cosines and sines of q's dtype are converted exactly."""
    x, cache = randn(6, 2, D).to(dtype), cos_sin_cache(D, dtype)
    cos, sin = cache[:6].float().chunk(2, dim=-1)
    single = rotate(x.float(), cos, sin, is_neox=True)
    assert torch.equal(rotate(x, cos, sin, is_neox=True), single.to(dtype))


def call(randn, *, dtype=torch.float32, kv_cache_dtype=None, layout=Layout.BLOCKS_FIRST_HND, cos_sin_dtype=torch.float32):
    """5 rows of q, 4 positions and 3 slots, one of them -1. k and v have one row more than there are slots, which holds NaN."""
    stored = kv_cache_dtype or dtype
    view = KVCacheView.dense(layout, num_blocks=2, block_size=4, num_kv_heads=HK, head_size=D, itemsize=stored.itemsize)
    fixed = kv_cache_dtype in (torch.float8_e4m3fn, torch.float8_e4m3fnuz) and not layout.has_inline_scales
    layer = Layer(
        num_heads=H,
        num_kv_heads=HK,
        head_size=D,
        scale=1.0,
        layout=layout,
        kv_cache_dtype=kv_cache_dtype,
        **{"k_scale": torch.tensor(0.02), "v_scale": torch.tensor(0.03)} if fixed else {},
    )
    k, v = randn(4, HK, D).to(dtype), randn(4, HK, D).to(dtype)
    k[3], v[3] = torch.nan, torch.nan
    return {
        "q": randn(5, H, D).to(dtype),
        "k": k,
        "v": v,
        "positions": torch.tensor([3, 0, 49, 12]),
        "cos_sin_cache": cos_sin_cache(4, cos_sin_dtype),
        "kv_cache": view.tensor(torch.zeros(view.end, dtype=torch.uint8 if kv_cache_dtype else dtype).view(stored)),
        "layer": layer,
        "slot_mapping": torch.tensor([6, -1, 1]),
    }


@pytest.mark.parametrize("is_neox", [False, True])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_the_fused_write_is_a_rotation_and_a_write(dtype, is_neox, randn):
    """q is rotated in all rows that have a position, also where the slot is -1. The tensor k stays, and v is not rotated."""
    arguments = call(randn, dtype=dtype, cos_sin_dtype=dtype)
    before = {name: x.clone() for name, x in arguments.items() if isinstance(x, torch.Tensor)}
    cos, sin = before["cos_sin_cache"][before["positions"]].float().chunk(2, dim=-1)
    rope_and_write_kv_cache(**arguments, is_neox=is_neox)

    assert torch.equal(arguments["q"][:4], rotate(before["q"][:4], cos, sin, is_neox=is_neox))
    assert torch.equal(arguments["q"][4:], before["q"][4:])
    for name in ("k", "v", "positions", "cos_sin_cache", "slot_mapping"):
        torch.testing.assert_close(arguments[name], before[name], rtol=0, atol=0, equal_nan=True)
    expected = torch.zeros_like(before["kv_cache"])
    rotated = rotate(before["k"][:3], cos[:3], sin[:3], is_neox=is_neox)
    for slot, token in ((6, 0), (1, 2)):
        expected[slot // 4, 0, :, slot % 4] = rotated[token]
        expected[slot // 4, 1, :, slot % 4] = before["v"][token]
    assert torch.equal(arguments["kv_cache"], expected)


@pytest.mark.parametrize(
    ("layout", "kv_cache_dtype"),
    [
        (Layout.CONTENT_PACKED, torch.float8_e4m3fn),
        (Layout.KV_FIRST_NHD, torch.float8_e4m3fnuz),
        (Layout.CONTENT_PACKED_SCALED, torch.int8),
        (Layout.CONTENT_PACKED_SCALED, torch.float8_e4m3fn),
    ],
)
def test_the_rotated_key_is_rounded_before_it_is_quantized(layout, kv_cache_dtype, randn):
    arguments = call(randn, dtype=torch.bfloat16, kv_cache_dtype=kv_cache_dtype, layout=layout)
    cos, sin = arguments["cos_sin_cache"][arguments["positions"]].chunk(2, dim=-1)
    rotated = rotate(arguments["k"][:3], cos[:3], sin[:3], is_neox=True)
    expected = torch.zeros_like(arguments["kv_cache"].view(torch.uint8)).view(kv_cache_dtype)
    write_kv_cache(rotated, arguments["v"][:3], expected, arguments["layer"], arguments["slot_mapping"])
    rope_and_write_kv_cache(**arguments, is_neox=True)
    assert torch.equal(arguments["kv_cache"].view(torch.uint8), expected.view(torch.uint8))
    table = torch.arange(2, dtype=torch.int32)
    key, _ = gather_kv_cache(arguments["kv_cache"], arguments["layer"], table, 8, torch.float32)
    largest = rotated.float().abs().max().item()
    half_a_step = largest / 127 / 2 if kv_cache_dtype == torch.int8 else largest * 2**-4
    torch.testing.assert_close(key[[6, 1]], rotated[[0, 2]].float(), rtol=2**-22, atol=half_a_step)


def test_q_k_and_v_of_one_fused_tensor(randn):
    arguments = call(randn)
    qkv = randn(5, H + 2 * HK, D)
    arguments |= {"q": qkv[:, :H], "k": qkv[:, H : H + HK], "v": qkv[:, H + HK :]}
    before = qkv.clone()
    rope_and_write_kv_cache(**arguments, is_neox=True)
    assert torch.equal(qkv[:, H:], before[:, H:])
    assert torch.equal(qkv[4], before[4])
    assert (qkv[:4, :H, :4] != before[:4, :H, :4]).any()
    assert torch.equal(qkv[:4, :H, 4:], before[:4, :H, 4:])


def test_no_positions_turn_and_write_nothing(randn):
    arguments = call(randn)
    empty = {"positions": torch.zeros(0, dtype=torch.int64), "slot_mapping": torch.zeros(0, dtype=torch.int64)}
    before = arguments["q"].clone()
    rope_and_write_kv_cache(**(arguments | empty), is_neox=True)
    assert torch.equal(arguments["q"], before)
    assert not arguments["kv_cache"].any()
