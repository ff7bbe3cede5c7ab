"""The paged attention kernel on cases chosen for where such kernels break; the fuzzer draws the rest."""

import itertools
import math
from dataclasses import replace

import attn_optimized
import attn_reference
import numpy as np
import pytest
import torch
import triton
from attn_contract import AttentionType, ContractError, Layout
from attn_contract.validation.values import MAX_LOGIT, MAX_VALUE
from attn_fuzz.targets.triton import TRITON
from attn_fuzz.verdict.oracle import Oracle
from attn_optimized.attention import paged_attention_calls
from attn_optimized.device import has_dependent_launches
from attn_optimized.kernels.load import FEW_ROWS
from attn_optimized.kernels.online_softmax import FINISHED
from attn_optimized.kernels.query_tiles import REQUESTS_AT_ONCE
from attn_optimized.kernels.split_keys import MAX_LENGTHS, SHARES_OF_LONGEST
from attn_optimized.launch import attention as launch_attention
from attn_optimized.launch.parts import Parts
from attn_optimized.launch.table import Parameters
from attn_optimized.launch.workload import SHORT_WINDOW_KEYS

from tests.optimized.conftest import kind_of, launches
from tests.support.calls import ONE_SCALE, joined, random_tokens
from tests.support.calls import paged_call as call_of_tokens
from tests.support.pairwise import parametrize_pairwise

ENCODER_DECODER = AttentionType.ENCODER_DECODER


def case(query_lens, seq_lens, **options):
    return {"query_lens": query_lens, "seq_lens": seq_lens, **options}


