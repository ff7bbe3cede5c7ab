"""AMD's AITER, called through the contract: found without importing it, known by its signatures, converted or refused.

AITER is optional and moves: what the installed one can do is read from its functions' arguments and, where no argument tells,
from its source, never from a version. Nothing here imports it before one of its functions is called.
"""

from attn_optimized.aiter_adapter.features import (
    BLOCKS_BESIDE_TILES,
    FOREIGN_CACHE,
    GROUP_SIZES,
    PAGED_ATTENTION_BLOCK_SIZES,
    PAGED_ATTENTION_HEAD_SIZES,
    PREFILL_HEAD_SIZES,
    TILES_OF_GFX1250,
    UNIFIED_HEAD_SIZES,
    Features,
    features_of,
    is_beside_tiles,
    is_foreign_cache,
    is_no_tile_of,
    may_run_assembly,
    native_float8,
    unified_block_sizes,
)
from attn_optimized.aiter_adapter.flash_attn_varlen import flash_attn_varlen
from attn_optimized.aiter_adapter.installation import RECORDED, Aiter, find_aiter, import_aiter, recorded
from attn_optimized.aiter_adapter.pa_fwd_asm import pa_fwd_asm
from attn_optimized.aiter_adapter.paged_attention_v1 import paged_attention_v1
from attn_optimized.aiter_adapter.signatures import Signature
from attn_optimized.aiter_adapter.unified_attention import unified_attention

__all__ = [
    "BLOCKS_BESIDE_TILES",
    "FOREIGN_CACHE",
    "GROUP_SIZES",
    "PAGED_ATTENTION_BLOCK_SIZES",
    "PAGED_ATTENTION_HEAD_SIZES",
    "PREFILL_HEAD_SIZES",
    "RECORDED",
    "TILES_OF_GFX1250",
    "UNIFIED_HEAD_SIZES",
    "Aiter",
    "Features",
    "Signature",
    "features_of",
    "find_aiter",
    "flash_attn_varlen",
    "import_aiter",
    "is_beside_tiles",
    "is_foreign_cache",
    "is_no_tile_of",
    "may_run_assembly",
    "native_float8",
    "pa_fwd_asm",
    "paged_attention_v1",
    "recorded",
    "unified_attention",
    "unified_block_sizes",
]
