"""AITER's pa_fwd_asm: assembly kernels for decode over a SHUFFLED cache."""

import math

import torch
from attn_contract import YES, Batch, Layer, Layout, No
from attn_contract.rules import label_of
from attn_contract.validation import check_paged_attention

from attn_optimized.aiter_adapter.features import ASSEMBLY_BLOCK_SIZES, ASSEMBLY_HEAD_SIZES
from attn_optimized.aiter_adapter.installation import Aiter
from attn_optimized.aiter_adapter.key_values import shuffled_pages
from attn_optimized.aiter_adapter.refusals import NO_ARGUMENT, NO_SUCH_MASK, Limit, cache, dtype, one_token, refuse, rules, size

_NAME = "pa_fwd_asm"
_RULES = {
    "window": YES,  # the right edge of the only query, which stands at the last key, hides nothing
    "logits_soft_cap": No(NO_ARGUMENT),
    "alibi_slopes": No(NO_ARGUMENT),
    "sinks": No(NO_ARGUMENT),
    "sink_tokens": No(NO_SUCH_MASK),
    "chunked_local": No(NO_SUCH_MASK),
    "bidirectional_ranges": No(NO_SUCH_MASK),
    "ranges_clamped": YES,  # it says how ranges meet a window, and there are no ranges
    "qq_bias": No(NO_ARGUMENT),
}
_MAX_ROWS = 16
_WHOLE_BLOCKS, _TILE = 240, 256
"""For more than 240 keys and fewer than 256 the files attend slots past the last key (ROCm/aiter#5654)."""
_REACH = 1 << 31
"""The bytes of a plane that offsets of 32 bits reach: blocks after them read as zeros (ROCm/aiter#3062)."""


def pa_fwd_asm(
    aiter: Aiter,
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: Layer,
    batch: Batch,
    *,
    out: torch.Tensor,
    lse: torch.Tensor | None = None,
    validate: bool = False,
) -> torch.Tensor:
    """Decode by AITER's assembly kernels, one query token per request; arguments as those of `paged_attention`.

    They have no argument for the scale of q.k: it is 1 / sqrt(D) inside, and any other is refused. They are wrong for 241 to
    255 keys. Without `validate` lengths are unknown, so a step whose `max_seq_len` is above 240 is refused.

    Args:
        aiter: the AITER to call; see find_aiter.
        q: [T, H, D] float16 or bfloat16, contiguous.
        kv_cache: SHUFFLED, of q's dtype.
        layer, batch: DECODER, `max_query_len` of 1 and as many rows as requests.
        out: [T, H, D] or [T, H * D], contiguous.
        lse: must be None.
        validate: check the values in tensors too, which waits for the device. Without it a request without a query,
            beside a row of padding, looks like one query token.

    Returns:
        out.

    Raises:
        ContractError: the arguments contradict the contract. Nothing was written.
        UnsupportedError: AITER or one of the arguments is missing, or the kernels do not do it. Nothing was written.
    """
    view = check_paged_attention(q, kv_cache, layer, batch, out, lse, values=validate)
    fixed, group = layer.head_size**-0.5, layer.num_heads // layer.num_kv_heads
    refuse(
        _NAME,
        *one_token(layer, batch, values=validate),
        *rules(_RULES, layer, batch),
        (layer.window[0] >= 0, label_of("window"), NO_SUCH_MASK),
        (lse is not None, "the LSE", "it returns none"),
        (not math.isclose(layer.scale, fixed, rel_tol=1e-6), f"a scale of {layer.scale:g}", f"it is {fixed:g} inside"),
        dtype(q.dtype),
        (layer.output_scale is not None, "a float8 output", NO_ARGUMENT),
        cache(layer, (None,), "its scales are per token, in an order of its own"),
        (layer.layout is not Layout.SHUFFLED, f"layout {layer.layout}", "it reads SHUFFLED pages"),
        (group > _MAX_ROWS, f"{group} query heads per KV head", f"at most {_MAX_ROWS} share a tile"),
        _short_tail(batch, values=validate),
        (_plane_bytes(kv_cache) > _REACH, f"a cache of {_plane_bytes(kv_cache)} bytes for K", "its offsets have 32 bits"),
        size("head size", layer.head_size, ASSEMBLY_HEAD_SIZES),
        size("block size", view.block_size, ASSEMBLY_BLOCK_SIZES),
        (not (q.is_contiguous() and out.is_contiguous()), "strides", "it steps over dense rows of q and out"),
        instead="paged_attention_v1, unified_attention or TRITON_ATTN",
    )
    k, v = shuffled_pages(kv_cache, layer)
    assert batch.block_table is not None
    if batch.num_requests:
        aiter.call(
            _NAME,
            Q=q[: batch.num_requests],
            K=k,
            V=v,
            block_tables=batch.block_table,
            context_lens=batch.seq_lens,
            block_tables_stride0=batch.block_table.stride(0),
            max_qlen=1,
            out_=out.view(q.shape)[: batch.num_requests],
        )
    return out


def _short_tail(batch: Batch, *, values: bool) -> Limit:
    """The limit that a request has 241 to 255 keys."""
    is_there = batch.max_seq_len > _WHOLE_BLOCKS
    if is_there and values:
        is_there = bool(((batch.seq_lens > _WHOLE_BLOCKS) & (batch.seq_lens < _TILE)).any())
    what = "241 to 255 keys" if values else f"max_seq_len {batch.max_seq_len} without validate"
    return is_there, what, "with 241 to 255 keys it attends slots past the last key"


def _plane_bytes(kv_cache: torch.Tensor) -> int:
    """The bytes from the first element of K's plane to the end of the last one."""
    plane = kv_cache[0]
    last = sum((size - 1) * stride for size, stride in zip(plane.shape, plane.stride(), strict=True))
    return (last + 1) * plane.element_size() if plane.numel() else 0
