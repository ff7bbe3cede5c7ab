"""Kernels that are coarser than float32 agree if they say so, and fail if they do not."""

import dataclasses
import math

import planted_coarse
import pytest
import torch
from attn_contract import AttentionType, Layer, Layout
from attn_fuzz import Call
from attn_fuzz.verdict.judge import judge_call
from attn_fuzz.verdict.rounding import CallRounding, Rounding

from tests.support.calls import one_request
from tests.support.mostly_nightly import mostly_nightly

NAMES = [name for name, value in vars(planted_coarse).items() if value in planted_coarse.KERNELS]
LAYER = Layer(num_heads=1, num_kv_heads=1, head_size=16, scale=0.25, attn_type=AttentionType.ENCODER_ONLY)


def of_call(dtype: torch.dtype = torch.bfloat16, cache: torch.dtype | None = None, **does) -> CallRounding:
    """The roundings of a kernel in a call with q of a dtype. A cache is quantized: beside q in float8, in q's dtype."""
    layer, scales = LAYER, ("k_scale", "v_scale", "q_scale") if dtype.itemsize == 1 else ("k_scale", "v_scale")
    if cache is not None:
        held = {f"{name}_cache": torch.ones(1, 16, 1) for name in scales} if cache is torch.int8 else {}
        held = held or {name: torch.ones(1) for name in scales}
        decoder = {"attn_type": AttentionType.DECODER, "layout": Layout.BLOCKS_FIRST_NHD, "kv_cache_dtype": cache}
        layer = dataclasses.replace(LAYER, **decoder, **held)
    out_dtype = torch.bfloat16 if dtype.itemsize == 1 else dtype
    return CallRounding(rounding=Rounding(**{"keys_per_tile": 16, **does}), layer=layer, dtype=dtype, out_dtype=out_dtype)


