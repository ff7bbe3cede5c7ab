"""A declaration answers everything, and its refusals are all there are; what a config cannot be."""

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
from attn_contract.rules import words_of

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
    values = {"window": (3, 0), "sink_tokens": 2, "chunked_local": 8, "logits_soft_cap": 30.0, "head_size_v": 32}
    needed = {"per_request_causal": {"non_causal": True}}
    config = replace(CONFIG, num_kv_heads=1) if name == "head_size_v" else CONFIG
    return config.with_rules(**{name: values.get(name, True)}, **needed.get(name, {}))


def answering(**answers: Any) -> Capabilities:
    """A declaration that serves everything, but for some answers about rules."""
    return replace(ALL, rules={**ALL.rules, **answers})


def words(capabilities: Capabilities, config: AttentionConfig, architecture: str | None = None) -> list[str]:
    return [str(refusal) for refusal in capabilities.refusals(config, architecture)]


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_refused_with_its_reason_exactly_where_it_is_asked_for(name):
    without = answering(**{name: No("too hard")})
    assert words(without, asking_for(name)) == [f"{words_of(name)} not supported: too hard"]
    assert words(without, CONFIG) == []
    assert words(ALL, asking_for(name)) == []


@pytest.mark.parametrize("name", RULES)
def test_a_rule_that_is_not_named_is_refused(name):
    silent = replace(ALL, rules={other: YES for other in RULES if other != name})
    assert words(silent, asking_for(name)) == [f"{words_of(name)} not supported: it is not declared"]
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
]


@pytest.mark.parametrize(("field", "values", "config", "refused"), OUTSIDE, ids=[refused for *_, refused in OUTSIDE])
def test_a_value_outside_a_set_is_refused_with_the_set(field, values, config, refused):
    assert words(replace(ALL, **{field: values}), config) == [refused]
    assert words(ALL, config) == []


def test_what_a_config_leaves_open_is_not_refused():
    nothing = Only((), "nothing at all")
    assert words(replace(ALL, layouts=nothing, kv_cache_dtypes=nothing, scales=nothing, output_dtypes=nothing), CONFIG) == []
    assert words(replace(ALL, block_sizes=nothing), ENCODER) == []


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
@pytest.mark.parametrize(("field", "name"), [("available", "available"), ("rules", "sinks")])
def test_an_answer_is_yes_or_no_with_a_reason(field, name, answer):
    with pytest.raises(ContractError, match="YES, or No with a reason") as refused:
        replace(ALL, **{field: {"sinks": answer} if field == "rules" else answer})
    assert refused.value.argument == name


def test_no_is_false():
    assert not No("because")
    assert No("because") == "because"


# configs


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"num_heads": 0}, "num_heads"),
        ({"num_heads": 3}, "num_heads"),
        ({"head_size": True}, "head_size"),
        ({"attn_type": "decoder"}, "attn_type"),
        ({"dtype": torch.int8}, "dtype"),
        ({"dtype": "float16"}, "dtype"),
        ({"kv_cache_dtype": torch.float16, "scales": "tensor"}, "kv_cache_dtype"),
        ({"kv_cache_dtype": torch.int8}, "scales"),
        ({"scales": "tensor"}, "scales"),
        ({"kv_cache_dtype": torch.int8, "scales": "tensor"}, "scales"),
        ({"output_dtype": torch.float16}, "output_dtype"),
        ({"block_size": None}, "block_size"),
        ({"block_size": 0}, "block_size"),
        ({"attn_type": AttentionType.ENCODER}, "block_size"),
        ({"attn_type": AttentionType.ENCODER, "block_size": None, "layout": Layout.KV_FIRST_NHD}, "layout"),
        ({"attn_type": AttentionType.ENCODER, "block_size": None, "rules": {"kv_sharing": True}}, "kv_sharing"),
        ({"attn_type": AttentionType.ENCODER, "block_size": None, "rules": {"per_request_causal": True}}, "per_request_causal"),
        ({"attn_type": AttentionType.ENCODER, "block_size": None, "rules": {"rope": True}}, "rope"),
        ({"attn_type": AttentionType.ENCODER_DECODER, "rules": {"rope": True}}, "rope"),
        ({"rules": {"rope": True, "kv_sharing": True}}, "rope"),
        ({"layout": "X_PACKED"}, "layout"),
        ({"layout": 5}, "layout"),
        ({"rules": {"per_request_causal": torch.tensor([True, False])}}, "per_request_causal"),
        ({"layout": Layout.CONTENT_PACKED_SCALED}, "layout"),
        ({"head_size": 6, "kv_cache_dtype": torch.int8, "scales": "inline"}, "head_size"),
        ({"layout": Layout.X_PACKED, "kv_cache_dtype": torch.int8, "scales": "inline"}, "layout"),
        ({"attn_type": AttentionType.ENCODER_DECODER, "rules": {"non_causal": True}}, "non_causal"),
        ({"rules": {"per_request_causal": True}}, "per_request_causal"),
        ({"rules": {"sinks": torch.zeros(8)}}, "sinks"),
        ({"rules": {"alibi_slopes": 1}}, "alibi_slopes"),
        ({"rules": {"window": 128}}, "window"),
        ({"rules": {"window": (1, 2, 3)}}, "window"),
        ({"rules": {"window": (-2, 0)}}, "window[0]"),
        ({"rules": {"sink_tokens": -1}}, "sink_tokens"),
        ({"rules": {"chunked_local": 0}}, "chunked_local"),
        (
            {"attn_type": AttentionType.ENCODER, "block_size": None, "rules": {"bidirectional_ranges": True}},
            "bidirectional_ranges",
        ),
        ({"attn_type": AttentionType.ENCODER_DECODER, "rules": {"qq_bias": True}}, "qq_bias"),
        ({"attn_type": AttentionType.ENCODER_DECODER, "rules": {"window": (3, 3)}}, "window"),
        ({"attn_type": AttentionType.ENCODER_DECODER, "rules": {"alibi_slopes": True}}, "alibi_slopes"),
        ({"rules": {"dilation": 3}}, "rules"),
        ({"rules": ("sinks",)}, "rules"),
    ],
)
def test_a_config_that_cannot_be_is_refused(changes, argument):
    with pytest.raises(ContractError) as refused:
        replace(CONFIG, **changes)
    assert refused.value.argument == argument


NO_SOFT_CAPS = [float("nan"), float("inf"), -1, -0.5, 1e300, 10**400, 1e-40, "30", [30.0], True, torch.tensor(30.0)]


@pytest.mark.parametrize("cap", NO_SOFT_CAPS, ids=str)
def test_a_soft_cap_is_checked_as_a_layer_checks_it(cap):
    shape: dict[str, Any] = {"num_heads": 8, "num_kv_heads": 2, "head_size": 64, "layout": Layout.KV_FIRST_NHD}
    for make in (lambda: CONFIG.with_rules(logits_soft_cap=cap), lambda: Layer(**shape, scale=0.125, logits_soft_cap=cap)):
        with pytest.raises(ContractError) as refused:
            make()
        assert refused.value.argument == "logits_soft_cap"


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
