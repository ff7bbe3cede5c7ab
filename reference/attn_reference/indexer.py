"""Choosing keys: the specification of an index layer, and the code that computes it step by step.

`attn_contract.indexer` has the terms. Row t of a request is the query at position p (`attn_reference.attention`). Index key i
is of the tokens [i * key_unit, (i + 1) * key_unit), and unit c is the tokens [c * selection_unit, (c + 1) * selection_unit).

**What a row sees.** Key i if all its tokens are at or before p: `(i + 1) * key_unit <= p + 1`. Unit c if it sees a key of it.
Those are the units from 0 up to, and without, `seen_units(p)`. A row that stands before the sequence, p < 0, sees none.

**Logits**, float32, of the heads h of one selection:

    SUM_RELU    I(t, i) = sum_h weights[t, h] * max(q[t, h] . k_i, 0)     DeepSeek-V3.2, arXiv:2512.02556, equation 1
    MAX         I(t, i) = max_h q[t, h] . k_i                             MiniMax-M3
                I(t, c) = max of I(t, i) over the keys i of unit c that the row sees

A key with a scale is `stored * scale`. The scale is positive, so it may multiply before or after max(., 0). Weights may be
negative: a logit of 0, which a key has if no product is positive, can be the best of a row. Columns of units that a row does
not see may hold anything. Of a tensor that the caller gives, columns from `num_units(max_seq_len)` on are not written, nor are
rows that no request owns; in a new tensor these may hold anything. The same holds for what a selection writes.

**Selection.** Of the n units that a row sees, the first `first_units` and the last `last_units` are selected whatever their
logits are. The others that make up min(top_k, n) have the greatest logits. Where logits are equal, any of them will do: kernels
disagree, and all are right. Entries have no order, and those that name no unit are -1. A logit that a row sees is no NaN, which
`validate` checks. Where values are not checked, NaN is less than every number, so that it takes no other unit's place; forced
units are selected whatever theirs is.

Where a key stands for a whole unit (key_unit > 1), the unit that p stands in has no key until its last token is there. Such an
open unit is selected beside the top_k (GLM-5.3-Flash, Qwen4), and attention hides its tokens after p by causality.

**The cache.** A key with a scale is stored as float8 numbers, `scale = max(a, 1e-4) / F` with a the largest magnitude of its
row and F = `largest`; UE8M0 takes the next power of two. `stored = k / scale`, as `attn_reference.quantization` has it. Keys of
PLAIN are rounded once to the cache's dtype. k and q are finite.
"""

import torch
from attn_contract import Batch, IndexCacheView, Indexer, IndexScore, ScaleFormat
from attn_contract.indexer import MIN_MAGNITUDE
from attn_contract.layouts import BYTES_OF_SCALE
from attn_contract.validation import check_index_logits, check_select, check_write_index_cache

from attn_reference.attention import check_precision
from attn_reference.quantization import FLOAT8, dequantize, quantize


