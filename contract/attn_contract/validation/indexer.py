"""The three calls of an index layer: logits of units, the selection of units, and the write of index keys.

The values in tensors are checked, too, where `values` says so.
"""

import torch

from attn_contract.arguments import check_dense_last, check_dims, check_type, check_vector
from attn_contract.batch import Batch
from attn_contract.errors import ContractError
from attn_contract.indexer import IndexCacheView, Indexer, IndexScore
from attn_contract.layer import FLOAT8_DTYPES, FLOAT_DTYPES
from attn_contract.validation.shapes import check_float, given
from attn_contract.validation.tensors import check_tensors
from attn_contract.validation.values import check_block_table, check_lengths, check_slots


def check_index_logits(
    q: torch.Tensor,
    weights: torch.Tensor | None,
    index_cache: torch.Tensor,
    indexer: Indexer,
    batch: Batch,
    out: torch.Tensor | None = None,
    *,
    values: bool,
    dtype: torch.dtype = torch.float32,
) -> IndexCacheView:
    """Check a call that scores units.

    Args:
        q: [T, Hi, D] of a float dtype or float8.
        weights: [T, Hi] float32, or None where the score is MAX.
        index_cache: shaped as the layout says.
        batch: causal, with a block table.
        out: [HS, T, at least `indexer.num_units(batch.max_seq_len)`] of `dtype`, or None.
        values: whether to check lengths and blocks, too.

    Returns:
        The addresses of the cache's elements.

    Raises:
        ContractError: naming the first argument that is wrong.
    """
    _check_call(indexer, batch, values)
    check_tensors({"q": q, **given(weights=weights), "index_cache": index_cache}, given(out=out), step=batch)
    if tuple(q.shape[1:]) != (indexer.num_heads, indexer.head_size) or q.dim() != 3:
        expected = f"shape (T, {indexer.num_heads}, {indexer.head_size})"
        raise ContractError("q", f"shape {tuple(q.shape)}", expected)
    if q.dtype not in (*FLOAT_DTYPES, *FLOAT8_DTYPES):
        raise ContractError("q", q.dtype, "float32, float16, bfloat16 or float8")
    check_dense_last("q", q)
    if batch.num_actual_tokens > len(q):
        raise ContractError("num_actual_tokens", batch.num_actual_tokens, f"at most the {len(q)} rows of q")
    _check_weights(weights, indexer, len(q))
    if batch.block_table is None:
        raise ContractError("block_table", None, "a tensor: index keys are read from their cache")
    view = indexer.view_of(index_cache)
    units = indexer.num_units(batch.max_seq_len)
    if out is not None:
        _check_out(out, (indexer.num_selections, len(q), units), dtype, may_be_wider=True)
    if values:
        check_lengths(batch)
        check_block_table(batch.block_table, batch.seq_lens.cpu() // indexer.key_unit, view)
    return view


def check_select(
    logits: torch.Tensor, indexer: Indexer, batch: Batch, out: torch.Tensor | None = None, *, values: bool
) -> None:
    """Check a call that selects units.

    Args:
        logits: [HS, T, units] float32 or float64, of at least `indexer.num_units(batch.max_seq_len)` units.
        batch: causal.
        out: [HS, T, indexer.selected_width] int32, or None.
        values: whether to check lengths, too.

    Raises:
        ContractError: naming the first argument that is wrong.
    """
    _check_call(indexer, batch, values)
    check_tensors({"logits": logits}, given(out=out), step=batch)
    check_dims("logits", logits, ("num_selections", "T", "units"))
    if logits.dtype not in (torch.float32, torch.float64):
        raise ContractError("logits", logits.dtype, "torch.float32 or torch.float64")
    units = indexer.num_units(batch.max_seq_len)
    heads, rows, columns = logits.shape
    if heads != indexer.num_selections or rows < batch.num_actual_tokens or columns < units:
        expected = f"shape ({indexer.num_selections}, at least {batch.num_actual_tokens}, at least {units})"
        raise ContractError("logits", f"shape {tuple(logits.shape)}", expected)
    check_dense_last("logits", logits)
    if out is not None:
        _check_out(out, (heads, rows, indexer.selected_width), torch.int32, may_be_wider=False)
    if values:
        check_lengths(batch)


def _check_out(out: torch.Tensor, shape: tuple[int, int, int], dtype: torch.dtype, *, may_be_wider: bool) -> None:
    check_dims("out", out, ("num_selections", "T", "columns"))
    *rows, columns = shape
    if list(out.shape[:2]) != rows or out.shape[2] < columns or (out.shape[2] > columns and not may_be_wider):
        expected = f"shape ({rows[0]}, {rows[1]}, {'at least ' if may_be_wider else ''}{columns})"
        raise ContractError("out", f"shape {tuple(out.shape)}", expected)
    if out.dtype != dtype:
        raise ContractError("out", out.dtype, str(dtype))
    check_dense_last("out", out)


def check_write_index_cache(
    k: torch.Tensor, index_cache: torch.Tensor, indexer: Indexer, slot_mapping: torch.Tensor, *, values: bool
) -> IndexCacheView:
    """Check a write of index keys.

    Args:
        k: [T_k, D] float32, float16 or bfloat16; rows from len(slot_mapping) on are not read.
        index_cache: shaped as the layout says.
        slot_mapping: [S] int64, S at most T_k.
        values: whether to check the slots, too.

    Returns:
        The addresses of the cache's elements.

    Raises:
        ContractError: naming the first argument that is wrong.
    """
    check_type("indexer", indexer, Indexer, "an Indexer")
    check_type("validate", values, bool, "a bool")
    check_tensors({"k": k, "slot_mapping": slot_mapping}, {"index_cache": index_cache})
    check_vector("slot_mapping", slot_mapping, torch.int64)
    check_float("k", k)
    if k.dim() != 2 or k.shape[1] != indexer.head_size:
        raise ContractError("k", f"shape {tuple(k.shape)}", f"shape (T_k, {indexer.head_size})")
    check_dense_last("k", k)
    if len(slot_mapping) > len(k):
        raise ContractError("slot_mapping", f"{len(slot_mapping)} slots", f"at most the {len(k)} rows of k")
    view = indexer.view_of(index_cache)
    if indexer.cache_dtype is None and index_cache.dtype != k.dtype:
        raise ContractError("index_cache", index_cache.dtype, f"{k.dtype}, as k has: the indexer has no cache_dtype")
    if values:
        check_slots(slot_mapping, view)
    return view


def _check_call(indexer: Indexer, batch: Batch, values: bool) -> None:
    check_type("indexer", indexer, Indexer, "an Indexer")
    check_type("batch", batch, Batch, "a Batch")
    check_type("validate", values, bool, "a bool")
    if batch.causal is not True:
        got = batch.causal if isinstance(batch.causal, bool) else "a flag per request"
        raise ContractError("causal", got, "True: a query chooses among units up to its own position")


def _check_weights(weights: torch.Tensor | None, indexer: Indexer, rows: int) -> None:
    if (weights is None) != (indexer.score is IndexScore.MAX):
        got = None if weights is None else "a tensor"
        expected = "None: products are compared, not summed" if weights is not None else "a tensor, one weight per head"
        raise ContractError("weights", got, f"{expected}, for the score {indexer.score}")
    if weights is None:
        return
    if weights.dtype != torch.float32 or tuple(weights.shape) != (rows, indexer.num_heads):
        expected = f"torch.float32 ({rows}, {indexer.num_heads}): rows of q, index heads"
        raise ContractError("weights", f"{weights.dtype} {tuple(weights.shape)}", expected)
    check_dense_last("weights", weights)
