"""V of another width than K, and the latent cache: what a Layer, a config and a call say of it, and every way to be wrong."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import attn_reference
import pytest
import torch
from attn_contract import (
    ANY,
    RULES,
    YES,
    AttentionConfig,
    AttentionType,
    Batch,
    Capabilities,
    ContractError,
    KVCacheView,
    Layer,
    Layout,
    Only,
    validation,
)
from attn_contract.layouts import A_LATENT_LAYOUT, LATENT_FORMATS
from attn_contract.rules import VALUES, active_rules

from tests.latent_formats import latent_sizes

FP8 = torch.float8_e4m3fn
LATENT = {"num_kv_heads": 1, "layout": Layout.LATENT, "head_size_v": 6}
SCALED = {
    "num_kv_heads": 1,
    "head_size": 132,
    "head_size_v": 128,
    "layout": Layout.LATENT_SCALED,
    "kv_cache_dtype": FP8,
}
PACKED = {"layout": Layout.CONTENT_PACKED}
ONE, SCALES = torch.ones(1), torch.ones(6, 4, 2)
E8M0 = SCALED | {"layout": Layout.LATENT_E8M0, "head_size": 64, "head_size_v": 64}
PLANES = E8M0 | {"layout": Layout.LATENT_E8M0_PLANES, "head_size": 128, "head_size_v": 128}
ENCODER = {"attn_type": AttentionType.ENCODER, "layout": None}
ops = torch.ops.attn_parity


def layer(**changes: Any) -> Layer:
    """H 4, HK 2, D 8, a cache of K and V apart."""
    fields = {"num_heads": 4, "num_kv_heads": 2, "head_size": 8, "scale": 0.5, "layout": Layout.BLOCKS_FIRST_NHD}
    return Layer(**fields | changes)


def test_a_width_of_v_is_a_rule_that_layers_ask_for():
    assert RULES["head_size_v"].acts_on is VALUES
    assert active_rules(layer(**LATENT)) == {"head_size_v": 6}
    assert active_rules(layer()) == {}


@pytest.mark.parametrize(
    ("changes", "value_size"),
    [
        ({}, 8),
        (LATENT, 6),
        (LATENT | {"head_size_v": 8}, 8),
        (LATENT | {"kv_cache_dtype": FP8, "k_scale": torch.ones(1)}, 6),
        (LATENT | {"kv_cache_dtype": torch.float8_e4m3fnuz, "k_scale": torch.tensor(2.0)}, 6),
        (LATENT | {"window": (4, -1), "sink_tokens": 2, "logits_soft_cap": 30.0, "alibi_slopes": torch.zeros(4)}, 6),
        (SCALED, 128),
        (SCALED | {"kv_cache_dtype": torch.float8_e4m3fnuz, "head_size": 128}, 128),
        (E8M0, 64),
        (E8M0 | {"kv_cache_dtype": torch.float8_e4m3fnuz, "head_size": 512, "head_size_v": 512}, 512),
        (PLANES, 128),
        (PLANES | {"kv_cache_dtype": torch.float8_e4m3fnuz, "head_size": 512, "head_size_v": 512}, 512),
        (ENCODER | {"head_size_v": 3}, 3),
        (ENCODER | {"head_size_v": 24}, 24),
        (PACKED | {"head_size_v": 3}, 3),
        (PACKED | {"head_size_v": 24}, 24),
        (PACKED | {"head_size_v": 6, "num_kv_heads": 1, "kv_cache_dtype": FP8, "k_scale": ONE, "v_scale": ONE}, 6),
        (PACKED | {"head_size_v": 6, "kv_cache_dtype": torch.int8, "k_scale_cache": SCALES, "v_scale_cache": SCALES}, 6),
    ],
)
def test_layers_that_name_the_width_of_v(changes, value_size):
    made = layer(**changes)
    assert made.value_size == value_size
    assert {name: getattr(made, name) for name in changes} == changes


@pytest.mark.parametrize("apart", [ENCODER, PACKED], ids=["dense", "packed"])
def test_v_that_is_stored_apart_and_as_wide_as_k_asks_for_nothing(apart):
    made = layer(**apart, head_size_v=8)
    assert (made.head_size_v, made.value_size, active_rules(made)) == (None, 8, {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_size_v": 0}, "head_size_v: got 0, expected an int, at least 1"),
        ({"head_size_v": 4.0}, "head_size_v: got 4.0, expected an int, at least 1"),
        ({"head_size_v": True}, "head_size_v: got True, expected an int, at least 1"),
        ({"head_size_v": 4}, "head_size_v: got 4, expected None: layout BLOCKS_FIRST_NHD holds K and V of one width"),
        ({"head_size_v": 8}, "head_size_v: got 8, expected None: layout BLOCKS_FIRST_NHD holds K and V of one width"),
        (
            {"head_size_v": 4, "layout": Layout.CONTENT_PACKED_SCALED, "kv_cache_dtype": FP8},
            "head_size_v: got 4, expected None: layout CONTENT_PACKED_SCALED holds K and V of one width",
        ),
        (PACKED | {"head_size_v": 0}, "head_size_v: got 0, expected an int, at least 1"),
        (LATENT | {"head_size_v": None}, "head_size_v: got None, expected the width of V in layout LATENT, at most head_size"),
        (LATENT | {"head_size_v": 9}, "head_size_v: got 9, expected at most head_size (8): V is the beginning of K's row"),
        (LATENT | {"num_kv_heads": 2}, "num_kv_heads: got 2, expected 1: a latent cache has one KV head"),
        (
            LATENT | {"attn_type": AttentionType.ENCODER_DECODER},
            "layout: got LATENT, expected another one for ENCODER_DECODER: no encoder's keys are latent",
        ),
        (LATENT | {"kv_cache_dtype": FP8}, "k_scale: got None, expected a tensor: the scale of a cache of torch.float8_e4m3fn"),
        (LATENT | {"k_scale": torch.ones(1)}, "kv_cache_dtype: got None, expected a quantized dtype, since there are scales"),
        (
            LATENT | {"kv_cache_dtype": FP8, "k_scale": torch.ones(1), "v_scale": torch.ones(1)},
            "v_scale: got a tensor, expected None in layout LATENT: K and V have the same scales",
        ),
        (
            LATENT | {"kv_cache_dtype": FP8, "k_scale_cache": torch.ones(6, 4, 1)},
            "k_scale_cache: got a tensor, expected None in layout LATENT",
        ),
        (
            LATENT | {"kv_cache_dtype": FP8, "k_scale": torch.ones(2)},
            "k_scale: got torch.float32 (2,), expected torch.float32, shape () or (1,)",
        ),
        (SCALED | {"head_size_v": 64}, "head_size_v: got 64, expected a multiple of 128 in layout LATENT_SCALED, at most head"),
        (
            SCALED | {"head_size": 131},
            "head_size: got 131, expected one whose rows have a multiple of 4 bytes in layout",
        ),
        (E8M0 | {"head_size_v": 32}, "head_size_v: got 32, expected head_size (64) in layout LATENT_E8M0: all of K is V"),
        (
            E8M0 | {"head_size": 80, "head_size_v": 80},
            "head_size: got 80, expected a multiple of 32 in layout LATENT_E8M0",
        ),
        (PLANES | {"head_size_v": 64}, "head_size_v: got 64, expected head_size (128) in layout LATENT_E8M0_PLANES: all of K"),
        (
            PLANES | {"head_size": 64, "head_size_v": 64},
            "head_size: got 64, expected more than 64 in layout LATENT_E8M0_PLANES",
        ),
        (PLANES | {"head_size": 160, "head_size_v": 160}, "head_size: got 160, expected a multiple of 64 in layout LATENT_E8"),
        (LATENT | {"kv_cache_dtype": torch.int8}, "kv_cache_dtype: got torch.int8, expected a float8 in layout LATENT"),
    ],
)
def test_layers_that_contradict_themselves(changes, message):
    with pytest.raises(ContractError) as caught:
        layer(**changes)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("layout", LATENT_FORMATS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_cache_dtype": None}, "kv_cache_dtype: got None, expected a float8 in layout {}: its rows hold"),
        ({"kv_cache_dtype": torch.int8}, "kv_cache_dtype: got torch.int8, expected a float8 in layout {}"),
        ({"k_scale": torch.ones(1)}, "k_scale: got a tensor, expected None in layout {}: its rows hold"),
        ({"head_size_v": None}, "head_size_v: got None, expected the width of V in layout {}, at most head_size"),
    ],
)
def test_layers_with_scales_in_their_slots_that_contradict_themselves(layout, changes, message):
    with pytest.raises(ContractError) as caught:
        replace(scaled_layer(layout), **changes)
    assert str(caught.value).startswith(message.format(layout))


CONFIG = AttentionConfig(num_heads=16, num_kv_heads=1, head_size=576, dtype=torch.bfloat16, block_size=64)
MLA = CONFIG.with_rules(head_size_v=512)
INLINE = {"kv_cache_dtype": FP8, "scales": "inline"}
ALL = Capabilities(
    backend="ALL",
    available=YES,
    architectures=ANY,
    attn_types=dict.fromkeys(AttentionType, YES),
    dtypes=ANY,
    head_sizes=ANY,
    group_sizes=ANY,
    block_sizes=ANY,
    layouts=Only(tuple(Layout), "there are no others"),
    kv_cache_dtypes=ANY,
    scales=ANY,
    output_dtypes=ANY,
    rules=dict.fromkeys(RULES, YES),
)


def refused(capabilities: Capabilities, config: AttentionConfig) -> list[str]:
    return [str(refusal) for refusal in capabilities.refusals(config)]


def test_a_config_holds_what_its_layer_says():
    made = AttentionConfig.of(layer(**LATENT), torch.float16, block_size=16)
    assert (made.layout, made.value_size, made.has_latent_cache, made.rules) == (Layout.LATENT, 6, True, {"head_size_v": 6})
    dense = AttentionConfig.of(layer(**ENCODER, head_size_v=24), torch.float16, block_size=None)
    assert (dense.value_size, dense.has_latent_cache) == (24, False)
    assert (CONFIG.value_size, CONFIG.has_latent_cache, MLA.has_latent_cache) == (576, False, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_heads": 2, "layout": Layout.LATENT}, "num_kv_heads: got 2, expected 1: a latent cache has one KV head"),
        ({"head_size": 500, "layout": Layout.LATENT}, "head_size_v: got 512, expected at most head_size (500)"),
        (
            {"num_kv_heads": 2} | INLINE,
            "scales: got inline, expected tensor, head or token: rows of K and V of two widths hold no scales",
        ),
        (
            {"layout": Layout.CONTENT_PACKED_SCALED} | INLINE,
            "head_size_v: got 512, expected None: layout CONTENT_PACKED_SCALED holds K and V of one width",
        ),
        (
            {"layout": Layout.KV_FIRST_NHD},
            "head_size_v: got 512, expected None: layout KV_FIRST_NHD holds K and V of one width",
        ),
        ({"layout": Layout.LATENT, "rules": {}}, "head_size_v: got None, expected the width of V in layout LATENT"),
        ({"kv_cache_dtype": FP8, "scales": "token"}, "scales: got token, expected None, tensor or inline: a latent cache"),
        (
            {"dtype": torch.float16} | INLINE,
            "dtype: got torch.float16, expected torch.bfloat16: latent rows with scales are for no other dtype",
        ),
        ({"kv_cache_dtype": torch.int8, "scales": "inline"}, "kv_cache_dtype: got torch.int8, expected a float8: latent rows"),
        ({"rules": {"head_size_v": 320}} | INLINE, "head_size_v: got 320, expected a multiple of 128 in layout LATENT_SCALED"),
        (
            {"layout": Layout.LATENT_E8M0} | INLINE,
            "head_size_v: got 512, expected head_size (576) in layout LATENT_E8M0: all of K is V",
        ),
        (
            {"layout": Layout.LATENT_E8M0_PLANES, "head_size": 96, "rules": {"head_size_v": 96}} | INLINE,
            "head_size: got 96, expected a multiple of 64 in layout LATENT_E8M0_PLANES",
        ),
        ({"layout": Layout.LATENT} | INLINE, "layout: got LATENT, expected one for scales inline: only CONTENT_PACKED_SCALED"),
        (
            {"layout": Layout.LATENT_SCALED},
            "layout: got LATENT_SCALED, expected one for scales None: only CONTENT_PACKED_SCALED",
        ),
        ({"rules": MLA.rules | {"rope": True}}, "rope: got True, expected False with a latent cache: write_latent_cache takes"),
        (
            {"attn_type": AttentionType.ENCODER_DECODER, "layout": Layout.LATENT},
            "layout: got LATENT, expected another one for ENCODER_DECODER: no encoder's keys are latent",
        ),
    ],
)
def test_configs_that_contradict_themselves(changes, message):
    with pytest.raises(ContractError) as caught:
        replace(MLA, **changes)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_kv_heads": 2},
        {"head_size": 500},
        {"layout": Layout.CONTENT_PACKED},
        {"num_kv_heads": 2, "rules": {"head_size_v": 600}},
    ],
)
def test_a_config_of_two_widths(changes):
    """V that is apart from K: by the layout's name, and where no latent cache can hold it."""
    made = replace(MLA, **changes)
    assert (made.has_two_widths, made.has_latent_cache, made.asks("head_size_v")) == (True, False, True)
    assert not MLA.has_two_widths
    rows = Only((Layout.LATENT, Layout.BLOCKS_FIRST_NHD), "it reads rows")
    reason = "not supported: it reads rows (it takes LATENT, BLOCKS_FIRST_NHD)"
    of_layout = [f"layout CONTENT_PACKED {reason}"] if made.layout else []
    assert refused(replace(ALL, layouts=rows), made) == [
        *of_layout,
        f"K and V of two widths in a cache (layout CONTENT_PACKED) {reason}",
    ]
    assert refused(ALL, made) == []
    packed = replace(ALL, layouts=Only((Layout.CONTENT_PACKED,), "it reads rows"))
    assert refused(packed, made) == []
    assert len(refused(packed, MLA)) == 1, "a latent cache"


