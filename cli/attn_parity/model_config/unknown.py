"""Silence is refusal: a field that sounds like attention and is not known is refused by its name.

A field is known if the record of its model type lists it, or if INERT does. Any other field whose name has one of
ATTENTION_WORDS must say nothing: null, false or empty.
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
    *("attn", "attention", "head", "window", "sliding", "rope", "rotary", "alibi", "bias", "softcap", "sink", "chunk"),
    *("position", "relative", "causal", "mask", "kv", "cache", "layer_type", "indexer", "mamba", "ssm", "lookback"),
)
_SOUNDS_LIKE_ATTENTION = re.compile("|".join(ATTENTION_WORDS))

_LONGEST_NAME = 100

_BEFORE_ATTENTION = (
    *("attention_bias", "attention_out_bias", "qkv_bias", "use_qkv_bias", "use_bias", "bias", "enable_bias", "use_qk_norm"),
    *("rope_theta", "rope_scaling", "rope_parameters", "rope_type", "rope_local_base_freq", "rotary_dim", "rotary_emb_base"),
    *("rotary_pct", "partial_rotary_factor", "max_position_embeddings", "original_max_position_embeddings", "n_positions"),
    *("max_source_positions", "max_target_positions"),
)
"""What a model does to q and k before attention sees them."""
_ELSEWHERE = ("final_logit_softcapping", "lm_head_bias", "mlp_bias", "multimodal_projector_bias", "chunk_size_feed_forward")
"""Feed-forward layers, and the logits of the vocabulary."""
_HOW_IT_RUNS = (
    *("use_cache", "cache_implementation", "attn_implementation", "_attn_implementation", "_attn_implementation_autoset"),
    *("output_attentions", "attention_dropout", "mask_token_id"),
)
"""Which code computes it, what it returns besides, ids of tokens, and what is of training alone."""
INERT = frozenset((*_BEFORE_ATTENTION, *_ELSEWHERE, *_HOW_IT_RUNS))
"""Fields that sound like attention and change nothing about it, in every model of MODEL_TYPES."""


def refuse_unknown(fields: Mapping[str, Any], model_type: str, record: ModelType) -> None:
    """Refuse the first field that sounds like attention, says something and is not known.

    Args:
        fields: of a model config, by name.
        model_type, record: whose fields they are.

    Raises:
        ContractError: naming the field and the known ones whose names are near.
        UnsupportedError: a field asks by its value for what is out of scope.
    """
    known = {*record.fields, *record.fixed, *record.inert, *INERT}
    for name, value in fields.items():
        if name in record.fixed and value not in (*record.fixed[name], None):
            if isinstance(value, str):
                refuse_out_of_scope([value])
            expected = " or ".join(shown(one) for one in record.fixed[name])
            raise ContractError(name, shown(value), f"{expected}: nothing else is known of {model_type}")
        own_name = name.rpartition(".")[2]
        if name in known or own_name in INERT or says_nothing(value) or not _SOUNDS_LIKE_ATTENTION.search(own_name.lower()):
            continue
        near = difflib.get_close_matches(name[:_LONGEST_NAME], sorted(known), n=3, cutoff=0)
        expected = f"null: it is not known what it asks of {model_type} (near: {', '.join(near)})"
        is_short = name.isprintable() and len(name) <= _LONGEST_NAME
        raise ContractError(name if is_short else shown(name), shown(value), expected)


def says_nothing(value: object) -> bool:
    """Whether a field with this value asks for nothing, whatever the field is. 0 may ask for something."""
    return value is None or value is False or value in ({}, [])
