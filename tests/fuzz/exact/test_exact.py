"""Exact mode on kernels: tiles, orders and parts make no difference, one lost key does, and what it cannot carry has a name."""

import dataclasses
import json

import attn_optimized
import numpy as np
import planted_exact
import pytest
import torch
from attn_contract import AttentionType, Layout
from attn_fuzz.cases.case import Cache, Case, Request, Values
from attn_fuzz.exact import algebra, followed_call, interpreter
from attn_fuzz.exact.quantities import Quantities
from attn_fuzz.exact.refusal import NotCarriedError
from attn_fuzz.run import shard
from attn_fuzz.run.case.trial import COMPARED, NOT_CARRIED, try_case
from attn_fuzz.run.processes.executor import Executor
from attn_fuzz.run.shard import EXACT_EVERY, FuzzPlan, exact_every
from attn_fuzz.targets import registry
from attn_lab.zoo import known_bugs as mutants
from exact_kernels import attend

from tests.fuzz.exact.by_hand import SCALE, by_hand, tensors

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are interpreted on a CPU only")


@pytest.fixture(autouse=True, scope="module")
def installed():
    interpreter.install()


def followed(keys, dtype=torch.float16, **choices):
    """The values of `out` and of exp(lse) that a choice of tiles gives."""
    q, k, v, out, lse = tensors(keys, dtype)
    followed = followed_call.FollowedCall(Quantities({"scale": SCALE}), (q, k, v))
    with followed_call.following(followed):
        attend(q, k, v, out, lse, SCALE, **choices)
    found = [stored.get(np.arange(stored.elements)) for stored in map(followed.memory.stored_in, (out, lse))]
    return found[0].value.reshape(out.shape), algebra.exp(found[1]).value


def test_it_is_the_formula_of_attention():
    out, lse = followed(70, tile=16, parts=2)
    expected_out, expected_lse = by_hand(70)
    assert out.tolist() == expected_out
    assert lse.tolist() == expected_lse


def test_tiles_orders_and_parts_agree_bit_by_bit():
    choices = [{}, {"tile": 16}, {"tile": 256}, {"backward": True}, {"parts": 7}, {"tile": 64, "backward": True, "parts": 3}]
    results = [followed(3000, **choice) for choice in choices]
    for out, lse in results[1:]:
        assert (out == results[0][0]).all()
        assert (lse == results[0][1]).all()


def test_a_dtype_makes_no_difference_to_the_arithmetic():
    narrow, _ = followed(100, torch.float16)
    q, k, v, out, lse = tensors(100)
    q, k, v, out = (each.float() for each in (q, k, v, out))
    wide = followed_call.FollowedCall(Quantities({"scale": SCALE}), (q, k, v))
    with followed_call.following(wide):
        attend(q, k, v, out, lse, SCALE)
    assert (wide.memory.stored_in(out).get(np.arange(out.numel())).value == narrow.ravel()).all()


@pytest.mark.parametrize("lost_key", [0, 12_345, 32_767])
def test_one_lost_key_of_32768_changes_every_number(lost_key):
    right, right_lse = followed(32_768, tile=2048)
    wrong, wrong_lse = followed(32_768, tile=2048, lost_key=lost_key)
    assert (wrong != right).all()
    assert (wrong_lse != right_lse).all()


def test_a_forgotten_decay_shows():
    right, _ = followed(200)
    wrong, _ = followed(200, fault="no decay")
    assert (wrong != right).all()


@pytest.mark.parametrize(
    ("fault", "name"),
    [("unknown operation", "tl.sqrt of floats"), ("host arithmetic", "torch's item() of a computed number")],
)
def test_an_operation_that_is_not_carried_is_refused_by_name(fault, name):
    q, k, v, out, lse = tensors(40)
    refused = followed_call.FollowedCall(Quantities({"scale": SCALE}))
    with pytest.raises(Exception, match=r"NotCarriedError|a computed number"), followed_call.following(refused):
        attend(q, k, v, out, lse, SCALE, fault=fault)
    assert name in refused.refusal


def test_a_scale_that_is_no_named_quantity_is_refused():
    q, k, v, out, lse = tensors(40)
    refused = followed_call.FollowedCall(Quantities({"scale": SCALE}))
    with pytest.raises(Exception, match="NotCarriedError"), followed_call.following(refused):
        attend(q, k, v, out, lse, SCALE * 1.001)
    assert "no product of log2(e), scale" in refused.refusal


def test_nothing_is_followed_afterwards():
    q, k, v, out, lse = tensors(40)
    with pytest.raises(NotCarriedError), followed_call.following(followed_call.FollowedCall(Quantities({}))):
        raise NotCarriedError("something")
    attend(q, k, v, out, lse, SCALE)
    expected = torch.softmax(q.float() @ k.float().T * SCALE, -1) @ v.float()
    torch.testing.assert_close(out.float(), expected, atol=2e-3, rtol=0)


