"""Parts of declarations that backends share. A rule that a declaration does not name is refused."""

from typing import Any

import torch
from attn_contract import (
    ANY,
    YES,
    Answer,
    AttentionConfig,
    AttentionType,
    Capabilities,
    Combination,
    Layout,
    Multiples,
    No,
    Only,
)
from attn_contract.attention_config import Scales

from attn_optimized.aiter_adapter import FOREIGN_CACHE, RECORDED, Aiter, is_foreign_cache, recorded
from attn_optimized.launch.rules import IMPLEMENTED_RULES
from attn_optimized.launch.widths import MAX_HEAD_SIZE

LAYOUTS_OF_ROWS = (
    Layout.BLOCKS_FIRST_NHD,
    Layout.CONTENT_PACKED,
    Layout.BLOCKS_FIRST_HND,
    Layout.KV_FIRST_NHD,
    Layout.KV_FIRST_HND,
)
"""Layouts in which the dims of one head and slot are a dense row, in the order in which AITER's backends prefer them."""

_LAYOUTS = (
    Layout.BLOCKS_FIRST_NHD,
    Layout.BLOCKS_FIRST_HND,
    Layout.KV_FIRST_NHD,
    Layout.KV_FIRST_HND,
    Layout.X_PACKED,
    Layout.SHUFFLED,
    Layout.CONTENT_PACKED,
    Layout.CONTENT_PACKED_SCALED,
)
CHUNKS_ARE_REQUESTS = No("vLLM cuts chunks into requests of their own, in metadata that this backend does not build")
NOT_OVER_RANKS = No("vLLM's backend declares none: attn_optimized.context_parallel attends over ranks without a backend")
_SCALES: tuple[Scales, ...] = ("tensor", "head", "token", "inline")


def triton_capabilities(backend: str, **narrower: Any) -> Capabilities:
    """The capabilities of this project's Triton kernels, for a backend that may serve less.

    Args:
        narrower: fields of Capabilities in place of the kernels' own. A backend that gives `rules` names all of its own.
    """
    served = {
        "backend": backend,
        "available": YES,
        "architectures": ANY,
        "attn_types": {
            AttentionType.DECODER: YES,
            AttentionType.ENCODER: YES,
            AttentionType.ENCODER_ONLY: YES,
            AttentionType.ENCODER_DECODER: YES,
        },
        "dtypes": Only((torch.float32, torch.float16, torch.bfloat16), "its kernels load no other type"),
        "head_sizes": Multiples(1, "a tile holds whole heads", at_most=MAX_HEAD_SIZE),
        "group_sizes": ANY,
        "block_sizes": ANY,
        "layouts": Only(_LAYOUTS, "its kernels address no other"),
        "kv_cache_dtypes": Only((torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.int8), "its kernels decode no other type"),
        "scales": Only(_SCALES, "its kernels know no other kind"),
        "output_dtypes": Only((torch.float8_e4m3fn, torch.float8_e4m3fnuz), "its kernels encode no other type"),
        "rules": {
            **dict.fromkeys(IMPLEMENTED_RULES, YES),
            "selection_unit": No("vLLM's backend takes no selection, and a step's metadata holds none"),
            "key_unit": No("vLLM's backend has a cache of tokens, and a step's metadata counts keys by tokens"),
            "head_size_v": No("engines ask TRITON_ATTN_DIFFKV for K and V of two widths, and TRITON_MLA for a latent cache"),
            "non_causal": YES,
            "per_request_causal": YES,
            "lse": YES,
            "batch_invariant": YES,
            "rope": YES,
            "kv_sharing": YES,
            "over_ranks": NOT_OVER_RANKS,
        },
    }
    return Capabilities(**{**served, **narrower})


def _is_before_sm89(config: AttentionConfig, architecture: str | None) -> bool:
    if config.kv_cache_dtype is None or architecture is None or not architecture.startswith("sm"):
        return False
    return int(architecture.removeprefix("sm")) < 89


def _is_without_float8_dots(config: AttentionConfig, architecture: str | None) -> bool:
    return config.asks("q_scale") and architecture is not None and architecture.startswith(("gfx90a", "gfx11"))


FLOAT8_QUERIES = (
    Combination(
        property="float8 queries on gfx90a and gfx11",
        applies=_is_without_float8_dots,
        reason="vLLM quantizes no queries there: these GPUs have no float8 dots (vLLM 0.33, triton_attn.py:553-558)",
    ),
    Combination(
        property="float8 queries beside scales of tokens",
        applies=lambda config, _: config.asks("q_scale") and config.scales not in ("tensor", "head"),
        reason="vLLM quantizes queries beside scales of the whole cache alone (vLLM 0.33, attention.py:471-478)",
    ),
)
"""The answers of vLLM's Triton backends about float8 queries: `supports_quant_query_input`, and the layer that asks."""

FLOAT8_BEFORE_SM89 = Combination(
    property="a float8 cache on an NVIDIA GPU before sm89",
    applies=_is_before_sm89,
    reason="vLLM's backend refuses it: its kernel wants the GPU's own float8",
)


def declared_aiter(aiter: Aiter) -> Aiter:
    """The AITER, or the newest record if it is missing, so that its absence is one reason and not ten."""
    return aiter if aiter.missing is None else recorded(RECORDED[-1])


def own_float8_caches(aiter: Aiter) -> Combination:
    """The combination that refuses a decoder's float8 cache of a type that the AITER's unified_attention does not take."""

    def is_of_another(config: AttentionConfig, architecture: str | None) -> bool:
        is_asked = architecture is not None and config.attn_type is AttentionType.DECODER
        return is_asked and is_foreign_cache(aiter, architecture, config.kv_cache_dtype)

    reason = FOREIGN_CACHE
    return Combination(
        property="a float8 cache that is not of the architecture's own type", applies=is_of_another, reason=reason
    )


def answer(why_not: str | None) -> Answer:
    """A feature of AITER as an answer of a declaration."""
    return YES if why_not is None else No(why_not)
