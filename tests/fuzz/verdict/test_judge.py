"""The judge sees a single wrong key wherever a key can be seen, and does not cry wolf over rounding."""

import dataclasses
import math
from types import SimpleNamespace

import attn_reference
import msgspec
import planted
import pytest
import torch
from attn_contract import RULES, AttentionType, Layer, Layout
from attn_contract.rules import LOGITS
from attn_contract.validation.values import MAX_LOGIT
from attn_fuzz.cases import tensors
from attn_fuzz.cases.call import Call
from attn_fuzz.cases.case import Cache, Case, Request, Rope, Values
from attn_fuzz.cases.poison import bits, canary
from attn_fuzz.properties import bound as property_bound
from attn_fuzz.properties import error_bound
from attn_fuzz.run.case.trial import try_case
from attn_fuzz.strategies import cases
from attn_fuzz.strategies.cases import VALUES
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_fuzz.targets.support import EVERYTHING
from attn_fuzz.targets.target import Target
from attn_fuzz.verdict import judge, oracle
from attn_fuzz.verdict.rounding import Rounding
from attn_reference.logits import logit_bias
from hypothesis import assume, given, settings

from tests.support.calls import joined, one_request, paged_call
from tests.support.pairwise import parametrize_pairwise

replace = msgspec.structs.replace
ROUNDING = Rounding(keys_per_tile=4, exact_division=True)
NAMES = EVERYTHING.dtypes
few = settings(max_examples=40, deadline=None, database=None)
each_case = given(cases("anything", dataclasses.replace(EVERYTHING, head_sizes=(16, 32), max_tokens=32, max_seq_len=64)))


def rounding_as(rounding: Rounding, attention) -> Target:
    """A kernel that declares how it rounds."""
    support = {"support": lambda device: EVERYTHING, "rounding": lambda device: rounding}
    return Target(name="planted", description="", attention=attention, **support)


def seeing(see) -> Target:
    """A kernel that is right but for which keys it sees."""
    return rounding_as(ROUNDING, planted.flash(4, 1, see))


def valued(case, kind, dtype, **changes):
    return replace(case, dtype=dtype, values=replace(case.values, kind=kind), head_size=16, **changes)


def answered(case):
    """A step with the right answer in `out` and `lse`: exact sums where they are asked for."""
    step = tensors.build(case)
    for write in step.writes:
        if write.rotation is None:
            planted.write(write.k, write.v, write.view.tensor(step.raw), write.layer, write.slot_mapping)
        else:
            at, table, is_neox = write.rotation.positions, write.rotation.cos_sin_cache, write.rotation.is_neox
            kv_cache = write.view.tensor(step.raw)
            planted.rotate(step.q, write.k, write.v, at, table, kv_cache, write.layer, write.slot_mapping, is_neox=is_neox)
    planted.flash(1 << 20, 1)(step.q, step.k, step.v, step.kv_cache, step.layer, step.batch, out=step.out, lse=step.lse)
    return step


def rules():
    """Fields of a case, and of its cache, by name."""
    yield "cap", {"logits_soft_cap": 1.0}, {}
    yield "ALiBi", {"alibi_slopes": True}, {}
    yield "tree", {"qq_bias": "tree"}, {}
    yield "biases that cancel", {"alibi_slopes": True, "qq_bias": "random", "logits_soft_cap": 50.0}, {}
    yield "everything visible is hidden but ranges", {"window": (0, 0), "sink_tokens": 2, "chunked_local": 3}, {}
    yield "rotation", {"rope": Rope(rotary_dim=8)}, {}
    for dtype in ("fp8_e4m3fn", "fp8_e4m3fnuz"):
        yield f"out of {dtype}", {"output_dtype": dtype}, {}
        for scales in ("tensor", "head", "token"):
            yield f"{dtype} by {scales}", {}, {"dtype": dtype, "scales": scales}
    yield "int8 by token", {"logits_soft_cap": 5.0}, {"dtype": "int8", "scales": "token"}
    yield "int8 by row", {"alibi_slopes": True}, {"dtype": "int8", "layout": Layout.CONTENT_PACKED_SCALED}
    yield "quantized twice", {"output_dtype": "fp8_e4m3fn"}, {"dtype": "fp8_e4m3fnuz", "scales": "head"}


