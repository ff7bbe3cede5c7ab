"""Records of model types: the fields that attention reads, their defaults, and the behaviour of the model's code without one.

`fields` and `defaults` are those of transformers' config classes and attention modules; tests compare them where transformers
is installed. A model type that is not here is refused: its code may do what no field says, such as the sinks of GPT-OSS.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from attn_parity.model_config.meaning import Meaning, Said

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
LayerTypes = Callable[[Said, int], list[str]]
"""The kind of each layer, of what a config says and the number of layers, where no field lists the kinds."""


@dataclass(frozen=True, kw_only=True)
class ModelType:
    """One model type.

    Args:
        fields: by its name, the meaning of each field that attention reads.
        defaults: values of fields that a file may leave out. Public files do so.
        layer_types: for decoders whose layers differ.
        kind: `encoder` has no cache; `encoder_decoder` has two self-attentions and one cross-attention.
        rules: what every layer asks for without a field.
        windowed_rules: what every layer with a window asks for without a field.
        windowed_kv_heads: how many times as many KV heads a layer with a window has as the others.
        fixed: by a field's name, the only values whose meaning is known here.
        inert: fields that sound like attention and change nothing about it, besides those that do so in no model.
        class_of: the model type whose class its models have; None: its own.
    """

    fields: Mapping[str, Meaning]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    layer_types: LayerTypes = lambda said, layers: [FULL] * layers
    kind: Literal["decoder", "encoder", "encoder_decoder"] = "decoder"
    rules: Mapping[str, Any] = field(default_factory=dict)
    windowed_rules: Mapping[str, Any] = field(default_factory=dict)
    windowed_kv_heads: int = 1
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    inert: tuple[str, ...] = ()
    class_of: str | None = None


def _windowed(said: Said, layers: int) -> list[str]:
    return [FULL if said(Meaning.WINDOW) is None or said(Meaning.USE_WINDOW) is False else SLIDING] * layers


def _windowed_last(said: Said, layers: int) -> list[str]:
    if said(Meaning.WINDOW) is None or said(Meaning.USE_WINDOW) is not True:
        return [FULL] * layers
    first = said.needed(Meaning.FIRST_WINDOWED)
    return [FULL if layer < first else SLIDING for layer in range(layers)]


def _one_full_in(period: int) -> LayerTypes:
    def layer_types(said: Said, layers: int) -> list[str]:
        every = said(Meaning.PERIOD) or period
        return [SLIDING if (layer + 1) % every else FULL for layer in range(layers)]

    return layer_types


def _first_and_one_full_in(period: int) -> LayerTypes:
    return lambda said, layers: [FULL if layer == 0 or not (layer + 1) % period else SLIDING for layer in range(layers)]


def _chunked(said: Said, layers: int) -> list[str]:
    every = said.needed(Meaning.ROTATED_PERIOD)
    rotated = said(Meaning.ROTATED_LAYERS) or [(layer + 1) % every for layer in range(layers)]
    return [CHUNKED if is_rotated else FULL for is_rotated in rotated]


def _listed(said: Said, layers: int) -> list[str]:
    kinds = said(Meaning.LAYER_KINDS)
    return [FULL] * layers if kinds is None else [FULL if kind else "linear_attention" for kind in kinds]


_DTYPE = {"dtype": Meaning.DTYPE, "torch_dtype": Meaning.DTYPE}
_SIZES = {
    **_DTYPE,
    "hidden_size": Meaning.HIDDEN_SIZE,
    "num_hidden_layers": Meaning.NUM_LAYERS,
    "num_attention_heads": Meaning.HEADS,
}
_GROUPED = {
    **_SIZES,
    "num_key_value_heads": Meaning.KV_HEADS,
    "head_dim": Meaning.HEAD_SIZE,
    "v_head_dim": Meaning.V_HEAD_SIZE,
}
_LATENT = {
    **_SIZES,
    "kv_lora_rank": Meaning.LATENT_SIZE,
    "qk_nope_head_dim": Meaning.NOPE_SIZE,
    "qk_rope_head_dim": Meaning.ROPE_SIZE,
}
_YARN = {
    f"{name}.{inner}": meaning
    for name in ("rope_scaling", "rope_parameters")
    for inner, meaning in {"factor": Meaning.YARN_FACTOR, "mscale_all_dim": Meaning.YARN_MSCALE}.items()
}
_INERT_OF_YARN = tuple(
    f"{name}.{inner}" for name in ("rope_scaling", "rope_parameters") for inner in ("mscale", "beta_fast", "beta_slow")
)
"""Fields of the rotation of q and k, and of factors, which are applied before attention."""
_ROPE_TYPES = {
    f"{name}.{inner}": ("yarn", "deepseek_yarn", "default")
    for name in ("rope_scaling", "rope_parameters")
    for inner in ("type", "rope_type")
}
_INERT_OF_LATENT = ("q_lora_rank", "num_key_value_heads", "head_dim", "qk_head_dim", "v_head_dim", "rope_interleave")
"""Sizes of the expanded form, which reads no cache. Its heads have keys and values of their own; in the cache all have one."""
LATENT = ModelType(fields=_LATENT, inert=_INERT_OF_LATENT)
_DEEPSEEK = ModelType(fields={**_LATENT, **_YARN}, fixed=_ROPE_TYPES, inert=(*_INERT_OF_LATENT, *_INERT_OF_YARN))
_WINDOWED = {**_GROUPED, "sliding_window": Meaning.WINDOW}
_MIXED = {**_WINDOWED, "layer_types": Meaning.LAYER_TYPES}
_PERIODIC = {**_MIXED, "sliding_window_pattern": Meaning.PERIOD}
_QWEN = {**_MIXED, "use_sliding_window": Meaning.USE_WINDOW, "max_window_layers": Meaning.FIRST_WINDOWED}
_QWEN_DEFAULTS = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_CAUSAL_GEMMA = {"use_bidirectional_attention": (False, None)}
_ENCODER_DECODER = {
    "d_model": Meaning.HIDDEN_SIZE,
    "encoder_layers": Meaning.NUM_LAYERS,
    "encoder_attention_heads": Meaning.HEADS,
    "decoder_layers": Meaning.DECODER_LAYERS,
    "decoder_attention_heads": Meaning.DECODER_HEADS,
    **_SIZES,  # other names of the encoder's sizes
}
_BERT = ModelType(
    fields={**_SIZES, "is_decoder": Meaning.IS_DECODER},
    defaults={"is_decoder": False},
    kind="encoder",
    fixed={"position_embedding_type": ("absolute",)},
    inert=("attention_probs_dropout_prob",),
)
_GRANITE = ModelType(
    fields={**_GROUPED, "attention_multiplier": Meaning.SCALE},
    defaults={"attention_multiplier": 1.0},
    fixed={"position_embedding_type": ("rope",)},
)

MODEL_TYPES: Mapping[str, ModelType] = {
    "llama": ModelType(fields=_GROUPED),
    "llama4_text": ModelType(
        fields={
            **_GROUPED,
            "layer_types": Meaning.LAYER_TYPES,
            "attention_chunk_size": Meaning.CHUNK,
            "no_rope_layers": Meaning.ROTATED_LAYERS,
            "no_rope_layer_interval": Meaning.ROTATED_PERIOD,
        },
        defaults={"head_dim": 128, "attention_chunk_size": 8192, "no_rope_layer_interval": 4},
        layer_types=_chunked,
        # of q before attention, in layers that are not rotated
        inert=("attn_temperature_tuning", "attn_scale", "floor_scale"),
    ),
    "mistral": ModelType(fields=_WINDOWED, defaults={"sliding_window": 4096}, layer_types=_windowed),
    "ministral": ModelType(fields=_MIXED, defaults={"sliding_window": 4096}, layer_types=_windowed),
    "ministral3": ModelType(fields=_WINDOWED, defaults={"sliding_window": None, "head_dim": 128}, layer_types=_windowed),
    "mixtral": ModelType(fields=_WINDOWED, defaults={"sliding_window": None}, layer_types=_windowed),
    "gemma": ModelType(fields=_GROUPED, defaults={"head_dim": 256}, fixed=_CAUSAL_GEMMA),
    "gemma2": ModelType(
        fields={
            **_MIXED,
            "attn_logit_softcapping": Meaning.SOFT_CAP,
            "query_pre_attn_scalar": Meaning.SCALE_DIVISOR,
        },
        defaults={"head_dim": 256, "sliding_window": 4096, "attn_logit_softcapping": 50.0, "query_pre_attn_scalar": 256},
        layer_types=_one_full_in(2),
        fixed=_CAUSAL_GEMMA,
        inert=("sliding_window_size",),  # public files have it, and transformers does not read it
    ),
    "gemma3_text": ModelType(
        fields={
            **_PERIODIC,
            "_sliding_window_pattern": Meaning.PERIOD,
            "query_pre_attn_scalar": Meaning.SCALE_DIVISOR,
        },
        defaults={
            "hidden_size": 2304,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "sliding_window": 4096,
            "query_pre_attn_scalar": 256,
        },
        layer_types=_one_full_in(6),
        # transformers' code keeps this number and does not use it
        fixed={**_CAUSAL_GEMMA, "attn_logit_softcapping": (None,)},
    ),
    "gpt_oss": ModelType(
        fields=_MIXED,
        defaults={"head_dim": 64, "sliding_window": 128},
        layer_types=_one_full_in(2),
        rules={"sinks": True},
    ),
    "qwen2": ModelType(fields=_QWEN, defaults=_QWEN_DEFAULTS, layer_types=_windowed_last),
    "qwen3": ModelType(fields=_QWEN, defaults={**_QWEN_DEFAULTS, "head_dim": 128}, layer_types=_windowed_last),
    "qwen3_moe": ModelType(
        fields={**_WINDOWED, "use_sliding_window": Meaning.USE_WINDOW},
        defaults={"use_sliding_window": False, "sliding_window": 4096},
        layer_types=_windowed,
        inert=("max_window_layers",),
    ),
    "phi": ModelType(fields=_GROUPED),
    "phi3": ModelType(
        fields=_WINDOWED, defaults={"sliding_window": None}, layer_types=_windowed, fixed={"full_attn_mod": (1,)}
    ),
    "cohere": ModelType(fields=_GROUPED),
    "cohere2": ModelType(
        fields=_PERIODIC,
        defaults={"sliding_window": 4096},
        layer_types=_one_full_in(4),
        fixed={"order_of_interleaved_layers": ("local_attn_first",), "position_embedding_type": ("rope_gptj",)},
    ),
    "falcon": ModelType(
        fields={
            **_SIZES,
            "n_embed": Meaning.HIDDEN_SIZE,
            "num_kv_heads": Meaning.KV_HEADS,
            "multi_query": Meaning.MULTI_QUERY,
            "new_decoder_architecture": Meaning.GROUPED,
            "alibi": Meaning.ALIBI,
        },
        defaults={"alibi": False, "multi_query": True, "new_decoder_architecture": False},
        inert=("parallel_attn", "num_ln_in_parallel_attn"),
    ),
    "bloom": ModelType(
        fields={
            "n_embed": Meaning.HIDDEN_SIZE,
            **_SIZES,
            "n_head": Meaning.HEADS,
            "n_layer": Meaning.NUM_LAYERS,
        },
        rules={"alibi_slopes": True},
        inert=(
            *("attention_softmax_in_fp32", "masked_softmax_fusion", "offset_alibi"),
            *("bias_dropout_fusion", "skip_bias_add", "skip_bias_add_qkv"),
        ),
    ),
    "mpt": ModelType(
        fields={
            "d_model": Meaning.HIDDEN_SIZE,
            "n_layers": Meaning.NUM_LAYERS,
            "n_heads": Meaning.HEADS,
            **_SIZES,
            "attn_config.softmax_scale": Meaning.SCALE,
        },
        defaults={"attn_config.softmax_scale": None},
        # transformers' code adds ALiBi whatever attn_config.alibi says
        rules={"alibi_slopes": True},
        fixed={
            "attn_config.alibi": (True,),
            "attn_config.attn_type": ("multihead_attention",),
            "attn_config.prefix_lm": (False,),
            "attn_config.attn_uses_sequence_id": (False,),
        },
        # a layer's slopes are a tensor: any slopes
        inert=(
            "no_bias",
            *(f"attn_config.{name}" for name in ("alibi_bias_max", "attn_impl", "attn_pdrop", "clip_qkv", "dtype", "qk_ln")),
        ),
    ),
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "bart": ModelType(fields=_ENCODER_DECODER, kind="encoder_decoder", inert=("static_position_embeddings", "add_bias_logits")),
    "whisper": ModelType(
        fields={**_ENCODER_DECODER, "num_key_value_heads": Meaning.HEADS},
        kind="encoder_decoder",
        inert=(
            *("mask_time_prob", "mask_time_length", "mask_time_min_masks"),
            *("mask_feature_prob", "mask_feature_length", "mask_feature_min_masks"),
        ),
    ),
    "olmo2": ModelType(fields=_GROUPED),
    "olmo3": ModelType(fields=_MIXED, defaults={"sliding_window": 4096}, layer_types=_one_full_in(4)),
    "granite": _GRANITE,
    "granitemoe": _GRANITE,
    "starcoder2": ModelType(fields=_WINDOWED, defaults={"sliding_window": None}, layer_types=_windowed),
    "glm": ModelType(fields=_GROUPED, defaults={"head_dim": 128, "num_key_value_heads": 2}),
    "glm4": ModelType(fields=_GROUPED, defaults={"head_dim": 128, "num_key_value_heads": 2}),
    "glm4_moe": ModelType(fields=_GROUPED),
    "minimax_m2": ModelType(
        fields={**_GROUPED, "attn_type_list": Meaning.LAYER_KINDS},
        defaults={"head_dim": 128},
        layer_types=_listed,
        inert=("use_routing_bias",),
    ),
    "mimo_v2_flash": ModelType(
        fields={
            **_MIXED,
            "v_head_dim": Meaning.VALUE_SIZE,
            # public files say both kinds of layers; transformers reads only some of these fields
            "sliding_window_size": Meaning.KEYS_BEFORE,
            "hybrid_layer_pattern": Meaning.WINDOWED_LAYERS,
            "swa_num_attention_heads": Meaning.HEADS,
            "swa_num_key_value_heads": Meaning.WINDOWED_KV_HEADS,
            "swa_head_dim": Meaning.HEAD_SIZE,
            "swa_v_head_dim": Meaning.VALUE_SIZE,
        },
        defaults={"num_key_value_heads": 4, "head_dim": 192, "v_head_dim": 128, "sliding_window": 129},
        layer_types=_first_and_one_full_in(6),
        windowed_rules={"sinks": True},
        windowed_kv_heads=2,
        fixed={"add_swa_attention_sink_bias": (True,), "add_full_attention_sink_bias": (False,)},
        # values are scaled before attention
        inert=("attention_value_scale", "attention_chunk_size", "swa_rope_theta", "mlp_layer_types"),
    ),
    "gpt2": ModelType(
        fields={"n_embd": Meaning.HIDDEN_SIZE, "n_layer": Meaning.NUM_LAYERS, "n_head": Meaning.HEADS, **_SIZES},
        fixed={"scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,)},
        inert=("attn_pdrop", "reorder_and_upcast_attn"),
    ),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "kimi_k2": dataclasses.replace(_DEEPSEEK, class_of="deepseek_v3"),
    "glm4_moe_lite": dataclasses.replace(
        _DEEPSEEK,
        fields={**_DEEPSEEK.fields, "head_dim": Meaning.ROPE_SIZE},
        inert=tuple({*_DEEPSEEK.inert, "mlp_layer_types"} - {"head_dim"}),
    ),
    # its long rotations do not scale logits
    "minicpm3": LATENT,
    "gpt_neox": ModelType(fields=_SIZES, inert=("is_decoder",)),  # false in a file that transformers writes, and not read
    "opt": ModelType(fields=_SIZES),
}

OUT_OF_SCOPE_TYPES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("t5", "mt5", "umt5"), ("relative_attention_num_buckets",)),
    **dict.fromkeys(("deepseek_v32", "glm_moe_dsa"), ("index_topk",)),
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba"), ("state_size",)),
    **dict.fromkeys(("minimax_m1", "minimax_text_01"), ("linear_attention",)),
    "kimi_linear": ("linear_attention",),
}
"""By model type, names in `attn_contract.scope` of what its layers always ask for, whether a field says so or not."""


@dataclass(frozen=True, kw_only=True)
class Wrapper:
    """A model of several parts, of which the text part has the KV cache.

    Args:
        text: the model type of the text part, where its own fields do not say it.
        image_tokens: for a model whose images see themselves both ways, the field with the tokens of an image, and its default.
    """

    text: str
    image_tokens: tuple[str, int] | None = None


WRAPPERS: Mapping[str, Wrapper] = {
    "gemma3": Wrapper(text="gemma3_text", image_tokens=("mm_tokens_per_image", 256)),
    "internvl": Wrapper(text="qwen2"),
    "llama4": Wrapper(text="llama4_text"),
    "llava": Wrapper(text="llama"),
    "mistral3": Wrapper(text="mistral"),
}
"""Model types whose fields lie in `text_config`."""
