"""Compares the layers that `attn-parity select` reads off transformers' model with those that vLLM's class constructs.

vLLM's models are built on meta, with its attention replaced by one that keeps its arguments. These are models without experts,
with attention of one kind or of two. Mixtures of experts, which need vLLM's groups of ranks, and ALiBi, whose slopes meta does
not hold, are not compared.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from attn_parity.model_config import model_config

pytest.importorskip("vllm", reason="needs vLLM: tox run -e vllm")

from vllm.config import CacheConfig, DeviceConfig, ModelConfig, VllmConfig, set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.model_executor.layers.attention import encoder_only_attention
from vllm.model_executor.layers.attention.attention import Attention
from vllm.model_executor.layers.attention.mla_attention import MLAAttention
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.platforms import current_platform

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "vocab_size": 128,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
MIXED = {"sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"] * 2}
WINDOWED = {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 4}
UNGROUPED = {"num_key_value_heads": None}
"""Of types that have no such field."""
MODELS: Mapping[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"model_type": "llama", "head_dim": 32},
    "MistralForCausalLM": {"model_type": "mistral", "sliding_window": 32, "head_dim": 64},
    "Qwen2ForCausalLM": {"model_type": "qwen2"},
    "Qwen3ForCausalLM": {"model_type": "qwen3", "head_dim": 32},
    "Gemma2ForCausalLM": {"model_type": "gemma2", **MIXED, "head_dim": 32, "query_pre_attn_scalar": 25},
    "Gemma3ForCausalLM": {"model_type": "gemma3_text", **MIXED, "head_dim": 32, "query_pre_attn_scalar": 25},
    "Cohere2ForCausalLM": {"model_type": "cohere2", **MIXED},
    "Olmo2ForCausalLM": {"model_type": "olmo2"},
    "Olmo3ForCausalLM": {"model_type": "olmo3", **MIXED},
    "GraniteForCausalLM": {"model_type": "granite", "attention_multiplier": 0.3},
    "GlmForCausalLM": {"model_type": "glm", "head_dim": 64},
    "Glm4ForCausalLM": {"model_type": "glm4", "head_dim": 64},
    "Phi3ForCausalLM": {"model_type": "phi3"},
    "Starcoder2ForCausalLM": {"model_type": "starcoder2"},
    "SmolLM3ForCausalLM": {"model_type": "smollm3"},
    "SeedOssForCausalLM": {"model_type": "seed_oss", "head_dim": 64},
    "Exaone4ForCausalLM": {"model_type": "exaone4", **MIXED},
    "StableLmForCausalLM": {"model_type": "stablelm"},
    "NemotronForCausalLM": {"model_type": "nemotron", "head_dim": 64},
    "Ernie4_5ForCausalLM": {"model_type": "ernie4_5", "head_dim": 64},
    "HunYuanDenseV1ForCausalLM": {"model_type": "hunyuan_v1_dense", "head_dim": 64},
    "GPTNeoXForCausalLM": {"model_type": "gpt_neox", **UNGROUPED},
    "GPT2LMHeadModel": {"model_type": "gpt2", "n_inner": 64, **UNGROUPED},
    "OPTForCausalLM": {"model_type": "opt", "ffn_dim": 64, "word_embed_proj_dim": 256, **UNGROUPED},
}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "first_k_dense_replace": 4,
    "moe_layer_freq": 1,
    "moe_intermediate_size": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_experts_per_tok"), 1),
    "n_routed_experts": 2,
}
INDEXED = {**LATENT, "index_topk": 128, "index_n_heads": 2, "index_head_dim": 128}
LATENT_MODELS: Mapping[str, dict[str, Any]] = {
    "DeepseekV3ForCausalLM": {"model_type": "deepseek_v3", **LATENT},
    "DeepseekV32ForCausalLM": {"model_type": "deepseek_v32", **INDEXED},
    "GlmMoeDsaForCausalLM": {"model_type": "glm_moe_dsa", **INDEXED, "mlp_layer_types": ["dense"] * 4},
}
KEYS_MORE = {"Cohere2ForCausalLM": 1}
"""Keys that a window of vLLM's class has more than that of transformers', whose answer is given."""
# vLLM's classes read `is_causal` of these
READ_IS_CAUSAL = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
BOTH_WAYS = [(name, {**MODELS[name], "is_causal": False}) for name in READ_IS_CAUSAL]


@pytest.fixture(scope="module", autouse=True)
def one_rank(tmp_path_factory):
    """vLLM's layers ask for their rank."""
    with set_current_vllm_config(VllmConfig(device_config=DeviceConfig(device="cpu"))):
        store = tmp_path_factory.mktemp("ranks") / "store"
        parallel_state.init_distributed_environment(1, 0, f"file://{store}", 0, "gloo")
        parallel_state.initialize_model_parallel()
    yield
    parallel_state.destroy_model_parallel()
    parallel_state.destroy_distributed_environment()


