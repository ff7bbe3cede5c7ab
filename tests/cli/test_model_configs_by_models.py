"""What is said of a config's layers, against what a small model of transformers, which is run on a CPU, does in each layer."""

import math
from typing import Any

import pytest
import torch
from attn_contract import AttentionType
from attn_parity.model_config import Group, model_config

transformers = pytest.importorskip("transformers")

TOKENS = 20
LAYERS = 6
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    **dict.fromkeys(("vocab_size", "max_position_embeddings"), 64),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "intermediate_size_mlp"), 8),
    **dict.fromkeys(("num_local_experts", "n_routed_experts"), 2),
    **dict.fromkeys(("num_experts_per_tok", "n_group", "topk_group"), 1),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
}
WINDOWED = {"head_dim": 16, "sliding_window": 5}
OF_TWO = {
    **dict.fromkeys(("encoder_layers", "decoder_layers"), LAYERS),
    "d_model": 64,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "decoder_start_token_id": 0,
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 32),
}
TYPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": WINDOWED,
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3},
    "gemma2": {**WINDOWED, "attn_logit_softcapping": 9.0, "query_pre_attn_scalar": 25},
    "gemma3_text": {**WINDOWED, "query_pre_attn_scalar": 25},
    "cohere2": WINDOWED,
    "gpt_oss": WINDOWED,
    "llama4_text": {"head_dim": 16, "attention_chunk_size": 7},
    "granite": {"attention_multiplier": 0.3},
    "mimo_v2_flash": {**WINDOWED, "v_head_dim": 12},
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "kv_lora_rank": 24,
        "q_lora_rank": 20,
        "qk_nope_head_dim": 12,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
    },
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 64},
    "gpt2": {},
    "bert": {},
    "bart": OF_TWO,
    "whisper": {**OF_TWO, "num_mel_bins": 32, "max_source_positions": 64, "max_target_positions": 64},
}
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


def built(model_type: str, fields: dict[str, Any], attention: str) -> tuple[dict[str, Any], Any]:
    """A small config, and transformers' model of it."""
    has = transformers.CONFIG_MAPPING[model_type]().to_dict() | transformers.CONFIG_MAPPING[model_type].attribute_map
    config = {name: value for name, value in {**({} if "d_model" in fields else SIZES), **fields}.items() if name in has}
    made = transformers.CONFIG_MAPPING[model_type](**config)
    return config, transformers.AutoModel.from_config(made, attn_implementation=attention).eval()


def run(model: Any) -> None:
    tokens = torch.arange(TOKENS)[None] % 60 + 1
    with torch.no_grad():
        if model.main_input_name == "input_features":
            model(input_features=torch.zeros(1, 32, 128), decoder_input_ids=tokens)
        elif model.config.is_encoder_decoder:
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


def check(group: Group, call: dict[str, Any], config: dict[str, Any], *, scales_q: bool) -> None:
    """Hold a group to what a layer asked for. Where the model scales q, the call has a scale of 1."""
    _, heads, queries, head_size = call["q"].shape
    keys = call["k"].shape[2]
    if (latent := config.get("kv_lora_rank")) is not None:  # the group is absorbed, with one head of keys
        rotated = config["qk_rope_head_dim"]
        assert (group.num_kv_heads, group.head_size, group.rules["head_size_v"]) == (1, latent + rotated, latent)
        assert (heads, head_size) == (group.num_heads, config["qk_nope_head_dim"] + rotated)
    else:
        assert (heads, call["k"].shape[1], head_size) == (group.num_heads, group.num_kv_heads, group.head_size)
        assert call["v"].shape == (*call["k"].shape[:3], group.rules.get("head_size_v", head_size))
    assert math.isclose(group.scale, head_size**-0.5 if scales_q else call["scale"] or head_size**-0.5)
    sees = torch.ones(queries, keys, dtype=torch.bool) if call["mask"] is None else call["mask"][0, 0, :, :keys] == 0
    assert torch.equal(sees, visible(group, queries, keys))
    assert call.get("softcap") == group.rules.get("logits_soft_cap")
    assert (call.get("s_aux") is not None) == ("sinks" in group.rules)


@pytest.mark.parametrize("model_type", TYPES)
def test_each_layer_asks_for_what_its_group_says(model_type, calls):
    config, model = built(model_type, TYPES[model_type], "kept")
    run(model)
    groups = model_config({"model_type": model_type, **config}).groups
    if model.config.is_encoder_decoder:
        order = ["encoder.self_attn"] * LAYERS + ["decoder.self_attn", "decoder.encoder_attn"] * LAYERS
    else:
        by_layer = {layer: name for name, group in groups.items() for layer in group.layers}
        order = [by_layer[layer] for layer in range(LAYERS)]
    assert len(calls) == len(order)
    for name, call in zip(order, calls, strict=True):
        check(groups[name], call, config, scales_q=model_type in SCALE_Q)


OWN_CODE: dict[str, dict[str, Any]] = {
    "bloom": {},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": LAYERS, "vocab_size": 64},
    "falcon": {},
    "gpt_neo": {
        "num_layers": LAYERS,
        "num_heads": 4,
        "window_size": 5,
        "attention_types": [[["global", "local"], 3]],
    },
    "gpt_neox_japanese": {},
    "xglm": {"d_model": 64, "num_layers": LAYERS, "attention_heads": 4, "ffn_dim": 32, "vocab_size": 64},
}


@pytest.mark.parametrize("model_type", OWN_CODE)
def test_own_code_sees_the_keys_that_its_group_says(model_type, monkeypatch):
    kept: list[torch.Tensor] = []
    softmax = torch.nn.functional.softmax

    def keep(scores, *arguments, **options):
        kept.append(scores)
        return softmax(scores, *arguments, **options)

    config, model = built(model_type, OWN_CODE[model_type], "eager")
    monkeypatch.setattr(torch.nn.functional, "softmax", keep)
    run(model)
    groups = model_config({"model_type": model_type, **config}).groups
    by_layer = {layer: group for group in groups.values() for layer in group.layers}
    assert len(kept) == LAYERS
    for layer, scores in enumerate(kept):
        scores = scores.reshape(-1, TOKENS, TOKENS)
        assert len(scores) == by_layer[layer].num_heads
        assert torch.equal(scores[0] > torch.finfo(scores.dtype).min / 2, visible(by_layer[layer], TOKENS, TOKENS))


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
