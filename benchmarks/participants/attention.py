"""Participants of attention over rows: our kernels, PyTorch's dense attention, vLLM's and AITER's Triton kernels.

A participant prepares a call once: work that an engine does once (views, scratch memory, gathering K and V for dense attention)
is done there, and is not timed. It refuses a case that it cannot express with an UnsupportedError.
"""

import functools
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import attn_optimized
import torch
from attn_contract import Layout, UnsupportedError
from attn_contract.layouts import K, V
from attn_optimized.cascade import cascade_pays
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention

from benchmarks.steps.calls import Call, requests_of
from benchmarks.steps.cases import Attention

CAPTURE_SIZES = (1, 2, 4, *range(8, 513, 8))
"""Batch sizes for which vLLM captures graphs; its threshold for splitting keys is the nearest one."""
VLLM_SEGMENTS, VLLM_PROGRAMS = 16, 128


class Prepared(NamedTuple):
    """A call that can be made again and again.

    Attributes:
        run: makes the call.
        output: turns the result of `run` into the rows [T, H, D] that are checked.
    """

    run: Callable[[], Any]
    output: Callable[[Any], torch.Tensor]


class Participant(NamedTuple):
    """`prepare` gets calls of the cases for which `joins` is true."""

    name: str
    prepare: Callable[[Call], Prepared]
    joins: Callable[[Attention], bool] = lambda case: True


def _has_rows(case: Attention) -> bool:
    """True if K and V of a case are rows of one width."""
    return case.head_size_v is None


OURS, BEFORE, WITHOUT_CASCADE, VLLM, AITER = "ours", "ours before", "ours without cascade", "vLLM Triton", "AITER Triton"
CUDNN, FA3, FLASHMLA = "SDPA cuDNN", "FlashAttention-3", "FlashMLA"
SDPA = {"SDPA flash": SDPBackend.FLASH_ATTENTION, CUDNN: SDPBackend.CUDNN_ATTENTION}
TRITON, PAGED = (VLLM, AITER), (VLLM, AITER, FA3, FLASHMLA)
PEERS = (*PAGED, *SDPA)


def participants(
    vllm: SimpleNamespace | None, aiter: SimpleNamespace | None, before: SimpleNamespace | None = None
) -> list[Participant]:
    """All that are here, in the order of the page; vLLM and AITER as `benchmarks.participants.loading` loads them.

    Args:
        before: see `benchmarks.participants.before`.
    """
    found = [Participant(OURS, functools.partial(ours, attn_optimized))]
    if before is not None:
        found.append(Participant(BEFORE, functools.partial(ours, before)))
    alone = functools.partial(without_cascade, attn_optimized)
    found.append(Participant(WITHOUT_CASCADE, alone, lambda case: case.common_prefix_len > 0))
    if vllm is not None:
        found.append(Participant(VLLM, functools.partial(vllm_triton, vllm), _has_rows))
    if aiter is not None:
        found.append(Participant(AITER, functools.partial(aiter_triton, aiter), _has_rows))
    return found + [
        Participant(name, functools.partial(sdpa, name), lambda case: not case.is_latent)
        for name, backend in SDPA.items()
        if backend is not SDPBackend.CUDNN_ATTENTION or (torch.version.cuda and torch.cuda.is_available())
    ]


def ours(kernels: ModuleType | SimpleNamespace, call: Call) -> Prepared:
    prefix, out = call.case.common_prefix_len, poisoned(call)
    if call.k is not None and call.v is not None:
        run = functools.partial(kernels.varlen_attention, call.q, call.k, call.v, call.layer, call.batch, out=out)
    elif call.kv_cache is not None and cascade_pays(call.kv_cache, call.layer, call.batch, prefix):
        arguments = (call.q, call.kv_cache, call.layer, call.batch, prefix)
        run = functools.partial(kernels.cascade_attention, *arguments, out=out)
    else:
        return without_cascade(kernels, call)
    return Prepared(run, _itself)


def without_cascade(kernels: ModuleType | SimpleNamespace, call: Call) -> Prepared:
    arguments = (call.q, call.kv_cache, call.layer, call.batch)
    return Prepared(functools.partial(kernels.paged_attention, *arguments, out=poisoned(call)), _itself)


def sdpa(name: str, call: Call) -> Prepared:
    """Dense attention over K and V [R, HK, S, D] that are gathered before: an optimistic bound, since it looks up no pages.

    Flash attention takes a V that is as wide as K: a narrower one is padded.
    """
    case, layer = call.case, call.layer
    query_len, seq_len = case.query_lens[0], case.seq_lens[0]
    refuse(
        name,
        (not case.is_uniform, "requests of different lengths"),
        (case.causal and query_len not in (1, seq_len), "a causal step on a context"),
        (case.window is not None, "a window"),
        (case.chunked_local is not None, "chunks"),
        (case.selection is not None, "a selection"),
        (case.sinks, "sinks"),
        (case.logits_soft_cap is not None, "a soft cap"),
        (case.float8_cache, "a float8 cache"),
    )
    requests = len(case.seq_lens)
    shape = (requests, layer.num_kv_heads, seq_len, layer.head_size)
    k, v = (torch.empty(shape, dtype=call.q.dtype, device=call.q.device) for _ in (K, V))
    for request in requests_of(call):
        for dense, rows in ((k, request.key), (v, request.value)):
            dense[request.index] = pad(rows.transpose(0, 1), (0, layer.head_size - rows.shape[-1]))
    if name == CUDNN:
        v = v[..., : case.v_head_size].contiguous()
    q = call.q.view(requests, query_len, layer.num_heads, layer.head_size).transpose(1, 2).contiguous()
    options = {
        "is_causal": (case.causal or case.is_expanded) and query_len > 1,
        "scale": layer.scale,
        "enable_gqa": layer.num_heads != layer.num_kv_heads,
    }

    def run() -> torch.Tensor:
        with sdpa_kernel(SDPA[name]):
            return scaled_dot_product_attention(q, k, v, **options)

    return Prepared(run, lambda out: out.transpose(1, 2).flatten(0, 1)[..., : case.v_head_size])


