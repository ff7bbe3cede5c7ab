"""The ops `attn_parity::*`: what they say that they write, what they pass on, and what they refuse before a Layer exists."""

import importlib
import inspect
import warnings
import weakref
from dataclasses import fields
from types import SimpleNamespace

import attn_reference  # registers the CPU kernels
import pytest
import torch
from attn_contract import AttentionType, Batch, ContractError, Layer, Layout
from attn_contract.layouts import LATENT_FORMATS
from attn_contract.ops import SCHEMAS

from tests.support import refusals
from tests.support.latent_formats import latent_sizes

ops = torch.ops.attn_parity


def attention_arguments() -> dict:
    return {
        "scale": 0.5,
        "attn_type": "decoder",
        "query_start_loc": torch.tensor([0, 1], dtype=torch.int32),
        "seq_lens": torch.tensor([1], dtype=torch.int32),
        "max_query_len": 2,
        "max_seq_len": 3,
        "num_actual_tokens": 1,
        "q": torch.zeros(1, 4, 4),
        "out": torch.full((1, 4, 4), torch.nan),
        "lse": None,
    }


def paged_arguments() -> dict:
    return attention_arguments() | {
        "kv_cache": torch.zeros(1, 2, 3, 2, 4),
        "layout": "BLOCKS_FIRST_NHD",
        "num_kv_heads": 2,
        "block_table": torch.zeros(1, 1, dtype=torch.int32),
        "causal": True,
        "causal_per_request": None,
    }


def varlen_arguments() -> dict:
    return attention_arguments() | {"attn_type": "encoder", "k": torch.zeros(1, 2, 4), "v": torch.zeros(1, 2, 4)}


def write_arguments() -> dict:
    return {
        "k": torch.ones(1, 2, 4),
        "v": torch.ones(1, 2, 4),
        "kv_cache": torch.zeros(1, 2, 3, 2, 4),
        "layout": "BLOCKS_FIRST_NHD",
        "slot_mapping": torch.tensor([0]),
    }


def rope_arguments() -> dict:
    rotation = {"positions": torch.tensor([0]), "cos_sin_cache": torch.ones(1, 2), "is_neox": False}
    return write_arguments() | rotation | {"q": torch.ones(1, 4, 4)}


def latent_arguments() -> dict:
    return {
        "kv_c": torch.ones(1, 3),
        "k_pe": torch.ones(1, 1),
        "kv_cache": torch.zeros(1, 3, 4),
        "slot_mapping": torch.tensor([0]),
    }


def merge_arguments() -> dict:
    states = {f"{name}_{side}": torch.zeros(shape) for side in "ab" for name, shape in (("out", (1, 4, 4)), ("lse", (4, 1)))}
    return states | {"out": torch.full((1, 4, 4), torch.nan), "lse": None}


def merge_parts_arguments() -> dict:
    return {
        "outs": torch.zeros(2, 1, 4, 4),
        "lses": torch.zeros(2, 4, 1),
        "out": torch.full((1, 4, 4), torch.nan),
        "lse": None,
    }


def index_write_arguments() -> dict:
    return {"k": torch.ones(1, 4), "index_cache": torch.zeros(1, 3, 4), "slot_mapping": torch.tensor([0])}


def step_arguments() -> dict:
    return {name: value for name, value in attention_arguments().items() if name.startswith(("query", "seq", "max", "num"))}


def index_logits_arguments() -> dict:
    tensors = {"q": torch.zeros(1, 4, 4), "weights": torch.zeros(1, 4), "index_cache": torch.zeros(1, 3, 4)}
    table = {"block_table": torch.zeros(1, 1, dtype=torch.int32)}
    return step_arguments() | tensors | table | {"out": torch.full((1, 1, 3), torch.nan)}


def select_arguments() -> dict:
    return step_arguments() | {"logits": torch.zeros(1, 1, 3), "top_k": 1, "out": torch.zeros(1, 1, 1, dtype=torch.int32)}


ARGUMENTS = {
    "paged_attention": paged_arguments,
    "varlen_attention": varlen_arguments,
    "write_kv_cache": write_arguments,
    "rope_and_write_kv_cache": rope_arguments,
    "write_latent_cache": latent_arguments,
    "merge_attn_states": merge_arguments,
    "merge_attn_parts": merge_parts_arguments,
    "write_index_cache": index_write_arguments,
    "index_logits": index_logits_arguments,
    "select": select_arguments,
}