def test_a_config_drops_a_width_that_says_nothing():
    packed = replace(CONFIG, num_kv_heads=2, rules={"head_size_v": 576})
    assert (packed.rules, packed.has_two_widths) == ({}, False)
    encoder = replace(CONFIG, attn_type=AttentionType.ENCODER, block_size=None)
    assert encoder.with_rules(head_size_v=576).rules == {}
    assert CONFIG.with_rules(head_size_v=576).rules == {"head_size_v": 576}, "a decoder's cache is latent then"


def test_a_declaration_without_the_layout_refuses_a_latent_cache():
    """Also where the backend is to choose the layout; who serves V of another width may have no latent cache."""
    rows = replace(ALL, layouts=Only((Layout.BLOCKS_FIRST_NHD,), "it reads rows"))
    assert refused(rows, MLA) == [
        f"a latent cache (layout {A_LATENT_LAYOUT}) not supported: it reads rows (it takes BLOCKS_FIRST_NHD)"
    ]
    assert refused(ALL, MLA) == refused(rows, CONFIG) == []
    encoder = replace(MLA, attn_type=AttentionType.ENCODER, block_size=None)
    assert refused(rows, encoder) == []


def test_a_declaration_of_the_other_latent_layout_refuses_rows_with_scales():
    plain = replace(ALL, layouts=Only((Layout.LATENT,), "its cache is plain"))
    rows = replace(MLA, **INLINE, layout=Layout.LATENT_SCALED)
    assert refused(plain, rows) == ["layout LATENT_SCALED not supported: its cache is plain (it takes LATENT)"]
    assert refused(ALL, rows) == refused(ALL, replace(MLA, **INLINE)) == []
    all_of_k = replace(MLA, **INLINE, head_size=96, rules={"head_size_v": 96}, layout=Layout.LATENT_E8M0)
    assert refused(plain, all_of_k) == ["layout LATENT_E8M0 not supported: its cache is plain (it takes LATENT)"]
    assert refused(ALL, all_of_k) == refused(ALL, replace(all_of_k, layout=None)) == []
    planes = replace(MLA, **INLINE, head_size=512, layout=Layout.LATENT_E8M0_PLANES)
    assert refused(plain, planes) == ["layout LATENT_E8M0_PLANES not supported: its cache is plain (it takes LATENT)"]
    assert refused(ALL, planes) == refused(ALL, replace(planes, layout=None)) == []