def a_case(**fields):
    """A decode of 300 keys beside a prefill of 37, with random numbers."""
    decode = Request(query_len=1, seq_len=300, blocks=tuple(range(19)), causal=True)
    prefill = Request(query_len=30, seq_len=37, blocks=(22, 20, 21), causal=True)
    given = {
        "target": "triton",
        "dtype": "bfloat16",
        "group_size": 2,
        "head_size": 16,
        "scale": 0.1,
        "lse": True,
        "requests": (decode, prefill),
        "values": Values("random", 3),
        "cache": Cache(layout=Layout.BLOCKS_FIRST_NHD, block_size=16, num_blocks=24),
        **fields,
    }
    return Case(**given)


ENCODED = {"attn_type": AttentionType.ENCODER, "cache": None, "requests": (Request(query_len=70, seq_len=70),)}
FP8 = Cache(layout=Layout.KV_FIRST_HND, block_size=16, num_blocks=24, dtype="fp8_e4m3fn", scales="head")
INT8 = Cache(layout=Layout.BLOCKS_FIRST_HND, block_size=16, num_blocks=24, dtype="int8", scales="token")
SCALED = Cache(layout=Layout.CONTENT_PACKED_SCALED, block_size=16, num_blocks=24, dtype="fp8_e4m3fnuz")


@pytest.mark.parametrize(
    "fields",
    [
        {"window": (20, -1), "sink_tokens": 3, "sinks": "near"},
        {"chunked_local": 32, "logits_soft_cap": 5.0, "scale": -0.25},
        {"alibi_slopes": True, "qq_bias": "hiding", "logits_soft_cap": 2.0},
        {"cache": FP8, "output_dtype": "fp8_e4m3fnuz", "sinks": "some"},
        {"cache": INT8, "scale": 0.0},
        {"cache": SCALED, "program_order": "shuffled"},
        {**ENCODED, "window": (9, 4), "dtype": "float16"},
    ],
    ids=lambda fields: " ".join(fields),
)
def test_our_kernels_are_the_formula(fields):
    verdict = try_case(a_case(**fields), registry.load("triton"), "cpu", exactly=True)
    assert (verdict.kind, verdict.events[-1]) == ("agree", COMPARED), verdict


SEED_OF_A_STEEP_SLOPE = 14


def _forgetting(q, k, v, kv_cache, layer, batch, *, out, lse):
    registry.load("triton").attention(q, k, v, kv_cache, dataclasses.replace(layer, window=(250, -1)), batch, out=out, lse=lse)


def test_keys_that_no_judge_can_see_are_missed():
    """Far keys have weights of less than 2^-100 here: their loss is within every bound, and still not the formula."""
    case = a_case(alibi_slopes=True, group_size=1, values=Values("random", SEED_OF_A_STEEP_SLOPE))
    target = dataclasses.replace(registry.load("triton"), attention=_forgetting)
    assert try_case(case, target, "cpu").kind == "agree"
    verdict = try_case(case, target, "cpu", exactly=True)
    assert (verdict.kind, verdict.about) == ("exact", "out")
    assert "out of request 0 at row 0, head 0, dim 0: " in verdict.message
    assert "16 elements of these rows are unequal" in verdict.message


@pytest.mark.parametrize("sinks", ["above", "below"])
def test_a_head_with_a_far_sink_is_not_compared_and_others_are(sinks):
    """The third sink is 2^126 or -2^126, beside which a kernel's logits are what stands for -inf."""
    case = a_case(sinks=sinks, group_size=3)
    verdict = try_case(case, registry.load("triton"), "cpu", exactly=True)
    assert (verdict.kind, verdict.events[-1]) == ("agree", COMPARED)
    target = dataclasses.replace(registry.load("triton"), attention=_with_other_sinks(registry.load("triton")))
    verdict = try_case(case, target, "cpu", exactly=True)
    assert verdict.kind == "exact"
    assert "head 0" in verdict.message


def test_a_row_with_a_far_logit_is_not_compared():
    """A scale of 2^22 makes most logits so far from the largest that a kernel's exponent stands for -inf."""
    case = a_case(scale=2.0**22, requests=(Request(query_len=5, seq_len=40, blocks=(3, 1, 2), causal=True),))
    verdict = try_case(case, registry.load("triton"), "cpu", exactly=True)
    assert (verdict.kind, verdict.events[-1]) == ("agree", COMPARED), verdict


BY_TORCH = ("reference-fp32", "reference-ranks", "triton-merge", "triton-merge-parts", "triton-ranks", "backend-triton")


@pytest.mark.parametrize("name", BY_TORCH)
def test_numbers_that_torch_computes_beside_kernels_are_compared(name):
    case = a_case(target=name, sinks="near", requests=(Request(query_len=5, seq_len=40, blocks=(3, 1, 2), causal=True),))
    target = registry.load(name)
    verdict = try_case(case, target, "cpu", exactly=True)
    assert (verdict.kind, verdict.events[-1]) == ("agree", COMPARED), verdict
    # this changes no bit of the sinks: exact mode alone sees it
    verdict = try_case(case, dataclasses.replace(target, attention=_with_other_sinks(target)), "cpu", exactly=True)
    assert (verdict.kind, verdict.about) == ("exact", "out"), verdict