def index_logits(
    q: torch.Tensor,
    weights: torch.Tensor | None,
    index_cache: torch.Tensor,
    indexer: Indexer,
    batch: Batch,
    *,
    out: torch.Tensor | None = None,
    precision: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Score the units that each row sees.

    Args:
        q: [T, Hi, D] index queries, of a float dtype or float8.
        weights: [T, Hi] float32 of SUM_RELU, None of MAX.
        index_cache: shaped as `indexer.layout` says. Its blocks are those of `batch.block_table`, and hold keys, not tokens:
            key i of a request lies in its logical block `i // BS`.
        indexer: the terms of the index layer.
        batch: causal.
        out: [HS, T, units or more] of the precision, to write to and to return; None: a new tensor.
        precision: the dtype of the result: torch.float32, or torch.float64, in which every product and sum of float8 is exact.

    Returns:
        out, or [HS, T, units] for `indexer.num_units(batch.max_seq_len)` units; -inf where a row does not see the unit.

    Raises:
        ContractError: an argument contradicts the contract, or the block table leads out of the cache.
    """
    check_precision(precision)
    view = check_index_logits(q, weights, index_cache, indexer, batch, out, values=True, dtype=precision)
    units = indexer.num_units(batch.max_seq_len)
    logits = torch.full((indexer.num_selections, len(q), units), -torch.inf, dtype=torch.float64, device=q.device)
    for r in range(batch.num_requests):
        rows, p = request_rows(batch, r)
        keys = gather_index_keys(index_cache, indexer, batch, r, view)
        of_units = score(numbers_of(q[rows]), None if weights is None else weights[rows].double(), keys, p, indexer)
        logits[:, rows, : of_units.shape[-1]] = of_units
    return logits.to(precision) if out is None else write_owned_rows(out, logits, batch)


def score(q: torch.Tensor, weights: torch.Tensor | None, keys: torch.Tensor, p: torch.Tensor, indexer: Indexer) -> torch.Tensor:
    """[HS, query_len, units]: the logits of a request's units; -inf where a query does not see the unit.

    Args:
        q: [query_len, Hi, D] float64.
        weights: [query_len, Hi] float64 of SUM_RELU, None of MAX.
        keys: [keys, D] float64.
        p: [query_len] integers, the position of each query.
    """
    products = (q @ keys.T).transpose(0, 1).unflatten(0, (indexer.num_selections, -1))
    if indexer.score is IndexScore.MAX or weights is None:
        of_keys = products.amax(1)
    else:
        of_heads = weights.T.unflatten(0, (indexer.num_selections, -1))[..., None]
        of_keys = (of_heads * products.relu()).sum(1)
    seen = (torch.arange(len(keys), device=p.device) + 1) * indexer.key_unit <= p[:, None] + 1
    of_keys = torch.where(seen, of_keys, -torch.inf)
    per_unit = indexer.selection_unit // indexer.key_unit
    missing = -len(keys) % per_unit
    return torch.nn.functional.pad(of_keys, (0, missing), value=-torch.inf).unflatten(-1, (-1, per_unit)).amax(-1)


def seen_units(p: torch.Tensor, indexer: Indexer) -> torch.Tensor:
    """The number of units of which the query at each position sees a key: the first ones."""
    tokens = (p + 1).clamp(min=0) // indexer.key_unit * indexer.key_unit
    return -(-tokens // indexer.selection_unit)


def write_owned_rows(out: torch.Tensor, result: torch.Tensor, batch: Batch) -> torch.Tensor:
    """`out`, with a result in its first columns of the rows that requests own."""
    rows = int(batch.query_start_loc[-1])
    out[:, :rows, : result.shape[-1]] = result[:, :rows]
    return out


def select(logits: torch.Tensor, indexer: Indexer, batch: Batch, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Name the units that each row selects.

    Args:
        logits: [HS, T, units] float32 or float64; what a row does not see is not looked at.
        indexer: the terms of the index layer.
        batch: causal.
        out: the tensor to write to and to return; None: a new tensor.

    Returns:
        [HS, T, indexer.selected_width] int32, as `Batch.selected` has it. Of equal logits those of the first units are taken.

    Raises:
        ContractError: an argument, or a logit that a row sees, contradicts the contract.
    """
    check_select(logits, indexer, batch, out, values=True)
    selected = torch.full((*logits.shape[:2], indexer.selected_width), -1, dtype=torch.int32, device=logits.device)
    for r in range(batch.num_requests):
        rows, p = request_rows(batch, r)
        for row, position in enumerate(p.tolist(), rows.start):
            n = int(seen_units(torch.tensor(position, device="cpu"), indexer))
            selected[:, row, : min(indexer.top_k, n)] = _best(logits[:, row, :n], indexer).int()
            if indexer.has_open_unit and (position + 1) % indexer.selection_unit and position >= 0:
                selected[:, row, -1] = position // indexer.selection_unit
    return selected if out is None else write_owned_rows(out, selected, batch)


def _best(logits: torch.Tensor, indexer: Indexer) -> torch.Tensor:
    """[HS, min(top_k, n)]: the units to select of n units [HS, n], forced ones first."""
    n = logits.shape[-1]
    ranked = logits.clone()
    ranked[:, : indexer.first_units] = torch.inf
    ranked[:, max(n - indexer.last_units, 0) :] = torch.inf
    return ranked.sort(dim=-1, descending=True, stable=True).indices[:, : indexer.top_k]


def request_rows(batch: Batch, request: int) -> tuple[slice, torch.Tensor]:
    """The rows of q of a request, and the position of each, [query_len] int64."""
    start, end = batch.query_start_loc[request : request + 2].tolist()
    first = int(batch.seq_lens[request]) - (end - start)
    return slice(start, end), torch.arange(first, first + end - start, device=batch.seq_lens.device)


def gather_index_keys(
    index_cache: torch.Tensor, indexer: Indexer, batch: Batch, request: int, view: IndexCacheView
) -> torch.Tensor:
    """[keys, D] float64: the index keys of a request, exactly as they are stored, of arguments that are checked."""
    assert batch.block_table is not None
    i = torch.arange(int(batch.seq_lens[request]) // indexer.key_unit, device=index_cache.device)
    block, slot = batch.block_table[request].long()[i // view.block_size], i % view.block_size
    at = view.element(block[:, None], slot[:, None], torch.arange(indexer.head_size, device=i.device))
    elements = _elements(index_cache)
    stored = elements[at].view(indexer.cache_dtype or index_cache.dtype)
    if not indexer.layout.has_scales:
        return numbers_of(stored)
    scale = elements[view.scale(block, slot)[:, None] + torch.arange(BYTES_OF_SCALE, device=i.device)]
    return dequantize(stored, scale.view(torch.float32), torch.float64)


def write_index_cache(k: torch.Tensor, index_cache: torch.Tensor, indexer: Indexer, slot_mapping: torch.Tensor) -> None:
    """Write rows of index keys to the slots of an index cache, in place. Scales are computed, and written too.

    Args:
        k: [T_k, D] float32, float16 or bfloat16; rows from len(slot_mapping) on are not read.
        index_cache: shaped as `indexer.layout` says.
        indexer: its layout, cache_dtype, scale_format and largest are used.
        slot_mapping: [S] int64, `block * BS + offset` of each row; -1 writes nothing. S <= T_k.

    Raises:
        ContractError: an argument contradicts the contract, a slot lies outside the cache or is given twice.
    """
    view = check_write_index_cache(k, index_cache, indexer, slot_mapping, values=True)
    written = slot_mapping >= 0
    rows, slots = k[: len(slot_mapping)][written], slot_mapping[written]
    block, slot = slots // view.block_size, slots % view.block_size
    at = view.element(block[:, None], slot[:, None], torch.arange(indexer.head_size, device=k.device))
    elements = _elements(index_cache)
    if indexer.cache_dtype is None:
        elements[at] = rows
        return
    scale = index_scales(rows, indexer)[:, None] if indexer.layout.has_scales else torch.ones((), device=k.device)
    elements[at] = quantize(rows, scale, indexer.cache_dtype).view(torch.uint8)
    if indexer.layout.has_scales:
        elements[view.scale(block, slot)[:, None] + torch.arange(BYTES_OF_SCALE, device=k.device)] = scale.view(torch.uint8)


def index_scales(rows: torch.Tensor, indexer: Indexer) -> torch.Tensor:
    """[rows] float32: the scale that each row of index keys is stored with."""
    assert indexer.cache_dtype is not None
    largest = indexer.largest or FLOAT8[indexer.cache_dtype].largest
    scale = rows.float().abs().amax(-1).clamp(min=MIN_MAGNITUDE) / largest
    if indexer.scale_format is ScaleFormat.FLOAT32:
        return scale
    mantissa, exponent = torch.frexp(scale)
    # frexp's mantissa is below 1: a power of two has 0.5
    return torch.ldexp(torch.ones_like(scale), torch.where(mantissa == 0.5, exponent - 1, exponent))


def _elements(index_cache: torch.Tensor) -> torch.Tensor:
    """All elements from the cache's first to its last, as one vector of the same memory; float8 numbers as bytes."""
    size = 1 + sum((size - 1) * stride for size, stride in zip(index_cache.shape, index_cache.stride(), strict=True))
    vector = index_cache.as_strided((size if index_cache.numel() else 0,), (1,), index_cache.storage_offset())
    return vector.view(torch.uint8) if vector.itemsize == 1 else vector


def numbers_of(stored: torch.Tensor) -> torch.Tensor:
    """Float or float8 numbers in float64, exactly."""
    if stored.dtype in FLOAT8:
        return dequantize(stored, torch.ones((), device=stored.device), torch.float64)
    return stored.double()
