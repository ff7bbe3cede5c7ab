"""Attention: the specification, and the code that computes it step by step.

Request r has `query_len = query_start_loc[r + 1] - query_start_loc[r]` queries and `seq_len = seq_lens[r]` keys. Its query i
stands at position `p = seq_len - query_len + i`: the new tokens are the last ones of the sequence. Key j stands at position j.
The keys from `context_len = seq_len - query_len` on are this step's own tokens. With a key_unit g, a request has `seq_len // g`
keys: `attn_reference.masks` says where they stand.

**Visibility.** `visible(p, j)` says whether the query at p sees the key at j: causality, windows, chunks and all other rules of
visibility are one formula, which `attn_reference.masks` defines.

**Logits**, in this order, with query head h reading KV head `h // (H // HK)`; the rules are in `attn_reference.logits`:

    1.  s_j = scale * q.k_j                                      scaled dot products (Vaswani et al., arXiv:1706.03762); with
                                                                 a q_scale q is `stored * q_scale[h // (H // HK)]`
    2.  s_j = c * tanh(s_j / c)                                  logits_soft_cap c, if there is one (Gemma 2, arXiv:2408.00118;
                                                                 vLLM's and AITER's `softcap`)
    3.  s_j = s_j - slope_h * abs(j - p)                         ALiBi, if there are alibi_slopes (Press et al.,
                                                                 arXiv:2108.12409)
        s_j = s_j + qq_bias[i, j - context_len]                  for this step's own tokens, if there is a qq_bias
    4.  s_j = -inf where key j is not visible                    after the cap, which would turn -inf into the logit -c
    5.  m = max(max_j s_j, sink)                                 sinks has one per head: a logit with no key and value, neither
        l = exp(sink - m) + sum_j exp(s_j - m)                   scaled nor capped, once per row (Xiao et al.,
        P_j = exp(s_j - m) / l                                   arXiv:2309.17453; GPT-OSS, arXiv:2508.10925; vLLM #43817);
                                                                 -inf is none. Not the same as sink_tokens
    6.  out = sum_j P_j v_j        lse = m + log(l)              natural logarithm, sink included (Milakov & Gimelshein,
                                                                 arXiv:1805.02867; FlashAttention, arXiv:2205.14135)

ALiBi is anchored at the query. Kernels that add `slope * j` instead shift all logits of a row: a causal softmax does not
notice, but the LSE, a sink and a merge do.

**Empty rows.** A row that sees no key gives out = 0, and lse = the sink, or -inf without one. With seq_len 0 all rows are
empty. In causal attention with query_len > seq_len the first `query_len - seq_len` rows are, unless a range begins before
position 0. A request with query_len 0 is padding.

**What may hold anything.** Keys from seq_len on and query rows that no request owns are not used, and block table entries past
`ceil(seq_len / block_size)` are not followed. The K and V of a key that none of the request's queries sees do not matter
either: an engine recycles the blocks that a sliding window has left (vLLM #30887). A weight of 0 would not make their NaN
harmless, since 0 * NaN is NaN: keys that no query sees are selected away. With a selection for each KV head, this holds for the
K and V of each KV head by itself. The K and V that some query of the request sees are finite, and so is q in the rows of
requests: what a NaN or an infinity gives there is undefined. A cache write stores NaN and infinities bit by bit. A quantized
cache saturates infinities, and its keys may then be seen.

**The largest numbers.** A finite sink or bias is at most 2^126 in magnitude, which `validate` checks. Nothing checks the other
limits, and beyond them the row is undefined. The magnitudes of the products that make up a q.k, of the numbers that the cache
stores, add up to at most 2^62. The scale times the scale of K is at most 2^64, and a slope times a distance at most 2^126: a
softmax in base 2 multiplies logits by log2(e), and float32 ends at 2^128. The number of a request's keys times the largest
magnitude of their V is at most 2^100: weighted values are added up before they are divided by l.

**Widths.** q and k are head_size wide, v and out v_head_size: as wide as k, unless the layer says head_size_v. A LATENT cache
holds one vector per token, which is k, and whose first head_size_v elements are v (`attn_reference.latent`). The rows of a
CONTENT_PACKED cache are k and then v, each as wide as it is.

**Numbers.** The arithmetic is float32 or float64 throughout, but for products, which are summed in float64
(`attn_reference.arithmetic`). Inputs are converted exactly, and each result is rounded once, when it is written
(`attn_reference.rounding`). A float8 q and a quantized cache are read as `stored * scale`
(`attn_reference.quantization`), the cache where its layout says (`attn_reference.kv_cache`; vLLM #43945). With an
output_scale, `out` is float8 and holds the quantized float32 output; the LSE is not scaled.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from attn_contract import Batch, ContractError, KVCacheView, Layer, UnsupportedError
from attn_contract.arguments import check_type, shown
from attn_contract.rules import refuse_unnamed
from attn_contract.validation import check_paged_attention, check_varlen_attention, dtype_of_output

from attn_reference.arithmetic import sum_of_products
from attn_reference.kv_cache import gather_rows
from attn_reference.logits import LOGIT_RULES, logit_bias, to_logits, with_sink
from attn_reference.masks import VISIBILITY_RULES, position_of, selected_units, visible
from attn_reference.quantization import dequantize, quantize
from attn_reference.rounding import rounded

IMPLEMENTED_RULES = VISIBILITY_RULES | LOGIT_RULES | {"head_size_v", "q_scale"}
"""The fields of Layer and Batch that the reference implements, beside `causal`."""

ROWS_AT_ONCE = 256
"""Rows are independent: a long prompt is cut into slices, so that its [H, rows, seq_len] weights fit in memory."""


def paged_attention(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: Layer,
    batch: Batch,
    *,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    batch_invariant: bool = False,
    precision: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Attention of a ragged batch over a paged KV cache (DECODER, ENCODER_DECODER).

    Args:
        q: [T, H, D] float32, float16 or bfloat16, or of the cache's float8 type if there is a `layer.q_scale`.
        kv_cache: a tensor of q's dtype or `layer.kv_cache_dtype`, shaped as `layer.layout` says, of any strides; this step's
            keys are already written.
        layer, batch: the settings of the layer, and those that change every step.
        out: [T, H, Dv] or [T, H * Dv] of q's dtype, or float8 if there is a `layer.output_scale`, where Dv is
            `layer.v_head_size`, the width of V; only rows that a request owns are written. None: a new [T, H, Dv] of q's dtype,
            with zeros in the other rows. Beside a float8 q it is given, in a dtype of the caller's choice.
        lse: [H, T] float32, natural logarithms; if given, the columns of the same rows are written.
        batch_invariant: asks that a request's output does not depend on the rest of the batch, bit by bit. Refused here.
        precision: dtype of the arithmetic, torch.float32 or torch.float64.

    Returns:
        out.

    Raises:
        ContractError: an argument, or a value in a tensor, contradicts the contract. Nothing is written then.
        UnsupportedError: batch_invariant is set.
    """
    view = check_paged_attention(q, kv_cache, layer, batch, out, lse, values=True)
    check_precision(precision)
    _refuse_batch_invariant(batch_invariant)
    return _write(_paged_requests(q, kv_cache, layer, batch, precision, view), q, layer, out, lse)


def varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layer: Layer,
    batch: Batch,
    *,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    batch_invariant: bool = False,
    precision: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Attention of a ragged batch over its own tokens, without a cache (ENCODER, ENCODER_ONLY).

    It is bidirectional, unless the layer's window says otherwise: with `window=(-1, 0)` a query sees no later key, which is
    causal attention over dense keys, as the prefill of MLA needs it (`attn_reference.latent`).

    Args:
        k, v: [T_kv, HK, D] and [T_kv, HK, Dv] of q's dtype; request r's keys are in the rows of its queries.
        q, layer, batch, out, lse, batch_invariant, precision: as for `paged_attention`.

    Returns:
        out.

    Raises:
        ContractError: an argument, or a value in a tensor, contradicts the contract. Nothing is written then.
        UnsupportedError: batch_invariant is set.
    """
    check_varlen_attention(q, k, v, layer, batch, out, lse, values=True)
    check_precision(precision)
    _refuse_batch_invariant(batch_invariant)
    return _write(_varlen_requests(q, k, v, layer, batch, precision), q, layer, out, lse)


@dataclass(frozen=True, eq=False)
class Request:
    """One request's queries, or a slice of them, with all its keys. Float tensors are of the arithmetic's dtype."""

    index: int
    """r, the request's index in the batch"""
    rows: slice
    """the rows of q that hold the queries"""
    query: torch.Tensor
    """[query_len, H, D]"""
    key: torch.Tensor
    """[seq_len, HK, D]"""
    value: torch.Tensor
    """[seq_len, HK, Dv]"""
    visible: torch.Tensor
    """[query_len, seq_len] bool, or [H, query_len, seq_len] if heads see unlike keys: see `visible`"""
    query_positions: torch.Tensor
    """[query_len] int64, p of each query"""
    bias: torch.Tensor | None
    """[H, query_len, seq_len], what step 3 adds to a logit; None where it adds nothing"""
    selected: torch.Tensor | None = None
    """[1 or H, query_len, W], the units that the queries select; None where all keys may be seen"""

    @property
    def seen(self) -> torch.Tensor:
        """[seq_len, HK] bool: the keys that some query of a KV head's sees. K and V of the others may hold anything."""
        of_heads = self.visible.expand(self.query.shape[1], -1, -1).any(1)
        return of_heads.unflatten(0, (self.key.shape[1], -1)).any(1).T