def test_each_op_has_right_arguments_here():
    assert ARGUMENTS.keys() == SCHEMAS.keys()


def call(name: str, dtype: torch.dtype | None, options: dict) -> dict:
    """Call an op with its right arguments, options beside them, and a cache of a dtype. Returns the arguments."""
    arguments = ARGUMENTS[name]() | options
    if dtype is not None:
        arguments["kv_cache"] = arguments["kv_cache"].to(dtype)
    getattr(ops, name)(**arguments)
    return arguments


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_argument_on_meta_among_others_is_named_and_nothing_is_left_unwritten_in_silence(name):
    arguments = ARGUMENTS[name]()
    for argument in [name for name, value in arguments.items() if isinstance(value, torch.Tensor)]:
        with pytest.raises(ContractError, match=f"^{argument}: got a tensor on meta, expected cpu, where "):
            getattr(ops, name)(**{**arguments, argument: arguments[argument].to("meta")})
    on_meta = {name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
    getattr(ops, name)(**on_meta)


@pytest.fixture
def recorded(monkeypatch):
    """The arguments that the implementation is called with, by name; nothing is computed."""
    calls = SimpleNamespace()
    for name in SCHEMAS:
        made = inspect.signature(getattr(attn_reference, name))

        def record(*values, signature=made, **options):
            vars(calls).update(signature.bind(*values, **options).arguments)

        monkeypatch.setattr(attn_reference, name, record)
    return calls


def values_of(record: Layer | Batch) -> dict:
    return {field.name: getattr(record, field.name) for field in fields(record)}


def assert_same(got: dict, expected: dict) -> None:
    assert set(got) == set(expected)
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert got[name].data_ptr() == value.data_ptr(), name
        else:
            assert (type(got[name]), got[name]) == (type(value), value), name


LAYER = {"num_heads": 4, "num_kv_heads": 2, "head_size": 4, "scale": 0.5}
FP8, NHD = torch.float8_e4m3fn, Layout.BLOCKS_FIRST_NHD
RULES = {
    "window": [5, 6],
    "sink_tokens": 7,
    "chunked_local": 8,
    "logits_soft_cap": 9.0,
    "alibi_slopes": torch.zeros(4),
    "sinks": torch.ones(4),
    "output_scale": torch.ones(1),
}
FIXED_SCALES = {"k_scale": torch.ones(1), "v_scale": torch.ones(2)}
SCALE_CACHES = {"k_scale_cache": torch.ones(1, 3, 2), "v_scale_cache": torch.ones(1, 3, 2)}
QUANTIZED = [(FP8, FIXED_SCALES), (torch.int8, SCALE_CACHES)]


OPTIONS = RULES | {"lse": torch.zeros(4, 1), "batch_invariant": True}
PAGED_OPTIONS = OPTIONS | {
    "causal": None,
    "causal_per_request": torch.tensor([True]),
    "bidirectional_ranges": torch.zeros(1, 1, 2, dtype=torch.int32),
    "ranges_clamped": True,
    "qq_bias": torch.zeros(2, 2),
    "selected": torch.zeros(1, 1, 1, dtype=torch.int32),
    "selection_unit": 4,
}
BESIDE_NO_OTHERS = FIXED_SCALES | {"q": torch.zeros(1, 4, 4, dtype=FP8), "q_scale": torch.ones(1), "key_unit": 4}
CALLS = [
    ("paged_attention", None, {}),
    *(("paged_attention", dtype, PAGED_OPTIONS | scales) for dtype, scales in QUANTIZED),
    ("paged_attention", FP8, BESIDE_NO_OTHERS),
    ("varlen_attention", None, {}),
    ("varlen_attention", None, OPTIONS),
]


@pytest.mark.parametrize("op", ["paged_attention", "varlen_attention"])
def test_the_calls_give_every_option(op):
    given = {option for name, _, options in CALLS if name == op for option in options}
    options = {one.name for one in getattr(ops, op).default._schema.arguments if one.kwarg_only}
    assert options - given == {"head_size_v"}  # test_a_width_of_v_is_passed_by_name


@pytest.mark.parametrize(("name", "dtype", "options"), CALLS)
def test_arguments_become_a_layer_and_a_batch_and_none_is_lost(recorded, name, dtype, options):
    arguments = call(name, dtype, options)
    of_layer, of_batch = (
        {field.name: arguments[field.name] for field in fields(kind) if field.name in arguments} for kind in (Layer, Batch)
    )
    of_layer["attn_type"] = AttentionType(arguments["attn_type"])
    of_layer |= {"layout": Layout(arguments["layout"])} if "layout" in arguments else {}
    of_layer |= {"window": tuple(arguments["window"])} if "window" in arguments else {}
    assert_same(values_of(recorded.layer), values_of(Layer(**LAYER | of_layer, kv_cache_dtype=dtype)))
    of_batch["causal"] = arguments.get("causal_per_request") if arguments.get("causal") is None else arguments["causal"]
    if name == "varlen_attention":
        of_batch["causal"] = False
    assert_same(values_of(recorded.batch), values_of(Batch(**of_batch)))
    assert vars(recorded).get("batch_invariant", False) is arguments.get("batch_invariant", False)
    passed = {argument: value for argument, value in vars(recorded).items() if argument in arguments}
    assert_same(passed, {argument: arguments[argument] for argument in passed})
    assert {"q", "out", "lse", *(("kv_cache",) if "layout" in arguments else ("k", "v"))} <= set(passed)


def test_a_later_call_of_a_signature_has_its_own_tensors_and_length(recorded):
    first = paged_arguments() | {"sinks": torch.ones(4)}
    ops.paged_attention(**first)
    earlier, signature = weakref.ref(first.pop("sinks")), recorded.layer.signature
    later = paged_arguments() | {"sinks": torch.zeros(4), "max_seq_len": 9}
    ops.paged_attention(**later)
    layer, batch = recorded.layer, recorded.batch
    assert earlier() is None
    assert layer.sinks.data_ptr() == layer.tensors["sinks"].data_ptr() == later["sinks"].data_ptr()
    assert batch.seq_lens.data_ptr() == batch.tensors["seq_lens"].data_ptr() == later["seq_lens"].data_ptr()
    assert batch.max_seq_len == 9
    assert signature == layer.signature == Layer(**LAYER, sinks=later["sinks"], layout=NHD).signature
    with pytest.raises(ContractError, match=r"^max_seq_len: got -1, expected an int, at least 0"):
        ops.paged_attention(**later | {"max_seq_len": -1})


def test_every_layout_and_type_has_its_name(recorded):
    for layout in {layout for layout in Layout if not (layout.has_inline_scales or layout.has_latent_value)}:
        ops.paged_attention(**paged_arguments() | {"layout": layout.value})
        assert recorded.layer.layout is layout
    scaled = {"layout": "CONTENT_PACKED_SCALED", "kv_cache": torch.zeros(1, 2, 3, 16, dtype=torch.int8)}
    ops.paged_attention(**paged_arguments() | scaled)
    assert recorded.layer.kv_cache_dtype is torch.int8
    latent = {"layout": "LATENT", "kv_cache": torch.zeros(1, 3, 4), "num_kv_heads": 1, "head_size_v": 3}
    ops.paged_attention(**paged_arguments() | latent)
    assert (recorded.layer.layout, recorded.layer.v_head_size) == (Layout.LATENT, 3)
    rows = torch.zeros(1, 3, 140, dtype=torch.uint8).view(torch.float8_e4m3fn)
    scaled = {"layout": "LATENT_SCALED", "q": torch.zeros(3, 4, 132), "kv_cache": rows, "num_kv_heads": 1, "head_size_v": 128}
    ops.paged_attention(**paged_arguments() | scaled)
    assert (recorded.layer.layout, recorded.layer.kv_cache_dtype) == (Layout.LATENT_SCALED, torch.float8_e4m3fn)
    ops.paged_attention(**paged_arguments() | {"attn_type": "encoder_decoder", "causal": False})
    assert recorded.layer.attn_type is AttentionType.ENCODER_DECODER
    ops.varlen_attention(**varlen_arguments() | {"attn_type": "encoder_only"})
    assert recorded.layer.attn_type is AttentionType.ENCODER_ONLY


@pytest.mark.parametrize(("dtype", "scales"), [(None, {}), *QUANTIZED])
@pytest.mark.parametrize("name", ["write_kv_cache", "rope_and_write_kv_cache"])
def test_cache_writes_know_as_much_of_the_layer_as_they_need(recorded, name, dtype, scales):
    arguments = call(name, dtype, scales)
    for field in ("num_kv_heads", "head_size"):
        assert getattr(recorded.layer, field) == LAYER[field]
    assert recorded.layer.num_heads == (4 if "q" in arguments else 2)
    assert recorded.layer.layout is NHD
    assert recorded.layer.kv_cache_dtype is dtype
    assert_same(recorded.layer.tensors, scales)
    assert vars(recorded).get("is_neox") == arguments.get("is_neox")
    passed = set(arguments) - {"layout", "is_neox", *scales}
    assert_same(
        {argument: vars(recorded)[argument] for argument in passed}, {argument: arguments[argument] for argument in passed}
    )


@pytest.mark.parametrize("v_size", [3, 8, 12])
def test_the_op_of_a_write_takes_the_width_of_v_from_v(v_size):
    """A width of v is taken only in CONTENT_PACKED, whose rows can be of two widths. In other layouts v is as wide as k."""
    k, v, slots = torch.ones(2, 2, 8), torch.full((2, 2, v_size), 2.0), torch.tensor([5, -1])
    cache = torch.zeros(2, 2, 4, 8 + v_size)
    ops.write_kv_cache(k, v, cache, "CONTENT_PACKED", slots)
    assert cache[1, :, 1].tolist() == [[1.0] * 8 + [2.0] * v_size] * 2
    assert cache.sum() == 2 * (8 + 2 * v_size)
    if v_size != 8:
        with pytest.raises(ContractError, match=r"^v: got shape \(2, 2, \d+\), expected shape \(2, 2, 8\), as k has"):
            ops.write_kv_cache(k, v, torch.zeros(2, 2, 2, 4, 8), "BLOCKS_FIRST_HND", slots)


def test_a_width_of_v_is_passed_by_name():
    """The width is passed, as a layout is. It is never guessed from v."""
    arguments = varlen_arguments() | {"v": torch.zeros(1, 2, 3), "out": torch.full((1, 4, 3), torch.nan)}
    ops.varlen_attention(**arguments, head_size_v=3)
    assert not arguments["out"].any()
    with pytest.raises(ContractError, match=r"^out: got shape \(1, 4, 3\), expected shape \(1, 4, 4\)"):
        ops.varlen_attention(**arguments)


@pytest.mark.parametrize(
    ("layout", "dtype", "fields"),
    [
        ("LATENT", torch.float32, {"kv_cache_dtype": None}),
        ("LATENT", FP8, {"kv_cache_dtype": FP8, "k_scale": torch.ones(1)}),
        *((str(layout), FP8, {"kv_cache_dtype": FP8}) for layout in LATENT_FORMATS),
    ],
)
def test_a_latent_write_makes_the_layer_that_the_tensors_say(recorded, layout, dtype, fields):
    """One KV head, and the two widths."""
    sizes = {"head_size": 4, "head_size_v": 3} if layout == "LATENT" else latent_sizes(Layout(layout))
    rows = torch.zeros(1, sizes["head_size"]).split([sizes["head_size_v"], sizes["head_size"] - sizes["head_size_v"]], dim=1)
    cache = torch.zeros(1, 3, 4, dtype=torch.uint8 if dtype is FP8 else dtype).view(dtype)
    scale = {"k_scale": fields["k_scale"]} if "k_scale" in fields else {}
    ops.write_latent_cache(*rows, cache, torch.tensor([0]), layout=layout, **scale)
    assert_same(
        values_of(recorded.layer),
        values_of(Layer(num_heads=1, num_kv_heads=1, scale=1.0, layout=Layout(layout), **sizes, **fields)),
    )
    assert recorded.kv_cache.data_ptr() == cache.data_ptr()


OF_OPS = [one for one in refusals.of(__file__) if one.call.startswith("op ")]


@refusals.parametrize(OF_OPS)
def test_an_op_refuses(refusal):
    name = refusal.call.removeprefix("op ")
    with pytest.raises(ContractError) as caught:
        getattr(ops, name)(**refusal.changed(ARGUMENTS[name](), globals()))
    refusal.check(caught.value)


def test_every_field_of_a_layer_and_a_batch_reaches_paged_attention():
    """A field that the schema forgets is a rule that a model cannot ask for, and nobody notices."""
    arguments = {argument.name for argument in ops.paged_attention.default._schema.arguments}
    named = {field.name for kind in (Layer, Batch) for field in fields(kind)}
    # sizes that q says, the dtype that the cache says, and what only the cache write reads
    assert named - arguments == {"num_heads", "head_size", "kv_cache_dtype", "slot_mapping"}


def test_a_second_import_of_the_reference_registers_nothing_twice():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(attn_reference)