@pytest.mark.parametrize("examples", [4, pytest.param(40, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", [*NAMES, "SUMS_AND_FLOAT8@properties", "LOGITS@properties", "OPERANDS@properties"])
def test_a_declared_rounding_is_no_false_alarm(name, examples, fuzz_here):
    progress, _ = fuzz_here(f"planted_coarse:{name}", examples=examples)
    assert progress.examples == examples
    assert progress.failure is None, progress.failure


@pytest.mark.parametrize("name", NAMES)
def test_an_undeclared_rounding_is_seen(name, fuzz_here, monkeypatch):
    target = getattr(planted_coarse, name)
    fine = dataclasses.replace(target, rounding=lambda device: Rounding(keys_per_tile=16, normalizes_first=True))
    monkeypatch.setattr(planted_coarse, name, fine)
    progress, _ = fuzz_here(f"planted_coarse:{name}", examples=200, on_failure="stop")
    assert progress.failure is not None
    assert progress.failure.verdict.kind in ("value", "lse")


FOUND_LATE = {"soft cap dropped", "ALiBi of the other sign", "ALiBi of the next head", "chunks ignored"}


@pytest.mark.parametrize("mistake", mostly_nightly(planted_coarse.MISTAKES, {*planted_coarse.MISTAKES} - FOUND_LATE))
def test_the_coarsest_kernel_hides_no_mistake(mistake, fuzz_here, monkeypatch):
    wrong = planted_coarse.with_mistake(planted_coarse.SUMS_AND_FLOAT8, planted_coarse.MISTAKES[mistake])
    monkeypatch.setattr(planted_coarse, "SUMS_AND_FLOAT8", wrong)
    progress, _ = fuzz_here("planted_coarse:SUMS_AND_FLOAT8", examples=500, on_failure="stop")
    assert progress.failure is not None


def test_sums_round_in_each_tile_that_a_row_sees_and_in_each_part():
    """A row of 18 keys may lie in three tiles of 16; no row lies in more tiles than there are."""
    span = torch.tensor([0, 1, 2, 18, 64])
    assert of_call().tiles(span, 64).tolist() == [0, 1, 2, 3, 4]
    assert of_call(splits=3).tiles(span, 64).tolist() == [0, 2, 4, 6, 7]
    assert of_call().of_outputs(span).tolist() == [0.0] * 5
    assert of_call().of_sums(span, span, 1.0) == 0.0
    u, tiles = 2.0**-8, torch.tensor([2.0])
    rounded = of_call(outputs="q").of_outputs(tiles)
    assert rounded == pytest.approx(math.expm1(8 * u / (1 - u)))
    assert of_call(outputs="q", products="float16").of_outputs(tiles) == pytest.approx(rounded + 2.0**-11)
    # 4 pairs of 16 weights, or 15 one after the other; 3 roundings of each tile; and the weights' own
    for is_chained, steps in ((False, 4 + 6), (True, 15 + 6)):
        found = of_call(sums="bfloat16", dot_is_chained=is_chained).of_sums(tiles, torch.tensor([20.0]), 1.0)
        assert found == pytest.approx(math.expm1((u * steps + u) / (1 - u)))


FLOAT8 = torch.float8_e4m3fn
LITTLE = {"operands": 0, "underflown_queries": 0}
ALLOWED = {
    "float16 weights beside a float8 query": (
        of_call(FLOAT8, FLOAT8),
        {"weights": pytest.approx(2.0**-11, rel=1e-3), **LITTLE},
    ),
    "float8 weights beside a float8 query": (
        of_call(FLOAT8, FLOAT8, float8_weights=True, rounds_dequantized=True),
        {"weights": pytest.approx(2.0**-4, rel=1e-3), **LITTLE},
    ),
    "all parts but one in the output's dtype": (of_call(FLOAT8, FLOAT8, merged_parts=3), {"parts": 2 * 2.0**-8}),
    "scaled float8 weights": (
        of_call(FLOAT8, FLOAT8, float8_weights=True, weight_scale=256),
        {"lost_weights": 2.0**-10 / 256},
    ),
    "weights of 16 bits, which are not scaled": (
        of_call(torch.float16, FLOAT8, float8_weights=True, weight_scale=256),
        {"lost_weights": 2.0**-25},
    ),
    "nothing declared": (of_call(), {"weights": 2.0**-8, "operands": 0, "cut_weights": 0, "output": 2.0**-8}),
    "six more roundings of each weight": (of_call(narrow_sums=6), {"weights": 7 * 2.0**-8}),
    "six more roundings in float16": (of_call(torch.float16, narrow_sums=6), {"weights": 7 * 2.0**-11}),
    "a scaled query that is rounded again": (of_call(rounds_scaled_query=True), {"operands": 2.0**-8}),
    "truncation, which costs twice a rounding": (
        of_call(truncates_weights=True, truncates_output=True),
        {"weights": 2.0**-8, "cut_weights": 2.0**-8, "output": 2 * 2.0**-8},
    ),
    "float16 dots of bfloat16": (of_call(cache=FLOAT8, float16_dots=True), {"lost_weights": 2.0**-39}),
    "float16 dots of float16": (of_call(torch.float16, FLOAT8, float16_dots=True), {"lost_weights": 2.0**-25}),
    "no float16 dots beside int8": (of_call(cache=torch.int8, float16_dots=True), {"lost_weights": 2.0**-126}),
    "no float16 dots without quantization": (of_call(float16_dots=True), {"lost_weights": 2.0**-126}),
}


@pytest.mark.parametrize(("call", "expected"), ALLOWED.values(), ids=ALLOWED)
def test_a_call_is_allowed_the_roundings_of_its_tensors(call, expected):
    assert {name: getattr(call, f"of_{name}") for name in expected} == expected


@pytest.mark.parametrize(
    ("does", "u", "eta", "cut"),
    [
        ({"weights": "fp8_e4m3fn"}, 2.0**-4, 2.0**-10, 0),
        ({"weights": "fp8_e4m3fn", "weight_scale": 256}, 2.0**-4, 2.0**-18, 0),
        ({"weights": "fp8_e4m3fn", "weight_scale": 512}, 2.0**-4, 2.0**-19, 1 / 8),
        ({"weights": "fp8_e4m3fnuz", "weight_scale": 256.0}, 2.0**-4, 2.0**-19, 1 / 16),
        ({"weights": "fp8_e5m2", "largest_weight": 2.0**17}, 2.0**-3, 2.0**-17, 9 / 16),
        ({"weights": "q"}, 2.0**-8, 2.0**-126, 0),
    ],
)
def test_weights_in_float8_round_underflow_and_saturate(does, u, eta, cut):
    call = of_call(**does)
    assert (call.of_weights, call.of_lost_weights) == (u, eta)
    assert call.of_saturated_weights(torch.zeros(())) == cut


def test_a_maximum_past_the_largest_weight_saturates_more():
    """A maximum that may be log(2) too low lets weights of 2 come."""
    call = of_call(weights="fp8_e4m3fn", weight_scale=448, maximum="q")
    assert call.of_saturated_weights(torch.tensor(math.log(2))) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"sums": "fp8_e4m3fn"}, "got 'fp8_e4m3fn' sums, expected one of q, float16, bfloat16, or None"),
        ({"weights": torch.float16}, "got torch.float16 weights, expected one of q, float16, bfloat16, fp8_e4m3fn"),
        ({"operands": "q"}, "got 'q' operands, expected one of tf32, bfloat16, or None"),
        ({"weight_scale": 256}, "got 256 weight_scale, expected 1 beside weights that are not float8"),
        ({"weights": "fp8_e5m2", "weight_scale": 0}, "got 0 weight_scale, expected a finite number of at least 1.17549e-38"),
        ({"largest_weight": 0.5}, "got 0.5 largest_weight, expected a finite number of at least 1"),
        ({"largest_weight": math.nan}, "got nan largest_weight"),
        ({"outputs": "q", "exact_division": True}, "got exact_division with 'q' outputs, whose sums are not exact"),
    ],
)
def test_a_declaration_that_says_nothing_sound_is_refused(wrong, expected):
    with pytest.raises(ValueError, match="Rounding: ") as refused:
        Rounding(keys_per_tile=16, **wrong)
    assert expected in str(refused.value)