def paged_requests(
    q: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, batch: Batch, precision: torch.dtype
) -> Iterator[Request]:
    """The requests that `paged_attention` attends to, one by one; those without a query are left out.

    Raises:
        ContractError: as `paged_attention` does.
    """
    view = check_paged_attention(q, kv_cache, _without_output(layer), batch, None, None, values=True)
    check_precision(precision)
    return _paged_requests(q, kv_cache, layer, batch, precision, view)


def varlen_requests(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: Layer, batch: Batch, precision: torch.dtype
) -> Iterator[Request]:
    """The requests that `varlen_attention` attends to, one by one; those without a query are left out.

    Raises:
        ContractError: as `varlen_attention` does.
    """
    check_varlen_attention(q, k, v, _without_output(layer), batch, None, None, values=True)
    check_precision(precision)
    return _varlen_requests(q, k, v, layer, batch, precision)


class Attention(NamedTuple):
    """Attention of one request, or of a slice of its rows, in the dtype of the arithmetic."""

    out: torch.Tensor
    """[query_len, H, Dv]"""
    lse: torch.Tensor
    """[H, query_len], natural logarithm, sink included"""
    scores: torch.Tensor
    """[H, query_len, seq_len], scale * q.k, before the cap; arbitrary where the key is not visible"""
    bias: torch.Tensor | None
    """[H, query_len, seq_len], what was added after the cap, or None"""
    logits: torch.Tensor
    """[H, query_len, seq_len], whose softmax is taken; -inf where the key is not visible"""
    weights: torch.Tensor
    """[H, query_len, seq_len], 0 where the key is not visible"""