SINKS = [0.5, 30.0, -30.0, -torch.inf]
SLOPES = torch.tensor([0.5, 0.25, 0.1, -0.1])
BIAS = torch.arange(256.0).view(16, 16) / 64
TREE = torch.eye(12).log().index_fill(1, torch.tensor([0]), 0.0)
BEFORE_CHUNK = {"bidirectional_ranges": [[(10, 69)]], "window": (3, -1), "sink_tokens": 70, "chunked_local": 1}
CLAMPED = {"bidirectional_ranges": [[(20, 190)]], "window": (10, -1), "ranges_clamped": True}
ALL = {"window": (30, 2), "sink_tokens": 3, "chunked_local": 140, "bidirectional_ranges": [[(100, 145)], [(70, 80)]]}
CASES = {
    "mix with padding requests": case([1, 0, 33, 0, 4, 0], [129, 0, 33, 5, 63, 0]),
    "no key": case([3, 1], [0, 0]),
    "more queries than keys": case([70, 5], [3, 4]),
    "group of 7": case([30, 1], [80, 9], num_heads=7, num_kv_heads=1),
    "head size 80, block size 48": case([5, 1], [100, 48], head_size=80, block_size=48),
    "head size 1": case([5, 1], [30, 48], head_size=1),
    "head size 256": case([2], [70], head_size=256),
    "head size 512": case([2], [70], head_size=512),
    "one slot per block": case([5, 1], [20, 3], block_size=1),
    "block larger than a tile": case([5, 1], [150, 80], block_size=144),
    "window, more queries than keys": case([70], [30], window=(4, -1)),
    "non-causal window": case([70, 3], [170, 90], causal=False, window=(10, 4)),
    "causal per request": case([9, 9, 9], [75, 75, 5], causal=[True, False, False]),
    "cross-attention": case([1, 4, 40], [75, 1, 3], causal=False, attn_type=ENCODER_DECODER),
    "71 heads, one in no tile of its KV head": case([1, 3], [75, 130], num_heads=142, sinks=[n / 71 for n in range(142)]),
    "71 heads, split": case([1, 1], [300, 250], num_heads=71, num_kv_heads=1, alibi_slopes=torch.linspace(0.1, 1, 71)),
    "200 heads of a KV head": case([2], [9], num_heads=200, num_kv_heads=1),
    "sinks and window": case([70, 3], [75, 2], window=(3, -1), sinks=[3.0, 100.0, -100.0, -torch.inf]),
    "negative scale, soft cap and ALiBi": case([9], [75], scale=-3.0, logits_soft_cap=2.0, alibi_slopes=SLOPES),
    "soft cap of a hundredth of the logits": case([9], [75], scale=9.0, logits_soft_cap=0.1),
    "more sink tokens than a tile": case([70, 1], [150, 400], window=(3, 3), sink_tokens=130),
    "chunks, more queries than keys": case([70, 9], [30, 4], chunked_local=5, causal=False),
    "chunks and sink tokens": case([70, 1], [200, 130], chunked_local=100, window=(9, -1), sink_tokens=104),
    "ranges that the window clamps": case([70], [200], **CLAMPED),
    "ranges before the sink tokens' chunk": case([2], [70], **BEFORE_CHUNK),
    "a tree of drafts": case([3, 3, 1], [70, 3, 9], qq_bias=TREE),
    "everything": case([9, 1], [150, 75], **ALL, logits_soft_cap=1.5, alibi_slopes=SLOPES, qq_bias=BIAS, sinks=SINKS),
    "keys split over programs": case([1, 2], [500, 3], sinks=SINKS),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_agrees_with_the_reference(case, dtype, paged_call, assert_agrees):
    assert_agrees(paged_call(**case, dtype=dtype))


@pytest.mark.parametrize("scale", [0.0, -0.0, 1e-3, 2.0**-126, -(2.0**-126), 1e3])
@pytest.mark.parametrize("rules", [{}, {"logits_soft_cap": 2.0}, {"sinks": [0.5, 30.0, -30.0, -torch.inf]}], ids=str)
def test_every_scale_agrees(scale, rules, paged_call, assert_agrees):
    """None, of either sign, and the least."""
    assert_agrees(paged_call([1, 5], [70, 90], scale=scale, **rules))


# a scale of each head and one for all; keys that are split, a prefill, V of another width, a cap that would show a lost factor
FLOAT8_QUERIES = {
    "decode": ([1, 2], [500, 3], {"scale": -0.2}),
    "prefill": ([70, 9], [80, 30], {"logits_soft_cap": 2.0, "sinks": SINKS}),
    "latent": ([20, 1], [40, 90], {"layout": Layout.LATENT, "head_size": 48, "head_size_v": 32, "num_kv_heads": 1}),
    "to float8": ([1, 5], [70, 90], {"output_scale": torch.tensor(0.01)}),
}


@pytest.mark.parametrize("name", FLOAT8_QUERIES)
@pytest.mark.parametrize("float8", [torch.float8_e4m3fn, torch.float8_e4m3fnuz])
def test_float8_queries_agree(name, float8, paged_call, assert_agrees):
    query_lens, seq_lens, fields = FLOAT8_QUERIES[name]
    scales = {"k_scale": torch.tensor(0.25)} if name == "latent" else ONE_SCALE
    q_scale = torch.tensor(3.0) if name in ("latent", "prefill") else torch.tensor([0.25, 3.0])
    assert_agrees(paged_call(query_lens, seq_lens, kv_cache_dtype=float8, q_scale=q_scale, **scales, **fields))


def test_a_float8_query_says_no_dtype_of_the_output(paged_call):
    call = paged_call([1], [5], kv_cache_dtype=torch.float8_e4m3fn, q_scale=torch.ones(2), **ONE_SCALE)
    for attend in (attn_optimized.paged_attention, attn_reference.paged_attention):
        with pytest.raises(ContractError, match="out: got None, expected a tensor: a float8 q does not say"):
            attend(*call)


LAYOUTS = [layout for layout in Layout if not layout.has_latent_value]
CACHES = [
    *((layout, None) for layout in LAYOUTS if not layout.has_inline_scales),
    *zip(LAYOUTS, itertools.cycle([torch.int8, torch.float8_e4m3fn, torch.float8_e4m3fnuz]), strict=False),
]
"""Every layout of K and V apart, with elements of 16 bits and of 8. Of 8 bits there is one type for each: addresses know only
their size."""


@pytest.mark.parametrize(("layout", "kv_cache_dtype"), CACHES)
def test_every_layout_is_read(layout, kv_cache_dtype, paged_call, assert_agrees):
    block_size = 48 if layout.is_x_packed else 10
    cache = {"layout": layout, "kv_cache_dtype": kv_cache_dtype, "head_size": 48, "block_size": block_size}
    assert_agrees(paged_call([20, 1], [110, 33], dtype=torch.float16, **cache))


@pytest.mark.parametrize("factor", [-1.0, 0.0], ids=["negative", "zero"])
@pytest.mark.parametrize("kv_cache_dtype", [torch.float8_e4m3fn, torch.int8])
def test_token_scales_of_another_writer_may_be_0_or_negative(kv_cache_dtype, factor, paged_call, assert_agrees):
    """Whole tiles of them, tiles with keys that are not there, and tiles in which one key has a scale above 0."""
    call = paged_call([20, 1, 3], [110, 33, 3], kv_cache_dtype=kv_cache_dtype)
    for scales in (call.layer.k_scale_cache, call.layer.v_scale_cache):
        scales.view(-1)[torch.arange(scales.numel()) % 100 > 0] *= factor
    assert_agrees(call)


@pytest.mark.parametrize("kv_cache_dtype", [None, torch.int8], ids=str)
def test_values_up_to_their_bound(kv_cache_dtype, paged_call, assert_agrees):
    """Keys of equal logits in parts: their values, of magnitudes below 8 before, add up to almost MAX_VALUE."""
    call = paged_call([1, 2], [500, 3], kv_cache_dtype=kv_cache_dtype, scale=0.0)
    values = call.kv_cache[:, 1] if kv_cache_dtype is None else call.layer.v_scale_cache
    values.abs_().mul_(MAX_VALUE / 500 / 8)
    assert_agrees(call)


# decodes over rows of V, padded and not, with scales of tokens and without
PAIRED = [
    ({"kv_cache_dtype": kv_cache_dtype, "head_size": head_size}, window)
    for kv_cache_dtype in (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.int8)
    for head_size, window in ((64, (-1, -1)), (48, (40, -1)))
]


@pytest.mark.parametrize(("cache", "window"), PAIRED, ids=str)
def test_pairs_of_dims_change_no_bit(cache, window, paged_call, assert_agrees, monkeypatch):
    # The interpreter's dots are BLAS's, which adds in an order of the processor, and on some in another one for each column of
    # a tile: sums that are rounded from float64 do not show it.
    matmul = np.matmul
    monkeypatch.setattr(np, "matmul", lambda a, b, dtype=np.float32: matmul(a, b, dtype=np.float64).astype(dtype))
    call = paged_call([1, 2, 1], [1, 70, 200], window=window, num_heads=4, num_kv_heads=2, **cache)
    plan = attn_optimized.plan_of(call.q, call.layer, call.batch)
    outputs = []
    for has_pairs in (True, False):
        if not has_pairs:
            monkeypatch.setattr(launch_attention, "has_value_pairs", lambda *_: False)
        out = torch.zeros_like(call.q)
        for kernel in paged_attention_calls(*call, plan, out=out):
            kernel.run(call.q.device)
            if "KIND" in kernel.launch.constants:
                kind = kernel.launch.constants["KIND"]
                assert (kind.has_value_pairs, kind.block_m) == (has_pairs, FEW_ROWS.value)
        outputs.append(out)
    assert torch.equal(*outputs)
    assert_agrees(call)


@pytest.mark.parametrize(("architecture", "is_dependent"), [("sm90", True), ("gfx942", False), ("gfx1201", False)])
def test_a_reduction_is_launched_before_the_attention_kernel_ends_where_the_gpu_can(architecture, is_dependent, paged_call):
    call = paged_call([1], [700])
    for parameters in (Parameters(block_m=16, block_n=32, num_warps=4, num_stages=1, keys_per_split=64), None):
        gpu = {"architecture": architecture, "compute_units": 132}
        attention, *reduction = launches(call, parameters=parameters, **gpu)
        assert attention.constants["KIND"].has_dependent == (is_dependent and bool(reduction))
        assert "launch_pdl" not in attention.options
        for launch in reduction:
            assert launch.constants["IS_DEPENDENT"] == launch.options.get("launch_pdl", False) == is_dependent
        assert reduction or parameters is None


@pytest.mark.parametrize(("architecture", "looks"), [("sm90", True), ("gfx942", False), ("gfx1201", False)])
def test_parts_look_whether_there_are_masked_tiles_where_that_is_faster(architecture, looks, paged_call):
    for rules, is_split in (({}, True), ({}, False), ({"window": (99, -1)}, True)):
        call = paged_call([1], [900], **rules)
        parameters = Parameters(block_m=16, block_n=32, num_warps=4, num_stages=1, keys_per_split=32 if is_split else 4096)
        attention, *reduction = launches(call, parameters=parameters, architecture=architecture, compute_units=132)
        assert bool(reduction) == is_split
        assert attention.constants["KIND"].skips_masked_loop == (looks and is_split and not rules)


@pytest.mark.parametrize("seq_lens", [[640, 512, 65], [64, 1, 300]], ids=["whole tiles", "few keys"])
def test_a_look_before_the_masked_loop_changes_no_bit(seq_lens, paged_call, monkeypatch):
    call = paged_call([1, 2, 1], seq_lens)
    plan = replace(attn_optimized.plan_of(call.q, call.layer, call.batch), splits=5, min_tiles_per_split=1)
    outputs = []
    for looks in (True, False):
        out = torch.zeros_like(call.q)
        for kernel in paged_attention_calls(*call, plan, out=out):
            if "KIND" in kernel.launch.constants:
                kind = kernel.launch.constants["KIND"]
                assert kind.skips_masked_loop
                kernel.launch.constants["KIND"] = replace(kind, skips_masked_loop=looks)
            kernel.run(call.q.device)
        outputs.append(out)
    assert torch.equal(*outputs)


@pytest.mark.parametrize(
    ("architecture", "expected"), [("sm89", False), ("sm90", True), ("sm100", True), ("interpreter", False), ("gfx950", False)]
)
def test_which_gpus_launch_a_kernel_before_another_ends(architecture, expected):
    assert has_dependent_launches(architecture) == expected


def test_values_at_an_odd_address_are_loaded_one_by_one(paged_call):
    call = paged_call([1], [70], kv_cache_dtype=torch.int8, head_size=64)
    shifted = torch.empty(call.kv_cache.numel() + 1, dtype=torch.int8)[1:].view(call.kv_cache.shape)
    for cache, has_pairs in ((call.kv_cache, True), (shifted, False)):
        assert kind_of(call._replace(kv_cache=cache)).has_value_pairs == has_pairs


def test_an_odd_dim_after_the_pairs_is_read(paged_call, assert_agrees):
    """Rows of 33 dims lie 48 bytes apart, so that strides count in 16 bytes, of which pairs are cut. No drawn width is odd."""
    call = paged_call([1, 3], [70, 20], kv_cache_dtype=torch.float8_e4m3fn, head_size=33, **ONE_SCALE)
    *outer, head_size = call.kv_cache.shape
    padded = torch.zeros((*outer, 48), dtype=torch.float8_e4m3fn, device=call.q.device)[..., :head_size]
    padded.view(torch.uint8).copy_(call.kv_cache.view(torch.uint8))
    assert_agrees(call._replace(kv_cache=padded))


def test_inline_scales_at_an_odd_place_are_refused_after_a_call_that_was_served(paged_call):
    """Both caches begin at an even address, and have one signature but for the place where they begin."""
    call = paged_call([1], [70], layout=Layout.CONTENT_PACKED_SCALED, kv_cache_dtype=torch.int8)
    size = call.kv_cache.numel()
    memory = torch.zeros(size + 2, dtype=torch.int8, device=call.q.device)
    served, shifted = (memory[first : first + size].view(call.kv_cache.shape) for first in (0, 2))
    attn_optimized.paged_attention(*call._replace(kv_cache=served))
    with pytest.raises(ContractError, match="multiples of 4"):
        attn_optimized.paged_attention(*call._replace(kv_cache=shifted))


def test_float8_formats_without_conversions(paged_call, assert_agrees, monkeypatch):
    """The kernel converts these types itself, as on a GPU whose compiler does not."""
    monkeypatch.setattr("attn_optimized.quantization._is_converted", lambda float8, architecture: False)
    for kv_cache_dtype in (torch.float8_e4m3fn, torch.float8_e4m3fnuz):
        assert_agrees(paged_call([3], [50], kv_cache_dtype=kv_cache_dtype, output_scale=torch.tensor(0.125)))


@pytest.mark.parametrize("scale", [0.0, 0.25, 10.0, -10.0])
def test_equal_logits_give_the_exact_mean(scale, dtype, paged_call):
    """Every weight is exp(0) = 1, for logits beyond exp's range too, and every sum is exact: the quotient is rounded once."""
    if triton.__version__.startswith("3.6.") and not torch.cuda.is_available() and dtype == torch.float32:
        pytest.skip("Triton 3.6 interprets a fused multiply-add in two roundings, unless attn_fuzz teaches it")
    call = paged_call([1, 3], [199, 130], dtype=dtype, causal=False, scale=scale)  # the first one's keys are split
    blocks = call.batch.block_table[0, :13].long()
    values = torch.randint(-8, 9, (13, 16, 2, 32), dtype=dtype, device=call.q.device)
    call.kv_cache[blocks, 0] = 1
    call.kv_cache[blocks, 1] = values
    lse = torch.empty(4, len(call.q), device=call.q.device)
    out = attn_optimized.paged_attention(torch.ones_like(call.q), *call[1:], lse=lse)
    # on a GPU, torch divides by a Python number as a multiplication by its reciprocal
    mean = (values.flatten(0, 1)[:199].double().sum(0) / 199).float().to(dtype)
    assert torch.equal(out[0], mean.repeat_interleave(2, dim=0))
    torch.testing.assert_close(lse[:, 0].cpu(), torch.full((4,), 32 * scale + math.log(199)))


@pytest.mark.parametrize("query_len", [1, 70], ids=["keys split", "keys whole"])
def test_a_mean_near_the_half_between_two_numbers_is_rounded_once(query_len, paged_call):
    """A product with the rounded reciprocal of 3439 is on the other side of the half. Each KV head has a mean of its own."""
    totals = torch.tensor([97, 388])
    means = (totals.double() / 3439).half()
    assert (means != (totals * torch.tensor(1 / 3439)).half()).all(), "nothing hangs on the reciprocal"
    call = paged_call([query_len], [3439], num_heads=2, dtype=torch.float16, causal=False, scale=0.0)
    is_whole = query_len > 1
    plan = attn_optimized.plan_of(call.q, call.layer, call.batch, batch_invariant=is_whole)
    assert (plan.splits == 1) == is_whole
    blocks = call.batch.block_table[0, :215].long()
    call.kv_cache[blocks, 1] = (torch.arange(215 * 16).view(215, 16, 1, 1) < totals.view(2, 1)).to(call.q)
    out = attn_optimized.paged_attention(*call, batch_invariant=is_whole)[:query_len]
    assert torch.equal(out, means.to(out).view(2, 1).expand_as(out))


def only(call, r, first=0, end=None):
    """Queries `first` to `end` of request r as a call of their own."""
    starts = call.batch.query_start_loc.tolist()
    end = starts[r + 1] - starts[r] if end is None else end
    later = starts[r + 1] - starts[r] - end
    batch = replace(
        call.batch,
        query_start_loc=torch.tensor([0, end - first], dtype=torch.int32, device=call.q.device),
        seq_lens=call.batch.seq_lens[r : r + 1] - later,
        max_query_len=end - first,
        num_actual_tokens=end - first,
        block_table=call.batch.block_table[r : r + 1],
    )
    return call._replace(q=call.q[starts[r] + first : starts[r] + end], batch=batch)


def test_bits_do_not_depend_on_the_batch(dtype, paged_call):
    """Bit by bit, alone or in a batch, whole or in steps of whole tiles, where other modes take other splits."""
    heads = {"num_heads": 2, "num_kv_heads": 1, "sinks": [0.0, 1.0]}
    call = paged_call([70, 1, 200], [130, 1500, 333], window=(1199, -1), dtype=dtype, **heads)
    together = attn_optimized.paged_attention(*call, batch_invariant=True)
    parts = [only(call, 0), only(call, 1)]
    tile = attn_optimized.plan_of(call.q, call.layer, call.batch, batch_invariant=True).tiles.queries
    parts += [only(call, 2, first, min(first + tile, 200)) for first in range(0, 200, tile)]
    apart = torch.cat([attn_optimized.paged_attention(*part, batch_invariant=True) for part in parts])
    assert len(parts) > 4
    assert torch.equal(apart, together[:271])
    assert attn_optimized.plan_of(parts[1].q, call.layer, parts[1].batch).splits > 1, "invariant for no reason"


@pytest.mark.parametrize(
    ("window", "others"),
    [
        ((-1, -1), {"bidirectional_ranges": [[(5, 4)], [(10, 30)]]}),
        ((299, -1), {"bidirectional_ranges": [[(5, 4)], [(10, 30)]]}),
        ((250, 100), {"causal": [True, False]}),
    ],
    ids=["ranges", "ranges and a window", "another without causality and a window"],
)
def test_batch_invariant_beside_a_request_with_other_rules(window, others, paged_call):
    """These rules cost a batch the loop without a mask, but must not change a request without them."""
    call = paged_call([70, 5], [700, 300], window=window, sinks=[0.0, 1.0, 2.0, 3.0], **others)
    together = attn_optimized.paged_attention(*call, batch_invariant=True)
    plain = replace(call.batch, causal=True, bidirectional_ranges=None)
    alone = attn_optimized.paged_attention(*only(call._replace(batch=plain), 0), batch_invariant=True)
    assert torch.equal(alone, together[:70])


def attend_by(plan_of):
    """The kernels by another plan. The parts that a call makes begin as NaN, and are kept.

    Args:
        plan_of: makes the plan of the one that would be taken.
    """
    made = []

    def attend(q, kv_cache, layer, batch, *, out, lse, validate):
        plan = plan_of(attn_optimized.plan_of(q, layer, batch))
        for kernel in paged_attention_calls(q, kv_cache, layer, batch, plan, out=out, lse=lse):
            if plan.splits > 1 and not made:
                made.append(Parts(*(kernel.arguments[f"{name}_ptr"].fill_(torch.nan) for name in Parts._fields)))
            kernel.run(q.device)
        return out

    return attend, made


def attend_in(splits, min_tiles_per_split=1, balanced_splits=None, block_n=None):
    """The kernels with keys in so many parts of so many tiles at least, whatever a plan would choose.

    `block_n`: keys of a tile, without which an architecture's table chooses.
    """

    def plan_of(plan):
        chosen = {"splits": splits, "balanced_splits": balanced_splits or splits, "min_tiles_per_split": min_tiles_per_split}
        plan = replace(plan, **chosen)
        parameters = replace(plan.tiles.parameters, block_n=block_n or plan.tiles.parameters.block_n)
        return replace(plan, tiles=replace(plan.tiles, parameters=parameters))

    return attend_by(plan_of)


@pytest.mark.parametrize("rules", [{}, {"sinks": SINKS}, {"output_scale": torch.tensor([0.125])}], ids=["", "sinks", "out"])
def test_a_tile_of_a_single_part_finishes_itself(rules, paged_call, assert_agrees):
    """Its rows are written by the attention kernel, whose parts hold nothing that the reduction could write there."""
    call = paged_call([1, 1, 1, 1], [5, 600, 0, 90], dtype=torch.float16, **rules)
    attend, made = attend_in(4, min_tiles_per_split=2, block_n=64)  # 600 keys are 10 tiles, 90 keys are 2
    assert_agrees(call, attend)
    (parts,) = made
    finished = [0, 2, 3] if "sinks" in rules else [0, 3]  # a row that sees nothing is reduced from nothing, or from its sink
    assert (parts.row_sum[0][:3, finished] == FINISHED.value).all()
    assert (parts.row_sum[:, :, 1] > 0).all(), "of several parts"
    assert parts.acc[:, [0, 2, 3]].isnan().all()
    assert not parts.acc[:, 1].isnan().any()


def test_the_reduction_does_not_touch_a_finished_row(paged_call):
    call = paged_call([1, 1], [5, 600])
    out = torch.full_like(call.q, torch.nan)
    plan = replace(attn_optimized.plan_of(call.q, call.layer, call.batch), splits=3, min_tiles_per_split=1)
    kernels = paged_attention_calls(*call, plan, out=out)
    next(kernels).run(call.q.device)
    assert out[0].isfinite().all()
    assert out[1].isnan().all(), "of several parts: left to the reduction"
    out[0] = 7
    next(kernels).run(call.q.device)
    assert (out[0] == 7).all()
    assert out[1].isfinite().all()


@parametrize_pairwise(
    splits=[2, 3, 7],
    min_tiles_per_split=[1, 2, 5],
    seq_lens={"uneven": [600, 333, 64], "even": [600, 590, 600]},
    rules={
        "causal": {},
        "window": {"window": (130, -1)},
        "sink tokens": {"window": (20, -1), "sink_tokens": 100},
        "all": {"causal": False},
        "chunks": {"chunked_local": 150},
    },
)
def test_parts_cover_all_keys(splits, min_tiles_per_split, seq_lens, rules, paged_call, assert_agrees):
    call = paged_call([1, 70, 2], seq_lens, sinks=SINKS, **rules)
    assert_agrees(call, attend_in(splits, min_tiles_per_split, balanced_splits=2)[0])


def parts_of(seq_lens, paged_call, max_seq_len=640, **parts):
    """The number of parts of the keys, in tiles of 64, in which each request has a state after the kernel."""
    call = paged_call([1] * len(seq_lens), seq_lens)
    call = call._replace(batch=replace(call.batch, max_seq_len=max_seq_len))
    attend, made = attend_in(**parts, block_n=64)
    attend(*call, out=torch.empty_like(call.q), lse=None, validate=False)
    return (made[0].row_max[:, 0] > -torch.inf).sum(0)[: len(seq_lens)].tolist()


def test_requests_of_one_length_are_cut_into_few_parts_and_others_by_their_length(paged_call):
    assert parts_of([640, 640, 640], paged_call, splits=5, balanced_splits=2) == [2, 2, 2]
    assert parts_of([640, 640, 576], paged_call, splits=5, balanced_splits=2) == [2, 2, 2], "nearly"
    assert parts_of([640, 128, 300], paged_call, splits=5, balanced_splits=2) == [5, 1, 3]
    assert parts_of([640, 128, 300], paged_call, splits=5, balanced_splits=2, min_tiles_per_split=4) == [3, 1, 2]
    assert parts_of([640], paged_call, splits=5, balanced_splits=3) == [3]
    # as where a captured graph is replayed with shorter lengths
    assert parts_of([640, 128, 300], paged_call, max_seq_len=100_000, splits=5, balanced_splits=2) == [5, 1, 3]


def parts_by_work(query_lens, seq_lens, paged_call, work_shares):
    """The number of parts, at most 8, of the keys of each request's last query. Tiles have 16 queries and 64 keys."""
    call = paged_call(query_lens, seq_lens, num_heads=4, num_kv_heads=1)
    parameters = Parameters(block_m=64, block_n=64, num_warps=4, num_stages=2)
    plan = attn_optimized.plan_of(call.q, call.layer, call.batch, parameters=parameters)
    plan = replace(plan, splits=8, work_shares=work_shares, min_tiles_per_split=1)
    kernel, _ = paged_attention_calls(*call, plan, out=torch.empty_like(call.q))
    row_max = kernel.arguments["row_max_ptr"].fill_(torch.nan)
    kernel.run(call.q.device)
    last = call.batch.query_start_loc[1:].long() - 1
    return (row_max[:, 0, last] > -torch.inf).sum(0).tolist()


def test_a_part_takes_a_share_of_the_work_of_all_tiles(paged_call):
    """The work is 10 tiles of keys for one query, and one for each of the 8 tiles of 120 queries."""
    shares = {1: [1, 1], 8: [4, 1], 9: [5, 1], 1000: [5, 1]}
    for work_shares, parts in shares.items():
        if SHARES_OF_LONGEST.value > 1 and work_shares < 9:
            parts = [1, 1]  # compiled kernels leave a tile whole that has up to 4 shares
        assert parts_by_work([1, 120], [640, 120], paged_call, work_shares) == parts, work_shares


def test_requests_after_those_whose_lengths_are_looked_at(paged_call, assert_agrees):
    few = MAX_LENGTHS.value
    for query_lens in ([1] * (few + 2), [70, *[1] * few, 70]):
        call = paged_call(query_lens, [*[70] * (few + 1), 700], num_heads=1, num_kv_heads=1)
        assert_agrees(call, attend_in(3)[0])


@pytest.mark.parametrize("max_seq_len", [1100, 1101, 1152, 9000], ids=["tight", "loose by one", "by a tile", "by far"])
def test_max_seq_len_may_be_loose(max_seq_len, paged_call, assert_agrees):
    call = paged_call([1, 2], [1100, 64], num_kv_heads=1, num_heads=4)
    table = torch.nn.functional.pad(call.batch.block_table, (0, 600), value=-1)
    call = call._replace(batch=replace(call.batch, max_seq_len=max_seq_len, block_table=table))
    assert attn_optimized.plan_of(call.q, call.layer, call.batch).splits > 1
    assert_agrees(call)


@pytest.mark.parametrize("longest", [1, 70], ids=["one tile each", "tiles one after the other"])
def test_more_requests_than_are_searched_at_once_agree(longest, paged_call, assert_agrees):
    """More than are looked at together, where a tile looks for its request."""
    n = REQUESTS_AT_ONCE.value + 5
    query_lens = [int(r % 7 != 3) for r in range(n - 2)] + [longest, 1]
    call = paged_call(query_lens, [length + r % 3 for r, length in enumerate(query_lens)], num_heads=1, num_kv_heads=1)
    plan = attn_optimized.plan_of(call.q, call.layer, call.batch)
    assert plan.one_tile_per_request == (longest == 1)
    assert plan.one_tile_per_request == (plan.grid[0] == n)
    assert_agrees(call)


@pytest.mark.parametrize("heads_first", [False, True])
def test_either_order_of_programs(heads_first, paged_call, assert_agrees):
    call = paged_call([1, 0, 3], [5, 9, 90])
    assert attn_optimized.plan_of(call.q, call.layer, call.batch).one_tile_per_request
    assert_agrees(call, attend_by(lambda plan: replace(plan, heads_first=heads_first))[0])


@pytest.mark.parametrize("query_len", [1, 70])
def test_a_short_window_takes_one_loop(query_len, paged_call, assert_agrees):
    """The one without a mask is worth its start only where queries may see many tiles."""
    few = SHORT_WINDOW_KEYS
    for rules, seq_len, has_two in [
        ({}, few, True),
        ({"window": (few - 1, -1)}, 2 * few, False),
        ({"window": (few, -1)}, 2 * few, True),
        ({"window": (few - 3, 2), "causal": False}, 2 * few, False),
        ({"window": (-1, 5), "causal": False}, 2 * few, True),
        ({"chunked_local": few}, 2 * few, False),
        ({"chunked_local": few + 1}, 2 * few, True),
        ({"window": (few - 1, -1), "chunked_local": 2 * few}, 2 * few, False),
        ({"window": (few - 1, -1), "sink_tokens": 1}, 2 * few, True),
        ({"alibi_slopes": torch.tensor([0.5, 4.0])}, few, True),
    ]:
        call = paged_call([query_len], [seq_len], num_heads=2, num_kv_heads=1, **rules)
        call = call._replace(batch=replace(call.batch, max_seq_len=seq_len))
        assert kind_of(call).has_unmasked_loop == has_two, (rules, seq_len)
        assert_agrees(call)


def test_unwritten_parts_of_a_split_are_not_read(paged_call, assert_agrees, monkeypatch):
    call = paged_call([1, 2], [1100, 3], sinks=[0.5, 3.0, -3.0, -torch.inf])
    plan = attn_optimized.plan_of(call.q, call.layer, call.batch)
    assert plan.splits > 1
    empty, made = Parts.empty, []

    def poisoned(*args):
        made.append(empty(*args))
        for tensor in made[-1]:
            tensor.fill_(torch.nan)
        return made[-1]

    monkeypatch.setattr(Parts, "empty", poisoned)
    assert_agrees(call)
    (parts,) = made
    assert sum(tensor.nbytes for tensor in parts) == plan.scratch_bytes
    assert parts.acc[1:, 1:].isnan().all(), "a part without keys writes no sums"


@pytest.mark.parametrize("dtype_of_sinks", [torch.float16, torch.bfloat16])
def test_sinks_of_another_dtype(dtype_of_sinks, paged_call, assert_agrees):
    call = paged_call([9, 1], [75, 10])
    sinks = torch.tensor([0.5, 2.0, -1.0, -torch.inf], dtype=dtype_of_sinks, device=call.q.device)
    assert_agrees(call._replace(layer=replace(call.layer, sinks=sinks)))


def test_no_request_writes_nothing(paged_call):
    call = paged_call([], [])
    out = torch.full_like(call.q, 7)
    attn_optimized.paged_attention(*call, out=out)
    assert (out == 7).all()


def test_out_and_lse_are_optional(paged_call):
    call = paged_call([3, 1], [20, 9])
    out = torch.empty_like(call.q)
    attn_optimized.paged_attention(*call, out=out, lse=torch.empty(4, len(call.q), device=call.q.device))
    assert torch.equal(attn_optimized.paged_attention(*call)[:4], out[:4])


@parametrize_pairwise(
    starts=[[0, 3, 30], [-5, 3, 8], [5, 8, 13], [0, 900, 905], [900, 903, 908]],
    query_len={"one tile each": 5, "more": 200},
    seq_len={"whole": 60, "split": 400},
)
def test_unchecked_lengths_reach_no_other_memory(paged_call, starts, query_len, seq_len):
    """Wrong values give wrong rows, but within the output."""
    call = paged_call([3, query_len], [seq_len, 260])
    wrong = torch.tensor(starts, dtype=torch.int32, device=call.q.device)
    call = call._replace(batch=replace(call.batch, query_start_loc=wrong))
    rows, width = len(call.q), call.q[0].numel()
    guarded = torch.full((rows + 2000, width), 7.0, device=call.q.device)
    attn_optimized.paged_attention(*call, out=guarded[1000 : 1000 + rows])
    assert (guarded[:1000] == 7).all()
    assert (guarded[1000 + rows :] == 7).all()


@pytest.mark.parametrize("kv_cache_dtype", [torch.float8_e4m3fn, torch.int8], ids=str)
def test_float16_keeps_small_values_of_scaled_tokens(kv_cache_dtype, paged_call):
    """Scales of tokens are far below float16's normal numbers long before their values are."""
    call = paged_call([1, 3], [400, 130], dtype=torch.float16, kv_cache_dtype=kv_cache_dtype)
    call = call._replace(layer=replace(call.layer, v_scale_cache=call.layer.v_scale_cache * 2.0**-10))
    owned = slice(0, 4)
    out = attn_optimized.paged_attention(*call, validate=True)[owned].double()
    exact = attn_reference.paged_attention(*call, precision=torch.float64)[owned].double()
    assert (out - exact).norm() <= 2.0**-10 * exact.norm()


@pytest.mark.parametrize(("scale", "cap"), [(3000.0, 4000.0), (-3000.0, 4000.0), (1e5, 2e5)])
def test_soft_cap_bends_logits_of_thousands(scale, cap, paged_call, assert_agrees):
    """The fuzzer hardly ever draws logits that reach such a cap."""
    call = paged_call([1, 5], [70, 90], scale=scale, logits_soft_cap=cap)
    assert_agrees(call)
    uncapped = call._replace(layer=replace(call.layer, logits_soft_cap=None))
    capped, sharp = (attn_optimized.paged_attention(*each)[:6] for each in (call, uncapped))
    assert not torch.allclose(capped, sharp, atol=0.1), "below the cap the largest key has not all the weight"


@pytest.mark.parametrize("cap", [1e-30, 1e-10, 1e-3, 50.0, 1e4, 1e8, 2.0**32])
@pytest.mark.parametrize("rules", [{}, {"alibi_slopes": torch.tensor([0.5, 0.25, 0.1, -0.1])}], ids=["", "ALiBi"])
def test_soft_cap_keeps_small_logits(cap, rules, paged_call, assert_agrees):
    """A cap far above every logit changes none of them; one far below leaves their signs."""
    assert_agrees(paged_call([1, 5], [70, 90], logits_soft_cap=cap, **rules))


@pytest.fixture(params=["reference", "kernel"])
def attend(request):
    """Attention of either side. Returns the outputs and LSEs of the rows of requests."""

    def run(call):
        out, lse = torch.full_like(call.q, torch.nan), torch.full(call.q.shape[1::-1], torch.nan, device=call.q.device)
        if request.param == "reference":
            attn_reference.paged_attention(*call, out=out, lse=lse)
        else:
            attn_optimized.paged_attention(*call, out=out, lse=lse, validate=True)
        owned = int(call.batch.query_start_loc[-1])
        return out[:owned].cpu(), lse[:, :owned].cpu()

    return run


def test_a_sink_of_the_largest_logit_takes_all_weight_and_of_the_least_none(attend, paged_call):
    """By definition, and not by the judge: beside such a logit its bound allows anything. The last request has no key."""
    call = paged_call([9, 1, 2], [75, 500, 0], sinks=[MAX_LOGIT, -MAX_LOGIT] * 2)
    out, lse = attend(call)
    without_out, without_lse = attend(call._replace(layer=replace(call.layer, sinks=None)))
    assert (out[:, ::2] == 0).all()
    torch.testing.assert_close(lse[::2], torch.full_like(lse[::2], MAX_LOGIT), rtol=1e-6, atol=0)
    torch.testing.assert_close(out[:, 1::2], without_out[:, 1::2], rtol=0, atol=1e-6)
    torch.testing.assert_close(lse[1::2, :10], without_lse[1::2, :10], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(lse[1::2, 10:], torch.full((2, 2), -MAX_LOGIT), rtol=1e-6, atol=0)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_row_whose_biases_are_all_the_largest_gives_the_mean(sign, attend, paged_call):
    """Beside them its own logits are lost in float32, so that all are equal."""
    call = paged_call([5], [5], causal=False, qq_bias=torch.full((8, 8), sign * MAX_LOGIT))
    (request,) = attn_reference.paged_requests(*call, torch.float64)
    mean = request.value.mean(0).float().repeat_interleave(2, 0).cpu()
    out, lse = attend(call)
    torch.testing.assert_close(out, mean.expand(5, -1, -1), rtol=0, atol=1e-6)
    torch.testing.assert_close(lse, torch.full((4, 5), sign * MAX_LOGIT), rtol=1e-6, atol=0)


def test_in_float16_a_key_of_a_large_scale_takes_precision_from_others_as_the_bound_says(device):
    """Scales of V 2^10 apart. What the small one weighs, 2^-16, is 2^-26 relative to the large one, and rounds to 0.

    The large key is 0 in dim 0, so that dim 0 of the output is what the small key gives.
    """
    query, key, value = torch.zeros(1, 1, 16), torch.zeros(2, 1, 16), torch.zeros(2, 1, 16)
    query[..., 0] = 1.0
    key[:, 0, 0] = torch.tensor([-5.6, 5.6])
    value[0, 0, 0], value[1, 0, 1] = 127 * 2.0**-5, 127 * 2.0**5
    tokens = joined([(query.half(), key.half(), value.half())])
    call = call_of_tokens(
        tokens, layout=Layout.CONTENT_PACKED_SCALED, kv_cache_dtype=torch.int8, scale=1.0, causal=False, device=device
    )
    (request,) = attn_reference.paged_requests(*call, torch.float64)
    right = Oracle(request, call.layer, torch.float16, TRITON.rounding(device.type), torch.float16)
    out = torch.full_like(call.q, torch.nan)
    attn_optimized.paged_attention(*call, out=out)
    loss, bound = ((x[0, 0, 0]) for x in ((out[:1].double() - right.out).abs(), right.hard_bound().out))
    assert out[0, 0, 0] == 0 < right.out[0, 0, 0] < 2**-15 * value[0, 0, 0]
    assert bound / 10 < loss <= bound
    wide = call._replace(q=call.q.bfloat16())
    out = torch.full_like(wide.q, torch.nan)
    attn_optimized.paged_attention(*wide, out=out)
    torch.testing.assert_close(out[0, 0, 0].double(), right.out[0, 0, 0], rtol=2**-7, atol=0)


@pytest.mark.parametrize("side", [attn_reference, attn_optimized])
def test_keys_that_another_kv_head_selects_may_hold_nan(side, device):
    tokens = random_tokens([2], [6])
    selected = torch.tensor([[[0, -1], [0, 1]], [[2, -1], [2, -1]]], dtype=torch.int32)
    selected = torch.nn.functional.pad(selected, (0, 0, 0, 4), value=-1)
    call = call_of_tokens(tokens, selection_unit=2, selected=selected, device=device)
    expected = side.paged_attention(*call)[:2]
    assert expected.isfinite().all()
    for part in (tokens.key, tokens.value):
        part[4:, 0], part[:4, 1] = torch.nan, torch.nan
    call = call_of_tokens(tokens, selection_unit=2, selected=selected, device=device)
    assert torch.equal(side.paged_attention(*call)[:2], expected)
