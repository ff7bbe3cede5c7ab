"""MLA: the absorbed and the expanded form are one attention; the latent cache, written and read at addresses typed by hand."""

import itertools
import math
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from attn_contract import FLOAT_DTYPES, AttentionType, Batch, KVCacheView, Layer, Layout
from attn_contract.layouts import LATENT_FORMATS
from attn_reference import (
    Request,
    attend,
    gather_kv_cache,
    paged_attention,
    quantize,
    varlen_attention,
    write_latent_cache,
)
from attn_reference.latent import absorbed, expanded, up_projected

from tests.support.latent_formats import latent_sizes

N, P, R, V, LKV = 3, 5, 2, 4, 6
"""Query heads, the widths of a query without rotation and with it, of a head's value, and of the latent vector."""
SCALE = (P + R) ** -0.5
BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


class Tokens(NamedTuple):
    """MLA's tensors of the T tokens of a step: the arguments of `expanded`, in its order."""

    q_nope: torch.Tensor
    q_pe: torch.Tensor
    kv_c: torch.Tensor
    k_pe: torch.Tensor
    w_uk: torch.Tensor
    w_uv: torch.Tensor


def tokens(count: int, dtype: torch.dtype = torch.float64) -> Tokens:
    shapes = ((count, N, P), (count, N, R), (count, LKV), (count, R), (LKV, N, P), (LKV, N, V))
    generator = torch.Generator().manual_seed(0)
    return Tokens(*(torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes))


