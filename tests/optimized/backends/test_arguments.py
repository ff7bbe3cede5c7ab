"""Every backend refuses wrong arguments by name, before it writes anything."""

import contextlib
from dataclasses import replace

import pytest
import torch
from attn_contract import AttentionConfig, AttentionType, ContractError, Layout, UnsupportedError
from attn_optimized.backends import BACKENDS

from tests.optimized.backends.conftest import FORMS, PLAIN, ROTATING

TRITON = BACKENDS["TRITON_ATTN"]
# prefill, extend and decode: a backend of phases may write in the first what it refuses in the last
MIXED = {"query_lens": [7, 20, 1], "seq_lens": [7, 90, 40]}

every_backend = pytest.mark.parametrize("name", PLAIN)


@every_backend
def test_metadata_of_another_backend(name, make_step, refuses):
    step = make_step(**MIXED, **FORMS[name])
    other = BACKENDS["TRITON_ATTN" if name == "ROCM_AITER_FA" else "ROCM_AITER_FA"]
    for metadata in (other.builder(AttentionType.DECODER).build(step.common), step.common):
        match = f"attn_metadata: got {type(metadata).__name__}, expected .* as {name}'s builder makes it"
        refuses(BACKENDS[name], step, ContractError, match, {"attn_metadata": metadata})


@every_backend
def test_a_step_of_another_dtype(name, make_step, refuses, aiter):
    """Whose tensors agree with each other, and not with the layer's config."""
    step = make_step(**MIXED, **FORMS[name], dtype=torch.bfloat16)
    match = "got torch.bfloat16, expected torch.float16, the layer's dtype"
    refuses(BACKENDS[name], step, ContractError, f"query: {match}", dtype=torch.float16)
    impl = BACKENDS[name].impl(step.layer, aiter=aiter, dtype=torch.float16, block_size=step.block_size)
    with pytest.raises(ContractError, match=f"key: {match}"):
        impl.do_kv_cache_update(step.key, step.value, step.kv_cache, step.common.slot_mapping)


@pytest.mark.parametrize("kv_cache", [None, 5])
def test_no_cache_to_reinterpret(kv_cache, make_step, refuses, aiter):
    step, options = make_step(**MIXED), {"allocation_layout": Layout.X_PACKED}
    refuses(TRITON, step, ContractError, "kv_cache: got", {"kv_cache": kv_cache}, **options)
    impl = TRITON.impl(step.layer, aiter=aiter, **step.constructor, **options)
    with pytest.raises(ContractError, match="kv_cache: got"):
        impl.do_kv_cache_update(step.key, step.value, kv_cache, step.common.slot_mapping)


@pytest.mark.parametrize("name", ROTATING)
def test_an_output_that_cannot_hold_scaled_values(name, make_step, refuses):
    step = make_step(**MIXED, **FORMS[name], output_scale=torch.tensor(0.5))
    refuses(BACKENDS[name], step, ContractError, "^output: got torch.float16, expected float8_e4m3fn")


