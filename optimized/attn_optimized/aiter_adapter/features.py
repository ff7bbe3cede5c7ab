"""Features of an AITER, read from its signatures, and of its kernels, read from its sources.

An argument in a signature is not yet support: see `may_run_assembly`.
"""

import torch
from attn_contract import Multiples, Only
from attn_contract.capabilities import Values

from attn_optimized.aiter_adapter.installation import Aiter

GROUP_SIZES = Multiples(1, "AITER's kernels were compared with the reference in no larger group", at_most=64)
PREFILL_HEAD_SIZES = Multiples(8, "flash_attn_varlen_func pads q, k and v, and not `out`, to multiples of 8", at_most=256)
UNIFIED_HEAD_SIZES = Only(
    (16, 32, 64, 128, 256),
    "unified_attention pads other heads to a power of two, and reduce_segments does not compile for those (seen in 0.1.7; no "
    "signature tells whether that is over)",
)
BLOCKS_BESIDE_TILES = (
    "unified_attention asserts, if it splits keys, that a tile of 64 holds whole blocks (seen from 0.1.16 to e404860)"
)
TILES_OF_GFX1250 = "unified_attention takes a block for a tile of keys there, a power of two (seen in e404860)"
FOREIGN_CACHE = (
    "unified_attention asserts, if it splits keys, that a float8 cache is of the device's own type (seen in e404860)"
)
PAGED_ATTENTION_HEAD_SIZES = Multiples(
    64, "paged_attention_v1 gives each of its 4 waves 16 dims of V at a time (vLLM #34570)", at_most=256
)
PAGED_ATTENTION_BLOCK_SIZES = Only(
    (16, 32), "paged_attention_v1 is tested with these; its partitions of 256 keys hold whole blocks"
)
ASSEMBLY_HEAD_SIZES = Only((128,), "pa_fwd_asm's kernels are assembled for it")
ASSEMBLY_BLOCK_SIZES = Only((16,), "pa_fwd_asm's kernels are assembled for it")


_ARGUMENTS = {
    "prefill": ("flash_attn_varlen_func", None),
    "prefill_sinks": ("flash_attn_varlen_func", "sink_ptr"),
    "prefill_window": ("flash_attn_varlen_func", "window_size"),
    "prefill_soft_cap": ("flash_attn_varlen_func", "logits_soft_cap"),
    "prefill_alibi": ("flash_attn_varlen_func", "alibi_slopes"),
    "prefill_lse": ("flash_attn_varlen_func", "return_lse"),
    "prefill_block_table": ("flash_attn_varlen_func", "block_table"),
    "unified": ("unified_attention", None),
    "unified_sinks": ("unified_attention", "sinks"),
    "unified_window": ("unified_attention", "window_size"),
    "unified_soft_cap": ("unified_attention", "softcap"),
    "unified_alibi": ("unified_attention", "alibi_slopes"),
    "unified_qq_bias": ("unified_attention", "qq_bias"),
    "unified_q_scales": ("unified_attention", "q_scales"),
    "unified_output_scale": ("unified_attention", "output_scale"),
    "decode": ("paged_attention_v1", None),
    "decode_window": ("paged_attention_v1", "sliding_window"),
    "decode_multi_token": ("paged_attention_v1", "mtp"),
    "decode_assembly": ("pa_fwd_asm", None),
}


def unified_block_sizes(aiter: Aiter) -> Values:
    """Block sizes that unified_attention of an AITER takes. See `is_beside_tiles` and `is_no_tile_of` for two exceptions."""
    if "rounded tiles" in aiter.unified_traits:
        return Multiples(16, "unified_attention was compared with the reference in vLLM's blocks alone")
    return Only(
        (16, 32, 64, 128, 256),
        "unified_attention takes a block for a tile of keys, a power of two from 16 on (ROCm/aiter#2393, in 0.1.12, ends that)",
    )


def is_beside_tiles(aiter: Aiter, block_size: int) -> bool:
    """True for a block size that BLOCKS_BESIDE_TILES keeps from an AITER: 48."""
    return "tiles of whole blocks" in aiter.unified_traits and block_size < 64 and 64 % block_size != 0


def is_no_tile_of(architecture: str | None, block_size: int) -> bool:
    """True for a block size that TILES_OF_GFX1250 keeps from an architecture."""
    return architecture == "gfx1250" and block_size.bit_count() > 1


def native_float8(aiter: Aiter, architecture: str | None) -> torch.dtype:
    """The float8 type that an AITER takes for an architecture's own. It clamps quantized outputs to the range of that type."""
    return torch.float8_e4m3fn if architecture in aiter.fn_architectures else torch.float8_e4m3fnuz


def is_foreign_cache(aiter: Aiter, architecture: str | None, kv_cache_dtype: torch.dtype | None) -> bool:
    """True for the float8 type of a cache that FOREIGN_CACHE keeps from an AITER on an architecture."""
    is_float8 = kv_cache_dtype in (torch.float8_e4m3fn, torch.float8_e4m3fnuz)
    asserts = "the device's own float8" in aiter.unified_traits
    return is_float8 and asserts and kv_cache_dtype != native_float8(aiter, architecture)


def features_of(aiter: Aiter) -> dict[str, str | None]:
    """For each feature, None if an AITER's signatures declare it, or the reason why not.

    `prefill` is flash_attn_varlen_func, and `prefill_sinks` its argument for sinks. In the same way `unified` is
    unified_attention, `decode` is paged_attention_v1, and `decode_assembly` is pa_fwd_asm.
    """
    return {name: _why_not(aiter, *place) for name, place in _ARGUMENTS.items()}


def window_edges(aiter: Aiter) -> int:
    """The length of flash_attn_varlen_func's `window_size`: left and right, in newer versions also the sink tokens."""
    default = aiter.signatures["flash_attn_varlen_func"].defaults.get("window_size")
    return len(default) if isinstance(default, tuple | list) else 2


def may_run_assembly(head_size: int, dtype: torch.dtype, *, alibi: bool) -> bool:
    """True if flash_attn_varlen_func may take its assembly kernels (gfx942, gfx950), which know neither sinks nor soft caps.

    Its gate requires bfloat16, a head size of 128, no ALiBi and no window, but does not look at sinks and caps. A window does
    not avoid these kernels: a window that reaches past the batch's longest sequence is dropped before the gate.
    """
    return dtype == torch.bfloat16 and head_size == 128 and not alibi


def _why_not(aiter: Aiter, function: str, argument: str | None) -> str | None:
    if aiter.missing is not None:
        return aiter.missing
    if function not in aiter.signatures:
        return f"{aiter} has no {function}"
    if argument is not None and not aiter.has(function, argument):
        return f"{function} of {aiter} has no argument `{argument}`"
    return None