def attended(form, count: int, *, num_kv_heads: int, visible: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and LSE of a form's query, key and value in float64."""
    layer = layer_of(num_kv_heads=num_kv_heads, head_size=form.query.shape[-1])
    positions = torch.arange(count)
    request = Request(0, slice(0, count), form.query, form.key, form.value, visible, positions, None)
    attention = attend(request, layer)
    return attention.out, attention.lse


def layer_of(**fields) -> Layer:
    given = {"num_heads": N, "num_kv_heads": 1, "head_size": LKV + R, "scale": SCALE, "layout": Layout.BLOCKS_FIRST_NHD}
    return Layer(**given | fields)


LATENT = {"layout": Layout.LATENT, "head_size_v": LKV}


@pytest.mark.parametrize("visible", [torch.ones(9, 9, dtype=torch.bool).tril(), torch.eye(9, dtype=torch.bool).flip(0)])
def test_both_forms_are_one_attention(visible):
    """Up to the rounding of float64: every sum has fewer than 30 terms of magnitude 10."""
    mla = tokens(9)
    out, lse = attended(expanded(*mla), 9, num_kv_heads=N, visible=visible)
    latent_out, latent_lse = attended(absorbed(*mla[:5]), 9, num_kv_heads=1, visible=visible)
    assert (out.shape, latent_out.shape) == ((9, N, V), (9, N, LKV))
    torch.testing.assert_close(up_projected(latent_out, mla.w_uv), out, rtol=0, atol=1e-13)
    torch.testing.assert_close(latent_lse, lse, rtol=0, atol=1e-13)


def test_the_forms_are_the_papers_formulas():
    """Head by head and key by key, in loops: equations 10, 11, 17 and 18 of arXiv:2405.04434, for the last of 4 tokens."""
    mla = tokens(4)
    out, _ = attended(expanded(*mla), 4, num_kv_heads=N, visible=torch.ones(4, 4, dtype=torch.bool).tril())
    for n in range(N):
        logits, values = [], []
        for c, r in zip(mla.kv_c, mla.k_pe, strict=True):
            key = torch.cat([mla.w_uk[:, n].T @ c, r])
            logits.append(SCALE * torch.cat([mla.q_nope[3, n], mla.q_pe[3, n]]) @ key)
            values.append(mla.w_uv[:, n].T @ c)
        expected = torch.stack(logits).softmax(0) @ torch.stack(values)
        torch.testing.assert_close(out[3, n], expected, rtol=0, atol=1e-13)


def test_the_scale_of_the_absorbed_form_is_not_of_its_own_width():
    """With (Lkv + R) ** -0.5, which the width of its keys suggests, the forms differ."""
    mla, causal = tokens(9), torch.ones(9, 9, dtype=torch.bool).tril()
    out, _ = attended(expanded(*mla), 9, num_kv_heads=N, visible=causal)
    form = absorbed(*mla[:5])
    wrong = form._replace(query=form.query * ((LKV + R) ** -0.5 / SCALE))
    latent_out, _ = attended(wrong, 9, num_kv_heads=1, visible=causal)
    assert (up_projected(latent_out, mla.w_uv) - out).abs().max() > 0.01


def batch_of(query_lens: list[int], seq_lens: list[int], **fields) -> Batch:
    starts = torch.tensor([0, *query_lens]).cumsum(0)
    settings = {
        "query_start_loc": starts.int(),
        "seq_lens": torch.tensor(seq_lens, dtype=torch.int32),
        "max_query_len": max(query_lens),
        "max_seq_len": max(seq_lens),
        "num_actual_tokens": int(starts[-1]),
        "causal": True,
    }
    return Batch(**settings | fields)


def test_a_prefill_by_either_form():
    """Two requests of 4 and 3 tokens: over dense k and v with a window that ends at the query, and over the latent cache.

    Inputs and outputs are float32, of sums of fewer than 30 terms of magnitude 10. Without the window it is another attention.
    """
    mla = tokens(7, torch.float32)
    dense = expanded(*mla)
    own = batch_of([4, 3], [4, 3], causal=False)
    layer = layer_of(attn_type=AttentionType.ENCODER_ONLY, layout=None, num_kv_heads=N, head_size=P + R, head_size_v=V,
                     window=(-1, 0))  # fmt: skip
    out = varlen_attention(*dense, layer, own, precision=torch.float64)
    latent = absorbed(*mla[:5])
    kv_cache, table = torch.full((4, 2, LKV + R), torch.nan), torch.tensor([[3, 1], [0, 2]], dtype=torch.int32)
    slots = torch.tensor([6, 7, 2, 3, 0, 1, 4])
    write_latent_cache(mla.kv_c, mla.k_pe, kv_cache, layer_of(**LATENT), slots)
    step = batch_of([4, 3], [4, 3], block_table=table)
    latent_out = paged_attention(latent.query, kv_cache, layer_of(**LATENT), step, precision=torch.float64)
    torch.testing.assert_close(up_projected(latent_out, mla.w_uv), out, rtol=0, atol=2e-5)
    both_ways = varlen_attention(*dense, replace(layer, window=(-1, -1)), own, precision=torch.float64)
    assert (both_ways - out).abs().max() > 0.1


@pytest.mark.parametrize(("head_size", "head_size_v"), [(7, 4), (4, 7), (5, 5), (192, 128)])
@pytest.mark.parametrize("left", [-1, 2])
def test_dense_attention_with_a_right_edge_of_0_is_causal(head_size, head_size_v, left, randn):
    """It gives, bit by bit, what a decoder gives over a cache of the same tokens, padded with zeros to one width."""
    q, k, v = randn(6, 4, head_size), randn(6, 2, head_size), randn(6, 2, head_size_v)
    sizes = {"num_heads": 4, "num_kv_heads": 2, "window": (left, 0), "head_size_v": head_size_v}
    dense = layer_of(**sizes, attn_type=AttentionType.ENCODER_ONLY, layout=None, head_size=head_size)
    out = varlen_attention(q, k, v, dense, batch_of([6], [6], causal=False), precision=torch.float64)
    size = max(head_size, head_size_v)
    wide_q, wide_k, wide_v = (torch.nn.functional.pad(x, (0, size - x.shape[-1])) for x in (q, k, v))
    kv_cache = torch.stack([wide_k, wide_v])[:, None]
    decoder = layer_of(num_heads=4, num_kv_heads=2, head_size=size, window=(left, -1), layout=Layout.KV_FIRST_NHD)
    step = batch_of([6], [6], block_table=torch.zeros(1, 1, dtype=torch.int32))
    expected = paged_attention(wide_q, kv_cache, decoder, step, precision=torch.float64)
    assert out.shape == (6, 4, head_size_v)
    assert torch.equal(out, expected[..., :head_size_v])


def test_v_is_the_beginning_of_k(randn):
    """Over a cache of K and V apart, filled with the same rows, attention is the same; its other values are of no use."""
    q, rows = randn(5, N, LKV + R), randn(3 * 4, LKV + R)
    table = torch.tensor([[2, 0], [1, -1]], dtype=torch.int32)
    step = batch_of([2, 3], [7, 4], block_table=table)
    latent = paged_attention(q, rows.view(3, 4, -1), layer_of(**LATENT, window=(3, -1)), step)
    apart = rows.view(3, 1, 4, 1, -1).expand(-1, 2, -1, -1, -1).clone()
    expected = paged_attention(q, apart, layer_of(window=(3, -1)), step)
    assert torch.equal(latent, expected[..., :LKV])


def test_a_draft_of_several_tokens_is_as_many_decodes(randn):
    """Query t of query_len sees seq_len - query_len + 1 + t keys. Every row of a causal step equals a step of one token."""
    q, rows = randn(4, N, LKV + R), randn(12, 1, LKV + R).view(3, 4, -1)
    table = torch.tensor([[2, 0, 1]], dtype=torch.int32)
    drafts = paged_attention(q, rows, layer_of(**LATENT), batch_of([4], [11], block_table=table))
    for t in range(4):
        alone = paged_attention(q[t : t + 1], rows, layer_of(**LATENT), batch_of([1], [8 + t], block_table=table))
        torch.testing.assert_close(drafts[t : t + 1], alone, rtol=0, atol=1e-6)
    assert not torch.allclose(drafts[0], drafts[3])


def test_a_request_without_keys_is_0_and_minus_infinity(randn):
    """Graph padding, or a shard that holds no token of the request."""
    lse = torch.full((N, 2), torch.nan)
    table = torch.tensor([[-1], [0]], dtype=torch.int32)
    step = batch_of([1, 1], [0, 3], block_table=table)
    out = paged_attention(randn(2, N, LKV + R), randn(1, 4, LKV + R), layer_of(**LATENT), step, lse=lse)
    assert not out[0].any()
    assert (lse[:, 0] == -torch.inf).all()
    assert lse[:, 1].isfinite().all()


# --- the cache ---

SMALL = {"num_blocks": 3, "block_size": 3, "num_kv_heads": 1, "head_size": 4}
VIEWS = {
    "dense": {},
    "blocks padded from 12 to 20": {"block_stride": 20},
    "slots padded from 4 to 6, from element 5 on": {"block_stride": 18, "slot_stride": 6, "offset": 5},
}
SLOTS = [5, -1, 0, 8]
FIRST_ELEMENTS = {
    # of slots 5 (block 1, slot 2), 0 and 8 (block 2, slot 2)
    "dense": [20, 0, 32],
    "blocks padded from 12 to 20": [28, 0, 48],
    "slots padded from 4 to 6, from element 5 on": [35, 5, 53],
}


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("name", VIEWS)
def test_a_write_moves_the_bits_of_mapped_rows_and_no_others(name, dtype):
    """kv_c [4, 3] and k_pe [4, 1] are slices of wider rows, of strides of their own, with NaN of every payload."""
    view = replace(KVCacheView.dense(Layout.LATENT, **SMALL, itemsize=dtype.itemsize), **VIEWS[name])
    generator = torch.Generator().manual_seed(1)
    info = torch.iinfo(BITS[dtype])
    raw, wide = (
        torch.randint(info.min, info.max + 1, shape, dtype=BITS[dtype], generator=generator) for shape in ((99,), (4, 9))
    )
    expected = raw.clone()
    for first, row in zip(FIRST_ELEMENTS[name], (0, 2, 3), strict=True):
        expected[first : first + 3], expected[first + 3] = wide[row, 1:4], wide[row, 6]
    layer = layer_of(layout=Layout.LATENT, head_size=4, head_size_v=3)
    kv_c, k_pe = wide.view(dtype)[:, 1:4], wide.view(dtype)[:, 6:7]
    write_latent_cache(kv_c, k_pe, view.tensor(raw.view(dtype)), layer, torch.tensor(SLOTS))
    assert torch.equal(raw, expected)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e4m3fnuz])