@pytest.fixture
def of_vllm(monkeypatch, tmp_path):
    """Builds vLLM's model; returns what each layer's attention is given, by the layer's number."""
    kept: dict[int, dict[str, Any]] = {}

    def keeping(signature: inspect.Signature) -> Callable[..., None]:
        def keep(self, *arguments, **options):
            torch.nn.Module.__init__(self)
            given = signature.bind(self, *arguments, **options)
            given.apply_defaults()
            numbers = [int(part) for part in given.arguments["prefix"].split(".") if part.isdigit()]
            kept[numbers[0]] = given.arguments

        return keep

    def build(config: dict[str, Any]) -> dict[int, dict[str, Any]]:
        (tmp_path / "config.json").write_text(json.dumps(config))
        model = ModelConfig(model=str(tmp_path), tokenizer=str(tmp_path), skip_tokenizer_init=True, dtype="bfloat16")
        # as vLLM's engine arguments make it
        cache, kinds = CacheConfig(), getattr(model.hf_text_config, "layer_types", None)
        if kinds is None or all(kind == "sliding_attention" for kind in kinds):
            cache.sliding_window = model.get_sliding_window()
        with torch.device("meta"):
            initialize_model(VllmConfig(model_config=model, device_config=DeviceConfig(device="cpu"), cache_config=cache))
        return kept

    for attention in (Attention, MLAAttention):
        monkeypatch.setattr(attention, "__init__", keeping(inspect.signature(attention.__init__)))
    # its backend is asked of the platform, which has none without a GPU
    monkeypatch.setattr(encoder_only_attention, "get_attn_backend", lambda *_, **__: None)
    monkeypatch.setattr(encoder_only_attention, "create_encoder_only_attention_backend", lambda *_: None)
    monkeypatch.setattr(type(current_platform), "device_type", "meta")
    return build


def as_selected(given: dict[str, Any], keys_more: int) -> tuple[Any, ...]:
    """The arguments of vLLM's attention as sizes and rules of a group."""
    width = given["per_layer_sliding_window"]
    if width is None and given["cache_config"] is not None:
        width = given["cache_config"].sliding_window
    heads = given["num_heads"]
    rules = {
        "window": None if width in (None, -1) else (width - 1 - keys_more,) * 2,
        "logits_soft_cap": given["logits_soft_cap"] or None,
        "alibi_slopes": True if given["alibi_slopes"] is not None else None,
        "sinks": True if given["extra_impl_args"].get("sinks") is not None else None,
    }
    sizes = (heads, given["num_kv_heads"] or heads, given["head_size"], pytest.approx(given["scale"]))
    return (
        *sizes,
        getattr(given["attn_type"], "value", given["attn_type"]),
        {name: value for name, value in rules.items() if value is not None},
    )


@pytest.mark.parametrize(("architecture", "fields"), [*MODELS.items(), *BOTH_WAYS], ids=lambda one: str(one)[:60])
def test_each_layer_is_what_vllm_constructs(architecture, fields, of_vllm):
    config = {**SIZES, **fields, "architectures": [architecture], "dtype": "bfloat16"}
    config = {name: value for name, value in config.items() if value is not None}
    groups = model_config(config).groups
    selected = {
        layer: (one.num_heads, one.num_kv_heads, one.head_size, one.scale, str(one.attn_type), dict(one.rules))
        for one in groups.values()
        for layer in one.layers
    }
    theirs = {layer: as_selected(given, KEYS_MORE.get(architecture, 0)) for layer, given in of_vllm(config).items()}
    assert sorted(selected) == list(range(SIZES["num_hidden_layers"]))
    assert {layer: theirs[layer] == one for layer, one in selected.items()} == dict.fromkeys(selected, True), (selected, theirs)


@pytest.mark.parametrize("architecture", LATENT_MODELS)
def test_each_latent_layer_is_what_vllm_constructs(architecture, of_vllm):
    config = {**SIZES, **LATENT_MODELS[architecture], "architectures": [architecture], "dtype": "bfloat16"}
    ((_, group),) = model_config(config).groups.items()
    theirs = of_vllm(config)
    assert sorted(theirs) == list(group.layers) == list(range(SIZES["num_hidden_layers"]))
    for given in theirs.values():
        latent, rotated = given["kv_lora_rank"], given["qk_rope_head_dim"]
        sizes = (given["num_heads"], latent + rotated, pytest.approx(given["scale"]))
        assert (group.num_heads, group.head_size, group.scale) == sizes
        # vLLM's backend of layers with an indexer takes tokens alone
        unit = {"selection_unit": 1} if given["use_sparse"] else {}
        assert group.rules == {"head_size_v": latent, **unit}
        assert given["use_sparse"] == ("index_topk" in config)
