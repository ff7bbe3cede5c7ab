"""Attention over a latent cache, and with a V of another width than K, on cases chosen for where such kernels break."""

from dataclasses import replace

import attn_optimized
import pytest
import torch
from attn_contract import Layout, UnsupportedError
from attn_contract.layer import FLOAT8_DTYPES
from attn_contract.layouts import LATENT_FORMATS
from attn_optimized.attention import paged_attention_calls
from attn_optimized.launch.widths import Widths
from attn_optimized.launch.workload import Workload

from tests.optimized.conftest import kind_of
from tests.support.latent_formats import latent_sizes

GPU = {"architecture": "sm90", "compute_units": 132}
LATENT = {"layout": Layout.LATENT, "num_kv_heads": 1, "head_size": 48, "head_size_v": 32}


def case(query_lens, seq_lens, **options):
    return {"query_lens": query_lens, "seq_lens": seq_lens, **options}


CASES = {
    "decode": case([1, 1], [70, 3]),
    "decode of 12 heads": case([1, 1], [70, 3], num_heads=12),
    "128 heads, in two tiles": case([1, 3], [20, 130], num_heads=128),
    "71 heads, in tiles of one": case([2], [20], num_heads=71),
    "speculative rows of different lengths": case([4, 1, 2], [90, 40, 66], num_heads=16),
    "split keys": case([1], [700]),
    "split keys, requests of no keys and no queries": case([1, 0, 1, 2], [700, 0, 0, 1]),
    "extend over several tiles": case([75, 3], [200, 3], num_heads=2),
    "blocks of 1": case([1, 5], [70, 5], block_size=1),
    "blocks of 80": case([1, 5], [170, 5], block_size=80),
    "V as wide as K": case([1, 5], [70, 5], head_size_v=48),
    "widths of 40 and 17": case([1, 5], [70, 5], head_size=57, head_size_v=40),
    "a V of one dim": case([1, 5], [70, 5], head_size=9, head_size_v=1),
    "MiniCPM3": case([1, 2], [70, 5], head_size=288, head_size_v=256, num_heads=40),
    "DeepSeek-V3": case([1, 2], [70, 5], head_size=576, head_size_v=512, num_heads=16),
    "not causal": case([3, 2], [70, 5], causal=False),
    "causal per request": case([3, 2], [70, 5], causal=[False, True]),
    "window and sink tokens": case([1, 9], [170, 90], window=(20, 0), sink_tokens=3),
    "chunks": case([1, 9], [170, 90], chunked_local=50),
    "ranges": case([30], [90], bidirectional_ranges=[[[65, 80], [1, 0]]]),
    "soft cap and sinks": case([1, 9], [70, 9], logits_soft_cap=2.0, sinks=[3.0, -1.0, 0.0, 9.0]),
    "ALiBi": case([1, 9], [70, 9], alibi_slopes=torch.tensor([1.0, 0.5, 0.1, 0.0])),
    "scale below zero": case([1, 9], [70, 9], scale=-0.1),
    "float8 output": case([1, 9], [70, 9], output_scale=torch.tensor(0.125)),
}
MIMO, NARROW = {"head_size": 192, "head_size_v": 128}, {"head_size": 64, "head_size_v": 48}
FLOAT8 = {"kv_cache_dtype": torch.float8_e4m3fn, "k_scale": torch.tensor([0.05, 0.1]), "v_scale": torch.tensor([0.02, 0.2])}
PACKED = {
    "MiMo-V2": case([70, 1], [70, 300], **MIMO),
    "its layers with a window and sinks": case(
        [1, 1, 3], [300, 9, 140], **MIMO, window=(127, 127), sinks=[3.0, -1.0, 0.0, 9.0]
    ),
    "a wider V": case([1, 75], [700, 75], head_size=48, head_size_v=80),
    "a V of one dim": case([1, 5], [70, 5], head_size=9, head_size_v=1),
    "a float8 cache": case([1, 5], [70, 5], **NARROW, **FLOAT8),
    "an int8 cache": case([1, 5], [70, 5], **NARROW, kv_cache_dtype=torch.int8),
}
DENSE = {
    "192 and 128": {"query_lens": [70, 3], "head_size": 192, "head_size_v": 128},
    "causal by its window": {"query_lens": [70, 3], "head_size": 24, "head_size_v": 16, "window": (-1, 0)},
    "80 and 64": {"query_lens": [70, 0, 3], "head_size": 80, "head_size_v": 64},
    "K no wider than one power of two": {"query_lens": [70, 3], "head_size": 64, "head_size_v": 1},
    "widths that are no powers of two": {"query_lens": [5, 3], "head_size": 100, "head_size_v": 72},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_agrees_with_the_reference(case, dtype, paged_call, assert_agrees):
    assert_agrees(paged_call(**(LATENT | case), dtype=dtype))


@pytest.mark.parametrize("float8", sorted(FLOAT8_DTYPES, key=str), ids=str)
@pytest.mark.parametrize("query_lens", [[1, 1], [70, 5]], ids=["decode", "extend"])
def test_a_float8_cache_has_one_scale(float8, query_lens, paged_call, assert_agrees):
    """The scale of K is V's too: it multiplies the logits and the output."""
    scale = {"kv_cache_dtype": float8, "k_scale": torch.tensor([0.05])}
    assert_agrees(paged_call(query_lens, [300, 9], **LATENT, **scale, dtype=torch.float16))


@pytest.mark.parametrize("query_lens", [[1, 1], [70, 5]], ids=["decode", "extend"])
@pytest.mark.parametrize(("scales", "block_size"), [(1, 16), (3, 3)])
@pytest.mark.parametrize("layout", LATENT_FORMATS)
def test_reads_slots_with_scales(layout, scales, block_size, query_lens, paged_call, assert_agrees):
    sizes = {"layout": layout, "num_kv_heads": 1, **latent_sizes(layout, scales), "block_size": block_size, "gap": 0}
    assert_agrees(paged_call(query_lens, [300, 9], **sizes, kv_cache_dtype=torch.float8_e4m3fn, dtype=torch.bfloat16))


@pytest.mark.parametrize("case", PACKED.values(), ids=PACKED)
def test_packed_rows_of_two_widths_agree(case, dtype, paged_call, assert_agrees):
    """K, then V of another width, in each row of the cache."""
    assert_agrees(paged_call(layout=Layout.CONTENT_PACKED, **case, dtype=dtype))


@pytest.mark.parametrize("case", DENSE.values(), ids=DENSE)
def test_dense_keys_of_two_widths_agree(case, dtype, varlen_call, assert_agrees):
    assert_agrees(varlen_call(**case, dtype=dtype))


def test_dense_v_wider_than_k(varlen_call, assert_agrees):
    call = varlen_call([70, 3], head_size=96, head_size_v=96)
    narrow = replace(call.layer, head_size=32, head_size_v=96)
    assert_agrees(call._replace(q=call.q[..., :32], k=call.k[..., :32], layer=narrow))


def test_without_out_the_result_is_as_wide_as_v(paged_call):
    call = paged_call([1, 2], [9, 20], **LATENT)
    out = attn_optimized.paged_attention(*call)
    assert out.shape == (*call.q.shape[:2], 32)


def test_bits_do_not_depend_on_the_batch(paged_call):
    """A request alone, in other tiles and other programs, has the same bits: 80 heads are two tiles."""
    call = paged_call([5, 1, 3], [300, 9, 70], **LATENT, num_heads=80)
    together = attn_optimized.paged_attention(*call, batch_invariant=True)
    alone = replace(
        call.batch,
        query_start_loc=call.batch.query_start_loc[:2],
        seq_lens=call.batch.seq_lens[:1],
        num_actual_tokens=5,
        block_table=call.batch.block_table[:1],
    )
    result = attn_optimized.paged_attention(call.q[:5], call.kv_cache, call.layer, alone, batch_invariant=True)
    assert torch.equal(result, together[:5])


def test_k_is_loaded_once(paged_call):
    """V's pointer is not read: what lies there does not matter."""
    call = paged_call([1, 9], [70, 9], **LATENT)
    expected = attn_optimized.paged_attention(*call)
    plan = attn_optimized.plan_of(call.q, call.layer, call.batch)
    out = torch.full_like(expected, torch.nan)
    for launch in paged_attention_calls(*call, plan, out=out):
        tensors = launch.tensors
        if "v_ptr" in tensors:
            tensors = tensors | {"v_ptr": torch.full_like(call.kv_cache, torch.nan)}
        launch._replace(tensors=tensors).run(call.q.device)
    owned = int(call.batch.query_start_loc[-1])
    assert torch.equal(out[:owned], expected[:owned])


@pytest.mark.parametrize(
    ("head_size", "head_size_v", "words"),
    [(640, 576, "a latent V of 576 dims"), (641, 512, "129 dims of K after a latent V")],
)
def test_rows_wider_than_a_tile_are_refused(head_size, head_size_v, words, paged_call):
    call = paged_call([1], [3], layout=Layout.LATENT, num_kv_heads=1, head_size=head_size, head_size_v=head_size_v)
    with pytest.raises(UnsupportedError, match=words):
        attn_optimized.paged_attention(*call)


def workload(**changed) -> Workload:
    sizes = {"head_size": 576, "head_size_v": 512, "is_latent": True, "num_heads": 16, "num_kv_heads": 1}
    batch = {"num_tokens": 64, "num_requests": 64, "max_query_len": 1, "max_seq_len": 8192}
    return Workload(**({"itemsize": 2, "quantized": False} | sizes | batch | changed))


LIKE = {"head_size_v": None, "is_latent": False}


@pytest.mark.parametrize(
    ("changed", "blocks"),
    [
        ({}, (512, 64, 512, 0)),
        ({"head_size": 288, "head_size_v": 256}, (256, 32, 256, 0)),
        ({"head_size": 512}, (512, 0, 512, 0)),
        ({"head_size": 57, "head_size_v": 40}, (64, 32, 64, 0)),
        ({"head_size": 192, "head_size_v": 128, "is_latent": False}, (128, 64, 128, 0)),
        (LIKE | {"head_size": 192}, (256, 0, 256, 0)),
        (LIKE | {"head_size": 192, "max_query_len": 99}, (128, 64, 128, 64)),
        (LIKE | {"head_size": 192, "batch_invariant": True}, (128, 64, 128, 64)),
        (LIKE | {"head_size": 192, "max_query_len": 99, "is_x_packed": True}, (256, 0, 256, 0)),
        (LIKE | {"head_size": 96, "max_query_len": 99}, (64, 32, 64, 32)),
        (LIKE | {"head_size": 80, "max_query_len": 99}, (64, 16, 64, 16)),
        (LIKE | {"head_size": 112, "max_query_len": 99}, (128, 0, 128, 0)),
        (LIKE | {"head_size": 72, "max_query_len": 99}, (128, 0, 128, 0)),
        (LIKE | {"head_size": 48, "max_query_len": 99}, (64, 0, 64, 0)),
        ({"head_size": 192, "head_size_v": 96, "is_latent": False, "max_query_len": 99}, (128, 64, 64, 32)),
        ({"head_size": 100, "head_size_v": 72, "is_latent": False}, (128, 0, 128, 0)),
        ({"head_size": 8, "head_size_v": 256, "is_latent": False}, (16, 0, 256, 0)),
    ],
)
def test_two_dots_pad_little(changed, blocks):
    """K and V are cut in two where that pads them less; beside few rows, only K that is wider than V is."""
    widths = Widths.of(workload(**changed))
    assert (widths.block_d, widths.block_rest, widths.block_v, widths.block_v_rest) == blocks


@pytest.mark.parametrize(
    ("architecture", "num_heads", "cache", "q_dtype", "expected"),
    [
        ("sm90", 128, None, torch.bfloat16, (True, True)),
        ("sm90", 128, torch.float8_e4m3fn, torch.bfloat16, (True, False)),
        ("sm90", 4, None, torch.bfloat16, (False, True)),
        ("sm90", 4, torch.float8_e4m3fn, torch.float16, (False, True)),
        ("sm90", 4, None, torch.float32, (False, False)),
        ("gfx942", 128, None, torch.bfloat16, (False, False)),
        ("gfx942", 4, None, torch.bfloat16, (False, False)),
    ],
    ids=str,
)
def test_branches_and_sums_in_columns_are_for_the_gpu_that_they_were_measured_on(
    architecture, num_heads, cache, q_dtype, expected, paged_call
):
    cache_of = {} if cache is None else {"kv_cache_dtype": cache, "k_scale": torch.tensor(0.1)}
    sizes = {"head_size": 576, "head_size_v": 512, "layout": Layout.LATENT, "num_kv_heads": 1}
    call = paged_call([1], [70], num_heads=num_heads, dtype=q_dtype, **sizes, **cache_of)
    kind = kind_of(call, architecture=architecture, compute_units=132)
    assert (kind.has_hidden_dots, kind.has_sums_in_columns) == expected
