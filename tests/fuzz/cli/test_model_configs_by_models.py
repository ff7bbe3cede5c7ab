"""What is said of a config's layers, against what a model of transformers that is built of the config does in each layer."""

import copy
import math
import sys
from typing import Any

import pytest
import torch
from attn_contract import AttentionType, ContractError, UnsupportedError
from attn_parity.model_config import MODEL_TYPES, Group, model_config
from attn_parity.model_config.meaning import Meaning

transformers = pytest.importorskip("transformers")

TOKENS = 20
LAYERS = 8
SIZES: dict[Meaning, Any] = {
    Meaning.HIDDEN_SIZE: 32,
    Meaning.NUM_LAYERS: LAYERS,
    Meaning.DECODER_LAYERS: LAYERS,
    Meaning.HEADS: 4,
    Meaning.DECODER_HEADS: 2,
    Meaning.KV_HEADS: 2,
    Meaning.HEAD_SIZE: 16,
    Meaning.VALUE_SIZE: 12,
    Meaning.WINDOW: 5,
    Meaning.USE_WINDOW: True,
    Meaning.FIRST_WINDOWED: 3,
    Meaning.CHUNK: 7,
    Meaning.SOFT_CAP: 9.0,
    Meaning.SCALE: 0.3,
    Meaning.SCALE_DIVISOR: 25,
    Meaning.DTYPE: "float32",
    Meaning.LATENT_SIZE: 24,
    Meaning.NOPE_SIZE: 12,
    Meaning.ROPE_SIZE: 8,
}
# of the expanded form, which a model of transformers computes
OF_LATENT = {"num_key_value_heads": 4, "v_head_dim": 16, "q_lora_rank": 20, "head_dim": 8, "qk_head_dim": 20}
OF_OTHER_PARTS = {
    **dict.fromkeys(
        ("vocab_size", "max_position_embeddings", "n_positions", "max_source_positions", "max_target_positions"), 64
    ),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "shared_intermediate_size", "intermediate_size_mlp"), 8),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim", "word_embed_proj_dim", "num_mel_bins"), 32),
    **dict.fromkeys(("num_local_experts", "n_routed_experts"), 2),
    **dict.fromkeys(("num_experts_per_tok", "n_group", "topk_group"), 1),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0),
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}
# these attend by code of their own, which hands nobody its arguments
OWN_CODE = {"bloom", "mpt", "falcon"}
SCALE_Q = {"opt", "whisper"}


@pytest.fixture
def calls(monkeypatch) -> list[dict[str, Any]]:
    """Registers an attention for transformers that keeps what each layer asks of it."""
    kept: list[dict[str, Any]] = []

    def attend(module, query, key, value, attention_mask, scaling=None, **options):
        kept.append({"module": module, "q": query, "k": key, "v": value, "mask": attention_mask, "scale": scaling, **options})
        return query.new_zeros(*query.shape[:3], value.shape[3]).transpose(1, 2).contiguous(), None

    transformers.AttentionInterface.register("kept", attend)
    transformers.AttentionMaskInterface.register("kept", transformers.masking_utils.eager_mask)
    return kept


def class_of(model_type: str) -> Any:
    """The config class of a type's models."""
    return transformers.CONFIG_MAPPING[MODEL_TYPES[model_type].class_of or model_type]


def tiny(model_type: str) -> dict[str, Any]:
    """A small config of a type, with a value for every field that its attention reads and its class has."""
    has = class_of(model_type)().to_dict()
    fields = {
        name: SIZES[meaning] for name, meaning in MODEL_TYPES[model_type].fields.items() if meaning in SIZES and name in has
    }
    if "head_dim" not in has and "hidden_size" in fields:
        fields["hidden_size"] = 64
    is_latent = Meaning.LATENT_SIZE in MODEL_TYPES[model_type].fields.values()
    others = {name: value for name, value in (OF_OTHER_PARTS | (OF_LATENT if is_latent else {})).items() if name in has}
    if set(has.get("rope_parameters") or {}) - {"rope_type", "rope_theta", "partial_rotary_factor"}:
        del others["rope_parameters"]  # one for each kind of layer, or one with more fields
    return copy.deepcopy({"model_type": model_type, **fields, **others})  # a config writes into the dicts that it is given


def run(config: dict[str, Any]) -> None:
    fields = {name: value for name, value in config.items() if name != "model_type"}
    built = class_of(config["model_type"])(**fields)
    model = transformers.AutoModel.from_config(built, attn_implementation="kept").eval()
    tokens = torch.arange(TOKENS)[None] % 60 + 1
    with torch.no_grad():
        if config["model_type"] == "whisper":
            model(input_features=torch.zeros(1, 32, 128), decoder_input_ids=tokens)
        elif MODEL_TYPES[config["model_type"]].kind == "encoder_decoder":
            model(input_ids=tokens[:, :12], decoder_input_ids=tokens)
        else:
            model(input_ids=tokens, use_cache=False)