def test_a_declaration_that_is_silent_refuses_a_width_of_v():
    silent = replace(ALL, rules={name: YES for name in RULES if name != "head_size_v"})
    assert refused(silent, MLA) == ["head_size_v (a width of V of its own) not supported: it is not declared"]


# --- calls ---


def latent_step() -> dict[str, Any]:
    """Two requests of 2 queries and 1; rows of 8, V of 6, blocks of 4 slots."""
    batch = Batch(
        query_start_loc=torch.tensor([0, 2, 3], dtype=torch.int32),
        seq_lens=torch.tensor([5, 4], dtype=torch.int32),
        max_query_len=2,
        max_seq_len=5,
        num_actual_tokens=3,
        causal=True,
        block_table=torch.tensor([[2, 0], [1, -1]], dtype=torch.int32),
    )
    tensors = {"q": torch.zeros(3, 4, 8), "kv_cache": torch.zeros(3, 4, 8), "out": torch.full((3, 4, 6), torch.nan)}
    return tensors | {"layer": layer(**LATENT), "batch": batch, "lse": torch.full((4, 3), torch.nan)}


def dense_step() -> dict[str, Any]:
    """Two requests of 2 tokens and 1; k is 8 wide and v 3."""
    paged = latent_step()
    batch = replace(paged["batch"], seq_lens=torch.tensor([2, 1], dtype=torch.int32), causal=False, block_table=None)
    tensors = {"q": paged["q"], "k": torch.zeros(3, 2, 8), "v": torch.zeros(3, 2, 3), "out": torch.full((3, 4, 3), torch.nan)}
    return tensors | {"layer": layer(**ENCODER, head_size_v=3), "batch": batch, "lse": paged["lse"]}