def test_a_float8_cache_has_one_scale(dtype, randn):
    """Bytes are value / k_scale, of the latent part and of the rotated one; K and V are both read as stored * k_scale."""
    scale, kv_c, k_pe = torch.tensor([0.3]), 9 * randn(3, 6), 9 * randn(3, 2)
    kv_c[1, 2] = torch.inf
    layer = layer_of(**LATENT, kv_cache_dtype=dtype, k_scale=scale)
    kv_cache = torch.full((2, 4, 8), 0x55, dtype=torch.uint8)
    write_latent_cache(kv_c, k_pe, kv_cache.view(dtype), layer, torch.tensor([6, 1, -1]))
    stored = quantize(torch.cat([kv_c, k_pe], 1), scale, dtype)
    assert torch.equal(kv_cache[1, 2], stored.view(torch.uint8)[0])
    assert torch.equal(kv_cache[0, 1], stored.view(torch.uint8)[1])
    untouched = [0, 2, 3, 4, 5, 7]
    assert (kv_cache.view(8, 8)[untouched] == 0x55).all()
    key, value = gather_kv_cache(kv_cache.view(dtype), layer, torch.tensor([1], dtype=torch.int32), 3, torch.float64)
    assert torch.equal(key[2, 0], stored[0].double() * scale.double())
    assert torch.equal(value, key[..., :6])


