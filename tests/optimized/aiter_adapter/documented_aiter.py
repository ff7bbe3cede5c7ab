"""A test double of AITER as of 2026-08: its documented interface in plain loops, since its kernels need AMD's GPUs.

Each function takes exactly the recorded arguments, by keyword. It computes in float32 what AITER's sources document, with
AITER's own conventions and not with the contract's. Agreement with this double shows that the adapter and the backends call
AITER rightly. It does not show that AITER is right: `attn_fuzz.targets.packages` runs AITER's own kernels.
"""

from collections.abc import Callable
from dataclasses import replace
from types import UnionType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import torch
from attn_optimized.aiter_adapter import Aiter, Signature, recorded


class Call(NamedTuple):
    function: str
    arguments: dict[str, Any]


def stand_in(calls: list[Call] | None = None) -> Aiter:
    """The recorded AITER with functions that run on a CPU. They append each call to `calls`, if it is given."""
    aiter = recorded("2026-08")
    functions = {function.__name__: _noted(function, aiter.signatures[function.__name__], calls) for function in _FUNCTIONS}
    return replace(aiter, functions=functions)


def with_two_edges(aiter: Aiter) -> Aiter:
    """The same AITER with the older windows of flash_attn_varlen_func: a left and a right edge, and no sink tokens."""
    name = "flash_attn_varlen_func"
    newer, signature = aiter.functions[name], aiter.signatures[name]

    def older(*, window_size: tuple[int, int] = (-1, -1), **arguments: Any) -> Any:
        left, right = window_size
        return newer(window_size=(left, right, 0), **arguments)

    older_signature = replace(signature, defaults={**signature.defaults, "window_size": (-1, -1)})
    signatures, functions = {**aiter.signatures, name: older_signature}, {**aiter.functions, name: older}
    return replace(aiter, signatures=signatures, functions=functions)


def _noted(function: Callable[..., Any], signature: Signature, calls: list[Call] | None) -> Callable[..., Any]:
    hints = get_type_hints(function)

    def call(**arguments: Any) -> Any:
        if unknown := arguments.keys() - set(signature.arguments):
            raise TypeError(f"{signature.function}() got an unexpected keyword argument {sorted(unknown)[0]!r}")
        if missing := set(signature.arguments) - signature.defaults.keys() - arguments.keys():
            raise TypeError(f"{signature.function}() is missing {sorted(missing)[0]!r}")
        for name, value in arguments.items():
            assert _is_of(value, hints.get(name, object)), f"{name}: got {value}, expected {hints[name]}"
            assert getattr(value, "dtype", None) != torch.int64, f"{name}: got torch.int64, expected torch.int32"
        if calls is not None:
            calls.append(Call(signature.function, arguments))
        with next(value.device for value in arguments.values() if isinstance(value, torch.Tensor)):
            return function(**{**signature.defaults, **arguments})

    return call


def _is_of(value: object, hint: Any) -> bool:
    """True if a value is of an annotated type: a class, a union, or a tuple of classes."""
    if isinstance(hint, UnionType):
        return any(_is_of(value, one) for one in get_args(hint))
    if get_origin(hint) is tuple:
        types = get_args(hint)
        return isinstance(value, tuple) and len(value) == len(types) and all(map(_is_of, value, types))
    return hint is Any or isinstance(value, int | float if hint is float else hint)


def flash_attn_varlen_func(
    *,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float,
    logits_soft_cap: float,
    causal: bool,
    window_size: tuple[int, int, int],
    alibi_slopes: torch.Tensor | None,
    return_lse: bool,
    out: torch.Tensor,
    sink_ptr: torch.Tensor | None,
    **not_modelled: Any,
) -> Any:
    """Bottom-right causal attention with inclusive windows. An LSE of a call without any key is +inf."""
    assert not any(not_modelled[name] for name in ("dropout_p", "bias", "block_table", "min_seqlen_q", "return_attn_probs"))
    assert sink_ptr is None or sink_ptr.dtype == torch.float32
    *window, sink_size = window_size
    assert sink_size == 0
    assert len(cu_seqlens_q) > 1, "AITER takes no batch without requests"
    assert 0 < max_seqlen_q >= cu_seqlens_q.diff().max(), "its grid covers so many queries of a request, and is not empty"
    assert max_seqlen_k >= cu_seqlens_k.diff().max()
    # a single query would be at the end, where the flag says nothing: so it is dropped
    causal = causal and (max_seqlen_q > 1 or alibi_slopes is not None)
    left, right = (-1 if edge >= max_seqlen_k else edge for edge in window)
    is_assembly = q.dtype == torch.bfloat16 and q.shape[2] == 128 and (left, right) == (-1, -1) and alibi_slopes is None
    if is_assembly:
        logits_soft_cap, sink_ptr = 0.0, None
    lse = torch.full((q.shape[1], len(q)), torch.inf)
    if max_seqlen_k == 0:
        out.zero_()
        return (out, lse) if return_lse else out
    for r in range(len(cu_seqlens_q) - 1):
        rows = slice(int(cu_seqlens_q[r]), int(cu_seqlens_q[r + 1]))
        keys = slice(int(cu_seqlens_k[r]), int(cu_seqlens_k[r + 1]))
        num_queries, num_keys = rows.stop - rows.start, keys.stop - keys.start
        ahead = torch.arange(num_keys)[None, :] - (torch.arange(num_queries)[:, None] + num_keys - num_queries)
        visible = torch.ones_like(ahead, dtype=torch.bool)
        if causal:
            visible &= ahead <= 0
        if left >= 0:
            visible &= -ahead <= left
        if right >= 0:
            visible &= ahead <= right
        scores = torch.einsum("qhd,khd->hqk", q[rows].float(), per_query_head(k[keys], q.shape[1])) * softmax_scale
        scores = capped(scores, logits_soft_cap)
        if alibi_slopes is not None:
            scores = scores - alibi_slopes[:, None, None] * ahead.abs()
        out[rows], lse[:, rows] = attend(scores, visible, per_query_head(v[keys], q.shape[1]), sink_ptr)
    return (out, lse) if return_lse else out