def latent_write() -> dict[str, Any]:
    """Two rows for three of the six slots that there are rows for."""
    rows = torch.ones(3, 20)
    tensors = {"kv_c": rows[:, 1:7], "k_pe": rows[:, 9:11], "kv_cache": torch.zeros(3, 4, 8)}
    return tensors | {"layer": layer(**LATENT), "slot_mapping": torch.tensor([11, -1])}


def scaled_layer(layout: Layout) -> Layer:
    return layer(num_kv_heads=1, layout=layout, kv_cache_dtype=FP8, **latent_sizes(layout))


def scaled_cache(layout: Layout, **changes: int) -> torch.Tensor:
    """3 blocks of 4 slots; the stride of blocks may be another one."""
    sizes = {"num_blocks": 3, "block_size": 4, "num_kv_heads": 1, "itemsize": 1, **latent_sizes(layout)}
    view = replace(KVCacheView.dense(layout, **sizes), **changes)
    return view.tensor(torch.zeros(view.end, dtype=torch.uint8)).view(FP8)


def scaled_step(layout: Layout) -> dict[str, Any]:
    """`latent_step` in bfloat16."""
    sizes = latent_sizes(layout)
    tensors = {"q": torch.zeros(3, 4, sizes["head_size"]), "out": torch.full((3, 4, sizes["head_size_v"]), torch.nan)}
    tensors = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    return latent_step() | tensors | {"kv_cache": scaled_cache(layout), "layer": scaled_layer(layout)}


