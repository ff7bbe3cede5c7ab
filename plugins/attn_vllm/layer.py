"""What vLLM hands the constructor of an attention layer, as the contract's Layer."""

from typing import Any, Final, NamedTuple

import torch
from attn_contract import AttentionType, ContractError, Layer, Layout, Only, UnsupportedError
from attn_contract.attention_config import Scales
from vllm.platforms import current_platform


class CacheFormat(NamedTuple):
    """What one of vLLM's `kv_cache_dtype` strings means."""

    quantized: torch.dtype | None = None
    """The element type of a quantized cache; None: not quantized."""
    scales: Scales | None = None
    unquantized: torch.dtype | None = None
    """The element type that an unquantized cache is asked to have; None: the model's."""

    @property
    def layout(self) -> Layout:
        """vLLM's rows of K, then V, each with its scale behind it where there is one per token and head."""
        return Layout.CONTENT_PACKED_SCALED if self.scales == "inline" else Layout.CONTENT_PACKED


LAYOUTS: Final = Only((Layout.CONTENT_PACKED, Layout.CONTENT_PACKED_SCALED), "vLLM's caches have K, then V, in each row")
SCALES: Final = Only(("tensor", "head", "inline"), "vLLM keeps no scales beside a cache")

FLOAT8: Final = current_platform.fp8_dtype()
"""The e4m3 type of this machine: vLLM doubles a checkpoint's scales where it is e4m3fnuz."""

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
        e5m2 = "two bits of mantissa are too few for keys and values"
        reason = e5m2 if kv_cache_dtype == "fp8_e5m2" else "no layout of the contract holds it"
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
    """The layer without the scales of a float8 cache, which vLLM loads later: its kv_cache_dtype is then None.

    Args:
        sliding_window: W keys, the query's own among them: (W - 1, W - 1), of which causality cuts the right side. vLLM's
            kernels take (W - 1, 0) for decoders and treat it as symmetric where they are not causal.
        extra_impl_args: what else a model gives its layer, such as `sinks`.

    Raises:
        ContractError: the arguments contradict each other or the contract.
        UnsupportedError: one asks for what the contract has no word for, such as chunk_lookback, or for an unknown cache.
    """
    if sliding_window is not None and sliding_window < 1:
        raise ContractError("sliding_window", sliding_window, "None, or at least 1: it counts the token itself")
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
