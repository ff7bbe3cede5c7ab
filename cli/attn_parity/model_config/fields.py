"""No field of a model config is passed over in silence: one that the model's code does not read is refused or listed.

A field is read if transformers' config class has it, or if the model's code names it. Of the others, PASSED_OVER change
nothing about attention, FIXED must have a value whose meaning is known, and SAID_TWICE must say what the built model does. Any
other one whose name has one of ATTENTION_WORDS is refused unless it is null: false may turn off what is on without the field.
Of other parts, such as experts and images, and of flags that are off, fewer words are refused. How positions rotate q and k is
no matter of attention, which comes after. The names of all other fields are listed.
"""

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from attn_contract import ContractError
from attn_contract.arguments import shown
from attn_contract.scope import refuse_out_of_scope
from attn_parity.model_config.group import Group

ATTENTION_WORDS = (
    *("attn", "attention", "head", "window", "sliding", "swa", "alibi", "bias", "sink", "chunk", "lookback"),
    *("soft_?cap", "softmax", "position", "relative", "causal", "bidirectional", "mask", "prefix_lm", "query", "qk", "kv"),
    *("mla", "latent", "lora_rank", "cache", "quantiz", "layer_type", "per_layer", "heterogeneous", "pattern", "_config"),
    *("index", "sparse", "linear", "mamba", "ssm", "encoder", "decoder", "scale", "scaling", "multiplier"),
)
_SOUNDS_LIKE_ATTENTION = re.compile("|".join(ATTENTION_WORDS))
_OTHER_SENSES = re.compile("vision|audio|image|img_|video")
_OTHER_PARTS = re.compile(f"{_OTHER_SENSES.pattern}|patch|projector|mlp|ffn|moe|expert|router|loss|init|^mtp_")
_SOUNDS_LIKE_A_MASK = re.compile("attn|attention|causal|bidirectional|mask|prefix_lm")
"""Words of fields of other parts (vision, projectors) that may change the attention of the layers that are answered."""
_SOUNDS_LIKE_A_PART = re.compile(
    "position|head|bias|encoder|decoder|index|pattern|mamba|ssm|linear|quantiz|per_layer|layer_type"
)
"""Words of flags that, when off, remove a part of the model and change no attention layer that is left."""
_LONGEST_NAME = 100

FIXED: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "pruned_heads": ({}, None),
    "position_embedding_type": ("absolute", "rope", "rope_gptj", "nope"),
    "order_of_interleaved_layers": ("local_attn_first",),
    "full_attn_mod": (1,),
    "attn_type": ("multihead_attention",),
    "prefix_lm": (False,),
    "attn_uses_sequence_id": (False,),
}
"""Fields with the only values whose meaning is known here, which is the one of a model without the field."""
PASSED_OVER = re.compile(
    # of the file, of training, of how code runs, and operations before or after attention
    "architectures|auto_map|model_type|torch_dtype|dtype|transformers_version|_name_or_path|quantization_config"
    "|.*(_id|_token_ids|_token_index|dropout(_prob)?|pdrop|_eps|epsilon)|init_(config|device|std)|gradient_checkpointing"
    "|ignore_index|use_cache|cache_implementation|_?attn_implementation(_autoset)?|output_attentions|(use_)?flash_attn|use_flash_attention|attn_impl|reorder_and_upcast_attn"
    "|attention_softmax_in_fp32|masked_softmax_fusion|bias_dropout_fusion|skip_bias_add(_qkv)?|offset_alibi|slow_but_exact"
    "|attention_(out_)?bias|(use_)?qkv_bias|(use_|enable_)?bias|no_bias|(use_)?qk_norm(_type)?|qk_layernorm|attn_output_gate"
    "|attention_output_gate|use_mrope|rope_(theta|scaling|parameters|type|local_base_freq)|rotary_(dim|emb_base|pct)"
    "|swa_rope_theta|indexer_rope_interleave|partial_rotary_factor|(original_)?max_position_embeddings|n_positions|static_position_embeddings"
    "|attention_value_scale|max_window_layers|mlp_layer_types|use_routing_bias|add_bias_logits|weight_share_add_bias|num_ln_in_parallel_attn"
    # the states of layers that do not attend
    r"|(mamba|ssm)_(\w+_)?dtype"
    # embeddings, the logits of the vocabulary, feed-forward layers and mixtures of experts
    "|scale_(emb|embedding|depth)|embedding_multiplier|multimodal_projector_bias|lm_head_bias|routed_scaling_factor|mlp_bias"
    "|chunk_size_feed_forward|tie_encoder_decoder|num_reward_heads|forced_decoder_ids|n_inner|n_ctx|seq_length|model_max_length"
    "|initial_context_length|use_parallel_block|encoder_(no_repeat_ngram_size|repetition_penalty)"
)
"""Whole names of fields that change nothing about attention, in any model."""


