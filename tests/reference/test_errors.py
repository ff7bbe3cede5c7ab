"""The reference refuses bad arguments and bad values, and has then written nothing."""

import dataclasses
import inspect

import attn_reference
import pytest
import torch
from attn_contract import Batch, ContractError, Indexer, Layer, Layout, UnsupportedError
from attn_reference import (
    attend,
    dequantize,
    e8m0_numbers,
    e8m0_scales,
    gather_kv_cache,
    group_scales,
    index_logits,
    merge_attn_parts,
    merge_attn_states,
    paged_attention,
    paged_requests,
    quantize,
    rope_and_write_kv_cache,
    row_scales,
    select,
    varlen_attention,
    varlen_requests,
    visible,
    write_index_cache,
    write_kv_cache,
    write_latent_cache,
)

FUNCTIONS = (
    *(attend, dequantize, gather_kv_cache, merge_attn_parts, merge_attn_states, paged_attention, paged_requests, quantize),
    *(e8m0_numbers, e8m0_scales, group_scales, index_logits, select, write_index_cache),
    *(rope_and_write_kv_cache, row_scales, varlen_attention, varlen_requests, visible, write_kv_cache, write_latent_cache),
)
OPTIONAL = ("out", "lse", "prefill_tokens_with_context", "output_scale")


@pytest.fixture
def call(paged_call, randn):
    return paged_call([(randn(3, 2, 4), randn(6, 1, 4), randn(6, 1, 4))])


@pytest.fixture
def right_arguments(call, varlen_call, randn):
    """Arguments that each public function accepts, by their names."""
    dense = varlen_call([(randn(3, 2, 4), randn(3, 1, 4), randn(3, 1, 4))])
    outputs = {"out": None, "lse": None}
    paged = {**call._asdict(), "precision": torch.float64}
    varlen = {**dense._asdict(), "precision": torch.float64}
    write = {"k": randn(2, 1, 4), "v": randn(2, 1, 4), **_of(paged, "kv_cache", "layer"), "slot_mapping": torch.tensor([-1, 3])}
    rotation = {"q": randn(2, 2, 4), "positions": torch.tensor([0, 4]), "cos_sin_cache": torch.ones(5, 4), "is_neox": True}
    states = {f"{name}_{side}": randn(*shape) for side in "ab" for name, shape in (("out", (3, 2, 4)), ("lse", (2, 3)))}
    scale, no_scale = {"scale": torch.tensor(0.5)}, {"output_scale": None}
    rows, index = len(call.q), {"indexer": Indexer(num_heads=2, head_size=4, top_k=2), "batch": call.batch}
    index_cache = torch.zeros(len(call.kv_cache), 4, 4)
    latent = Layer(num_heads=2, num_kv_heads=1, head_size=4, head_size_v=3, scale=1.0, layout=Layout.LATENT)
    return {
        attend: {"request": next(paged_requests(**paged)), "layer": call.layer},
        dequantize: {"stored": torch.zeros(3, 4, dtype=torch.int8), **scale, "dtype": torch.float32},
        e8m0_numbers: {"codes": torch.zeros(3, 4, dtype=torch.uint8)},
        e8m0_scales: {"rows": randn(3, 4), "dtype": torch.float8_e4m3fn},
        group_scales: {"rows": randn(3, 4), "dtype": torch.float8_e4m3fn, "scale_dtype": torch.float8_e8m0fnu},
        gather_kv_cache: {
            **_of(paged, "kv_cache", "layer"),
            "block_table": call.batch.block_table[0],
            "seq_len": 6,
            "dtype": torch.float32,
        },
        index_logits: {
            "q": randn(rows, 2, 4),
            "weights": randn(rows, 2),
            "index_cache": index_cache,
            **index,
            "precision": torch.float64,
        },
        merge_attn_parts: {"outs": randn(2, 3, 2, 4), "lses": randn(2, 2, 3)} | outputs | {"lse_base": "e"} | no_scale,
        merge_attn_states: states | outputs | {"prefill_tokens_with_context": 2} | no_scale,
        paged_attention: paged | outputs | {"batch_invariant": False},
        paged_requests: paged,
        quantize: {"values": randn(3, 4), **scale, "dtype": torch.int8},
        rope_and_write_kv_cache: write | rotation,
        row_scales: {"rows": randn(3, 4), "dtype": torch.float8_e4m3fn},
        select: {"logits": randn(1, rows, call.batch.max_seq_len), **index},
        varlen_attention: varlen | outputs | {"batch_invariant": False},
        varlen_requests: varlen,
        visible: {
            "query_positions": torch.arange(3, 6),
            "key_positions": torch.arange(6),
            **_of(paged, "layer", "batch"),
            "request": 0,
        },
        write_index_cache: {
            "k": randn(2, 4),
            "index_cache": index_cache,
            "indexer": index["indexer"],
            "slot_mapping": torch.tensor([-1, 3]),
        },
        write_kv_cache: write,
        write_latent_cache: {
            "kv_c": randn(2, 3),
            "k_pe": randn(2, 1),
            "kv_cache": torch.zeros(1, 4, 4),
            "layer": latent,
            "slot_mapping": torch.tensor([-1, 3]),
        },
    }


