"""Attention: the specification, and the code that is it.

Request r has q_len queries, `query_start_loc[r + 1] - query_start_loc[r]` of them, and seq_len keys, `seq_lens[r]`. Its query i
stands at position `p = seq_len - q_len + i`: the new tokens are the last ones of the sequence. Key j stands at position j.

**Visibility.** One formula for every rule, evaluated by `visible`:

    visible(p, j) = 0 <= j < seq_len  and  (not causal or j <= p)  and  in_window(p, j)
    in_window     = (left < 0 or p - j <= left)  and  (right < 0 or j - p <= right)

In a window (left, right) both edges are inclusive, -1 is unlimited and 0 a real edge. Cross-attention (ENCODER_DECODER) sees
all keys, for any number of queries, 1 or more (vLLM #38450, #39119: causality is invisible at q_len 1 and wrong above it). A
key past seq_len is never visible, causal or not (vLLM #40176: the tail of the last tile).

**Logits**, in this order, with query head h reading KV head `h // (H // HK)`:

    1.  s_j = scale * q.k_j                                      scaled dot products (Vaswani et al., arXiv:1706.03762)
    2.  s_j = -inf where key j is not visible
    3.  m = max(max_j s_j, sink)                                 the sink of the head: a logit with no key and no value, not
        l = exp(sink - m) + sum_j exp(s_j - m)                   scaled, once per row (Xiao et al., arXiv:2309.17453; GPT-OSS,
        P_j = exp(s_j - m) / l                                   arXiv:2508.10925; vLLM #43817); -inf is none
    4.  out = sum_j P_j v_j        lse = m + log(l)              natural logarithm, sink included (Milakov & Gimelshein,
                                                                 arXiv:1805.02867; FlashAttention, arXiv:2205.14135)

**Empty rows.** A row that sees no key gives out = 0, and lse = the sink, or -inf without one. So do all rows of a request whose
seq_len is 0, and in causal attention the first `q_len - seq_len` rows where q_len > seq_len. A request with q_len 0 is padding.

**What may hold anything.** Keys from seq_len on, block table entries past `ceil(seq_len / block_size)` and query rows of no
request are never read. The K and V of a key that none of the request's queries sees do not matter either: an engine recycles
the blocks that a sliding window has left (vLLM #30887). A weight of 0 does not make their NaN harmless, since 0 * NaN is NaN;
what nobody sees is selected away. The K and V of a key that some query of the request sees are finite.

The arithmetic is float32 or float64 throughout: inputs are converted exactly, and results rounded when they are written.
The cache is read where its layout says (vLLM #43945), by `attn_reference.kv_cache`.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from attn_contract import Batch, ContractError, Layer
from attn_contract.validation import check_paged_attention, check_varlen_attention

from attn_reference.kv_cache import gather_kv_cache

# Rows are independent: a long prompt is cut, so that its [H, rows, seq_len] weights fit in memory.
ROWS_AT_ONCE = 256


def paged_attention(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: Layer,
    batch: Batch,
    *,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    precision: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Attention of a ragged batch over a paged KV cache (DECODER, ENCODER_DECODER).

    Args:
        q: [T, H, D] float32, float16 or bfloat16.
        kv_cache: of q's dtype, shaped as `layer.layout` says, of any strides; this step's keys are already written.
        layer, batch: what is fixed for the layer, and what changes every step.
        out: [T, H, D] or [T, H * D] of q's dtype; only rows that a request owns are written. Zeros [T, H, D] if None.
        lse: [H, T] float32, written likewise if given.
        precision: dtype of the arithmetic, torch.float32 or torch.float64.

    Returns:
        out.

    Raises:
        ContractError: an argument, or a value in a tensor, contradicts the contract. Nothing is written then.
    """
    check_paged_attention(q, kv_cache, layer, batch, out, lse, values=True)
    return _write(paged_requests(q, kv_cache, layer, batch, precision), q, layer, out, lse)


def varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layer: Layer,
    batch: Batch,
    *,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    precision: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Attention of a ragged batch over its own tokens, without a cache (ENCODER, ENCODER_ONLY).

    Args:
        k, v: [T_kv, HK, D] of q's dtype; request r's keys are in the rows of its queries.
        q, layer, batch, out, lse, precision: as for `paged_attention`.

    Returns:
        out.

    Raises:
        ContractError: an argument, or a value in a tensor, contradicts the contract. Nothing is written then.
    """
    check_varlen_attention(q, k, v, layer, batch, out, lse, values=True)
    return _write(varlen_requests(q, k, v, layer, batch, precision), q, layer, out, lse)


@dataclass(frozen=True, eq=False)
class Request:
    """One request's queries, or a slice of them, with all its keys. Tensors of the arithmetic's dtype."""

    index: int
    """r"""
    rows: slice
    """rows of q"""
    query: torch.Tensor
    """[q_len, H, D]"""
    key: torch.Tensor
    """[seq_len, HK, D]"""
    value: torch.Tensor
    """[seq_len, HK, D]"""
    visible: torch.Tensor
    """[q_len, seq_len] bool"""


def paged_requests(
    q: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, batch: Batch, precision: torch.dtype
) -> Iterator[Request]:
    """What `paged_attention` attends to, request by request; requests without a query are left out.

    Raises:
        ContractError: as `paged_attention` does.
    """
    check_paged_attention(q, kv_cache, layer, batch, None, None, values=True)
    layout, block_table = layer.layout, batch.block_table
    assert layout is not None
    assert block_table is not None
    seq_lens = batch.seq_lens.tolist()

    def keys_and_values(r: int, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        return gather_kv_cache(kv_cache, layout, block_table[r], seq_lens[r])

    return _requests(q, layer, batch, precision, keys_and_values)


def varlen_requests(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: Layer, batch: Batch, precision: torch.dtype
) -> Iterator[Request]:
    """What `varlen_attention` attends to, request by request; requests without a query are left out.

    Raises:
        ContractError: as `varlen_attention` does.
    """
    check_varlen_attention(q, k, v, layer, batch, None, None, values=True)

    def keys_and_values(r: int, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        return k[rows], v[rows]

    return _requests(q, layer, batch, precision, keys_and_values)


def visible(
    query_positions: torch.Tensor,
    key_positions: torch.Tensor,
    seq_len: int,
    *,
    causal: bool,
    window: tuple[int, int],
) -> torch.Tensor:
    """Which keys a query sees; the specification's formula.

    Args:
        query_positions: [q_len] integers, p of each query; negative where q_len > seq_len.
        key_positions: [k_len] integers, j of each key.
        seq_len: keys of the request.
        causal: whether a query sees only keys at or before its own position.
        window: (left, right), inclusive, -1 unlimited.

    Returns:
        [q_len, k_len] bool.
    """
    p, j = torch.meshgrid(query_positions, key_positions, indexing="ij")
    left, right = window
    seen = (j >= 0) & (j < seq_len)
    if causal:
        seen &= j <= p
    if left >= 0:
        seen &= p - j <= left
    if right >= 0:
        seen &= j - p <= right
    return seen


class Attention(NamedTuple):
    """Attention of one request, or of a slice of its rows, in the dtype of the arithmetic."""

    out: torch.Tensor
    """[q_len, H, D]"""
    lse: torch.Tensor
    """[H, q_len], natural logarithm, sink included"""
    logits: torch.Tensor
    """[H, q_len, seq_len], -inf where invisible"""
    weights: torch.Tensor
    """[H, q_len, seq_len], 0 where invisible"""


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: torch.Tensor,
    scale: float,
    sinks: torch.Tensor | None = None,
) -> Attention:
    """Attention of one request's queries over its keys: steps 1 to 4 of the specification.

    Args:
        query: [q_len, H, D], in the dtype of the arithmetic, as key and value are.
        key, value: [seq_len, HK, D]; those of a key that no row sees may hold anything.
        visible: [q_len, seq_len] bool.
        scale: factor of q.k.
        sinks: [H], any floating dtype, or None.
    """
    q_len, num_heads, _ = query.shape
    num_kv_heads = key.shape[1]
    value = torch.where(visible.any(dim=0)[:, None, None], value, 0)

    # n: KV head, g: query head of its group
    query_groups = query.unflatten(1, (num_kv_heads, num_heads // num_kv_heads))
    logits = scale * torch.einsum("qngd,knd->ngqk", query_groups, key).flatten(0, 1)
    logits = torch.where(visible, logits, -torch.inf)

    # The sink is one more logit per row.
    sink = logits.new_full((num_heads,), -torch.inf) if sinks is None else sinks.to(logits.dtype)
    scores = torch.cat([logits, sink[:, None, None].expand(-1, q_len, 1)], dim=-1)
    maximum = scores.amax(dim=-1, keepdim=True)
    # Where all is -inf, exp(-inf - 0) is the 0 that exp(-inf + inf) is not.
    maximum = maximum.masked_fill(maximum == -torch.inf, 0)
    exponentials = torch.exp(scores - maximum)
    denominator = exponentials.sum(dim=-1, keepdim=True)
    weights = torch.where(visible, exponentials[..., :-1] / denominator, 0)
    lse = (maximum + torch.log(denominator)).squeeze(-1)

    weight_groups = weights.unflatten(0, (num_kv_heads, num_heads // num_kv_heads))
    out = torch.einsum("ngqk,knd->qngd", weight_groups, value).flatten(1, 2)
    return Attention(out, lse, logits, weights)


def _requests(
    q: torch.Tensor,
    layer: Layer,
    batch: Batch,
    precision: torch.dtype,
    keys_and_values: Callable[[int, slice], tuple[torch.Tensor, torch.Tensor]],
) -> Iterator[Request]:
    if precision not in (torch.float32, torch.float64):
        raise ContractError("precision", precision, "torch.float32 or torch.float64")
    seq_lens = batch.seq_lens.tolist()
    causal = batch.causal.tolist() if isinstance(batch.causal, torch.Tensor) else [batch.causal] * batch.num_requests
    for r, (start, end) in enumerate(itertools.pairwise(batch.query_start_loc.tolist())):
        if start == end:
            continue
        key, value = (x.to(precision) for x in keys_and_values(r, slice(start, end)))
        key_positions = torch.arange(seq_lens[r], device=q.device)
        for first in range(start, end, ROWS_AT_ONCE):
            rows = slice(first, min(first + ROWS_AT_ONCE, end))
            # The last query stands at the last key.
            query_positions = torch.arange(rows.start, rows.stop, device=q.device) - end + seq_lens[r]
            seen = visible(query_positions, key_positions, seq_lens[r], causal=causal[r], window=layer.window)
            yield Request(r, rows, q[rows].to(precision), key, value, seen)


def _write(
    requests: Iterator[Request], q: torch.Tensor, layer: Layer, out: torch.Tensor | None, lse: torch.Tensor | None
) -> torch.Tensor:
    if out is None:
        out = q.new_zeros(q.shape)
    out_heads = out.view(q.shape)
    for request in requests:
        attention = attend(request.query, request.key, request.value, request.visible, layer.scale, layer.sinks)
        out_heads[request.rows] = attention.out.to(q.dtype)
        if lse is not None:
            lse[:, request.rows] = attention.lse.to(lse.dtype)
    return out
