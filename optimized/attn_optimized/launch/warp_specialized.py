"""The launch of the warp specialized kernel for the calls that it serves. The attention kernel serves all others."""

from collections.abc import Callable
from contextvars import copy_context

import torch
import triton
from attn_contract.rules import active_rules

from attn_optimized.kernel_call import Launch
from attn_optimized.kernels.warp_specialized import warp_specialized_kernel
from attn_optimized.launch.call import AttentionCall, PagedKeys
from attn_optimized.launch.parts import rows_by_head
from attn_optimized.launch.plan import MAX_GRID_Y, AttentionPlan
from attn_optimized.launch.prompts import PROMPT_QUERIES, PROMPT_TILES
from attn_optimized.strides import KVCacheStrides, kv_cache_strides, without_idle_strides

_RULES = frozenset({"sinks"})
_BYTES_AT_ONCE = 16
"""A descriptor addresses rows that begin at multiples of this number of bytes."""
_MAX_ROWS = (1 << 31) - 1024
"""The most rows of a cache: the kernel's numbers of rows have 32 bits."""


def warp_specialized_launch(plan: AttentionPlan, call: AttentionCall) -> Launch | None:
    """The launch of a call in place of the attention kernel's; None if the kernel does not serve the call."""
    cache = _served_cache(plan, call)
    tiles = PROMPT_TILES.get(call.layer.head_size)
    if cache is None or tiles is None or cache.block_size % tiles.block_n != 0:
        return None
    layer, batch, q, out = call.layer, call.batch, without_idle_strides(call.q), rows_by_head(call)
    heads, most_tiles = layer.num_heads, -(-batch.num_actual_tokens // PROMPT_QUERIES) + batch.num_requests - 1
    heads_first = plan.heads_first and most_tiles <= MAX_GRID_Y
    rows_of_block, rows_to_v = cache.block // cache.slot, cache.kv // cache.slot
    return _WithDescriptors.of(
        warp_specialized_kernel,
        (heads, most_tiles) if heads_first else (most_tiles, heads),
        {
            "BLOCK_SIZE": cache.block_size,
            "BLOCK_M": PROMPT_QUERIES,
            "BLOCK_N": tiles.block_n,
            "BLOCK_D": layer.head_size,
        },
        {"num_warps": 4, "num_stages": 2},
        has_lse=int(call.lse is not None),
        has_sinks=int(layer.sinks is not None),
        scale=layer.scale,
        num_requests=batch.num_requests,
        num_tokens=batch.num_actual_tokens,
        heads_first=int(heads_first),
        group=heads // layer.num_kv_heads,
        num_rows=_num_rows(cache),
        rows_of_block=rows_of_block,
        rows_to_v=rows_to_v,
        stride_out_row=out.stride(0),
        stride_out_head=out.stride(1),
        stride_q_row=q.stride(0),
        stride_q_head=q.stride(1),
        stride_kv_row=cache.slot,
        stride_kv_head=cache.head,
        stride_lse_head=0 if call.lse is None else call.lse.stride(0),
        stride_block_table=0 if batch.block_table is None else batch.block_table.stride(0),
    )


def _served_cache(plan: AttentionPlan, call: AttentionCall) -> KVCacheStrides | None:
    """The strides of a call's cache, or None if the kernel does not serve the call, its tiles aside."""
    q, keys, layer, batch, out, _ = call
    if not (plan.has_full_tiles and isinstance(keys, PagedKeys) and batch.causal is True and layer.scale > 0):
        return None
    scales = (layer.k_scale, layer.v_scale, layer.k_scale_cache, layer.v_scale_cache, layer.output_scale)
    has_one_type = q.dtype == keys.kv_cache.dtype == out.dtype and q.element_size() == 2
    if not has_one_type or any(scale is not None for scale in scales) or not _RULES.issuperset(active_rules(layer, batch)):
        return None
    cache, row = kv_cache_strides(without_idle_strides(keys.kv_cache), layer), without_idle_strides(q)
    steps = (cache.slot, cache.head, row.stride(0), row.stride(1), q.data_ptr() // q.element_size())
    has_whole_steps = all(step * q.element_size() % _BYTES_AT_ONCE == 0 for step in steps)
    is_aligned = has_whole_steps and (q.data_ptr() | keys.kv_cache.data_ptr()) % _BYTES_AT_ONCE == 0
    if cache.interior != "rows" or not is_aligned or cache.slot <= 0 or cache.block % cache.slot or cache.kv % cache.slot:
        return None
    return cache if _num_rows(cache) < _MAX_ROWS else None


def _num_rows(cache: KVCacheStrides) -> int:
    """The number of rows from the first row of K to the last row of V, in steps of a slot."""
    return ((cache.num_blocks - 1) * cache.block + cache.kv) // cache.slot + cache.block_size


class _WithDescriptors(Launch):
    """A launch of a kernel that makes tensor descriptors, in memory that Triton asks for in each launch."""

    def _run_on_gpu(self, tensors: list[torch.Tensor | None], index: int) -> None:
        # the caller's own allocator stays: this one is set in a context of the launch
        run: Callable[..., None] = super()._run_on_gpu
        context = copy_context()
        context.run(triton.set_allocator, _memory)
        context.run(run, tensors, index)


def _memory(size: int, alignment: int, stream: int | None) -> torch.Tensor:
    """Memory of the current device, for the current stream: torch reuses it for later work of the stream alone."""
    return torch.empty(size, dtype=torch.int8, device="cuda")