def paged_attention_v1(
    *,
    out: torch.Tensor,
    workspace_buffer: torch.Tensor,
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    scale: float,
    block_tables: torch.Tensor,
    context_lens: torch.Tensor,
    max_context_len: int,
    alibi_slopes: torch.Tensor | None,
    kv_cache_dtype: str,
    kv_cache_layout: str,
    logits_soft_cap: float,
    k_scale: torch.Tensor,
    v_scale: torch.Tensor,
    partition_size: int,
    mtp: int,
    sliding_window: int,
    **not_modelled: Any,
) -> None:
    """Row r of the query is request r's, the last key its own; the last `sliding_window` keys are seen, or all for 0."""
    assert not_modelled["fp8_out_scale"] is None
    assert mtp == 1
    if kv_cache_layout == "HND":
        key_cache, value_cache = key_cache.transpose(1, 2), value_cache.transpose(1, 2)
    num_requests, num_heads, head_size = query.shape
    assert num_requests, "HIP launches no grid without programs"
    assert head_size % 64 == 0
    assert 256 % key_cache.shape[1] == 0
    assert key_cache.stride() == value_cache.stride(), "K's strides are taken for V's"
    assert (kv_cache_dtype == "auto") == (key_cache.dtype == query.dtype)
    parts = num_requests * num_heads * -(-max_context_len // partition_size)
    assert workspace_buffer.nbytes >= parts * (head_size * query.element_size() + 2 * 4)
    for r in range(num_requests):
        length = int(context_lens[r])
        assert length <= max_context_len
        k = per_query_head(paged_rows(key_cache, block_tables[r], length) * k_scale, num_heads)
        v = per_query_head(paged_rows(value_cache, block_tables[r], length) * v_scale, num_heads)
        distance = length - 1 - torch.arange(length)
        scores = torch.einsum("hd,khd->hk", query[r].float(), k)[:, None] * scale
        if alibi_slopes is not None:
            scores = scores - alibi_slopes[:, None, None] * distance
        visible = (distance < (sliding_window or length))[None, :]
        out[r : r + 1], _ = attend(capped(scores, logits_soft_cap), visible, v, None)


def pa_fwd_asm(
    *,
    Q: torch.Tensor,
    K: torch.Tensor,
    V: torch.Tensor,
    block_tables: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables_stride0: int,
    max_qlen: int,
    out_: torch.Tensor,
    **not_modelled: Any,
) -> torch.Tensor:
    """Row r of Q is request r's, the last key its own; K is [NB, HK, D/x, BS, x], V [NB, HK, BS/x, D, x]; scale 1 / sqrt(D)."""
    assert not any(not_modelled[name] is not None for name in ("K_QScale", "V_QScale", "qo_indptr", "kernelName"))
    assert max_qlen == 1
    assert block_tables_stride0 == block_tables.stride(0)
    num_requests, num_heads, head_size = Q.shape
    assert num_requests, "HIP launches no grid without programs"
    assert num_heads // K.shape[1] <= 16, "its kernels have tiles of 16 rows"
    assert Q.is_contiguous()
    assert out_.is_contiguous()
    assert (head_size, K.shape[3]) == (128, 16)
    assert Q.dtype == K.dtype == V.dtype
    keys = K.permute(0, 3, 1, 2, 4).flatten(3)
    values = V.permute(0, 2, 4, 1, 3).flatten(1, 2)
    for r in range(num_requests):
        length = int(context_lens[r])
        k = per_query_head(paged_rows(keys, block_tables[r], length), num_heads)
        v = per_query_head(paged_rows(values, block_tables[r], length), num_heads)
        scores = torch.einsum("hd,khd->hk", Q[r].float(), k)[:, None] * head_size**-0.5
        out_[r : r + 1], _ = attend(scores, torch.ones(1, length, dtype=torch.bool), v, None)
    return out_


_TILE_KEYS = 64


def unified_attention(
    *,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    max_seqlen_q: int,
    seqused_k: torch.Tensor,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int, int],
    block_table: torch.Tensor,
    softcap: float,
    q_descale: torch.Tensor | None,
    k_descale: torch.Tensor | None,
    v_descale: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    output_scale: torch.Tensor | None,
    qq_bias: torch.Tensor | None,
    sinks: torch.Tensor | None,
    **not_modelled: Any,
) -> None:
    """Causal attention; `1 + window_size[0]` keys are seen, or all for 0; ALiBi counts from the context's end.

    A prefill looks up the blocks of whole tiles of 64 keys, so the memory of the table must not end before. A Gluon kernel
    looks the first block up of a request without keys, too. Each program looks its request up among the lengths, so there is
    one at least.
    """
    assert len(seqused_k), "a program finds its request before the first length"
    assert causal, "Only causal attention is supported"
    assert q_descale is None
    assert not any(not_modelled[name] for name in ("q_scales", "shuffled_kv_cache", "skip_reduce"))
    window = 1 + window_size[0]
    num_heads = q.shape[1]
    for r in range(len(seqused_k)):
        rows = slice(int(cu_seqlens_q[r]), int(cu_seqlens_q[r + 1]))
        num_queries, num_keys = rows.stop - rows.start, int(seqused_k[r])
        assert num_queries <= max_seqlen_q
        tiles = -(-num_keys // _TILE_KEYS)
        looked_up = max(1, -(-tiles * _TILE_KEYS // k.shape[1]))
        assert looked_up <= _elements_from(block_table[r]), "a tile's last keys are looked up past the block table's memory"
        keys = paged_rows(k, block_table[r], num_keys) * (1.0 if k_descale is None else k_descale)
        values = paged_rows(v, block_table[r], num_keys) * (1.0 if v_descale is None else v_descale)
        context_len = num_keys - num_queries
        key = torch.arange(num_keys)
        distance = context_len + torch.arange(num_queries)[:, None] - key[None, :]
        visible = distance >= 0
        if window > 0:
            visible &= distance < window
        scores = torch.einsum("qhd,khd->hqk", q[rows].float(), per_query_head(keys, num_heads)) * softmax_scale
        scores = capped(scores, softcap)
        if alibi_slopes is not None:
            scores = scores + alibi_slopes[:, None, None] * (key - context_len)
        if qq_bias is not None:
            assert qq_bias.stride(0) == qq_bias.shape[1], "the row stride is taken for the width"
            own = key >= context_len
            bias = qq_bias[:num_queries, (key - context_len)[own]]
            scores[:, :, own] += bias
            visible[:, own] &= bias > -torch.inf  # what nobody sees may be NaN
        attended, _ = attend(scores, visible, per_query_head(values, num_heads), sinks)
        if output_scale is not None:
            largest = torch.finfo(out.dtype).max
            attended = (attended / output_scale).clamp(-largest, largest)
        out[rows] = attended.to(out.dtype)


def _elements_from(row: torch.Tensor) -> int:
    """The number of elements that the memory of a tensor holds from its first one on."""
    return row.untyped_storage().nbytes() // row.element_size() - int(row.storage_offset())


def attend(
    scores: torch.Tensor, visible: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output [Q, H, D] and natural-log LSE [H, Q] from scores [H, Q, K], visibility [Q, K] and values [K, H, D], float32."""
    logits = scores.masked_fill(~visible, -torch.inf)
    columns = logits
    if sinks is not None:
        columns = torch.cat([sinks.float()[:, None, None].expand(*logits.shape[:2], 1), logits], dim=2)
    if not columns.shape[2]:
        return torch.zeros(logits.shape[1], logits.shape[0], v.shape[2]), torch.full(logits.shape[:2], -torch.inf)
    lse = columns.logsumexp(dim=2)
    weights = (logits - lse[..., None]).exp().nan_to_num(nan=0.0)
    seen = torch.where(visible.any(0)[:, None, None], v, 0.0)
    return torch.einsum("hqk,khd->qhd", weights, seen), lse


def capped(scores: torch.Tensor, cap: float) -> torch.Tensor:
    return cap * torch.tanh(scores / cap) if cap else scores


def per_query_head(rows: torch.Tensor, num_heads: int) -> torch.Tensor:
    """[K, H, D] float32 of [K, HK, D]."""
    return rows.float().repeat_interleave(num_heads // rows.shape[1], dim=1)


def paged_rows(cache: torch.Tensor, table: torch.Tensor, length: int) -> torch.Tensor:
    """[length, HK, D] of the blocks of one request; cache [NB, BS, HK, D]."""
    blocks = table[: -(-length // cache.shape[1])].long()
    return cache[blocks].float().flatten(0, 1)[:length]


_FUNCTIONS = (flash_attn_varlen_func, paged_attention_v1, pa_fwd_asm, unified_attention)
