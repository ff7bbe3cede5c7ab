"""FlashAttention-3 and FlashMLA as vLLM's wheel brings them: what a Hopper GPU's user really has beside Triton.

What an engine computes once for all layers of a step is not timed: schedules, and the slots of selected tokens.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.participants.attention import FA3, FLASHMLA, Participant, Prepared, paged_rows, poisoned, refuse
from benchmarks.steps.calls import Call

WIDEST = 256
"""The widest heads of FlashAttention-3."""
SIZES, BLOCK = (576, 512), 64
"""K's and V's dims, and tokens of a block, of FlashMLA."""


def participants(fa3_ops: Any | None, flashmla_ops: Any | None) -> Iterator[Participant]:
    """The participants whose ops were loaded."""
    if fa3_ops is not None:
        rows = functools.partial(fa3, fa3_ops)
        yield Participant(FA3, rows, lambda case: not case.is_latent)
    if flashmla_ops is not None:
        yield Participant(
            FLASHMLA,
            functools.partial(flashmla, flashmla_ops),
            lambda case: case.is_latent and len({*case.query_lens}) == 1,
        )


def fa3(ops: Any, call: Call) -> Prepared:
    """FlashAttention 3, called as vLLM's `flash_attn_varlen_func` does; it chooses the number of splits itself."""
    case, layer, batch, out = call.case, call.layer, call.batch, poisoned(call)
    refuse(
        FA3,
        (case.chunked_local is not None, "chunks"),
        (case.selection is not None, "a selection"),
        (case.float8_cache, "a float8 cache beside a q of 16 bits"),
        (case.head_size > WIDEST, f"heads of {case.head_size}"),
    )
    left, soft_cap = layer.window[0], layer.logits_soft_cap or 0.0
    shared = {
        "is_causal": batch.causal or case.is_expanded,
        "window_size_left": left,
        "window_size_right": -1 if left < 0 else 0,
        "cu_seqlens_q": batch.query_start_loc,
        "max_seqlen_q": batch.max_query_len,
        "max_seqlen_k": batch.max_seq_len,
        "num_splits": 0,
        "sm_margin": 0,
    }
    if call.kv_cache is None:
        k, v = call.k, call.v
        keys = {"cu_seqlens_k": batch.query_start_loc}
    else:
        k, v = paged_rows(FA3, call)
        schedule = _bound(
            ops.get_scheduler_metadata,
            **shared,
            batch_size=batch.num_requests,
            num_heads=layer.num_heads,
            num_heads_k=layer.num_kv_heads,
            headdim=layer.head_size,
            headdim_v=case.v_head_size,
            qkv_dtype=call.q.dtype,
            seqused_k=batch.seq_lens,
            page_size=case.block_size,
            max_seqlen_k_new=0,
            has_softcap=soft_cap > 0,
        )()
        keys = {"seqused_k": batch.seq_lens, "page_table": batch.block_table, "scheduler_metadata": schedule}
    sinks = None if layer.sinks is None else layer.sinks.to(call.q.dtype)
    arguments = {"q": call.q, "k": k, "v": v, "out": out, "softmax_scale": layer.scale, "softcap": soft_cap, "s_aux": sinks}
    ranks = {"is_rotary_interleaved": True, "cp_world_size": 1, "cp_rank": 0}
    return Prepared(_bound(ops.fwd, **shared, **keys, **arguments, **ranks), lambda _: out)


def flashmla(ops: Any, call: Call) -> Prepared:
    """FlashMLA, called as vLLM's FLASHMLA and FLASHMLA_SPARSE do. Its kernel for prefills reads selected tokens of 16 bits."""
    case, layer, batch = call.case, call.layer, call.batch
    requests, query_len = len(case.query_lens), case.query_lens[0]
    refuse(
        FLASHMLA,
        (case.float8_cache, "a float8 cache beside a q of 16 bits"),
        ((case.head_size, case.v_head_size) != SIZES, f"latent vectors of {case.head_size}, {case.v_head_size}"),
        (case.block_size != BLOCK, f"blocks of {case.block_size}"),
    )
    if batch.selected is not None:
        slots = _slots(call, batch.selected[0])
        cache, out = call.cache.view(-1, 1, case.head_size), poisoned(call)
        selecting = {"q": call.q, "kv": cache, "indices": slots, "sm_scale": layer.scale, "d_v": SIZES[1], "out_": out}
        return Prepared(_bound(ops.sparse_prefill_fwd, **selecting), lambda _: out)
    arguments = {
        "q": call.q.view(requests, query_len, *call.q.shape[1:]),
        "kcache": call.cache.unsqueeze(2),
        "head_size_v": SIZES[1],
        "seqlens_k": batch.seq_lens,
        "block_table": batch.block_table,
        "softmax_scale": layer.scale,
        "is_causal": query_len > 1,
    }
    _, _, schedule, num_splits = _bound(ops.dense_decode_fwd, **arguments)()
    schedules = {"tile_scheduler_metadata": schedule, "num_splits": num_splits}
    return Prepared(_bound(ops.dense_decode_fwd, **arguments, **schedules), lambda found: found[0].flatten(0, 1))


def _slots(call: Call, selected: torch.Tensor) -> torch.Tensor:
    """[T, 1, W] int32: the slots of selected tokens [T, W] of requests with as many queries each."""
    table, block_size = call.batch.block_table, call.case.block_size
    assert table is not None
    tables = table.repeat_interleave(call.case.query_lens[0], dim=0)
    blocks = tables.gather(1, (selected.clamp(min=0) // block_size).long())
    return torch.where(selected < 0, -1, blocks * block_size + selected % block_size).int().unsqueeze(1)


def _bound(op: Any, **arguments: Any) -> Callable[[], Any]:
    """An op with its arguments, those that are not named being None."""
    names = [argument.name for argument in op.default._schema.arguments]
    assert arguments.keys() <= set(names), (op, names)
    return functools.partial(op.default, *map(arguments.get, names))