def scaled_write(layout: Layout) -> dict[str, Any]:
    sizes = latent_sizes(layout)
    kv_c, k_pe = torch.ones(3, sizes["head_size"] + 2).bfloat16()[:, 2:].tensor_split([sizes["head_size_v"]], dim=1)
    tensors = {"kv_c": kv_c, "k_pe": k_pe, "kv_cache": scaled_cache(layout)}
    return latent_write() | tensors | {"layer": scaled_layer(layout)}


@pytest.mark.parametrize("layout", LATENT_FORMATS)
@pytest.mark.parametrize("package", [validation, attn_reference], ids=["the check", "the reference"])
def test_calls_over_slots_with_scales(layout, package):
    prefix, values = ("check_", {"values": True}) if package is validation else ("", {})
    getattr(package, f"{prefix}paged_attention")(**scaled_step(layout), **values)
    getattr(package, f"{prefix}write_latent_cache")(**scaled_write(layout), **values)


def _scaled_calls() -> Iterator[tuple[str, dict[str, Any], str]]:
    for layout, form in LATENT_FORMATS.items():
        step, write, sizes = scaled_step(layout), scaled_write(layout), latent_sizes(layout)
        halves = {name: step[name].half() for name in ("q", "out")}
        yield "paged_attention", step | halves, f"q: got torch.float16, expected torch.bfloat16: the only dtype beside {layout}"
        floats = {name: write[name].float() for name in ("kv_c", "k_pe")}
        only = f"expected torch.bfloat16: the only dtype beside {layout}"
        yield "write_latent_cache", write | floats, f"kv_c: got torch.float32, {only}"
        wide = {"k_pe": torch.ones(3, 7).bfloat16()}
        rest = sizes["head_size"] - sizes["head_size_v"]
        yield "write_latent_cache", write | wide, f"k_pe: got shape (3, 7), expected shape (3, {rest})"
        floats = {"kv_cache": torch.zeros(write["kv_cache"].shape).bfloat16()}
        yield "write_latent_cache", write | floats, "kv_cache: got torch.bfloat16, expected torch.float8_e4m3fn"
        if form.scales_apart:
            data_size = form.data_size(**sizes)
            moved = {"kv_cache": scaled_cache(layout, block_stride=7 * data_size - form.unit)}
            yield (
                "paged_attention",
                step | moved,
                f"kv_cache: got strides ({7 * data_size - form.unit}, 1) from 0, expected blocks",
            )
        else:
            narrow = {"kv_cache": step["kv_cache"][..., :-1].contiguous()}
            row = form.row_size(**sizes)
            yield (
                "paged_attention",
                step | narrow,
                f"kv_cache: got shape (3, 4, {row - 1}), expected {row} (row) in dimension 2",
            )