def visible(group: Group, queries: int, keys: int) -> torch.Tensor:
    """[queries, keys]: which keys a query sees, by the contract's words."""
    query, key = torch.arange(queries)[:, None], torch.arange(keys)[None]
    seen = key <= query if group.attn_type is AttentionType.DECODER else torch.ones(queries, keys, dtype=torch.bool)
    if "window" in group.rules:
        left, right = group.rules["window"]
        seen = seen & (query - key <= left) & (key - query <= right)
    if "chunked_local" in group.rules:
        seen = seen & (query // group.rules["chunked_local"] == key // group.rules["chunked_local"])
    return seen


def check(group: Group, call: dict[str, Any], *, scales_q: bool) -> None:
    """Hold a group to what a layer asked for. Where the model scales q, the call has a scale of 1."""
    _, heads, queries, head_size = call["q"].shape
    keys = call["k"].shape[2]
    if (
        "head_size_v" in group.rules and group.layout is None
    ):  # the group is absorbed, with one head of keys: of the expanded heads it keeps the scale
        sizes = SIZES[Meaning.LATENT_SIZE], SIZES[Meaning.ROPE_SIZE]
        assert (group.num_kv_heads, group.head_size, group.rules["head_size_v"]) == (1, sum(sizes), sizes[0])
        assert (heads, head_size) == (group.num_heads, SIZES[Meaning.NOPE_SIZE] + SIZES[Meaning.ROPE_SIZE])
    else:
        assert (heads, call["k"].shape[1], head_size) == (group.num_heads, group.num_kv_heads, group.head_size)
        assert call["v"].shape == (*call["k"].shape[:3], group.rules.get("head_size_v", head_size))
    assert math.isclose(1.0 if scales_q else group.scale, call["scale"] or head_size**-0.5)
    sees = torch.ones(queries, keys, dtype=torch.bool) if call["mask"] is None else call["mask"][0, 0, :, :keys] == 0
    assert torch.equal(sees, visible(group, queries, keys))
    assert call.get("softcap") == group.rules.get("logits_soft_cap")
    assert (call.get("s_aux") is not None) == ("sinks" in group.rules)


def asked(call: dict[str, Any]) -> tuple[Any, ...]:
    """What a layer asks of attention besides its numbers."""
    mask = None if call["mask"] is None else call["mask"].tolist()
    return call["q"].shape, call["k"].shape, call["v"].shape, call["scale"], call.get("softcap"), mask


@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if name not in OWN_CODE])
def test_each_layer_asks_for_what_its_group_says(model_type, calls, monkeypatch):
    config = tiny(model_type)
    run(config)
    groups = model_config(config).groups
    if MODEL_TYPES[model_type].kind == "encoder_decoder":
        order = ["encoder.self_attn"] * LAYERS + ["decoder.self_attn", "decoder.encoder_attn"] * LAYERS
    else:
        by_layer = {layer: name for name, group in groups.items() for layer in group.layers}
        order = [by_layer[layer] for layer in range(LAYERS)]
    assert len(calls) == len(order)
    for name, call in zip(order, calls, strict=True):
        check(groups[name], call, scales_q=model_type in SCALE_Q)
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert model_config(config).groups == groups


FLAGS = {
    *("is_causal", "is_decoder", "is_encoder_decoder", "add_cross_attention", "use_bidirectional_attention"),
    *(name for record in MODEL_TYPES.values() for name in (*record.fixed, *record.inert) if "." not in name),
}


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma3_text", "bert", "bart", "gpt2"])
def test_a_flag_that_is_passed_over_changes_no_layer(model_type, value, calls):
    config, has = tiny(model_type), class_of(model_type)().to_dict()
    groups = model_config(config).groups

    def is_passed_over(name: str) -> bool:
        try:
            read = model_config({**config, name: value})
        except (ContractError, UnsupportedError):
            return False
        return read.groups == groups and name not in read.unknown

    flags = [name for name in FLAGS - {*config} if isinstance(has.get(name), bool | None) and is_passed_over(name)]
    run(config)
    expected = [asked(call) for call in calls]
    calls.clear()
    run({**config, **dict.fromkeys(flags, value)})
    assert [asked(call) for call in calls] == expected
    assert ("is_causal" in flags) == value


def test_mimo_counts_the_keys_before_a_token(calls):
    """A public file has both fields of 128, and transformers' window 129 keys."""
    config = {**tiny("mimo_v2_flash"), "sliding_window": 7, "sliding_window_size": 7}
    run(config)
    groups = model_config(config).groups
    assert groups["sliding_attention"].rules["window"] == (7, 7)
    check(groups["sliding_attention"], calls[1], scales_q=False)


@pytest.mark.parametrize(
    "flags",
    [
        {"multi_query": True, "new_decoder_architecture": False},
        {"multi_query": False, "new_decoder_architecture": False, "alibi": True},
        {"multi_query": True, "new_decoder_architecture": True, "num_kv_heads": 2},
    ],
)
def test_falcon_has_the_kv_heads_that_are_said(flags):
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1, **flags}
    model = transformers.AutoModel.from_config(transformers.FalconConfig(**sizes, vocab_size=8))
    (group,) = model_config({"model_type": "falcon", **sizes}).groups.values()
    rows = model.h[0].self_attention.query_key_value.out_features
    assert rows == (group.num_heads + 2 * group.num_kv_heads) * group.head_size