def attend(request: Request, layer: Layer) -> Attention:
    """Attention of one request's queries over its keys: steps 1 to 6 of the specification.

    Args:
        request: keys and values that none of its queries sees may hold anything.
        layer: its scale, logits_soft_cap and sinks are used; the other rules are in the request.

    Raises:
        ContractError: request or layer is of another type, or they have not the same heads.
    """
    check_type("request", request, Request, "a Request")
    check_type("layer", layer, Layer, "a Layer")
    num_heads, num_kv_heads = layer.num_heads, layer.num_kv_heads
    if (request.query.shape[1], request.key.shape[1]) != (num_heads, num_kv_heads):
        raise ContractError("layer", f"{num_heads} heads, {num_kv_heads} KV heads", "as many as the request has")
    value = torch.where(request.seen[..., None], request.value, 0)

    # n: KV head, g: query head of its group
    query_groups = request.query.unflatten(1, (num_kv_heads, num_heads // num_kv_heads))
    scores = layer.scale * sum_of_products("qngd,knd->ngqk", query_groups, request.key).flatten(0, 1)
    logits = torch.where(request.visible, to_logits(scores, request.bias, layer), -torch.inf)

    logits_and_sink = with_sink(logits, layer)
    maximum = logits_and_sink.amax(dim=-1, keepdim=True)
    # In a row of nothing but -inf, exp(-inf + inf) would be NaN; exp(-inf - 0) is 0.
    maximum = maximum.masked_fill(maximum == -torch.inf, 0)
    exponentials = torch.exp(logits_and_sink - maximum)
    denominator = exponentials.sum(dim=-1, keepdim=True)
    # The denominator of such a row is 0, and its weights are 0, too.
    weights = torch.where(request.visible, exponentials[..., :-1] / denominator.masked_fill(denominator == 0, 1), 0)
    lse = (maximum + torch.log(denominator)).squeeze(-1)

    weight_groups = weights.unflatten(0, (num_kv_heads, num_heads // num_kv_heads))
    out = sum_of_products("ngqk,knd->qngd", weight_groups, value).flatten(1, 2)
    return Attention(out, lse, scores, request.bias, logits, weights)


def _without_output(layer: Layer) -> Layer:
    """The layer as its requests need it: they have no output, and so no output_scale."""
    check_type("layer", layer, Layer, "a Layer")
    return replace(layer, output_scale=None)


def _paged_requests(
    q: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, batch: Batch, precision: torch.dtype, view: KVCacheView
) -> Iterator[Request]:
    """`paged_requests` of arguments that are checked; view is the cache's."""
    refuse_unnamed("attn_reference", IMPLEMENTED_RULES, layer, batch)
    block_table, seq_lens = batch.block_table, batch.seq_lens.tolist()
    assert block_table is not None

    def keys_and_values(r: int, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        return gather_rows(kv_cache, layer, block_table[r], layer.num_keys(seq_lens[r]), precision, view)

    return _requests(q, layer, batch, precision, keys_and_values)


def _varlen_requests(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: Layer, batch: Batch, precision: torch.dtype
) -> Iterator[Request]:
    """`varlen_requests` of arguments that are checked."""
    refuse_unnamed("attn_reference", IMPLEMENTED_RULES, layer, batch)

    def keys_and_values(r: int, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        return k[rows].to(precision), v[rows].to(precision)

    return _requests(q, layer, batch, precision, keys_and_values)


def _requests(
    q: torch.Tensor,
    layer: Layer,
    batch: Batch,
    precision: torch.dtype,
    keys_and_values: Callable[[int, slice], tuple[torch.Tensor, torch.Tensor]],
) -> Iterator[Request]:
    """Cut a call into requests of at most ROWS_AT_ONCE queries; `keys_and_values(r, rows)` reads those of request r."""
    for r, (start, end) in enumerate(itertools.pairwise(batch.query_start_loc.tolist())):
        if start == end:
            continue
        key, value = keys_and_values(r, slice(start, end))
        key_positions = position_of(torch.arange(len(key), device=q.device), layer.key_unit)
        context_len = int(batch.seq_lens[r]) - (end - start)
        for first in range(start, end, ROWS_AT_ONCE):
            rows = slice(first, min(first + ROWS_AT_ONCE, end))
            query_positions = context_len + torch.arange(rows.start - start, rows.stop - start, device=q.device)
            seen = visible(query_positions, key_positions, layer, batch, r)
            bias = logit_bias(query_positions, key_positions, layer, batch, r, precision)
            units = None if batch.selected is None else selected_units(query_positions, layer, batch, r)
            query = query_numbers(q[rows], layer, precision)
            yield Request(r, rows, query, key, value, seen, query_positions, bias, units)


def query_numbers(q: torch.Tensor, layer: Layer, precision: torch.dtype) -> torch.Tensor:
    """Rows of q [query_len, H, D] in the dtype of the arithmetic: each number times its KV head's scale, if there is one."""
    if layer.q_scale is None:
        return q.to(precision)
    of_kv_heads = layer.q_scale.expand(layer.num_kv_heads)
    return dequantize(q, of_kv_heads.repeat_interleave(layer.num_heads // layer.num_kv_heads)[:, None], precision)


def _write(
    requests: Iterator[Request], q: torch.Tensor, layer: Layer, out: torch.Tensor | None, lse: torch.Tensor | None
) -> torch.Tensor:
    """Attend to each request and write its rows of out and lse."""
    shape = (len(q), layer.num_heads, layer.v_head_size)
    if out is None:
        out = q.new_zeros(shape, dtype=dtype_of_output(q, layer))
    out_heads = out.view(shape)
    for request in requests:
        attention = attend(request, layer)
        if layer.output_scale is None:
            out_heads[request.rows] = rounded(attention.out, out.dtype)
        else:
            out_heads[request.rows] = quantize(attention.out, layer.output_scale, out.dtype)
        if lse is not None:
            lse[:, request.rows] = rounded(attention.lse, lse.dtype)
    return out


def check_precision(precision: torch.dtype) -> None:
    if precision not in (torch.float32, torch.float64):
        raise ContractError("precision", shown(precision), "torch.float32 or torch.float64")


def _refuse_batch_invariant(batch_invariant: bool) -> None:
    check_type("batch_invariant", batch_invariant, bool, "a bool")
    if batch_invariant:
        reason = "BLAS chooses the order in which it sums by the shapes of a call"
        raise UnsupportedError("attn_reference", "batch_invariant", reason)
