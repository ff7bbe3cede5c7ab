"""Every backend refuses one wrong argument of a layer, of a layer's methods and of the builder, before anything is written."""

from dataclasses import fields, replace
from functools import partial

import pytest
import torch
from attn_contract import AttentionType, Batch, ContractError, Layout, UnsupportedError
from attn_fuzz.cases import wrong_values
from attn_fuzz.cases.wrong_arguments import dims_of
from attn_optimized.attention import forget_launches
from attn_optimized.backends import BACKENDS

from tests.optimized.backends.conftest import FORMS, PLAIN, ROTATING
from tests.support.wrong_arguments import not_refused, wrong_calls

OF_DECODERS = ("causal", "bidirectional_ranges", "qq_bias")
NOT_READ = {
    AttentionType.DECODER: (),
    AttentionType.ENCODER: (*OF_DECODERS, "block_table_tensor", "slot_mapping"),
    AttentionType.ENCODER_ONLY: (*OF_DECODERS, "block_table_tensor", "slot_mapping"),
    AttentionType.ENCODER_DECODER: (*OF_DECODERS, "seq_lens", "max_seq_len"),
}
"""The fields of an engine's metadata at which layers of an attention type do not look."""
OF_SOME_BACKENDS = ("query_start_loc_cpu", "seq_lens_cpu")
LENGTHS = {AttentionType.DECODER: ([3, 1], [9, 40]), AttentionType.ENCODER_DECODER: ([3, 1], [9, 40])}
KINDS = [(name, AttentionType.DECODER) for name in PLAIN]
KINDS += [("TRITON_ATTN", kind) for kind in AttentionType if kind is not AttentionType.DECODER]
every_kind = pytest.mark.parametrize(("name", "attn_type"), KINDS)
validated = pytest.mark.parametrize("validate", [False, True])


@pytest.fixture
def step_of(make_step):
    def build(name, attn_type, **options):
        form = {} if not attn_type.reads_cache else FORMS[name]
        return make_step(*LENGTHS.get(attn_type, ([3, 2], [3, 2])), attn_type=attn_type, **form, **options)

    return build


@every_kind
@validated
def test_a_wrong_layer_is_refused(name, attn_type, validate, step_of, aiter):
    step = step_of(name, attn_type)
    make = partial(BACKENDS[name].impl, kv_sharing_target_layer_name=None)
    arguments = {"layer": step.layer, **step.constructor, "allocation_layout": None, "batch_invariant": False}
    arguments |= {"validate": validate, "aiter": aiter}
    optional = ("block_size", "allocation_layout", "aiter")
    assert not_refused(wrong_calls(make, arguments, optional=optional)) == []
    layout = step.layer.layout
    form = None if layout is None else (layout.has_inline_scales, layout.has_latent_value)
    others = [each for each in Layout if (each.has_inline_scales, each.has_latent_value) != form]
    wrong = {f"an allocation of {each}": partial(make, **{**arguments, "allocation_layout": each}) for each in others}
    wrong |= {f"reads {each!r}": partial(make, **arguments, kv_sharing_target_layer_name=each) for each in ("", 0)}
    assert not_refused(iter(wrong.items())) == []


@every_kind
@validated
def test_forward_refuses_wrong_arguments(name, attn_type, validate, step_of, aiter):
    step = step_of(name, attn_type)
    impl = BACKENDS[name].impl(step.layer, aiter=aiter, validate=validate, **step.constructor)
    builder = BACKENDS[name].builder(attn_type)
    # a layer with a cache needs no key and no value
    keys = {"kv_cache": step.kv_cache} if attn_type.reads_cache else {"key": step.key, "value": step.value}
    if name == "ROCM_AITER_FA":
        keys |= {"key": step.key, "value": step.value}
    out = step.query.new_zeros(*step.query.shape[:2], step.layer.v_head_size)
    arguments = {"query": step.query, **keys, "attn_metadata": builder.build(step.common), "output": out}
    takes_lse = bool(BACKENDS[name].capabilities(aiter).answer("lse"))
    if takes_lse:
        arguments["lse"] = torch.zeros(step.query.shape[1], len(step.query), device=out.device)
    forward = partial(impl.forward, key=step.key, value=step.value, kv_cache=step.kv_cache)
    free = {"kv_cache": dims_of(step.layer.layout, "block")}
    tensors = [out, step.kv_cache, arguments.get("lse")]
    wrong = partial(wrong_calls, forward, arguments, optional=("lse",), free=free, written=("output", "lse"))
    forget_launches()
    assert not_refused(wrong(), tensors) == []
    forward(**arguments)
    assert not_refused(wrong(), tensors) == [], "after a right call"