def _of_windows(what: Callable[[Group], int]) -> Callable[[Mapping[str, Group]], set[int]]:
    return lambda groups: {what(group) for group in groups.values() if "window" in group.rules}


def _layers(of: Callable[[Group], bool]) -> Callable[[Mapping[str, Group]], list[list[int]]]:
    """A list with 1 for each layer of which a predicate is true."""

    def by_layer(groups: Mapping[str, Group]) -> list[list[int]]:
        numbers = {layer: int(of(group)) for group in groups.values() for layer in group.layers}
        return [[numbers.get(layer, 0) for layer in range(max(numbers) + 1)]]

    return by_layer


SAID_TWICE: Mapping[str, Callable[[Mapping[str, Group]], Collection[Any]]] = {
    "attn_type_list": _layers(lambda group: True),
    "hybrid_layer_pattern": _layers(lambda group: "window" in group.rules),
    "swa_num_attention_heads": _of_windows(lambda group: group.num_heads),
    "swa_num_key_value_heads": _of_windows(lambda group: group.num_kv_heads),
    "swa_head_dim": _of_windows(lambda group: group.head_size),
    "swa_v_head_dim": _of_windows(lambda group: group.rules.get("head_size_v", group.head_size)),
    "sliding_window_size": lambda groups: {
        left + more
        for group in groups.values()
        if "window" in group.rules
        for left in group.rules["window"][:1]
        for more in (0, 1)
    },
    "add_swa_attention_sink_bias": _of_windows(lambda group: "sinks" in group.rules),
    "add_full_attention_sink_bias": lambda groups: {
        "sinks" in one.rules for one in groups.values() if "window" not in one.rules
    },
    "use_sliding_window": lambda groups: {any("window" in one.rules for one in groups.values())},
    "num_heads": lambda groups: {one.num_heads for one in groups.values()},
    "num_kv_heads": lambda groups: {one.num_kv_heads for one in groups.values()},
    "attention_head_dim": lambda groups: {one.head_size for one in groups.values()},
    "v_head_dim": lambda groups: {one.rules.get("head_size_v", one.head_size) for one in groups.values()},
    "attention_chunk_size": lambda groups: {
        size
        for one in groups.values()
        for size in (one.rules.get("chunked_local"), one.rules.get("window", (None,))[0])
        if size
    },
}
"""Fields of other code for a model. The values of each that say what the built model does."""


def check_fields(fields: Mapping[str, Any], model_type: str, read: Collection[str]) -> tuple[str, ...]:
    """Refuse the first field that sounds like attention and is not known, and return the names of other fields that are not.

    Args:
        read: fields that transformers' config class has, or the model's code names.

    Raises:
        ContractError: naming the field and the known ones whose names are near.
        UnsupportedError: a field asks for what is out of scope.
    """
    known = {*read, *SAID_TWICE}
    refuse_out_of_scope(name for name, value in fields.items() if name not in known and value not in (None, False))
    unread = []
    for name, value in fields.items():
        if name in FIXED:
            _check_fixed(name, value, model_type)
        elif name in known or (len(name) <= _LONGEST_NAME and PASSED_OVER.fullmatch(name)):
            continue
        elif value is None or not _sounds_like_attention(name.lower(), is_off=value is False):
            unread.append(name)
        else:
            near = difflib.get_close_matches(name[:_LONGEST_NAME], sorted({*known, *FIXED}), n=3, cutoff=0)
            expected = f"null: it is not known what it asks of {model_type} (near: {', '.join(near)})"
            raise ContractError(printable(name), shown(value), expected)
    return tuple(unread)


def _sounds_like_attention(name: str, *, is_off: bool) -> bool:
    if is_off:
        name = _SOUNDS_LIKE_A_PART.sub(" ", name)
    return bool((_SOUNDS_LIKE_A_MASK if _OTHER_PARTS.search(name) else _SOUNDS_LIKE_ATTENTION).search(name))


def is_of_other_senses(name: str) -> bool:
    return bool(_OTHER_SENSES.search(name))


def check_said_twice(fields: Mapping[str, Any], groups: Mapping[str, Group], read: Collection[str]) -> None:
    """ContractError: a field of other code says something else of attention than what transformers builds."""
    for name, allowed in SAID_TWICE.items():
        value = fields.get(name)
        if name not in read and value is not None and value not in (values := list(allowed(groups))):
            expected = " or ".join(map(shown, values)) or "null"
            raise ContractError(name, shown(value), f"{expected}, as in the model that transformers builds")


def _check_fixed(name: str, value: Any, model_type: str) -> None:
    if value in FIXED[name]:
        return
    if isinstance(value, str):
        refuse_out_of_scope([value])
    expected = " or ".join(shown(one) for one in FIXED[name])
    raise ContractError(name, shown(value), f"{expected}: nothing else is known of {model_type}")


def printable(name: str) -> str:
    """The name of a field for a message: short, and without a character that a terminal obeys."""
    return name if name.isprintable() and len(name) <= _LONGEST_NAME else shown(name)
