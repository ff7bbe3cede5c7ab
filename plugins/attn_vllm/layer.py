"""The arguments with which vLLM constructs an attention layer, as the contract's Layer."""

from typing import Any, Final, NamedTuple

import torch
from attn_contract import AttentionType, ContractError, Layer, Layout, Only, UnsupportedError
from attn_contract.attention_config import Scales
from attn_contract.layer import why_not_stored
from vllm.platforms import current_platform


class CacheFormat(NamedTuple):
    """The meaning of one of vLLM's `kv_cache_dtype` strings."""

    quantized: torch.dtype | None = None
    """The element type of a quantized cache; None where the cache is not quantized."""
    scales: Scales | None = None
    unquantized: torch.dtype | None = None
    """The element type that an unquantized cache must have; None: the model's."""

    @property
    def layout(self) -> Layout:
        """The layout of vLLM's caches: rows of K, then V, each followed by its scale if scales are per token and head."""
        return Layout.CONTENT_PACKED_SCALED if self.scales == "inline" else Layout.CONTENT_PACKED

    def view(self, kv_cache: torch.Tensor) -> torch.Tensor:
        """A cache with its own element type: vLLM passes float8 caches as bytes."""
        return kv_cache if self.quantized is None else kv_cache.view(self.quantized)


LAYOUTS: Final = Only((Layout.CONTENT_PACKED, Layout.CONTENT_PACKED_SCALED), "vLLM's caches have K, then V, in each row")
SCALES: Final = Only(("tensor", "head", "inline"), "vLLM keeps no scales beside a cache")

FLOAT8: Final = current_platform.fp8_dtype()
"""The e4m3 type of this machine. Where it is e4m3fnuz, vLLM doubles the scales of a checkpoint."""

CACHE_FORMATS: Final = {
    "auto": CacheFormat(),
    "float16": CacheFormat(unquantized=torch.float16),
    "bfloat16": CacheFormat(unquantized=torch.bfloat16),
    "fp8": CacheFormat(FLOAT8, "tensor"),
    "fp8_e4m3": CacheFormat(FLOAT8, "tensor"),
    "int8_per_token_head": CacheFormat(torch.int8, "inline"),
    "fp8_per_token_head": CacheFormat(FLOAT8, "inline"),
}


def cache_format(kv_cache_dtype: str) -> CacheFormat:
    """The format of a `--kv-cache-dtype`.

    Raises:
        UnsupportedError: the contract has no such cache.
    """
    if kv_cache_dtype not in CACHE_FORMATS:
        reason = why_not_stored(kv_cache_dtype) or "no layout of the contract holds it"
        raise UnsupportedError("attn_vllm", f"KV cache dtype {kv_cache_dtype}", reason, ", ".join(CACHE_FORMATS))
    return CACHE_FORMATS[kv_cache_dtype]


def layer_of(
    *,
    num_heads: int,
    head_size: int,
    scale: float,
    num_kv_heads: int | None,
    alibi_slopes: list[float] | None,
    sliding_window: int | None,
    kv_cache_dtype: str,
    logits_soft_cap: float | None,
    attn_type: str,
    **extra_impl_args: Any,
) -> Layer:
    """The contract's Layer. vLLM loads the scales of a float8 cache later: until then the layer has no kv_cache_dtype.

    Args:
        num_kv_heads: the number of KV heads; None: num_heads.
        alibi_slopes: H numbers.
        sliding_window: W keys, the query's own among them. The layer's window is (W - 1, W - 1), and causality cuts its right
            side. vLLM's kernels take (W - 1, 0) for decoders, and treat it as symmetric where they are not causal.
        attn_type: vLLM's name of an attention type.
        extra_impl_args: further arguments of a model to its layer, such as `sinks`.

    Raises:
        ContractError: the arguments contradict each other or the contract.
        UnsupportedError: the contract has no such attention type or cache, or an argument is out of its scope, such as
            chunk_lookback.
    """
    if sliding_window is not None and sliding_window < 1:
        raise ContractError("sliding_window", sliding_window, "None, or at least 1: it counts the token itself")
    if attn_type not in set(AttentionType):
        raise UnsupportedError("attn_vllm", f"attention type {attn_type}", "the contract has no such type")
    kind = AttentionType(attn_type)
    cache = cache_format(kv_cache_dtype) if kind.reads_cache else None
    return Layer(
        num_heads=num_heads,
        num_kv_heads=num_heads if num_kv_heads is None else num_kv_heads,
        head_size=head_size,
        scale=scale,
        attn_type=kind,
        window=(-1, -1) if sliding_window is None else (sliding_window - 1, sliding_window - 1),
        logits_soft_cap=logits_soft_cap,
        # on the default device, where vLLM builds models
        alibi_slopes=None if alibi_slopes is None else torch.tensor(alibi_slopes, dtype=torch.float32),
        layout=None if cache is None else cache.layout,
        kv_cache_dtype=cache.quantized if cache and cache.scales == "inline" else None,
        **extra_impl_args,
    )