def test_no_part_of_k_is_rotated(randn):
    """R = 0: every element of the row is K and V."""
    kv_c, kv_cache = randn(2, 8), torch.zeros(1, 4, 8)
    layer = layer_of(layout=Layout.LATENT, head_size_v=8)
    write_latent_cache(kv_c, kv_c[:, :0], kv_cache, layer, torch.tensor([3, 0]))
    assert torch.equal(kv_cache[0], torch.stack([kv_c[1], 0 * kv_c[0], 0 * kv_c[0], kv_c[0]]))
    key, value = gather_kv_cache(kv_cache, layer, torch.tensor([0], dtype=torch.int32), 4, torch.float32)
    assert torch.equal(key, value)


# --- rows of float8, their scales and bfloat16 ---

SCALED = {"layout": Layout.LATENT_SCALED, "head_size": 258, "head_size_v": 256, "kv_cache_dtype": torch.float8_e4m3fn}
"""Rows of 256 float8, 2 float32 and 2 bfloat16: 268 bytes."""


def scaled_rows() -> tuple[torch.Tensor, torch.Tensor]:
    """kv_c [3, 256] and k_pe [3, 2]: powers of two, whose codes are known, a row of zeros and of infinities, and a NaN."""
    kv_c, k_pe = (
        torch.zeros(3, 256, dtype=torch.bfloat16),
        torch.tensor([[1.0, -2.0], [-0.0, torch.inf], [0.0, 0.0]]).bfloat16(),
    )
    kv_c[0, 0], kv_c[0, 127], kv_c[0, 128], kv_c[0, 255] = 448.0, -1.0, 56.0, 7.0
    kv_c[1, 3], kv_c[1, 4], kv_c[1, 200] = torch.inf, -14.0, torch.nan
    k_pe[2] = torch.tensor([0x7F81, 0xFFFF - 0x10000], dtype=torch.int16).view(torch.bfloat16)
    return kv_c, k_pe


