"""No field of a model config is passed over in silence: one that is not known is refused or listed.

A field is known if the record of its model type lists it, or if FIXED, INERT or ELSEWHERE do. Any other field whose name has
one of ATTENTION_WORDS is refused unless it is null: false may turn off what is on without the field. The names of all other
fields are listed.
"""

import difflib
import re
from collections.abc import Mapping
from typing import Any

from attn_contract import ContractError
from attn_contract.arguments import shown
from attn_contract.scope import refuse_out_of_scope
from attn_parity.model_config.model_types import ModelType

ATTENTION_WORDS = (
    *("attn", "attention", "head", "window", "sliding", "swa", "rope", "rotary", "alibi", "bias", "sink", "chunk", "lookback"),
    *("soft_?cap", "softmax", "position", "relative", "causal", "bidirectional", "mask", "prefix_lm", "query", "qk", "kv"),
    *("mla", "latent", "lora_rank", "cache", "quantiz", "layer_type", "per_layer", "heterogeneous", "pattern", "_config"),
    *("index", "sparse", "linear", "mamba", "ssm", "encoder", "decoder", "scale", "scaling", "multiplier"),
)
_SOUNDS_LIKE_ATTENTION = re.compile("|".join(ATTENTION_WORDS))

_LONGEST_NAME = 100

FIXED: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    kind: {
        # without the field, code takes true; it takes null for false
        "is_causal": (True,),
        "is_encoder_decoder": (kind == "encoder_decoder",),
        **({} if kind == "encoder" else {"is_decoder": (kind == "decoder",)}),
        "add_cross_attention": (False,),
        "pruned_heads": ({}, None),
    }
    for kind in ("decoder", "encoder", "encoder_decoder")
}
"""By the kind of a model type, fields that any of its configs may have, with the only values whose meaning is known here."""

_BEFORE_ATTENTION = (
    *("attention_bias", "attention_out_bias", "qkv_bias", "use_qkv_bias", "use_bias", "bias", "enable_bias", "use_qk_norm"),
    *("qk_norm", "qk_norm_type", "qk_layernorm", "use_mrope", "attn_output_gate", "attention_output_gate"),
    *("rope_theta", "rope_scaling", "rope_parameters", "rope_type", "rope_local_base_freq", "rotary_dim", "rotary_emb_base"),
    *("rotary_pct", "partial_rotary_factor", "max_position_embeddings", "original_max_position_embeddings", "n_positions"),
    *("max_source_positions", "max_target_positions", "max_seq_len", "pretraining_tp", "slow_but_exact"),
)
"""Fields of operations on q and k before attention, of gates after it, and of matrix products for them."""
_HOW_IT_RUNS = (
    *("use_cache", "cache_implementation", "attn_implementation", "_attn_implementation", "_attn_implementation_autoset"),
    *("output_attentions", "attention_dropout"),
)
"""Fields that choose code or further outputs, or that are of training alone."""
INERT = frozenset((*_BEFORE_ATTENTION, *_HOW_IT_RUNS))
"""Fields that attention reads and that change nothing about it, in every model of MODEL_TYPES."""
ELSEWHERE = re.compile(
    # what has the same meaning in every model
    "architectures|model_type|quantization_config|transformers_version|_name_or_path"
    "|.*(_token_ids?|_token_index|dropout(_prob)?|pdrop|layerdrop|_eps|epsilon)|label2id|id2label"
    "|output_hidden_states|output_router_logits|return_dict|problem_type|gradient_checkpointing|init_(config|device|std)|summary_.*"
    "|initializer_range|tie_word_embeddings|tie_encoder_decoder|forced_decoder_ids|(begin_)?suppress_tokens|model_max_length|n_ctx|seq_length"
    "|initial_context_length|multimodal_projector_bias|projector_hidden_act|downsample_ratio|image_seq_length|spatial_merge_size"
    "|vision_feature_(layer|select_strategy)|mm_tokens_per_image"
    # feed-forward layers and mixtures of experts
    "|activation(_function)?|hidden_act(ivation)?|mlp_bias|.*intermediate_size(_mlp)?|.*ffn_(dim|hidden_size)|expansion_ratio"
    "|n_inner|chunk_size_feed_forward|decoder_sparse_step|interleave_moe_layer_step|first_k_dense_replace|mlp_only_layers"
    "|moe_layers|(n_|num_)?(local_|routed_|shared_)?experts(_per_tok(en)?)?|n_group|topk_(group|method)|norm_topk_prob"
    "|routed_scaling_factor|scoring_func|router_.*|swiglu_.*|num_nextn_predict_layers"
    # embeddings, norms, sums of residuals, the logits of the vocabulary, and speech
    "|(type_)?vocab_size|embedding_(fraction|multiplier)|scale_(emb|embedding|depth)|learned_pos_emb|word_embed_proj_dim"
    "|norm_type|layer_norm_elementwise_affine|do_layer_norm_before|_remove_final_layer_norm"
    "|apply_residual_connection_post_layernorm|residual_multiplier|use_parallel_(block|residual)|dim_model_base"
    "|final_logit_softcapping|logit_scale|logits_scaling|lm_head_bias|apply_spec_augment|classifier_proj_size"
    "|median_filter_width|num_mel_bins|use_weighted_layer_sum"
)
"""Whole names of fields that attention does not read, in any model of MODEL_TYPES."""


def unknown(fields: Mapping[str, Any], model_type: str, record: ModelType) -> tuple[str, ...]:
    """Refuse the first field that sounds like attention and is not known, and return the names of other fields that are not.

    Args:
        fields: of a model config, by name.
        model_type, record: whose fields they are.

    Raises:
        ContractError: naming the field and the known ones whose names are near.
        UnsupportedError: a field asks by its value for what is out of scope.
    """
    fixed = {**FIXED[record.kind], **record.fixed}
    known = {*record.fields, *fixed, *record.inert, *INERT}
    unread = []
    for name, value in fields.items():
        own_name = name.rpartition(".")[2]
        if name in record.fields or name in record.inert:
            continue
        if (values := fixed.get(name, FIXED[record.kind].get(own_name))) is not None:
            _check_fixed(name, value, values, model_type)
        elif own_name in INERT or (len(name) <= _LONGEST_NAME and ELSEWHERE.fullmatch(own_name)):
            continue
        elif value is None or not _SOUNDS_LIKE_ATTENTION.search(own_name.lower()):
            unread.append(name)
        else:
            near = difflib.get_close_matches(name[:_LONGEST_NAME], sorted(known), n=3, cutoff=0)
            expected = f"null: it is not known what it asks of {model_type} (near: {', '.join(near)})"
            raise ContractError(printable(name), shown(value), expected)
    return tuple(unread)


def _check_fixed(name: str, value: Any, values: tuple[Any, ...], model_type: str) -> None:
    if value in values:
        return
    if isinstance(value, str):
        refuse_out_of_scope([value])
    expected = " or ".join(shown(one) for one in values)
    raise ContractError(name, shown(value), f"{expected}: nothing else is known of {model_type}")


def printable(name: str) -> str:
    """The name of a field for a message: short, and without a character that a terminal obeys."""
    return name if name.isprintable() and len(name) <= _LONGEST_NAME else shown(name)