@parametrize_pairwise(rule={name: rule for name, *rule in rules()}, kind=VALUES, dtype=NAMES)
def test_a_right_answer_agrees_under_every_rule(rule, kind, dtype):
    fields, cache = rule
    case = Case(
        target="t",
        dtype=dtype,
        num_kv_heads=2,
        group_size=2,
        scale=0.25,
        requests=(
            Request(query_len=5, seq_len=39, blocks=(2, 0, 4), causal=True, bidirectional_ranges=((3, 36), (35, 38))),
            Request(query_len=3, seq_len=3, blocks=(3,), causal=True),
        ),
        cache=Cache(**{"layout": Layout.KV_FIRST_NHD, "block_size": 16, "num_blocks": 6, **cache}),
        lse=True,
        values=Values(kind, 5),
        **fields,
    )
    for target in (seeing(lambda visible: visible), REFERENCE_FP32):
        verdict = try_case(case, target, "cpu")
        assert not verdict.failed, verdict.message


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_cache_that_is_rounded_when_it_is_dequantized_agrees_with_who_declares_that(dtype, step_case):
    """K and V, scaled, in q's dtype: a further rounding of each, which nobody else may make."""

    def rounding_attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        for request in attn_reference.paged_requests(q, kv_cache, layer, batch, torch.float32):
            rounded = {"key": request.key.to(q.dtype).float(), "value": request.value.to(q.dtype).float()}
            out[request.rows] = attn_reference.attend(dataclasses.replace(request, **rounded), layer).out.to(q.dtype)

    kinds = {False: set(), True: set()}
    cache = replace(step_case.cache, dtype="fp8_e4m3fn", scales="tensor")
    for seed in range(12):
        case = replace(valued(step_case, "random", dtype, cache=cache, scale=2.0), values=Values("random", seed))
        for declared in kinds:
            target = rounding_as(dataclasses.replace(ROUNDING, rounds_dequantized=declared), rounding_attention)
            kinds[declared].add(try_case(case, target, "cpu").kind)
    assert kinds == {False: {"agree", "value"}, True: {"agree"}}


def _in_int8(numbers: torch.Tensor) -> torch.Tensor:
    """Each row cut to multiples of 1/127 of its largest magnitude."""
    step = numbers.abs().amax(-1, keepdim=True).clamp(min=1e-6) / 127
    return (numbers / step).trunc() * step


@pytest.mark.parametrize("kind", ["random", "extreme"])
def test_a_query_and_weights_cut_to_int8_agree_with_who_declares_that(kind, step_case):
    def cutting_attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        group = layer.num_heads // layer.num_kv_heads
        for request in attn_reference.paged_requests(q, kv_cache, layer, batch, torch.float64):
            key, value = (x.transpose(0, 1).repeat_interleave(group, 0) for x in (request.key, request.value))
            logits = (_in_int8(request.query.transpose(0, 1)) @ key.transpose(1, 2) * layer.scale).masked_fill(
                ~request.visible, -torch.inf
            )
            weights = (logits - logits.amax(-1, keepdim=True)).exp()
            scales = value.abs().amax(-1) / 127
            sums = _in_int8(weights * scales[:, None]) @ (value / scales.clamp(min=1e-30)[..., None])
            out[request.rows] = (sums / weights.sum(-1, keepdim=True)).transpose(0, 1).to(q.dtype).view(out[request.rows].shape)

    kinds = {False: set(), True: set()}
    cache = replace(step_case.cache, dtype="int8", scales="token")
    for seed in range(8):
        case = replace(valued(step_case, kind, "bfloat16", cache=cache, scale=0.2), values=Values(kind, seed))
        for declared in kinds:
            target = rounding_as(dataclasses.replace(ROUNDING, int8_dots=declared), cutting_attention)
            kinds[declared].add(try_case(case, target, "cpu").kind)
    assert kinds[True] == {"agree"}
    assert "value" in kinds[False]


def test_weights_that_are_divided_before_they_are_rounded_agree_with_who_declares_that():
    """Small weights of 20 keys become subnormal when they are divided by the denominator, and lose more."""

    def dividing_attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        for request in attn_reference.varlen_requests(q, k, v, layer, batch, torch.float32):
            logits = torch.einsum("qhd,khd->hqk", request.query.float(), request.key.float()) * layer.scale
            weights = torch.softmax(logits, dim=-1).to(q.dtype).float()
            out[request.rows] = (
                torch.einsum("hqk,khd->qhd", weights, request.value.float()).to(q.dtype).view(out[request.rows].shape)
            )

    case = Case(
        target="dividing",
        attn_type=AttentionType.ENCODER,
        dtype="float16",
        head_size=32,
        requests=(Request(query_len=20, seq_len=20),),
        flat_out=True,
        dense_out=True,
        values=Values("one_hot"),
    )
    for declared, kind in ((False, "value"), (True, "agree")):
        target = rounding_as(Rounding(keys_per_tile=64, normalizes_first=declared), dividing_attention)
        assert try_case(case, target, "cpu").kind == kind