class TestValidate:
    """Values on a device are read on demand alone: wrong ones crash a kernel, or read and write other requests' memory."""

    @every_backend
    @pytest.mark.parametrize("wrong", ["block_table", "seq_lens", "query_start_loc"])
    def test_wild_metadata_of_a_step_is_refused(self, name, wrong, make_step, refuses):
        step = make_step(**MIXED, **FORMS[name])
        common = {
            "block_table": {"block_table_tensor": torch.full_like(step.common.block_table_tensor, 2**30)},
            "seq_lens": {"seq_lens": step.common.seq_lens + 2**20, "max_seq_len": 2**21},
            "query_start_loc": {"query_start_loc": step.common.query_start_loc + 1},
        }[wrong]
        step = replace(step, common=replace(step.common, **common))
        refuses(BACKENDS[name], step, ContractError, rf"{wrong}\[", validate=True)

    @pytest.mark.parametrize("name", ROTATING)
    def test_wrong_lengths_of_an_encoder_are_refused(self, name, make_step, refuses):
        step = make_step([7, 2], [7, 2], attn_type=AttentionType.ENCODER)
        step = replace(step, common=replace(step.common, seq_lens=step.common.seq_lens - 1))
        refuses(BACKENDS[name], step, ContractError, r"seq_lens\[0\]", validate=True)

    @every_backend
    def test_a_wild_slot_is_refused_before_the_write(self, name, make_step, aiter):
        step = make_step(**MIXED, **FORMS[name])
        before = step.kv_cache.clone()
        impl = BACKENDS[name].impl(step.layer, aiter=aiter, validate=True, **step.constructor)
        with pytest.raises(ContractError, match=r"slot_mapping\[0\]"):
            impl.do_kv_cache_update(step.key, step.value, step.kv_cache, torch.full_like(step.common.slot_mapping, 2**40))
        assert torch.equal(step.kv_cache.view(torch.int16), before.view(torch.int16))

    @pytest.mark.parametrize("name", ROTATING)
    def test_a_wild_position_is_refused_before_the_rotation(self, name, make_step, aiter, device):
        step = make_step(**MIXED, **FORMS[name])
        before, slots = step.kv_cache.clone(), step.common.slot_mapping
        impl = BACKENDS[name].impl(step.layer, aiter=aiter, validate=True, **step.constructor)
        positions, cos_sin_cache = torch.full_like(slots, 2**40), torch.randn(4, 64, device=device)
        rope = step.query, step.key, step.value, positions, cos_sin_cache, step.kv_cache, slots
        with pytest.raises(ContractError, match=r"positions\[0\]"):
            impl.do_rope_and_kv_cache_update(*rope, is_neox=True)
        assert torch.equal(step.kv_cache.view(torch.int16), before.view(torch.int16))


@every_backend
def test_a_sink_that_is_no_logit_is_refused_by_the_constructor_without_validate(name, make_step, aiter):
    """A forward without `validate` reads no sink on the host, and the kernels' base 2 has no such number."""
    lowest = torch.finfo(torch.float32).min
    step = make_step([1], [9], **FORMS[name], sinks=[0.0, lowest, 0.0, 0.0])
    if BACKENDS[name].capabilities(aiter).answer("sinks"):
        with pytest.raises(ContractError, match=r"sinks\[1\]: got -3\.4.*, expected a logit of at most 8\.5e\+37 in magnitude"):
            BACKENDS[name].impl(step.layer, aiter=aiter, **step.constructor)
    else:
        with pytest.raises(UnsupportedError, match="sinks"):
            BACKENDS[name].impl(step.layer, aiter=aiter, **step.constructor)


@every_backend
@pytest.mark.parametrize("attn_type", ["decoder", None])
def test_a_builder_of_no_attention_type(name, attn_type):
    with pytest.raises(ContractError, match="attn_type: got"):
        BACKENDS[name].builder(attn_type)


ASKED = {
    "the LSE": {},
    "non-causal attention": {"causal": False},
    "a causal flag for each request": {"causal": torch.tensor([True, False])},
    "ranges": {"bidirectional_ranges": torch.zeros((2, 1, 2), dtype=torch.int32)},
    "a bias": {"qq_bias": torch.zeros(8, 8)},
}


@every_backend
@pytest.mark.parametrize("what", ASKED)
def test_a_step_is_refused_after_one_that_was_served(name, what, make_step, aiter, device):
    """A step that was served says nothing of a later step that asks for more."""
    step = make_step([3, 1], [9, 5], **FORMS[name])
    impl, builder = BACKENDS[name].impl(step.layer, aiter=aiter, **step.constructor), BACKENDS[name].builder
    impl.do_kv_cache_update(step.key, step.value, step.kv_cache, step.common.slot_mapping)
    out = step.query.new_zeros(*step.query.shape[:2], step.layer.v_head_size)
    lse = torch.zeros(step.layer.num_heads, len(out), device=device) if what == "the LSE" else None
    changed = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in ASKED[what].items()}
    batch, common = replace(step.batch, **changed), replace(step.common, **changed)
    config = AttentionConfig.of(step.layer, out.dtype, block_size=step.block_size, batch=batch, lse=lse is not None)
    asks_too_much = BACKENDS[name].capabilities(aiter).refusals(config)

    def serve(common, lse=None):
        metadata = builder(AttentionType.DECODER).build(common)
        impl.forward(step.query, step.key, step.value, step.kv_cache, metadata, output=out, lse=lse)

    for _ in range(2):
        serve(step.common)
        with pytest.raises(UnsupportedError) if asks_too_much else contextlib.nullcontext():
            serve(common, lse)
