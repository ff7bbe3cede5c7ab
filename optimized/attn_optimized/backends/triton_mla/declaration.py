"""Capabilities of TRITON_MLA: those of vLLM 0.33's backend of this name, on this project's kernels."""

from typing import Any

import torch
from attn_contract import (
    ANY,
    FLOAT8_DTYPES,
    YES,
    AttentionConfig,
    AttentionType,
    Capabilities,
    Combination,
    Layout,
    Multiples,
    No,
    Only,
)

from attn_optimized.aiter_adapter import Aiter
from attn_optimized.backends.base import AttentionBackend
from attn_optimized.backends.declaring import FLOAT8_BEFORE_SM89
from attn_optimized.backends.triton_mla.impl import TritonMlaImpl
from attn_optimized.backends.triton_mla.metadata import NAME, MlaMetadataBuilder
from attn_optimized.launch.widths import MAX_LATENT_SIZE, MAX_REST_SIZE


def mla_capabilities(backend: str, *, rules: dict[str, Any], **own: Any) -> Capabilities:
    """Capabilities that vLLM's backends of latent attention share, under the name of one.

    Args:
        rules: answers about the rules in which the backends differ.
        own: other fields of Capabilities in which they differ.
    """
    a_decoder = No("only decoders have a latent cache")
    a_position = No("vLLM's backend refuses it, and its prefill is handed none")
    served = {
        "backend": backend,
        "attn_types": {**dict.fromkeys(AttentionType, a_decoder), AttentionType.DECODER: YES},
        "dtypes": Only((torch.float16, torch.bfloat16), "vLLM declares no other dtype"),
        "group_sizes": ANY,
        "layouts": Only((Layout.LATENT,), "its cache is the latent vectors and rotated keys of MLA"),
        "kv_cache_dtypes": Only(FLOAT8_DTYPES, "vLLM's latent cache is quantized to float8 alone"),
        "scales": Only(("tensor",), "a latent cache has one scale, for K and V alike"),
        "output_dtypes": Only((), "W_UV is applied to the output, and vLLM quantizes after it"),
        "rules": {
            "head_size_v": YES,
            "lse": YES,
            "window": No("vLLM's backend refuses a sliding window"),
            "sink_tokens": No("vLLM's backend has no parameter for it"),
            "chunked_local": No("vLLM cuts chunks in metadata that this backend does not build"),
            "ranges_clamped": No("vLLM's backend has no parameter for it"),
            "logits_soft_cap": a_position,
            "q_scale": No("vLLM's backend keeps queries as they are: its kernel dequantizes the cache"),
            "alibi_slopes": a_position,
            "sinks": No("vLLM's backend declares none"),
            "bidirectional_ranges": No("vLLM's backend declares none"),
            "qq_bias": No("vLLM's backend has no parameter for it"),
            "per_request_causal": No("vLLM's builder has one causal flag for a step"),
            "rope": No("vLLM rotates before the layer"),
            "kv_sharing": No("vLLM's layer of latent attention refuses it"),
            "over_ranks": YES,
            **rules,
        },
    }
    return Capabilities(**served, **own)


WIDEST = MAX_LATENT_SIZE + MAX_REST_SIZE


def _is_too_wide(config: AttentionConfig) -> bool:
    v_head_size = config.v_head_size
    return config.has_latent_cache and (v_head_size > MAX_LATENT_SIZE or config.head_size - v_head_size > MAX_REST_SIZE)


TOO_WIDE = Combination(
    property=f"a latent V wider than {MAX_LATENT_SIZE}, or a K wider than V by more than {MAX_REST_SIZE}",
    applies=lambda config, _: _is_too_wide(config),
    reason="a tile holds whole rows, in these two parts",
)


class TritonMlaBackend(AttentionBackend):
    name = NAME
    impl = TritonMlaImpl
    builder = MlaMetadataBuilder

    @classmethod
    def over_ranks(cls) -> type[AttentionBackend]:
        # torch need not be built with torch.distributed
        from attn_optimized.backends.triton_mla.over_ranks import TritonMlaOverRanksBackend

        return TritonMlaOverRanksBackend

    @classmethod
    def capabilities(cls, aiter: Aiter) -> Capabilities:
        return mla_capabilities(
            cls.name,
            available=YES,
            architectures=ANY,
            head_sizes=Multiples(1, "a tile holds whole rows", at_most=WIDEST),
            block_sizes=Multiples(16, "vLLM's kernel takes blocks in units of 16 slots"),
            rules={"non_causal": YES, "batch_invariant": YES},
            combinations=(TOO_WIDE, FLOAT8_BEFORE_SM89),
        )
