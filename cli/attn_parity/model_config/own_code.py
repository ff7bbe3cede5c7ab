"""Attention that a model's own code computes and hands to nobody, read off the attributes of its modules."""

from collections.abc import Callable, Mapping
from typing import Any

from attn_contract import ContractError


def _bloom(module: Any, config: Any) -> dict[str, Any]:
    return _read(module.num_heads, module.head_dim, module.inv_norm_factor, alibi_slopes=True)


def _mpt(module: Any, config: Any) -> dict[str, Any]:
    # the code adds ALiBi whatever the field says
    if not config.attn_config.alibi:
        raise ContractError(
            "attn_config.alibi", config.attn_config.alibi, "true: transformers' code adds ALiBi whatever it says"
        )
    return _read(module.n_heads, module.head_dim, module.softmax_scale, alibi_slopes=True)


def _falcon(module: Any, config: Any) -> dict[str, Any]:
    heads = module.num_heads
    kv_heads = module.num_kv_heads if module.new_decoder_architecture else 1 if module.multi_query else heads
    rules = {"alibi_slopes": True} if config.alibi else {}
    return {**_read(heads, module.head_dim, module.inv_norm_factor, **rules), "num_kv_heads": kv_heads}


def _gpt_neo(module: Any, config: Any) -> dict[str, Any]:
    before = config.window_size - 1
    rules = {"window": (before, before)} if module.attention_type == "local" else {}
    return _read(module.num_heads, module.head_dim, 1.0, **rules)


def _gpt_neox_japanese(module: Any, config: Any) -> dict[str, Any]:
    return _read(module.num_attention_heads, module.head_size, 1 / module.norm_factor)


def _xglm(module: Any, config: Any) -> dict[str, Any]:
    return _read(module.num_heads, module.head_dim, module.scaling)


def _read(heads: int, head_size: int, scale: float, **rules: Any) -> dict[str, Any]:
    sizes = {"num_heads": heads, "num_kv_heads": heads, "head_size": head_size, "v_head_size": head_size}
    return {**sizes, "scale": float(scale), "rules": rules}


READERS: Mapping[str, Callable[[Any, Any], dict[str, Any]]] = {
    "BloomAttention": _bloom,
    "MptAttention": _mpt,
    "FalconAttention": _falcon,
    "GPTNeoSelfAttention": _gpt_neo,
    "GPTNeoXJapaneseAttention": _gpt_neox_japanese,
    "XGLMAttention": _xglm,
}
"""Readers by class name: each makes the fields of a call from the module and the config. All are causal decoders."""