def vllm_triton(module: SimpleNamespace, call: Call) -> Prepared:
    """vLLM's `unified_attention` with the scratch memory and the threshold of its TRITON_ATTN backend.

    For encoders, as there, its `context_attention_fwd`.
    """
    case, layer, batch, out = call.case, call.layer, call.batch, poisoned(call)
    refuse(VLLM, (case.chunked_local is not None, "chunks"), (case.selection is not None, "a selection"))
    if call.kv_cache is None:
        run = functools.partial(
            module.context_attention_fwd,
            q=call.q,
            k=call.k,
            v=call.v,
            o=out,
            b_start_loc=batch.query_start_loc,
            b_seq_len=batch.seq_lens,
            max_input_len=batch.max_query_len,
            is_causal=False,
            softmax_scale=layer.scale,
            sliding_window_q=0,
            sliding_window_k=0,
        )
        return Prepared(run, lambda _: out)
    k, v = paged_rows(VLLM, call)
    threshold = min(CAPTURE_SIZES, key=lambda size: abs(size - VLLM_PROGRAMS // layer.num_kv_heads))
    state = (threshold * module.MAX_3D_QUERY_LEN, layer.num_heads, VLLM_SEGMENTS)
    padded = 1 << (layer.head_size - 1).bit_length()
    scratch = [torch.empty(shape, dtype=torch.float32, device=out.device) for shape in ((*state, padded), state, state)]
    one = torch.ones((), device=out.device)
    k_scale, v_scale = (
        (one if scale is None else scale).expand(batch.num_requests, layer.num_kv_heads)
        for scale in (layer.k_scale, layer.v_scale)
    )
    modes = module.KVQuantMode
    run = functools.partial(
        module.unified_attention,
        **_unified_arguments(call, k, v, out),
        causal=batch.causal,
        k_descale=k_scale,
        v_descale=v_scale,
        seq_threshold_3D=threshold,
        num_par_softmax_segments=VLLM_SEGMENTS,
        softmax_segm_output=scratch[0],
        softmax_segm_max=scratch[1],
        softmax_segm_expsum=scratch[2],
        kv_quant_mode=modes.FP8_PER_TENSOR if case.float8_cache else modes.NONE,
    )
    return Prepared(run, lambda _: out)


def aiter_triton(module: SimpleNamespace, call: Call) -> Prepared:
    """AITER's Triton `unified_attention`, called as its adapter in `attn_optimized` does, without that one's checks."""
    case, layer = call.case, call.layer
    refuse(
        AITER,
        (call.kv_cache is None, "attention without a cache"),
        (case.chunked_local is not None, "chunks"),
        (case.selection is not None, "a selection"),
        # one query sees the same keys with and without a causal mask
        (not case.causal and max(case.query_lens) > 1, "non-causal attention"),
        (case.block_size & (case.block_size - 1) > 0, f"blocks of {case.block_size}: one is a tile, a power of two"),
    )
    k, v = paged_rows(AITER, call)
    out = poisoned(call)
    run = functools.partial(
        module.unified_attention,
        **_unified_arguments(call, k, v, out),
        causal=True,
        k_descale=layer.k_scale,
        v_descale=layer.v_scale,
    )
    return Prepared(run, lambda _: out)


def _unified_arguments(call: Call, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor) -> dict[str, Any]:
    """The arguments that vLLM's and AITER's kernels name alike. Both take W - 1 to the left of a window W."""
    left, batch = call.layer.window[0], call.batch
    return {
        "q": call.q,
        "k": k,
        "v": v,
        "out": out,
        "cu_seqlens_q": batch.query_start_loc,
        "max_seqlen_q": batch.max_query_len,
        "seqused_k": batch.seq_lens,
        "max_seqlen_k": batch.max_seq_len,
        "softmax_scale": call.layer.scale,
        "window_size": (left, -1 if left < 0 else 0),
        "block_table": batch.block_table,
        "softcap": call.layer.logits_soft_cap or 0.0,
        "q_descale": None,
        "sinks": call.layer.sinks,
    }


def paged_rows(name: str, call: Call) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V [NB, BS, HK, D]."""
    if call.layer.layout is not Layout.BLOCKS_FIRST_NHD or call.kv_cache is None:
        raise UnsupportedError(name, f"layout {call.layer.layout}", "it reads rows of dims by their strides")
    return call.kv_cache[:, K], call.kv_cache[:, V]


def refuse(name: str, *features: tuple[bool, str]) -> None:
    for is_asked, feature in features:
        if is_asked:
            raise UnsupportedError(name, feature, "it has no way to say so")


def poisoned(call: Call) -> torch.Tensor:
    return call.q.new_full((*call.q.shape[:2], call.case.v_head_size), torch.nan)


def _itself(out: torch.Tensor) -> torch.Tensor:
    return out