SCALED_CALLS = list(_scaled_calls())


@pytest.mark.parametrize(("operation", "arguments", "message"), SCALED_CALLS, ids=[message for *_, message in SCALED_CALLS])
@pytest.mark.parametrize("package", [validation, attn_reference], ids=["the check", "the reference"])
def test_calls_over_slots_with_scales_that_contradict_themselves(operation, arguments, message, package):
    checks = package is validation
    with pytest.raises(ContractError) as caught:
        getattr(package, f"check_{operation}" if checks else operation)(**arguments, **({"values": True} if checks else {}))
    assert str(caught.value).startswith(message)


VALID = {"paged_attention": latent_step, "varlen_attention": dense_step, "write_latent_cache": latent_write}
REFUSED = [
    ("paged_attention", {"out": torch.zeros(3, 4, 8)}, "out: got shape (3, 4, 8), expected shape (3, 4, 6) or (3, 24)"),
    ("paged_attention", {"kv_cache": torch.zeros(3, 4, 6)}, "kv_cache: got shape (3, 4, 6), expected 8 (dim) in dimension 2"),
    ("paged_attention", {"kv_cache": torch.zeros(3, 4, 1, 8)}, "kv_cache: got shape (3, 4, 1, 8), expected 3 dimensions"),
    ("paged_attention", {"q": torch.zeros(3, 4, 6)}, "q: got shape (3, 4, 6), expected shape (T, 4, 8)"),
    ("varlen_attention", {"out": torch.zeros(3, 4, 8)}, "out: got shape (3, 4, 8), expected shape (3, 4, 3) or (3, 12)"),
    ("varlen_attention", {"v": torch.zeros(3, 2, 8)}, "v: got shape (3, 2, 8), expected shape (3, 2, 3), as k and head_size_v"),
    ("varlen_attention", {"layer": layer(**ENCODER)}, "out: got shape (3, 4, 3), expected shape (3, 4, 8) or (3, 32)"),
    (
        "varlen_attention",
        {"layer": layer(**ENCODER), "out": torch.zeros(3, 4, 8)},
        "v: got shape (3, 2, 3), expected shape (3, 2, 8), as k has",
    ),
    (
        "write_latent_cache",
        {"layer": layer()},
        f"layer.layout: got BLOCKS_FIRST_NHD, expected {A_LATENT_LAYOUT}",
    ),
    (
        "write_latent_cache",
        {"layer": layer(**ENCODER)},
        f"layer.layout: got None, expected {A_LATENT_LAYOUT}",
    ),
    ("write_latent_cache", {"layer": None}, "layer: got None, expected a Layer"),
    ("write_latent_cache", {"kv_c": torch.ones(3, 8)}, "kv_c: got shape (3, 8), expected shape (T_kv, 6)"),
    ("write_latent_cache", {"kv_c": torch.ones(3, 1, 6)}, "kv_c: got shape (3, 1, 6), expected shape (T_kv, 6)"),
    ("write_latent_cache", {"kv_c": torch.ones(3, 6).double()}, "kv_c: got torch.float64, expected float32, float16 or"),
    ("write_latent_cache", {"kv_c": torch.ones(3, 12)[:, ::2]}, "kv_c: got stride 2 in the last dimension, expected 1"),
    ("write_latent_cache", {"k_pe": torch.ones(3, 1)}, "k_pe: got shape (3, 1), expected shape (3, 2)"),
    ("write_latent_cache", {"k_pe": torch.ones(2, 2)}, "k_pe: got shape (2, 2), expected shape (3, 2)"),
    ("write_latent_cache", {"k_pe": torch.ones(3, 2).half()}, "k_pe: got torch.float16, expected torch.float32, as kv_c has"),
    ("write_latent_cache", {"kv_cache": torch.zeros(3, 4, 8).half()}, "kv_cache: got torch.float16, expected torch.float32"),
    ("write_latent_cache", {"kv_cache": torch.zeros(3, 2, 4, 1, 8)}, "kv_cache: got shape (3, 2, 4, 1, 8), expected 3 dimen"),
    ("write_latent_cache", {"slot_mapping": torch.zeros(4).long()}, "slot_mapping: got 4 slots, expected at most the 3 rows"),
    ("write_latent_cache", {"slot_mapping": torch.zeros(2).int()}, "slot_mapping: got torch.int32, expected torch.int64"),
    ("write_latent_cache", {"slot_mapping": torch.tensor([12])}, "slot_mapping[0]: got 12, expected -1 (write nothing) or a"),
    ("write_latent_cache", {"slot_mapping": torch.tensor([3, 3])}, "slot_mapping: got slot 3 twice, expected every slot at"),
    (
        "write_latent_cache",
        {"layer": layer(**LATENT, kv_cache_dtype=FP8, k_scale=torch.zeros(1)), "kv_cache": torch.zeros(3, 4, 8).to(FP8)},
        "k_scale[0]: got 0.0, expected a finite number of at least 2^-126",
    ),
]