@pytest.mark.parametrize("flushes", [False, True])
def test_a_weight_that_is_flushed(flushes):
    """exp(-10) is below 2^-14: matrix units of gfx90a multiply 0 by the value 2000."""
    layer = Layer(num_heads=1, num_kv_heads=1, head_size=1, scale=1.0, attn_type=AttentionType.ENCODER_ONLY)
    q, k, v = (torch.tensor(numbers, dtype=torch.float16).view(2, 1, 1) for numbers in ([1, 1], [0, -10], [0, 2000]))
    judgement = judge_call(
        Call(q=q, k=k, v=v, layer=layer, batch=one_request(2, 2)),
        torch.zeros_like(q),
        None,
        Rounding(keys_per_tile=16, flushes_float16=flushes),
    )
    assert judgement.agrees is flushes


def test_a_rounding_may_exchange_logits_however_far_apart():
    """114141 and 113963 are one number of bfloat16, and the weight of the second is exp(-178)."""
    layer = dataclasses.replace(LAYER, scale=1.0, head_size=1)
    q, k, v = (torch.tensor(numbers).view(2, 1, 1) for numbers in ([0.0, 1.0], [114141.0, 113963.0], [1.0, -1.0]))
    out = torch.zeros_like(q)
    for does in ({}, {"logits": "bfloat16"}):
        judgement = judge_call(
            Call(q=q, k=k, v=v, layer=layer, batch=one_request(2, 2)), out, None, Rounding(keys_per_tile=16, **does)
        )
        assert judgement.agrees is bool(does)