def test_an_output_past_the_range_is_the_largest_number_and_no_other(step_case):
    case = replace(valued(step_case, "one_hot", "float16"), output_dtype="fp8_e4m3fnuz")
    step = answered(case)
    largest = step.out.float().abs().max()
    assert largest == 240, "some outputs saturate"
    assert judge.judge(case, step, ROUNDING).kind == "agree"
    place = (step.out.float() == largest).nonzero()[0]
    step.out[tuple(place)] = 192.0
    assert judge.judge(case, step, ROUNDING).kind == "value"


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("kind", ["exact", "one_hot", "signature", "random"])
@pytest.mark.parametrize(
    "see",
    [planted.without_last_key, planted.with_one_key_more, lambda visible: visible.roll(1, dims=1)],
    ids=["missing", "extra", "other"],
)
def test_one_key_too_few_too_many_or_another_is_seen(see, kind, dtype, step_case):
    """In logits of hundreds (`extreme`) a key may weigh nothing: there is nothing to see."""
    verdict = try_case(valued(step_case, kind, dtype), seeing(see), "cpu")
    assert verdict.failed
    assert verdict.differences


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("attn_type", [AttentionType.DECODER, AttentionType.ENCODER])
def test_nan_is_never_accepted(kind, dtype, attn_type, step_case):
    case = valued(step_case, kind, dtype, lse=True)
    if attn_type is AttentionType.ENCODER:
        requests = tuple(replace(r, seq_len=r.query_len, blocks=(), causal=False) for r in case.requests)
        case = replace(case, attn_type=attn_type, cache=None, requests=requests)
    step = answered(case)
    assert judge.judge(case, step, ROUNDING).kind == "agree"
    step.out[1, 0, 3] = torch.nan
    judgement = judge.judge(case, step, ROUNDING)
    assert judgement.kind in ("nan", "bitwise")
    assert judgement.breaks_hard
    assert (judgement.differences[0].row, judgement.differences[0].dim) == (1, 3)
    step = answered(case)
    step.lse[0, 4] = torch.nan
    judgement = judge.judge(case, step, ROUNDING)
    assert judgement.kind == "lse"
    assert judgement.breaks_hard


@pytest.mark.parametrize("dtype", NAMES)
def test_exact_sums_are_compared_bit_by_bit(dtype, step_case):
    case = valued(step_case, "exact", dtype)
    step = answered(case)
    assert judge.judge(case, step, ROUNDING).kind == "agree"
    bits(step.out)[2, 0, 5] ^= 1
    judgement = judge.judge(case, step, ROUNDING)
    assert judgement.kind == "bitwise"
    assert judgement.differences[0].rows == 1


def test_a_row_that_was_never_written_is_called_so(step_case):
    for kind in VALUES:
        case = valued(step_case, kind, "float32")
        step = answered(case)
        step.out[4] = canary(tuple(step.out[4].shape), step.out.dtype, "cpu")
        judgement = judge.judge(case, step, ROUNDING)
        assert judgement.kind == "unwritten"
        assert [(d.request, d.row, d.rows) for d in judgement.differences] == [(1, 4, 1)]


def test_rows_without_a_key_are_0_and_their_lse_minus_infinity(step_case):
    first, second = step_case.requests
    case = replace(step_case, requests=(replace(first, seq_len=0, blocks=()), second), lse=True, values=Values("random"))
    step = answered(case)
    assert judge.judge(case, step, ROUNDING).kind == "agree"
    step.lse[0, 0] = 0
    assert judge.judge(case, step, ROUNDING).kind == "lse"
    step = answered(case)
    step.out[0] = 1e-30
    assert judge.judge(case, step, ROUNDING).kind == "value"


@few
@each_case
def test_hard_allows_a_finite_difference_in_every_element(case):
    step = answered(case)
    for request in oracle.requests(step):
        expected = oracle.Oracle(request, step.layer, step.out.dtype, ROUNDING, step.q.dtype)
        loose = expected.hard_bound()
        for bound, right in ((loose.out, expected.out), (loose.lse, expected.lse)):
            assert (bound >= 0).all()
            assert bound.isfinite().all()
            assert bound.shape == right.shape


