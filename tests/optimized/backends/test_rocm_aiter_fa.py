"""ROCM_AITER_FA on a double of AITER: which kernel each phase takes, and that the phases make the step."""

from dataclasses import replace

import attn_reference
import pytest
import torch
from attn_contract import AttentionType, ContractError, UnsupportedError
from attn_optimized.backends import BACKENDS
from attn_optimized.backends.rocm_aiter_fa import AiterFlashAttentionMetadataBuilder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.calls import with_idle_strides

FA = BACKENDS["ROCM_AITER_FA"]
SINKS = [0.5, 3.0, -3.0, -torch.inf]
# decode, extend, prefill and padding, in the order that needs no copies, and in another one
ORDERED = {"query_lens": [1, 1, 5, 20, 7, 2, 0], "seq_lens": [40, 1, 60, 90, 7, 2, 0]}
MIXED = {"query_lens": [7, 1, 0, 20, 2, 1, 5], "seq_lens": [7, 40, 0, 90, 2, 1, 60]}


RULES = st.fixed_dictionaries(
    {},
    optional={
        "window": st.sampled_from([(0, 0), (7, -1), (-1, 2), (30, 30)]),
        "sinks": st.just(SINKS),
        "logits_soft_cap": st.just(0.5),
    },
)


@given(
    requests=st.lists(st.tuples(st.integers(0, 20), st.sampled_from([0, 0, 1, 15, 16, 40, 75])), min_size=1, max_size=6),
    num_speculative_tokens=st.integers(0, 3),
    context_chunk_keys=st.integers(150, 450),
    rules=RULES,
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_mix_of_requests_agrees(requests, num_speculative_tokens, context_chunk_keys, rules, make_step, assert_agrees):
    """The fuzzer cannot run this backend where there is no AMD GPU: its batches are drawn here instead."""
    step = make_step([new for new, _ in requests], [new + context for new, context in requests], **rules)
    builder = {"num_speculative_tokens": num_speculative_tokens, "context_chunk_keys": context_chunk_keys}
    # at least 25 keys of each of 6 requests at a time
    assert_agrees(FA, step, builder=builder)


def test_drafts_are_decoded_together(make_step, assert_agrees, calls):
    step = make_step([3, 1, 2, 9], [40, 17, 2, 9])
    assert_agrees(FA, step, builder={"num_speculative_tokens": 2})
    assert [call.function for call in calls] == ["flash_attn_varlen_func", "unified_attention"]


@pytest.mark.parametrize(
    ("rules", "kernel"),
    [
        ({}, "paged_attention_v1"),
        ({"logits_soft_cap": 2.0}, "paged_attention_v1"),
        ({"sinks": SINKS}, "unified_attention"),
        ({"window": (9, -1)}, "unified_attention"),
    ],
    ids=["plain", "soft cap", "sinks", "window"],
)
def test_the_kernel_of_a_decode(rules, kernel, make_step, assert_agrees, calls):
    assert_agrees(FA, make_step([1, 1], [40, 17], **rules))
    assert [call.function for call in calls] == [kernel]


def test_rows_that_the_decode_kernel_cannot_step_over_go_to_the_other_one(make_step, aiter, calls):
    step = make_step([1, 1], [40, 17])
    wide = step.query.new_full((len(step.query), 4, 80), torch.nan)
    impl = FA.impl(step.layer, aiter=aiter, **step.constructor)
    impl.do_kv_cache_update(step.key, step.value, step.kv_cache, step.common.slot_mapping)
    metadata = FA.builder(AttentionType.DECODER).build(step.common)
    impl.forward(step.query, None, None, step.kv_cache, metadata, output=wide[..., :64])
    assert [call.function for call in calls] == ["unified_attention"]
    assert wide[..., 64:].isnan().all()
    assert not wide[:2, :, :64].isnan().any()


def test_one_head_has_no_stride_that_the_decode_kernel_could_not_step_over(make_step, assert_agrees, calls):
    step = make_step([1, 1], [40, 17], num_heads=1, num_kv_heads=1)
    assert_agrees(FA, replace(step, query=with_idle_strides(step.query)))
    assert [call.function for call in calls] == ["paged_attention_v1"]


def test_the_context_of_an_extend_comes_in_chunks_of_bounded_size_without_sinks(make_step, assert_agrees, calls):
    step = make_step([5, 20], [60, 90], sinks=SINKS)
    assert_agrees(FA, step, builder={"context_chunk_keys": 50})
    suffix, *chunks = [call.arguments for call in calls]
    assert suffix["causal"]
    assert suffix["sink_ptr"] is not None
    assert [len(chunk["k"]) for chunk in chunks] == [50, 50, 25]
    assert all("sink_ptr" not in chunk and not chunk["causal"] for chunk in chunks)


def test_an_extend_with_a_window_gathers_what_the_window_reaches(make_step, assert_agrees, calls):
    assert_agrees(FA, make_step([5, 20], [60, 25], window=(9, -1)))
    (call,) = calls
    assert len(call.arguments["k"]) == (5 + 9) + 25


def test_layers_of_one_step_reach_as_far_as_their_own_windows(make_step):
    extend = AiterFlashAttentionMetadataBuilder(AttentionType.DECODER).build(make_step([5], [60]).common).extend
    assert [extend.reach(left).num_keys for left in (9, 20, 9)] == [5 + 9, 5 + 20, 5 + 9]


def test_phases_keep_the_order_of_the_step(make_step):
    metadata = AiterFlashAttentionMetadataBuilder(AttentionType.DECODER).build(make_step(**MIXED).common)
    assert metadata.decode.rows.tolist() == [7, 30]
    assert metadata.decode.seq_lens.tolist() == [40, 1]
    assert metadata.extend.rows.tolist() == [*range(8, 28), *range(31, 36)]
    assert metadata.extend.seq_lens.tolist() == [90, 60]
    assert metadata.prefill.rows.tolist() == [*range(7), 28, 29]
    ordered = AiterFlashAttentionMetadataBuilder(AttentionType.DECODER).build(make_step(**ORDERED).common)
    assert (ordered.decode.rows, ordered.extend.rows, ordered.prefill.rows) == (slice(0, 2), slice(2, 27), slice(27, 36))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU can be waited for")
@pytest.mark.parametrize("lens", [ORDERED, MIXED], ids=["ordered", "mixed"])
def test_the_builder_waits_for_no_device(lens, make_step):
    step = make_step(**lens)
    torch.cuda.set_sync_debug_mode("error")
    try:
        AiterFlashAttentionMetadataBuilder(AttentionType.DECODER).build(step.common)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_an_empty_step_calls_nothing(make_step, forward, calls):
    output = forward(FA, make_step([0, 0], [0, 9]))
    assert output.isnan().all()
    assert not calls


def test_a_step_without_a_token_needs_no_column_in_its_table(make_step, forward, calls):
    step = make_step([0, 0], [0, 0])
    common = replace(step.common, block_table_tensor=step.common.block_table_tensor[:, :0], max_seq_len=0)
    assert forward(FA, replace(step, common=common)).isnan().all()
    assert not calls


def test_a_quantized_cache_is_read_by_later_steps_alone(make_step, forward, device):
    """Prefills and extends see their own tokens as they are, and the context as the cache holds it; decodes read all of it."""
    scales = torch.tensor([0.05, 0.04])
    lens = {"query_lens": [7, 9, 1], "seq_lens": [7, 60, 40]}
    step = make_step(**lens, kv_cache_dtype=torch.float8_e4m3fn, k_scale=scales[0], v_scale=scales[1])
    output = forward(FA, step)

    layer = replace(step.layer, kv_cache_dtype=None, k_scale=None, v_scale=None)
    dequantized = (step.kv_cache.float() * scales.to(device).view(1, 2, 1, 1, 1)).half()
    own_exact = dequantized.clone()
    attn_reference.write_kv_cache(step.key, step.value, own_exact, layer, step.common.slot_mapping)
    all_quantized = attn_reference.paged_attention(step.query, dequantized, layer, step.batch)
    expected = attn_reference.paged_attention(step.query, own_exact, layer, step.batch)
    assert (expected[:16] - all_quantized[:16]).abs().max() > 2**-5
    expected[16] = all_quantized[16]
    torch.testing.assert_close(output[:17], expected[:17], rtol=0, atol=2**-8)


def test_without_lengths_on_the_host_a_step_cannot_be_split(make_step):
    with pytest.raises(ContractError, match="seq_lens_cpu: got None"):
        AiterFlashAttentionMetadataBuilder(AttentionType.DECODER).build(make_step(**MIXED, host_lens=False).common)


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def test_lengths_on_the_host_fit_the_block_table(make_step, refuses):
    step = make_step([7, 20, 1], [7, 90, 40])
    long = replace(step.common, seq_lens_cpu=int32(7, 113, 40), max_seq_len=2**20)
    match = "seq_lens_cpu: got 113, expected at most 112: block_table has 7 columns of 16 slots"
    refuses(FA, replace(step, common=long), ContractError, match)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"query_start_loc_cpu": int32(0, 7, 26, 28)}, r"query_start_loc_cpu\[2\]: got 26, expected 27, as on the device"),
        ({"seq_lens_cpu": int32(7, 91, 40)}, r"seq_lens_cpu\[1\]: got 91, expected 90, as on the device"),
    ],
)
def test_lengths_on_the_host_are_those_on_the_device(wrong, match, make_step, refuses):
    step = make_step([7, 20, 1], [7, 90, 40])
    refuses(FA, replace(step, common=replace(step.common, **wrong)), ContractError, match, validate=True)