@every_kind
@validated
def test_a_wrong_step_is_refused(name, attn_type, validate, step_of, aiter):
    """The builder lets some pass, which the layer refuses then. Its own errors name what the engine has told."""
    step = step_of(name, attn_type)
    impl = BACKENDS[name].impl(step.layer, aiter=aiter, validate=validate, **step.constructor)
    builder = BACKENDS[name].builder(attn_type)
    told = {field.name: getattr(step.common, field.name) for field in fields(step.common)}
    out = step.query.new_zeros(*step.query.shape[:2], step.layer.v_head_size)

    def attend(**changed):
        try:
            metadata = builder.build(replace(step.common, **changed))
        except ContractError as error:
            if error.argument.split("[")[0] not in told:
                raise LookupError(f"an error of the builder names {error.argument}") from error
            raise
        impl.forward(step.query, step.key, step.value, step.kv_cache, metadata, output=out)

    unread = (*NOT_READ[attn_type], *OF_SOME_BACKENDS)
    read = {name: value for name, value in told.items() if value is not None and name not in unread}
    free = {"slot_mapping": (0,), "block_table_tensor": (1,), "bidirectional_ranges": (1,)}
    optional = ("slot_mapping", "bidirectional_ranges", "qq_bias")
    attend()
    assert not_refused(wrong_calls(attend, read, optional=optional, free=free), [out, step.kv_cache]) == []
    assert not_refused(wrong_calls(builder.build, {"common_attn_metadata": step.common})) == []


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("reads", [None, "layers.3"])
@validated
def test_a_wrong_write_is_refused(name, reads, validate, step_of, aiter):
    """Also of a layer that reads the cache of another layer, and so writes nothing."""
    if reads and not BACKENDS[name].capabilities(aiter).answer("kv_sharing"):
        pytest.skip(f"{name} has no such layers")
    step = step_of(name, AttentionType.DECODER)
    options = {"validate": validate, "kv_sharing_target_layer_name": reads, **step.constructor}
    impl = BACKENDS[name].impl(step.layer, aiter=aiter, **options)
    slots = step.common.slot_mapping
    written = {"key": step.key, "value": step.value, "kv_cache": step.kv_cache, "slot_mapping": slots}
    free = {"kv_cache": dims_of(step.layer.layout, "block")}
    free |= dict.fromkeys(("slot_mapping", "positions", "query", "cos_sin_cache"), (0,))
    rotated = written | {"query": step.query, "positions": torch.zeros_like(slots)}
    rotated |= {"cos_sin_cache": step.query.new_zeros(1, 2), "is_neox": True}
    wrong = wrong_calls(impl.do_kv_cache_update, written, free=free, written=("kv_cache",))
    assert not_refused(wrong, [step.kv_cache]) == []
    if reads:
        turned = partial(impl.do_rope_and_kv_cache_update, **rotated)
        assert not_refused(iter([("a rotation by a layer that writes nothing", turned)])) == []
    elif name in ROTATING:
        wrong = wrong_calls(impl.do_rope_and_kv_cache_update, rotated, free=free, written=("kv_cache", "query"))
        assert not_refused(wrong, [step.kv_cache, step.query]) == []


@every_kind
def test_the_first_value_beyond_each_bound_is_refused_and_the_last_within_is_served(name, attn_type, step_of, aiter):
    step = step_of(name, attn_type)
    impl = BACKENDS[name].impl(step.layer, aiter=aiter, validate=True, **step.constructor)
    builder, common, cached = BACKENDS[name].builder(attn_type), step.common, attn_type.reads_cache
    told = {each: getattr(common, each) for each in ("query_start_loc", "max_query_len", "max_seq_len", "num_actual_tokens")}
    told |= {"block_table": common.block_table_tensor, "slot_mapping": common.slot_mapping} if cached else {}
    if common.encoder_seq_lens is not None:
        told["max_seq_len"] = common.max_encoder_seq_len
    seq_lens = common.seq_lens if common.encoder_seq_lens is None else common.encoder_seq_lens
    batch = Batch(seq_lens=seq_lens, causal=attn_type is AttentionType.DECODER, **told)
    out = step.query.new_zeros(*step.query.shape[:2], step.layer.v_head_size)
    asked = set()
    for edge in wrong_values.of_attention(step.layer, batch, step.kv_cache if cached else None):
        with edge.holding as changed:
            if changed:  # bounds of lengths, which an engine tells otherwise
                continue
            try:
                impl.forward(step.query, step.key, step.value, step.kv_cache, builder.build(common), output=out)
            except ContractError:
                assert not edge.is_legal, edge.what
            except UnsupportedError:
                continue
            else:
                assert edge.is_legal, edge.what
        asked.add(edge.is_legal)
    assert asked == ({True, False} if cached else {False})