def _of(arguments: dict, *names: str) -> dict:
    return {name: arguments[name] for name in names}


def refused(function, *args, **kwargs) -> ContractError:
    """The error of a call, which must have left its tensors as they were."""
    before = {name: value.clone() for name, value in kwargs.items() if isinstance(value, torch.Tensor)}
    with pytest.raises(ContractError) as caught:
        function(*args, **kwargs)
    for name, value in before.items():
        torch.testing.assert_close(kwargs[name], value, rtol=0, atol=0, equal_nan=True)
    return caught.value


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_an_argument_of_a_wrong_type_is_named(function, right_arguments):
    arguments = right_arguments[function]
    function(**arguments)
    for name in arguments:
        for wrong in (None, -7, "x", object()):
            if wrong is None and name in OPTIONAL:
                continue
            error = refused(function, **arguments | {name: wrong})
            assert error.argument.startswith(name), (name, wrong, error)


def test_the_rules_are_named_as_fields_of_a_layer_or_a_batch():
    fields = {field.name for holder in (Layer, Batch) for field in dataclasses.fields(holder)}
    assert fields >= attn_reference.IMPLEMENTED_RULES


def test_every_public_function_is_attacked():
    functions = {getattr(attn_reference, name) for name in attn_reference.__all__}
    assert {f for f in functions if inspect.isfunction(f)} == set(FUNCTIONS)


@pytest.mark.parametrize(
    ("function", "changes", "argument"),
    [
        (attend, {"layer": Layer(num_heads=4, num_kv_heads=1, head_size=4, scale=1.0, layout=Layout.KV_FIRST_NHD)}, "layer"),
        (dequantize, {"stored": torch.zeros(3, 4)}, "stored"),
        (dequantize, {"scale": torch.ones(2, 4)}, "scale"),
        (dequantize, {"scale": torch.ones(3, 4).double()}, "scale"),
        (dequantize, {"dtype": torch.int8}, "dtype"),
        (e8m0_numbers, {"codes": torch.zeros(3, 4, dtype=torch.int8)}, "codes"),
        (e8m0_scales, {"dtype": torch.int8}, "dtype"),
        (e8m0_scales, {"rows": torch.zeros(3, 0)}, "rows"),
        (group_scales, {"scale_dtype": torch.float16}, "scale_dtype"),
        (gather_kv_cache, {"block_table": torch.tensor([0, -1], dtype=torch.int32)}, "block_table[1]"),
        (gather_kv_cache, {"block_table": torch.tensor([4, 0], dtype=torch.int32)}, "block_table[0]"),
        (gather_kv_cache, {"block_table": torch.tensor([0, 1])}, "block_table"),
        (gather_kv_cache, {"block_table": torch.tensor([0], dtype=torch.int32)}, "seq_len"),
        (gather_kv_cache, {"dtype": torch.int32}, "dtype"),
        (gather_kv_cache, {"kv_cache": torch.zeros(2, 4, 4, 1, 4).int()}, "kv_cache"),
        (gather_kv_cache, {"kv_cache": torch.zeros(2, 4, 4, 2, 4)}, "kv_cache"),
        (quantize, {"scale": torch.ones(2, 1, 4)}, "scale"),
        (quantize, {"dtype": torch.float8_e5m2}, "dtype"),
        (quantize, {"values": torch.zeros(3, 4).int()}, "values"),
        (row_scales, {"dtype": torch.float16}, "dtype"),
        (row_scales, {"rows": torch.zeros(3, 0)}, "rows"),
        (visible, {"request": 1}, "request"),
        (visible, {"query_positions": torch.zeros(3)}, "query_positions"),
        (visible, {"key_positions": torch.zeros(2, 3).int()}, "key_positions"),
    ],
)
def test_arguments_that_only_the_reference_has_are_refused_by_name(function, changes, argument, right_arguments):
    assert refused(function, **right_arguments[function] | changes).argument == argument