def _with_other_sinks(target):
    def attention(q, k, v, kv_cache, layer, batch, *, out, lse):
        other = dataclasses.replace(layer, sinks=layer.sinks + 2.0**-40)
        target.attention(q, k, v, kv_cache, other, batch, out=out, lse=lse)

    return attention


@pytest.mark.parametrize("name", ["triton-merge", "triton-merge-parts"])
def test_a_part_whose_weight_is_a_trifle_too_large_shows(name, monkeypatch):
    case = a_case(target=name)
    for merge in ("merge_attn_states", "merge_attn_parts"):
        monkeypatch.setattr(attn_optimized, merge, _heavier(getattr(attn_optimized, merge)))
    assert try_case(case, registry.load(name), "cpu").kind == "agree"
    assert try_case(case, registry.load(name), "cpu", exactly=True).kind == "exact"


def _heavier(merge):
    """Merges as `merge` does, with 2^-40 added to the first LSE of the first part."""

    def heavier(outs, lses, *others, **options):
        nudge = torch.zeros(lses.shape)
        nudge.view(-1)[0] = 2.0**-40
        return merge(outs, lses + nudge, *others, **options)

    return heavier


def test_a_call_that_is_not_carried_is_judged_and_named():
    verdict = try_case(a_case(dtype="float32"), planted_exact.THROUGH_NUMPY, "cpu", exactly=True)
    why = "out, which neither interpreted kernels nor torch have stored"
    assert (verdict.kind, verdict.events[-1]) == ("agree", f"{NOT_CARRIED}: {why}")


def test_products_below_normal_numbers_are_not_compared():
    verdict = try_case(a_case(cache=FP8, scale=0.8 * 2.0**-123), registry.load("triton"), "cpu", exactly=True)
    why = "kernels may clamp a scale below 2^-100"
    assert (verdict.kind, verdict.events[-1]) == ("agree", f"{NOT_CARRIED}: {why}")


def test_processes_of_ranks_are_refused():
    verdict = try_case(a_case(target="triton-over-ranks"), registry.load("triton-over-ranks"), "cpu", exactly=True)
    assert (verdict.kind, verdict.events[-1]) == ("agree", f"{NOT_CARRIED}: what processes of ranks compute")


@pytest.mark.nightly
@pytest.mark.parametrize(
    "name",
    ["latent-without-rope", "vllm-39120", "seed-43945-write"],
    ids=["values narrower than keys", "rows never written", "the cache write alone"],
)
def test_exact_mode_sees_what_the_judge_would_see_first(name, tmp_path):
    bug = mutants.load(mutants.FOLDER / f"{name}.toml")
    plan = FuzzPlan(
        target=bug.target, device="cpu", examples=100, seed=0, folder=tmp_path, exact_every=1, mutant=bug, on_failure="stop"
    )
    ahead = shard.in_flight(plan, 0)
    trial = "planted_exact:compared_alone"
    with Executor(plan.target, "cpu", plan.case_seconds, ahead, plan.mutant, trial=trial, exactly=True) as executor:
        failure = shard.fuzz(plan, executor).failure
    assert failure is not None
    assert failure.verdict.kind == "exact"


def test_a_run_that_compares_nothing_says_so(attn_parity, child_environment):
    options = ("--exact", "--examples", 3, "--seed", 1, "--workers", 1, "--corpus", "none")
    run = attn_parity("fuzz", "--target", "planted_exact:THROUGH_NUMPY", *options)
    assert run.code == 2
    assert "no example was compared exactly" in run.err


@pytest.mark.nightly
def test_a_failure_of_exact_mode_is_shrunk_and_replayed(attn_parity, tmp_path, child_environment):
    options = ("--exact", "--examples", 200, "--seed", 1, "--workers", 1, "--corpus", "none")
    run = attn_parity("fuzz", "--target", "planted_exact:NUDGES", *options)
    assert run.code == 1, run.out
    command, *_ = (line for line in run.out.splitlines() if line.startswith("again: "))  # what is met while shrinking follows
    assert command.endswith("--exact")
    words = command.split()[2:]
    assert attn_parity(*words).code == 1
    assert attn_parity(*words[:-1]).code == 0


def test_every_25th_example_is_compared_unless_none_is_to_be(attn_parity, tmp_path, child_environment):
    options = ("--examples", 40, "--seed", 1, "--workers", 1, "--corpus", "none", "--json", "run.json")
    assert attn_parity("fuzz", "--target", "planted_exact:ADDS", *options).code == 1
    (failure,) = json.loads((tmp_path / "run.json").read_text())["failures"]
    assert (failure["kind"], failure["found_after"] % EXACT_EVERY) == ("exact", 0)
    none = attn_parity("fuzz", "--target", "planted_exact:ADDS", "--no-exact", *options)
    assert (none.code, "compared exactly" in none.out) == (0, False)


def test_no_example_is_compared_where_no_kernel_is_interpreted_or_none_is_exact():
    names = ("triton", "triton@properties", "triton@gfx942", "reference-fp32", "vllm-unified-attention")
    assert [exact_every(registry.load(name), "cpu") for name in names] == [EXACT_EVERY, EXACT_EVERY, 0, 0, 0]
    assert exact_every(registry.load("triton"), "cuda") == 0