def test_a_row_with_scales_byte_by_byte():
    """The scale of 128 dims is their largest finite magnitude over 448, and at least 2^-100; k_pe is copied bit by bit."""
    kv_c, k_pe = scaled_rows()
    raw = torch.full((2, 3, 300), 0x55, dtype=torch.uint8)
    kv_cache = raw[:, :, 4:272].view(torch.float8_e4m3fn)
    write_latent_cache(kv_c, k_pe, kv_cache, layer_of(**SCALED), torch.tensor([4, -1, 0]))
    row, scales = raw[1, 1, 4:272], raw[1, 1, 260:268].view(torch.float32).tolist()
    assert scales == [1.0, 0.125]
    # 448 is 0x7E, -1 is 0xB8; 56 / 0.125 is 448, and 7 / 0.125 is 56 = 1.75 * 2^5: 0x66
    assert [row[dim].item() for dim in (0, 1, 127, 128, 255)] == [0x7E, 0x00, 0xB8, 0x7E, 0x66]
    assert row[264:].tolist() == [0x80, 0x3F, 0x00, 0xC0], "1.0 and -2.0 in bfloat16, little-endian"
    zero = raw[0, 0, 4:272]
    assert zero[256:264].view(torch.float32).tolist() == [2.0**-100] * 2
    assert zero[264:].tolist() == [0x81, 0x7F, 0xFF, 0xFF], "NaN with their payloads"
    raw[1, 1, 4:272] = raw[0, 0, 4:272] = 0x55
    assert (raw == 0x55).all(), "other slots, and the bytes between rows"


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e4m3fnuz])
@pytest.mark.parametrize("layout", LATENT_FORMATS)
def test_a_slot_with_scales_reads_as_stored_times_scale(layout, dtype, randn):
    """Each group of dims by its own scale, in float64; the kept dims exactly; attention is that over such keys."""
    form, sizes = LATENT_FORMATS[layout], latent_sizes(layout, scales=2)
    head_size, head_size_v = sizes["head_size"], sizes["head_size_v"]
    quantized = head_size_v if form.kept_dims is None else head_size - form.kept_dims
    rows = randn(3, head_size).bfloat16()
    rows[:, form.scale_dims : quantized] *= 1000
    layer = layer_of(layout=layout, kv_cache_dtype=dtype, **sizes)
    view = KVCacheView.dense(layout, num_blocks=2, block_size=2, num_kv_heads=1, itemsize=1, **sizes)
    kv_cache = view.tensor(torch.full((view.end,), 0x7F, dtype=torch.uint8).view(dtype))
    write_latent_cache(rows[:, :head_size_v], rows[:, head_size_v:], kv_cache, layer, torch.tensor([2, 3, 0]))
    table = torch.tensor([1, 0], dtype=torch.int32)
    key, value = gather_kv_cache(kv_cache, layer, table, 3, torch.float64)
    assert torch.equal(value, key[..., :head_size_v])
    assert torch.equal(key[:, 0, quantized:], rows[:, quantized:].double())
    largest = torch.tensor(448.0 if dtype == torch.float8_e4m3fn else 240.0)
    for row, first in itertools.product(range(3), range(0, quantized, form.scale_dims)):
        group = slice(first, first + form.scale_dims)
        scale = rows[row, group].float().abs().amax() / largest
        if form.scale_dtype != torch.float32:
            scale = torch.tensor(2.0 ** math.ceil(math.log2(scale.item())))
        assert torch.equal(key[row, 0, group], quantize(rows[row, group], scale, dtype).double() * scale.double())
    q = randn(1, N, head_size).bfloat16()
    expected = ((SCALE * q[0].double() @ key[:, 0].T).softmax(-1) @ value[:, 0]).bfloat16()
    batch = batch_of([1], [3], block_table=table[None])
    assert torch.equal(paged_attention(q, kv_cache, layer, batch, precision=torch.float64)[0], expected)


# --- rows of float8 and ue8m0 scales ---

E8M0 = {"layout": Layout.LATENT_E8M0, "head_size": 64, "head_size_v": 64, "kv_cache_dtype": torch.float8_e4m3fn}
"""Rows of 64 float8 and 2 ue8m0 bytes."""


def test_a_row_with_ue8m0_scales_byte_by_byte():
    """The scale of 32 dims is the least power of two at or above their largest finite magnitude over 448, at least 2^-100."""
    kv_c = torch.zeros(3, 64, dtype=torch.bfloat16)
    kv_c[0, 0], kv_c[0, 31], kv_c[0, 32], kv_c[0, 63] = 448.0, -1.0, 57.0, -7.0
    kv_c[1, 3], kv_c[1, 4], kv_c[1, 40] = torch.inf, -14.0, torch.nan
    raw = torch.full((2, 3, 71), 0x55, dtype=torch.uint8)
    kv_cache = raw[:, :, 3:69].view(torch.float8_e4m3fn)
    slots = torch.tensor([4, 2, -1])
    write_latent_cache(kv_c, torch.zeros(3, 0).bfloat16(), kv_cache, layer_of(**E8M0), slots)
    row, other = raw[1, 1, 3:69], raw[0, 2, 3:69]
    assert row[64:].tolist() == [127, 125], "448 / 448 is 1; 57 / 448 is above 2^-3, so that 2^-2 it is"
    # 448 is 0x7E and -1 is 0xB8; 57 * 4 = 228 lies between 224 = 14 * 2^4 and 240, so 0x76; -7 * 4 = -28 = -14 * 2^1: 0xDE
    assert [row[dim].item() for dim in (0, 1, 31, 32, 63)] == [0x7E, 0x00, 0xB8, 0x76, 0xDE]
    assert other[64:].tolist() == [122, 27], "14 / 448 is 2^-5 itself; a row of zeros and of NaN has the least scale, 2^-100"
    # the infinity saturates at 448, as 14 / 2^-5 does; a NaN stays NaN
    assert [other[dim].item() for dim in (3, 4, 5, 40, 41)] == [0x7E, 0xFE, 0x00, 0x7F, 0x00]
    raw[1, 1, 3:69] = raw[0, 2, 3:69] = 0x55
    assert (raw == 0x55).all(), "other slots, and the bytes between rows"