@pytest.mark.parametrize("package", [validation, attn_reference], ids=["the check", "the reference"])
@pytest.mark.parametrize(("operation", "changes", "message"), REFUSED, ids=[message for _, _, message in REFUSED])
def test_calls_that_contradict_themselves(operation, changes, message, package):
    arguments = VALID[operation]() | changes
    before = {name: value.clone() for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    checks = package is validation
    function = getattr(package, f"check_{operation}" if checks else operation)
    with pytest.raises(ContractError) as caught:
        function(**arguments, **({"values": True} if checks else {}))
    assert str(caught.value).startswith(message)
    for name, tensor in before.items():
        torch.testing.assert_close(arguments[name], tensor, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("operation", "arguments"), VALID.items())
def test_calls_that_are_right(operation, arguments):
    arguments = arguments()
    getattr(validation, f"check_{operation}")(**arguments, values=True)
    getattr(attn_reference, operation)(**arguments)


@pytest.mark.parametrize("operation", ["write_kv_cache", "rope_and_write_kv_cache"])
def test_writes_of_two_parts_refuse_a_latent_cache(operation):
    rows = {"k": torch.ones(3, 1, 8), "v": torch.ones(3, 1, 6), "slot_mapping": torch.tensor([11])}
    angles = {"q": torch.ones(3, 4, 8), "positions": torch.tensor([0]), "cos_sin_cache": torch.ones(1, 2), "is_neox": True}
    arguments = {"layer": layer(**LATENT), "kv_cache": torch.zeros(3, 4, 8)} | rows | (angles if "rope" in operation else {})
    with pytest.raises(ContractError, match=r"^layer.layout: got LATENT, expected a layout of K and V apart; use write_latent"):
        getattr(attn_reference, operation)(**arguments)
    assert not arguments["kv_cache"].any()


def test_own_tokens_have_the_widths_of_the_layer():
    step = latent_step()
    k = torch.zeros(3, 1, 8)
    validation.check_own_tokens(k, k[..., :6], step["q"], step["layer"], step["batch"], None)
    with pytest.raises(ContractError, match=r"^v: got shape \(3, 1, 8\), expected shape \(3, 1, 6\)"):
        validation.check_own_tokens(k, k, step["q"], step["layer"], step["batch"], None)


# --- ops ---


def test_the_op_writes_what_the_function_writes(monkeypatch):
    """Its layer is what the tensors say: one KV head, and the two widths."""
    got = {}
    monkeypatch.setattr(attn_reference, "write_latent_cache", lambda *arguments: got.update(enumerate(arguments)))
    scale, arguments = torch.ones(1), latent_write()
    cache = arguments["kv_cache"].to(FP8)
    ops.write_latent_cache(arguments["kv_c"], arguments["k_pe"], cache, arguments["slot_mapping"], k_scale=scale)
    made = got[3]
    assert (made.num_kv_heads, made.head_size, made.head_size_v, made.layout) == (1, 8, 6, Layout.LATENT)
    assert (made.kv_cache_dtype, made.tensors) == (FP8, {"k_scale": scale})
    rows = {name: tensor for name, tensor in scaled_write(Layout.LATENT_SCALED).items() if name != "layer"}
    ops.write_latent_cache(**rows, layout="LATENT_SCALED")
    assert (got[3].layout, got[3].head_size_v, got[3].kv_cache_dtype) == (Layout.LATENT_SCALED, 128, FP8)


@pytest.mark.parametrize("v_size", [3, 8, 12])
def test_the_op_of_a_write_takes_the_width_of_v_from_v(v_size):
    """In CONTENT_PACKED, whose rows can be of two widths. In other layouts v is as wide as k."""
    k, v, slots = torch.ones(2, 2, 8), torch.full((2, 2, v_size), 2.0), torch.tensor([5, -1])
    cache = torch.zeros(2, 2, 4, 8 + v_size)
    ops.write_kv_cache(k, v, cache, "CONTENT_PACKED", slots)
    assert cache[1, :, 1].tolist() == [[1.0] * 8 + [2.0] * v_size] * 2
    assert cache.sum() == 2 * (8 + 2 * v_size)
    if v_size != 8:
        with pytest.raises(ContractError, match=r"^v: got shape \(2, 2, \d+\), expected shape \(2, 2, 8\), as k has"):
            ops.write_kv_cache(k, v, torch.zeros(2, 2, 2, 4, 8), "BLOCKS_FIRST_HND", slots)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_c": torch.ones(3, 1, 6)}, "kv_c: got shape (3, 1, 6), expected 2 dimensions: T_kv, head_size_v"),
        ({"k_pe": torch.ones(3)}, "k_pe: got shape (3,), expected 2 dimensions: T_kv, head_size - head_size_v"),
        ({"kv_c": torch.ones(3, 0)}, "head_size_v: got 0, expected an int, at least 1"),
        ({"k_scale": torch.ones(1)}, "kv_cache_dtype: got None, expected a quantized dtype, since there are scales: k_scale"),
        ({"kv_cache": torch.zeros(3, 4, 8).char()}, "kv_cache_dtype: got torch.int8, expected a float8 in layout LATENT"),
    ],
)
def test_the_op_refuses(changes, message):
    arguments = latent_write() | changes
    del arguments["layer"]
    with pytest.raises(ContractError) as caught:
        ops.write_latent_cache(**arguments)
    assert str(caught.value).startswith(message)


def test_ops_of_attention_take_the_width_of_v_by_name():
    """It is passed, as a layout is, and never guessed from v."""
    step = dense_step()
    batch, names = step["batch"], ("query_start_loc", "seq_lens", "max_query_len", "max_seq_len", "num_actual_tokens")
    arguments = {name: step[name] for name in ("q", "k", "v", "out", "lse")} | {name: getattr(batch, name) for name in names}
    ops.varlen_attention(**arguments, scale=0.5, attn_type="encoder", head_size_v=3)
    assert not step["out"].any()
    with pytest.raises(ContractError, match=r"^out: got shape \(3, 4, 3\), expected shape \(3, 4, 8\)"):
        ops.varlen_attention(**arguments, scale=0.5, attn_type="encoder")
