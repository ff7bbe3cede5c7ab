"""Every field of a Layer, every way in which it can be wrong or contradict another one, and what is out of scope."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from attn_contract import AttentionType, ContractError, Layer, Layout, UnsupportedError
from attn_contract.rules import active_rules

from tests.support import refusals

MOST = 2**31 - 1
FLOAT32_TINY = torch.finfo(torch.float32).tiny
FP8, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
ENCODER = {"attn_type": AttentionType.ENCODER, "layout": None}
CROSS = {"attn_type": AttentionType.ENCODER_DECODER}
MLA = {"num_kv_heads": 1, "layout": Layout.LATENT, "head_size_v": 6}
PACKED = {"layout": Layout.CONTENT_PACKED}


def layer(**changes: object) -> Layer:
    """H 4, HK 2, D 8."""
    fields = {"num_heads": 4, "num_kv_heads": 2, "head_size": 8, "scale": 0.5, "layout": Layout.BLOCKS_FIRST_NHD}
    return Layer(**fields | changes)


def fixed(k: object = None, v: object = None) -> dict[str, object]:
    """Scales that do not change, of an fp8 cache."""
    k, v = (torch.ones(1) if scale is None else scale for scale in (k, v))
    return {"kv_cache_dtype": FP8, "k_scale": k, "v_scale": v}


def cached(k: object = None, v: object = None) -> dict[str, object]:
    """Scales per token and head beside an int8 cache of 6 blocks of 4 slots."""
    k, v = (torch.ones(6, 4, 2) if scales is None else scales for scales in (k, v))
    return {"kv_cache_dtype": torch.int8, "k_scale_cache": k, "v_scale_cache": v}


def inline(dtype: torch.dtype = torch.int8) -> dict[str, object]:
    return {"kv_cache_dtype": dtype, "layout": Layout.CONTENT_PACKED_SCALED}


REFUSED = [one for one in refusals.of(__file__) if one.call == "layer"]

ACCEPTED = [
    {},
    MLA,
    MLA | {"head_size_v": 8},
    MLA | {"kv_cache_dtype": FP8, "k_scale": torch.ones(1)},
    MLA | {"kv_cache_dtype": FNUZ, "k_scale": torch.tensor(2.0)},
    MLA | {"window": (4, -1), "sink_tokens": 2, "logits_soft_cap": 30.0, "alibi_slopes": torch.zeros(4)},
    ENCODER | {"head_size_v": 3},
    ENCODER | {"head_size_v": 24},
    PACKED | {"head_size_v": 3},
    PACKED | {"head_size_v": 24} | fixed(),
    PACKED | {"head_size_v": 6} | cached(),
    ENCODER,
    CROSS,
    {"attn_type": AttentionType.ENCODER_ONLY, "layout": None, "window": (4, 4), "sink_tokens": 1, "chunked_local": 4},
    ENCODER | {"alibi_slopes": torch.zeros(4), "sinks": torch.zeros(4), "logits_soft_cap": 50.0, "output_scale": torch.ones(1)},
    CROSS | {"sinks": torch.zeros(4), "logits_soft_cap": 50.0} | fixed(),
    {"num_heads": 1, "num_kv_heads": 1, "head_size": 1},
    {"scale": 0.0},
    {"scale": -FLOAT32_TINY},
    {"scale": -(2.0**64)},
    {"window": (0, 0)},
    {"window": (MOST, -1), "sink_tokens": MOST, "chunked_local": MOST, "selection_unit": MOST, "ranges_clamped": True},
    {"chunked_local": 1},
    {"key_unit": 2, "selection_unit": 3, "logits_soft_cap": 50.0, "sinks": torch.zeros(4)},
    {"sinks": torch.zeros(4, dtype=torch.bfloat16)},
    {"sinks": torch.zeros(1).expand(1), "num_heads": 1, "num_kv_heads": 1},
    {"output_scale": torch.tensor(1.0)},
    fixed(),
    fixed() | {"kv_cache_dtype": FNUZ},
    fixed(k=torch.tensor(2.0), v=torch.ones(2)),
    cached(),
    cached() | {"kv_cache_dtype": FP8},
    cached() | {"layout": Layout.X_PACKED},
    cached(k=torch.ones(6, 2, 4, 2)[:, 0], v=torch.ones(4, 2, 6).permute(2, 0, 1)),
    inline(),
    inline(FP8),
    inline(FNUZ),
]


@refusals.parametrize(REFUSED)
def test_a_wrong_layer_is_refused(refusal):
    with pytest.raises(ContractError) as caught:
        layer(**refusal.changed({}, globals()))
    refusal.check(caught.value)


@pytest.mark.parametrize("changes", ACCEPTED)
def test_a_right_layer_keeps_its_values(changes):
    made = layer(**changes)
    assert {name: getattr(made, name) for name in changes} == changes
    assert made.v_head_size == changes.get("head_size_v", made.head_size)
    assert active_rules(made).get("head_size_v") == changes.get("head_size_v")


@pytest.mark.parametrize("apart", [ENCODER, PACKED], ids=["dense", "packed"])
def test_v_that_is_stored_apart_and_as_wide_as_k_asks_for_nothing(apart):
    made = layer(**apart, head_size_v=8)
    assert (made.head_size_v, made.v_head_size, active_rules(made)) == (None, 8, {})


def test_its_tensors_are_all_that_it_holds():
    given = {"alibi_slopes": torch.zeros(4), "sinks": torch.zeros(4), "output_scale": torch.ones(1)}
    for scales in (fixed(), cached()):
        tensors = given | {name: value for name, value in scales.items() if isinstance(value, torch.Tensor)}
        assert layer(**given | scales).tensors == tensors
    assert layer().tensors == {}


@pytest.mark.parametrize(("cap", "expected"), [(None, None), (0, None), (0.0, None), (-0.0, None), (50, 50.0), (0.5, 0.5)])
def test_a_soft_cap_is_a_positive_float_or_none(cap, expected):
    """So that no implementation asks in how many ways it may be off."""
    got = layer(logits_soft_cap=cap).logits_soft_cap
    assert (type(got), got) == (type(expected), expected)


def test_a_layer_without_a_cache_has_no_view_of_one():
    with pytest.raises(ContractError, match=r"layer\.attn_type: got encoder"):
        layer(**ENCODER).view_of(torch.zeros(6, 2, 4, 2, 8))
    assert layer().view_of(torch.zeros(6, 2, 4, 2, 8)).block_size == 4


@pytest.mark.parametrize("cap", [FLOAT32_TINY, 2.0**32, np.float64(30)])
def test_a_soft_cap_is_normal_and_at_most_2_to_the_32(cap):
    assert layer(logits_soft_cap=cap).logits_soft_cap == cap


@pytest.mark.parametrize("scale", [1, 2**60, np.float64(0.5)])
def test_a_scale_is_a_float(scale):
    got = layer(scale=scale).scale
    assert type(got) is float
    assert got == scale


def test_which_types_read_a_cache():
    assert [kind for kind in AttentionType if kind.reads_cache] == [AttentionType.DECODER, AttentionType.ENCODER_DECODER]


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("kv_lora_rank", 512, "MLA (kv_lora_rank) not supported: its layers are given by head_size, head_size_v and"),
        ("rswa_window", 128, "R-SWA (rswa_window) not supported: its window is counted from a prefix of each request"),
        ("use_alibi_sqrt", True, "ALiBi-sqrt (use_alibi_sqrt) not supported: alibi_slopes weight the distance itself"),
        ("chunk_lookback", 1, "chunk look-back (chunk_lookback) not supported: chunked_local hides every earlier chunk"),
        ("dropout_p", 0.1, "dropout (dropout_p) not supported: attention here is inference"),
        ("dropout_p", 0.0, "dropout (dropout_p) not supported"),
        ("dcp_world_size", 2, "decode context parallelism (DCP) (dcp_world_size) not supported: a layer is one rank's"),
        ("pcp_world_size", 2, "prefill context parallelism (PCP) (pcp_world_size) not supported: a layer is one rank's"),
    ],
)
def test_a_setting_out_of_scope_is_refused_by_name(setting, value, message):
    with pytest.raises(UnsupportedError) as caught:
        layer(**{setting: value})
    assert str(caught.value).startswith(f"attn_contract: {message}")
    assert setting in caught.value.feature


def test_all_that_is_out_of_scope_is_refused_at_once():
    with pytest.raises(UnsupportedError, match=r"^attn_contract: MLA .*; dropout \(dropout_p\) not supported: attention here"):
        layer(kv_lora_rank=512, dropout_p=0.1)


def test_an_unknown_field_is_a_type_error():
    """Python's own, and it names the field."""
    with pytest.raises(TypeError, match="sliding_window"):
        layer(sliding_window=4)


def test_copies_are_checked_as_well():
    original = layer(logits_soft_cap=50, **fixed())
    assert copy.copy(original).tensors == original.tensors
    assert replace(original, window=(3, 0)).logits_soft_cap == 50.0
    with pytest.raises(ContractError, match=r"^num_heads: got 3"):
        replace(original, num_heads=3)
    with pytest.raises(UnsupportedError, match="dropout"):
        replace(original, dropout_p=0.5)