@few
@each_case
def test_an_element_beyond_hard_breaks_it(case):
    """HARD holds for every rounding of every input: whoever breaks it is wrong, generic numbers or not."""
    assume(case.query_start_loc[-1] and not judge.has_exact_sums(case))
    step = answered(case)
    request = next(iter(oracle.requests(step)))
    expected = oracle.Oracle(request, step.layer, step.out.dtype, ROUNDING, step.q.dtype)
    loose = expected.hard_bound()
    out = step.out.view(-1, case.num_heads, case.head_size)
    wrong = oracle.as_stored((expected.out[0] + 4 * loose.out[0]).float(), out.dtype, step.layer)
    beyond = (oracle.as_read(wrong, step.layer) - expected.out[0]).abs() > loose.out[0]
    assume(beyond.any())
    out[request.rows.start] = wrong
    assert judge.judge(case, step, ROUNDING).breaks_hard


@pytest.mark.parametrize("examples", [10, pytest.param(100, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", ["FLASH", "FLASH_SPLIT"])
def test_rounding_as_fast_kernels_round_is_no_false_alarm(name, examples, fuzz_here):
    """Online softmax in float32 over tiles and splits, P in the dtype of V: ragged batches stay below the bound."""
    progress, _ = fuzz_here(f"planted:{name}", examples=examples)
    assert progress.failure is None
    assert progress.examples == examples
    assert 0.05 < progress.ratio < 1


@pytest.mark.parametrize("exponent", [13, 15, 16])
def test_the_hard_bound_holds_for_logits_whose_roundings_all_add_up(exponent):
    """Two keys whose dots are chains in which every addition rounds by nearly half a unit, one up and one down.

    To first order the bound would be exceeded by 2% at logits of 2^15, and by 15% at 2^16.
    """
    head_size, largest = 256, 2.0 ** (exponent + 4)
    q, k = torch.ones(2, 1, head_size), torch.zeros(2, 1, head_size)
    k[:, 0, 0] = largest * torch.tensor([1.0, 1 + 510 * 2.0**-23])
    k[:, 0, 1:] = largest * 2.0**-24 * (1 + 2.0**-9) * torch.tensor([[1.0], [-1.0]])
    v = torch.tensor([1.0, -1.0])[:, None, None].expand(2, 1, head_size).contiguous()
    layer = Layer(num_heads=1, num_kv_heads=1, head_size=head_size, scale=2.0**-4, attn_type=AttentionType.ENCODER_ONLY)
    batch = one_request(2, 2)
    logits = torch.zeros(2)
    for product in k[:, 0].T:
        logits = logits + product
    logits = logits * layer.scale
    out = (torch.softmax(logits, 0) @ v.flatten(1)).expand(2, 1, head_size)
    lse = torch.logsumexp(logits, 0).expand(1, 2)
    judgement = judge.judge_call(Call(q=q, k=k, v=v, layer=layer, batch=batch), out, lse, ROUNDING)
    assert judgement.agrees, judgement.message
    assert judgement.ratio > 0.2, "the roundings do not add up, or the bound is idle"


def sunk(sink):
    """A call of two rows, of heads with this sink and without one; and the float32 answer, [2, 2, 16] and [2, 2]."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, 16, generator=generator) for _ in range(3))
    layer = Layer(
        num_heads=2,
        num_kv_heads=2,
        head_size=16,
        scale=0.25,
        attn_type=AttentionType.ENCODER_ONLY,
        sinks=torch.tensor([sink, -torch.inf]),
    )
    batch = one_request(2, 2)
    call = Call(q=q, k=k, v=v, layer=layer, batch=batch)
    out, lse = torch.empty_like(q), torch.empty(2, 2)
    attn_reference.varlen_attention(q, k, v, layer, batch, out=out, lse=lse)
    return call, out, lse


@pytest.mark.parametrize("sink", [3e37, MAX_LOGIT, 2.0**23 + 1])
@pytest.mark.parametrize("parts", [1, 4])
def test_beside_a_sink_of_all_weight_each_wrong_value_is_seen(sink, parts):
    """Half a dozen roundings of an LSE of its size are all that is allowed, and of the output no more than without a sink."""
    rounding = dataclasses.replace(ROUNDING, merged_parts=parts)
    call, out, lse = sunk(sink)
    assert judge.judge_call(call, out, lse, rounding).agrees
    in_base_2 = lse * torch.tensor(math.log2(math.e)) * torch.tensor(math.log(2))
    assert judge.judge_call(call, out, in_base_2, rounding).agrees
    without = sunk(-torch.inf)
    wrong_lses = {
        "without the sink": without[2][0],
        "of another sink": lse[0] * (1 + 2.0**-18),
        "in base 2": lse[0] * math.log2(math.e),
        "of float16's largest": torch.full((2,), 65504.0),
        "infinite": torch.full((2,), torch.inf),
        "nothing": torch.zeros(2),
    }
    for name, wrong in wrong_lses.items():
        judgement = judge.judge_call(call, out, torch.stack([wrong, lse[1]]), rounding)
        assert judgement.kind == "lse", name
        assert judgement.breaks_hard, name
    for wrong in (without[1], out + 2.0**-20):
        assert judge.judge_call(call, torch.stack([wrong[:, 0], out[:, 1]], 1), lse, rounding).kind == "value"


@pytest.mark.parametrize("sink", [-3e37, -MAX_LOGIT])
def test_a_sink_of_no_weight_loosens_nothing(sink):
    """The bound beside it is the bound without a sink."""
    call, out, lse = sunk(sink)
    bounds = []
    for layer in (call.layer, dataclasses.replace(call.layer, sinks=None)):
        (request,) = oracle.requests(dataclasses.replace(call, layer=layer))
        bounds.append(oracle.Oracle(request, layer, torch.float32, ROUNDING, torch.float32).hard_bound())
    assert torch.equal(bounds[0].out, bounds[1].out)
    assert torch.equal(bounds[0].lse, bounds[1].lse)
    assert judge.judge_call(call, out, lse, ROUNDING).agrees


def test_the_loss_of_float16_dots_in_a_query_is_declared():
    """q of 1 and 2^-44: the small element alone meets a key, and float16 has lost it."""
    query, key = torch.zeros(1, 1, 16), torch.zeros(2, 1, 16)
    query[..., 0], query[..., 1], key[0, 0, 1], value = 1.0, 2.0**-44, 1.0, torch.zeros(2, 1, 16)
    value[0] = 1.0
    tokens = joined([tuple(each.to(torch.bfloat16) for each in (query, key, value))])
    one = {"k_scale": torch.tensor(1.0), "v_scale": torch.tensor(1.0)}
    call = Call(**paged_call(tokens, kv_cache_dtype=torch.float8_e4m3fn, scale=2.0**46, **one)._asdict())
    rows = call.q.shape[:2]
    lost, lse = torch.zeros_like(call.q), torch.zeros(rows[::-1])
    lost[0], lse[:, 0] = 0.5, math.log(2.0)
    assert not judge.judge_call(call, lost, lse, Rounding(keys_per_tile=64)).agrees
    assert judge.judge_call(call, lost, lse, Rounding(keys_per_tile=64, float16_dots=True)).agrees

    right = attn_reference.paged_attention(call.q, call.kv_cache, call.layer, call.batch)
    error = (lost - right)[0].double().abs()
    step = SimpleNamespace(**{name: getattr(call, name) for name in ("q", "layer", "batch", "kv_cache")}, out=lost)
    for float16_dots in (False, True):
        bound = error_bound(lambda device, dots=float16_dots: Rounding(keys_per_tile=64, float16_dots=dots))(step)
        assert bool((error <= bound.out[0]).all()) == float16_dots, "without an oracle, too"


def sum_of_biases(step: tensors.Step, request: attn_reference.attention.Request) -> torch.Tensor:
    """[H, q, k]: the sum over the rules of logits of |what the rule adds by itself|; 0 at keys that are not visible."""
    rules = [rule for rule in RULES.values() if rule.acts_on is LOGITS and rule.holder != "call"]
    total = torch.zeros(step.layer.num_heads, *request.visible.shape[-2:], dtype=torch.float64)
    for rule in rules:
        others = [other for other in rules if other is not rule]
        layer, batch = (
            dataclasses.replace(holder, **{other.name: other.off for other in others if other.holder == type(holder).__name__})
            for holder in (step.layer, step.batch)
        )
        keys = torch.arange(request.visible.shape[-1])
        bias = logit_bias(request.query_positions, keys, layer, batch, request.index, torch.float64)
        total += 0 if bias is None else bias.abs()
    return torch.where(request.visible, total, 0)


@few
@each_case
def test_bounds_count_the_bias_of_every_rule(case):
    """Biases may cancel: a bound that forgets a rule, or takes the sum of all for its magnitude, is too small."""
    step = answered(case)
    for request in oracle.requests(step):
        expected = sum_of_biases(step, request)
        magnitudes = oracle.bias_magnitudes(request, attn_reference.attend(request, step.layer), step.layer)
        found = torch.zeros_like(expected) if magnitudes is None else torch.where(request.visible, magnitudes, 0)
        torch.testing.assert_close(found, expected)
        largest, _ = property_bound.biases_of(step, max(request.visible.shape[-2:]))
        if expected.numel():
            assert (largest >= expected.flatten(1).amax(1) * (1 - 1e-12)).all()
