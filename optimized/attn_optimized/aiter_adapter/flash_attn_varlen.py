"""AITER's flash_attn_varlen_func: attention of dense queries over dense keys, by CK and assembly kernels."""

import os

import torch
from attn_contract import YES, ContractError, Layer, No
from attn_contract.arguments import check_dense_last, check_dims, check_int, check_tensor, check_type, check_vector
from attn_contract.validation.tensors import check_tensors

from attn_optimized.aiter_adapter.features import PREFILL_HEAD_SIZES, may_run_assembly, window_edges
from attn_optimized.aiter_adapter.installation import Aiter
from attn_optimized.aiter_adapter.refusals import NO_ARGUMENT, NO_SUCH_MASK, dtype, refuse, rules, size

_NAME = "flash_attn_varlen_func"
_RULES = {
    "window": YES,
    "logits_soft_cap": YES,
    "alibi_slopes": YES,
    "sinks": YES,
    "sink_tokens": No("its `sink_size` has not been shown to mean the same"),
    "chunked_local": No(NO_SUCH_MASK),
    "ranges_clamped": No(NO_SUCH_MASK),
}


def flash_attn_varlen(
    aiter: Aiter,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layer: Layer,
    *,
    query_start_loc: torch.Tensor,
    key_start_loc: torch.Tensor,
    max_query_len: int,
    max_key_len: int,
    causal: bool,
    out: torch.Tensor,
    lse: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of each request's queries over keys of its own, both dense; the last query stands at the last key.

    A prefill is one such call. An extend is one over this step's tokens with `causal=True`, and one for each chunk of the
    context with `causal=False` and a layer without sinks (`dataclasses.replace(layer, sinks=None)`), merged by their LSEs: a
    sink counts once.

    What is converted: a causal call's window is given the right edge 0, so that it stays causal where AITER drops the flag, as
    it does for one query; without a left edge it has none. A right edge that AITER would drop, and that hides keys, is kept by
    a higher bound on the keys. Where AITER's LSE is +inf, of a batch without keys, ours is the sink, or -inf without one.

    Args:
        aiter: the AITER to call; see find_aiter.
        q: [T, H, D] float16 or bfloat16.
        k, v: [T_kv, HK, D] of q's dtype.
        layer: its scale, window, logits_soft_cap, alibi_slopes and sinks are used, and nothing about its cache.
        query_start_loc, key_start_loc: [R + 1] int32, prefix sums of the queries and the keys of each request.
        max_query_len, max_key_len: upper bounds.
        out: [T, H, D] of q's dtype, written in the rows that a request owns, and whole if `max_key_len` is 0.
        lse: [H, T] float32, natural logarithm, sinks included; or None. Written whole, or not at all without a query.

    Returns:
        out.

    Raises:
        ContractError: the arguments contradict each other. Nothing was written.
        UnsupportedError: AITER or one of the arguments is missing, or its kernels do not do it. Nothing was written.
    """
    _check(q, k, v, layer, query_start_loc, key_start_loc, out, lse)
    for name, value in {"max_query_len": max_query_len, "max_key_len": max_key_len}.items():
        check_int(name, value, minimum=0)
    assembly = may_run_assembly(layer.head_size, q.dtype, alibi=layer.alibi_slopes is not None)
    dropped = "for bfloat16 and a head size of 128 it may take assembly kernels, which drop it without a word"
    refuse(
        _NAME,
        (
            os.environ.get("ENABLE_CK") == "0",
            "ENABLE_CK=0",
            "AITER then takes a fallback that drops soft caps and windows of 0",
        ),
        dtype(q.dtype),
        *rules(_RULES, layer),
        (layer.output_scale is not None, "a float8 output", NO_ARGUMENT),
        (layer.sinks is not None and assembly, "sinks", dropped),
        (layer.logits_soft_cap is not None and assembly, "a soft cap", dropped),
        size("head size", layer.head_size, PREFILL_HEAD_SIZES),
    )
    if len(query_start_loc) == 1 or max_query_len == 0:
        return out  # AITER takes no batch without requests, and a grid without queries does not launch
    edges = layer.window
    if causal:
        edges = (edges[0], -1 if edges[0] < 0 else 0)
    options = {
        "logits_soft_cap": layer.logits_soft_cap,
        "alibi_slopes": layer.alibi_slopes,
        "sink_ptr": None if layer.sinks is None else layer.sinks.float(),
        "window_size": None if edges == (-1, -1) else (*edges, 0)[: window_edges(aiter)],
        "return_lse": None if lse is None else True,
    }
    result = aiter.call(
        _NAME,
        q=q,
        k=k,
        v=v,
        cu_seqlens_q=query_start_loc,
        cu_seqlens_k=key_start_loc,
        max_seqlen_q=max_query_len,
        max_seqlen_k=_bound_that_keeps(edges[1], max_query_len=max_query_len, max_key_len=max_key_len),
        softmax_scale=layer.scale,
        causal=causal,
        out=out,
        **{name: value for name, value in options.items() if value is not None},
    )
    if lse is not None:
        without_keys = -torch.inf if layer.sinks is None else layer.sinks.float()[:, None]
        lse.copy_(torch.where(result[1] == torch.inf, without_keys, result[1]))
    return out


def _bound_that_keeps(right: int, *, max_query_len: int, max_key_len: int) -> int:
    """The bound on the number of keys with which AITER keeps a window's right edge, if the edge may hide a key.

    AITER drops an edge that is not below the bound. The first of q queries stands q - 1 keys before the last key, so a right
    edge hides keys only if there are more than `right + 1` queries, which are then more than the keys. A left edge that is not
    below the bound hides none. A higher bound has no other effect on AITER's kernels, whose masks follow from each request's
    own lengths. A bound of 0 means that there is no key, and stays.
    """
    hides_keys = right < max_query_len - 1
    return right + 1 if hides_keys and 0 < max_key_len <= right else max_key_len


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layer: Layer,
    query_start_loc: torch.Tensor,
    key_start_loc: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor | None,
) -> None:
    """Raise for arguments that contradict the contract; `out` and `lse` are the memory that is written."""
    for name, tensor, heads in (("q", q, layer.num_heads), ("k", k, layer.num_kv_heads), ("v", v, layer.num_kv_heads)):
        check_tensor(name, tensor)
        check_dims(name, tensor, ("T", "heads", "head_size"))
        check_dense_last(name, tensor)
        if tuple(tensor.shape[1:]) != (heads, layer.head_size) or tensor.dtype != q.dtype:
            raise ContractError(name, f"{tensor.dtype} {tuple(tensor.shape)}", f"{q.dtype} (T, {heads}, {layer.head_size})")
    if len(v) != len(k):
        raise ContractError("v", f"{len(v)} rows", f"{len(k)}, as k has")
    check_vector("query_start_loc", query_start_loc, torch.int32)
    check_vector("key_start_loc", key_start_loc, torch.int32)
    if len(key_start_loc) != len(query_start_loc):
        raise ContractError("key_start_loc", f"{len(key_start_loc)} entries", f"{len(query_start_loc)}, as query_start_loc has")
    check_tensor("out", out)
    if out.shape != q.shape or (out.dtype != q.dtype and layer.output_scale is None):
        raise ContractError("out", f"{out.dtype} {tuple(out.shape)}", f"{q.dtype} {tuple(q.shape)}, as q has")
    check_type("lse", lse, torch.Tensor | None, "None or a tensor")
    if lse is not None and (tuple(lse.shape) != (layer.num_heads, len(q)) or lse.dtype != torch.float32):
        raise ContractError("lse", f"{lse.dtype} {tuple(lse.shape)}", f"torch.float32 {(layer.num_heads, len(q))}")
    written = {"out": out} if lse is None else {"out": out, "lse": lse}
    for name, tensor in written.items():
        check_dense_last(name, tensor)
    read = {"q": q, "k": k, "v": v, "query_start_loc": query_start_loc, "key_start_loc": key_start_loc}
    check_tensors(read, written)