def test_a_builder_for_encoders_is_refused():
    with pytest.raises(UnsupportedError, match=r"ROCM_AITER_FA: encoder attention .* prefill, extend and decode"):
        AiterFlashAttentionMetadataBuilder(AttentionType.ENCODER)


def test_more_queries_than_keys_are_refused(make_step):
    with pytest.raises(UnsupportedError, match="more queries than keys"):
        AiterFlashAttentionMetadataBuilder(AttentionType.DECODER).build(make_step([3, 5], [9, 4]).common)


@pytest.mark.parametrize("rows", [slice(0, -1), slice(1, None)], ids=["the very same", "a row apart"])
def test_an_output_in_the_memory_of_the_keys_is_refused(rows, make_step, refuses):
    """A prefill that writes a request's output over the next one's keys would be wrong without an error."""
    step = make_step([9, 12], [9, 12], num_kv_heads=4)
    memory = torch.cat([step.key, step.key[:1]])
    refuses(
        FA, replace(step, key=memory[:-1]), ContractError, "out: got memory that reaches into k's", {"output": memory[rows]}
    )


@pytest.mark.parametrize("function", ["paged_attention_v1", "unified_attention", "flash_attn_varlen_func"])
def test_a_kernel_that_does_not_load_is_found_before_a_phase_has_written(function, make_step, refuses, aiter):
    lost = replace(aiter.signatures[function], module="no_such_module")
    broken = replace(
        aiter,
        signatures={**aiter.signatures, function: lost},
        functions={name: loaded for name, loaded in aiter.functions.items() if name != function},
    )
    match = f"{function} not supported: AITER does not import here: ModuleNotFoundError"
    refuses(FA, make_step([7, 20, 1], [7, 90, 40]), UnsupportedError, match, aiter=broken)