def test_scales_of_any_byte_are_read():
    """Whoever wrote the cache: byte 0 is 2^-127, 254 is 2^127, and 255 is NaN."""
    kv_cache = torch.zeros(1, 1, 66, dtype=torch.uint8)
    kv_cache[0, 0, 0] = kv_cache[0, 0, 32] = 0x38  # 1.0
    table = torch.tensor([0], dtype=torch.int32)

    def read(*scales: int) -> list[float]:
        kv_cache[0, 0, 64:] = torch.tensor(scales, dtype=torch.uint8)
        key, _ = gather_kv_cache(kv_cache.view(torch.float8_e4m3fn), layer_of(**E8M0), table, 1, torch.float64)
        return key[0, 0, [0, 32]].tolist()

    assert read(0, 254) == [2.0**-127, 2.0**127]
    assert read(1, 127) == [2.0**-126, 1.0]
    assert [math.isnan(number) for number in read(255, 128)] == [True, False]


# --- planes of rows and of ue8m0 scales ---

PLANES = {"layout": Layout.LATENT_E8M0_PLANES, "head_size": 192, "head_size_v": 192, "kv_cache_dtype": torch.float8_e4m3fn}
"""Slots of 128 float8 and 64 bfloat16, 256 bytes, and 2 ue8m0 bytes and one of padding."""


def test_a_page_of_planes_byte_by_byte():
    """Block 1 begins at byte 768 of 2 slots a page: 512 bytes of data, 6 of scales, and 250 that are nobody's."""
    kv_c = torch.zeros(3, 192, dtype=torch.bfloat16)
    kv_c[0, 0], kv_c[0, 63], kv_c[0, 64], kv_c[0, 127] = 448.0, -1.0, 57.0, -7.0
    kv_c[0, 128], kv_c[0, 191] = 1.0, 57.0
    kv_c[1, 3], kv_c[1, 4], kv_c[1, 100], kv_c[1, 128] = torch.inf, -14.0, torch.nan, -torch.inf
    raw = torch.full((2 * 768 + 10,), 0x55, dtype=torch.uint8)
    kv_cache = raw.as_strided((2, 518), (768, 1), 10).view(torch.float8_e4m3fn)
    write_latent_cache(kv_c, torch.zeros(3, 0).bfloat16(), kv_cache, layer_of(**PLANES), torch.tensor([3, 0, -1]))
    data, scales = raw[10 + 768 + 256 :][:256], raw[10 + 768 + 512 + 3 :][:3]
    other, other_scales = raw[10:][:256], raw[10 + 512 :][:3]
    # as in rows of LATENT_E8M0, for each 64 dims; the byte of padding is 0
    assert [scales.tolist(), other_scales.tolist()] == [[127, 125, 0], [122, 27, 0]]
    assert [data[dim].item() for dim in (0, 1, 63, 64, 127)] == [0x7E, 0x00, 0xB8, 0x76, 0xDE]
    assert [other[dim].item() for dim in (3, 4, 5, 100)] == [0x7E, 0xFE, 0x00, 0x7F]
    # the last dims are bfloat16 and have no scale: 1.0 is 0x3F80, 57 is 0x4264, and the infinity stays one
    assert (data[128:130].tolist(), data[254:].tolist(), other[128:130].tolist()) == ([0x80, 0x3F], [0x64, 0x42], [0x80, 0xFF])
    for part in (data, scales, other, other_scales):
        part.fill_(0x55)
    assert (raw == 0x55).all(), "other slots, and the bytes between pages"


def test_the_padding_after_scales_is_not_read():
    kv_cache = torch.zeros(1, 259, dtype=torch.uint8)
    kv_cache[0, 0], kv_cache[0, 256], kv_cache[0, 258] = 0x38, 128, 255  # 1.0 times 2, and a byte that would be NaN
    table = torch.tensor([0], dtype=torch.int32)
    key, _ = gather_kv_cache(kv_cache.view(torch.float8_e4m3fn), layer_of(**PLANES), table, 1, torch.float64)
    assert (key[0, 0, 0].item(), key.isnan().any().item()) == (2.0, False)
