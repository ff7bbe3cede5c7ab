"""A declaration answers everything, and its refusals are all there are; what a config cannot be; V of another width than K."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from attn_contract import (
    ANY,
    RULES,
    YES,
    AttentionConfig,
    AttentionType,
    Capabilities,
    Combination,
    ContractError,
    Layer,
    Layout,
    Multiples,
    No,
    Only,
)
from attn_contract.layouts import A_LATENT_LAYOUT, LATENT_FORMATS
from attn_contract.rules import label_of

from tests.support import refusals
from tests.support.latent_formats import latent_sizes

CONFIG = AttentionConfig(num_heads=8, num_kv_heads=2, head_size=64, dtype=torch.float16, block_size=16)
ENCODER = replace(CONFIG, attn_type=AttentionType.ENCODER, block_size=None)
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


def asking_for(name: str) -> AttentionConfig:
    """A config that asks for one rule."""
    values = {"window": (3, 0), "sink_tokens": 2, "chunked_local": 8, "selection_unit": 4, "key_unit": 4}
    values |= {"logits_soft_cap": 30.0, "head_size_v": 32}
    needed = {"per_request_causal": {"non_causal": True}}
    changes = {"head_size_v": {"num_kv_heads": 1}, "q_scale": {"kv_cache_dtype": E4M3FN, "scales": "tensor"}}
    config = replace(CONFIG, **changes.get(name, {}))
    return config.with_rules(**{name: values.get(name, True)}, **needed.get(name, {}))


def answering(**answers: Any) -> Capabilities:
    """A declaration that serves everything, but for some answers about rules."""
    return replace(ALL, rules={**ALL.rules, **answers})


def words(capabilities: Capabilities, config: AttentionConfig, architecture: str | None = None) -> list[str]:
    return [str(refusal) for refusal in capabilities.refusals(config, architecture)]


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_refused_with_its_reason_exactly_where_it_is_asked_for(name):
    without = answering(**{name: No("too hard")})
    assert words(without, asking_for(name)) == [f"{label_of(name)} not supported: too hard"]
    assert words(without, CONFIG) == []
    assert words(ALL, asking_for(name)) == []


@pytest.mark.parametrize("name", RULES)
def test_a_rule_that_is_not_named_is_refused(name):
    silent = replace(ALL, rules={other: YES for other in RULES if other != name})
    assert words(silent, asking_for(name)) == [f"{label_of(name)} not supported: it is not declared"]
    assert words(silent, CONFIG) == []


@pytest.mark.parametrize(("layout", "refused"), [(Layout.X_PACKED, True), (Layout.KV_FIRST_NHD, False)])
def test_a_size_that_a_layout_cannot_hold_is_refused_whatever_is_declared(layout, refused):
    said = words(ALL, replace(CONFIG, head_size=12, layout=layout))
    expected = "head size 12 in layout X_PACKED not supported: it must be a multiple of 8 (16 bytes) in layout X_PACKED"
    assert said == ([expected] if refused else [])


@pytest.mark.parametrize("attn_type", AttentionType)
def test_an_attention_type_is_refused_with_its_reason(attn_type):
    config = replace(CONFIG if attn_type.reads_cache else ENCODER, attn_type=attn_type)
    without = replace(ALL, attn_types={**ALL.attn_types, attn_type: No("not mine")})
    (refused,) = words(without, config)
    assert f"({attn_type.name}) not supported: not mine" in refused
    assert words(ALL, config) == []


E4M3FN = torch.float8_e4m3fn
INT8 = replace(CONFIG, kv_cache_dtype=torch.int8, scales="token")
NHD = replace(CONFIG, layout=Layout.KV_FIRST_NHD)
FLOAT8_OUT = replace(CONFIG, output_dtype=E4M3FN)
SELECTING = replace(CONFIG.with_rules(selection_unit=1), top_k=131)
OUTSIDE = [
    ("dtypes", Only((torch.float32,), "slow"), CONFIG, "dtype float16 not supported: slow (it takes float32)"),
    ("head_sizes", Multiples(48, "odd"), CONFIG, "head size 64 not supported: odd (it takes multiples of 48)"),
    ("head_sizes", Multiples(1, "small", at_most=32), CONFIG, "head size 64 not supported: small (it takes up to 32)"),
    ("group_sizes", Only((1,), "MHA"), CONFIG, "query heads for each KV head: 4 not supported: MHA (it takes 1)"),
    ("block_sizes", Only((32, 64), "pages"), CONFIG, "block size 16 not supported: pages (it takes 32, 64)"),
    ("layouts", Only((Layout.X_PACKED,), "packed"), NHD, "layout KV_FIRST_NHD not supported: packed (it takes X_PACKED)"),
    (
        "kv_cache_dtypes",
        Only((torch.float8_e4m3fn,), "x"),
        INT8,
        "KV cache dtype int8 not supported: x (it takes float8_e4m3fn)",
    ),
    ("scales", Only(("tensor",), "x"), INT8, "scales of a quantized cache: token not supported: x (it takes tensor)"),
    ("output_dtypes", Only((), "x"), FLOAT8_OUT, "output dtype float8_e4m3fn not supported: x (it takes none)"),
    ("top_ks", Multiples(128, "x"), SELECTING, "top_k 131 not supported: x (it takes multiples of 128)"),
]


@pytest.mark.parametrize(("field", "values", "config", "refused"), OUTSIDE, ids=[refused for *_, refused in OUTSIDE])
def test_a_value_outside_a_set_is_refused_with_the_set(field, values, config, refused):
    assert words(replace(ALL, **{field: values}), config) == [refused]
    assert words(ALL, config) == []


def test_a_property_that_a_config_leaves_open_is_not_refused():
    nothing = Only((), "nothing at all")
    assert words(replace(ALL, layouts=nothing, kv_cache_dtypes=nothing, scales=nothing, output_dtypes=nothing), CONFIG) == []
    assert words(replace(ALL, block_sizes=nothing), ENCODER) == []
    assert words(replace(ALL, top_ks=nothing), replace(SELECTING, top_k=None)) == []


@pytest.mark.parametrize(
    ("architecture", "refused"),
    [
        (None, []),
        ("gfx942", []),
        ("gfx950", []),
        ("sm90", ["architecture sm90 not supported: AMD's (gfx94, gfx95)"]),
        ("gfx90a", ["architecture gfx90a not supported: AMD's (gfx94, gfx95)"]),
    ],
)
def test_architectures_are_prefixes(architecture, refused):
    assert words(replace(ALL, architectures=Only(("gfx94", "gfx95"), "AMD's")), CONFIG, architecture) == refused


def test_nothing_else_is_said_of_a_backend_on_an_architecture_that_it_does_not_run_on():
    nowhere = replace(ALL, available=No("not here"), architectures=Only(("gfx94",), "AMD's"), dtypes=Only((), "none"))
    assert words(nowhere, CONFIG, "sm90") == ["architecture sm90 not supported: AMD's (gfx94)"]


def test_all_refusals_are_given_and_not_the_first():
    poor = replace(
        ALL,
        available=No("not here"),
        dtypes=Only((torch.float32,), "slow"),
        rules={**ALL.rules, "sinks": No("lost"), "lse": No("kept secret")},
        combinations=(
            Combination(property="sinks with GQA", applies=lambda config, _: config.group_size > 1, reason="untested"),
        ),
    )
    assert [refusal.property for refusal in poor.refusals(CONFIG.with_rules(sinks=True, lse=True), "sm90")] == [
        "any layer",
        "dtype float16",
        "sinks",
        "the LSE",
        "sinks with GQA",
    ]


def test_a_combination_may_depend_on_the_architecture():
    def is_wrong(config: AttentionConfig, architecture: str | None) -> bool:
        return config.asks("sinks") and architecture == "gfx950"

    some = replace(ALL, combinations=(Combination(property="sinks", applies=is_wrong, reason="untested there"),))
    asks = CONFIG.with_rules(sinks=True)
    assert words(some, asks, "gfx950") == ["sinks not supported: untested there"]
    assert words(some, asks, "gfx942") == words(some, asks) == words(some, CONFIG, "gfx950") == []


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"dtypes": [torch.float16]}, "dtypes"),
        ({"architectures": "gfx942"}, "architectures"),
        ({"layouts": ANY}, "layouts"),
        ({"layouts": tuple(Layout)}, "layouts"),
        ({"attn_types": [AttentionType.DECODER]}, "attn_types"),
        ({"rules": ("window",)}, "rules"),
        ({"rules": {"windows": YES}}, "rules"),
    ],
)
def test_a_declaration_of_another_kind_is_refused(changes, argument):
    with pytest.raises(ContractError) as refused:
        replace(ALL, **changes)
    assert refused.value.argument == argument


@pytest.mark.parametrize(("config", "architecture", "argument"), [(None, None, "config"), (CONFIG, 942, "architecture")])
def test_refusals_are_those_of_a_config_on_an_architecture(config, architecture, argument):
    with pytest.raises(ContractError) as refused:
        ALL.refusals(config, architecture)
    assert refused.value.argument == argument


def test_a_declaration_answers_about_every_type():
    with pytest.raises(ContractError, match="no answer about encoder_decoder"):
        replace(ALL, attn_types={one: YES for one in AttentionType if one is not AttentionType.ENCODER_DECODER})


@pytest.mark.parametrize("answer", [False, None, "no", No(""), 1])
@pytest.mark.parametrize("name", ["available", "sinks", "encoder"])
def test_an_answer_is_yes_or_no_with_a_reason(name, answer):
    attn_types = {**dict.fromkeys(AttentionType, YES), AttentionType.ENCODER: answer}
    wrong = {"available": {"available": answer}, "sinks": {"rules": {"sinks": answer}}, "encoder": {"attn_types": attn_types}}
    with pytest.raises(ContractError, match="YES, or No with a reason") as refused:
        replace(ALL, **wrong[name])
    assert refused.value.argument == name


def test_an_answer_is_about_a_rule():
    with pytest.raises(ContractError, match=r"^name: got 'windw', expected one of window, "):
        ALL.answer("windw")
    assert not replace(ALL, rules={}).answer("window")


def test_no_is_false():
    assert not No("because")
    assert No("because") == "because"


# configs


MLA = AttentionConfig(
    num_heads=16, num_kv_heads=1, head_size=576, dtype=torch.bfloat16, block_size=64, rules={"head_size_v": 512}
)
WIDE = MLA.with_rules(head_size_v=None)
"""Latent attention, with V as wide as K."""
INLINE = {"kv_cache_dtype": E4M3FN, "scales": "inline"}
CONFIGS = {"config": CONFIG, "encoder's config": ENCODER, "config of MLA": MLA}


@refusals.parametrize([one for one in refusals.of(__file__) if one.call in CONFIGS])
def test_a_config_that_cannot_be_is_refused(refusal):
    with pytest.raises(ContractError) as error:
        replace(CONFIGS[refusal.call], **refusal.changed({}, globals()))
    refusal.check(error.value)


@pytest.mark.parametrize("off", [0, 0.0, -0.0, None])
def test_a_soft_cap_of_0_is_none(off):
    assert CONFIG.with_rules(logits_soft_cap=off) == CONFIG
    assert words(answering(logits_soft_cap=No("uncapped")), CONFIG.with_rules(logits_soft_cap=off)) == []


SCALE = torch.ones(())


@pytest.mark.parametrize(
    ("settings", "scales"),
    [
        ({}, None),
        ({"k_scale": SCALE, "v_scale": SCALE}, "tensor"),
        ({"k_scale": torch.ones(2), "v_scale": SCALE}, "head"),
        ({"k_scale_cache": torch.ones(3, 16, 2), "v_scale_cache": torch.ones(3, 16, 2)}, "token"),
        ({"layout": Layout.CONTENT_PACKED_SCALED}, "inline"),
    ],
)
def test_a_layer_says_what_it_asks_for(settings, scales):
    layer = Layer(
        **{"layout": Layout.KV_FIRST_NHD, **settings},
        num_heads=8,
        num_kv_heads=2,
        head_size=64,
        scale=0.125,
        window=(7, 0),
        sink_tokens=1,
        logits_soft_cap=30.0,
        sinks=torch.zeros(8),
        alibi_slopes=torch.zeros(8),
        kv_cache_dtype=torch.float8_e4m3fn if scales else None,
    )
    config = AttentionConfig.of(layer, torch.float16, block_size=16, lse=True)
    assert config == replace(
        CONFIG,
        layout=layer.layout,
        kv_cache_dtype=layer.kv_cache_dtype,
        scales=scales,
        rules={
            "window": (7, 0),
            "sink_tokens": 1,
            "logits_soft_cap": 30.0,
            "sinks": True,
            "alibi_slopes": True,
            "lse": True,
        },
    )
    assert config.group_size == 4


def test_a_text_is_no_set_of_values():
    """`Only("gfx942", ...)` would take any architecture whose name begins with a g."""
    with pytest.raises(ContractError, match=r"^values: got 'gfx942', expected a tuple"):
        Only("gfx942", "no other runs it")  # pyright: ignore[reportArgumentType]


# V of another width than K, and the latent cache


def test_a_config_holds_what_its_layer_says_of_v():
    sizes = {"num_heads": 4, "num_kv_heads": 1, "head_size": 8, "scale": 0.5, "head_size_v": 6}
    made = AttentionConfig.of(Layer(**sizes, layout=Layout.LATENT), torch.float16, block_size=16)
    assert (made.layout, made.v_head_size, made.has_latent_cache, made.rules) == (Layout.LATENT, 6, True, {"head_size_v": 6})
    dense = AttentionConfig.of(Layer(**sizes, attn_type=AttentionType.ENCODER), torch.float16, block_size=None)
    assert (dense.v_head_size, dense.has_latent_cache) == (6, False)
    assert (WIDE.v_head_size, WIDE.has_latent_cache, MLA.has_latent_cache) == (576, False, True)


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
    assert words(replace(ALL, layouts=rows), made) == [
        *of_layout,
        f"K and V of two widths in a cache (layout CONTENT_PACKED) {reason}",
    ]
    assert words(ALL, made) == []
    packed = replace(ALL, layouts=Only((Layout.CONTENT_PACKED,), "it reads rows"))
    assert words(packed, made) == []
    assert len(words(packed, MLA)) == 1, "a latent cache"


def test_a_config_drops_a_width_that_says_nothing():
    packed = replace(WIDE, num_kv_heads=2, rules={"head_size_v": 576})
    assert (packed.rules, packed.has_two_widths) == ({}, False)
    encoder = replace(WIDE, attn_type=AttentionType.ENCODER, block_size=None)
    assert encoder.with_rules(head_size_v=576).rules == {}
    assert WIDE.with_rules(head_size_v=576).rules == {"head_size_v": 576}, "a decoder's cache is latent then"


def test_a_declaration_without_the_layout_refuses_a_latent_cache():
    """Also where the backend is to choose the layout; who serves V of another width may have no latent cache."""
    rows = replace(ALL, layouts=Only((Layout.BLOCKS_FIRST_NHD,), "it reads rows"))
    assert words(rows, MLA) == [
        f"a latent cache (layout {A_LATENT_LAYOUT}) not supported: it reads rows (it takes BLOCKS_FIRST_NHD)"
    ]
    assert words(ALL, MLA) == words(rows, WIDE) == []
    encoder = replace(MLA, attn_type=AttentionType.ENCODER, block_size=None)
    assert words(rows, encoder) == []


@pytest.mark.parametrize("layout", LATENT_FORMATS)
def test_a_declaration_of_the_other_latent_layout_refuses_slots_with_scales(layout):
    plain = replace(ALL, layouts=Only((Layout.LATENT,), "its cache is plain"))
    head_size, head_size_v = latent_sizes(layout).values()
    slots = replace(MLA, **INLINE, layout=layout, head_size=head_size, rules={"head_size_v": head_size_v})
    assert words(plain, slots) == [f"layout {layout} not supported: its cache is plain (it takes LATENT)"]
    assert words(ALL, slots) == words(ALL, replace(slots, layout=None)) == []