def test_a_layer_without_a_cache_gathers_nothing(right_arguments, varlen_call, randn):
    dense = varlen_call([(randn(3, 2, 4), randn(3, 1, 4), randn(3, 1, 4))])
    assert refused(gather_kv_cache, **right_arguments[gather_kv_cache] | {"layer": dense.layer}).argument == "layer.attn_type"


def test_entries_of_a_block_table_past_the_sequence_are_garbage(right_arguments):
    """The fixture's block table ends in -1 and 2^31 - 1, which a longer sequence would follow."""
    arguments = right_arguments[gather_kv_cache]
    key, value = gather_kv_cache(**arguments)
    assert key.isfinite().all()
    assert value.isfinite().all()
    assert refused(gather_kv_cache, **arguments | {"seq_len": 9}).argument == "block_table[2]"


def test_values_are_always_checked(call):
    """The kernels read no value of a device tensor when they check arguments. The reference does: it is a debugging tool."""
    table = call.batch.block_table.clone()
    table[0, 1] = 99
    batch = dataclasses.replace(call.batch, block_table=table)
    out = torch.full_like(call.q, torch.nan)
    assert refused(paged_attention, call.q, call.kv_cache, call.layer, batch, out=out).argument == "block_table[0, 1]"
    assert refused(paged_requests, call.q, call.kv_cache, call.layer, batch, torch.float64).argument == "block_table[0, 1]"


@pytest.mark.parametrize("precision", [torch.float16, torch.int64])
def test_precisions_that_are_not_float32_or_float64(call, precision):
    out = torch.full_like(call.q, torch.nan)
    assert refused(paged_attention, *call, out=out, precision=precision).argument == "precision"


def test_each_function_names_the_other_for_the_wrong_type(call, varlen_call, randn):
    dense = varlen_call([(randn(3, 2, 4), randn(3, 1, 4), randn(3, 1, 4))])
    with pytest.raises(ContractError, match="use varlen_attention"):
        paged_attention(dense.q, call.kv_cache, dense.layer, dense.batch)
    with pytest.raises(ContractError, match="use paged_attention"):
        varlen_attention(call.q, dense.k, dense.v, call.layer, call.batch)


def test_batch_invariance_is_refused_by_name(call, varlen_call, randn):
    out = torch.full_like(call.q, torch.nan)
    dense = varlen_call([(randn(3, 2, 4), randn(3, 1, 4), randn(3, 1, 4))])
    for attention, arguments in ((paged_attention, call), (varlen_attention, dense)):
        with pytest.raises(UnsupportedError, match=r"^attn_reference: batch_invariant not supported: BLAS"):
            attention(*arguments, out=out, batch_invariant=True)
    assert out.isnan().all()


def test_an_invalid_call_is_refused_as_such_first(call):
    out = torch.zeros(1, 2, 4).expand(5, 2, 4)
    assert refused(paged_attention, *call, out=out, batch_invariant=True).argument == "out"
