"""The three calls of an index layer: logits of units, the selection of units, and the write of index keys."""

from collections.abc import Collection

import torch

from attn_contract.arguments import check_dense_last, check_type, check_vector
from attn_contract.batch import Batch
from attn_contract.errors import ContractError
from attn_contract.indexer import IndexCacheView, Indexer, IndexScore
from attn_contract.layer import FLOAT8_DTYPES, FLOAT_DTYPES
from attn_contract.validation.shapes import given
from attn_contract.validation.tensors import check_tensors
from attn_contract.validation.values import check_block_table, check_lengths, check_seen_logits, check_slots


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
        values: True if to check lengths and blocks, too.
    """
    _check_call(indexer, batch, values)
    check_tensors({"q": q, **given(weights=weights), "index_cache": index_cache}, given(out=out), step=batch)
    _check_tensor("q", q, ("T", indexer.num_heads, indexer.head_size), (*FLOAT_DTYPES, *FLOAT8_DTYPES))
    if batch.num_actual_tokens > len(q):
        raise ContractError("num_actual_tokens", batch.num_actual_tokens, f"at most the {len(q)} rows of q")
    if (weights is None) != (indexer.score is IndexScore.MAX):
        got = None if weights is None else "a tensor"
        expected = "None: products are compared, not summed" if weights is not None else "a tensor, one weight per head"
        raise ContractError("weights", got, f"{expected}, for the score {indexer.score}")
    if weights is not None:
        _check_tensor("weights", weights, (len(q), indexer.num_heads), (torch.float32,))
    if batch.block_table is None:
        raise ContractError("block_table", None, "a tensor: index keys are read from their cache")
    view = indexer.view_of(index_cache)
    if out is not None:
        units = _AtLeast(indexer.num_units(batch.max_seq_len))
        _check_tensor("out", out, (indexer.num_selections, len(q), units), (dtype,))
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
        values: True if to check lengths, and that no logit which a row sees is NaN, too.
    """
    _check_call(indexer, batch, values)
    check_tensors({"logits": logits}, given(out=out), step=batch)
    rows, units = _AtLeast(batch.num_actual_tokens), _AtLeast(indexer.num_units(batch.max_seq_len))
    _check_tensor("logits", logits, (indexer.num_selections, rows, units), (torch.float32, torch.float64))
    if out is not None:
        _check_tensor("out", out, (*logits.shape[:2], indexer.selected_width), (torch.int32,))
    if values:
        check_seen_logits(logits, indexer, batch, check_lengths(batch))


def check_write_index_cache(
    k: torch.Tensor, index_cache: torch.Tensor, indexer: Indexer, slot_mapping: torch.Tensor, *, values: bool
) -> IndexCacheView:
    """Check a write of index keys.

    Args:
        k: [T_k, D] float32, float16 or bfloat16; rows from len(slot_mapping) on are not read.
        index_cache: shaped as the layout says.
        slot_mapping: [S] int64, S at most T_k.
        values: True if to check the slots, too.
    """
    check_type("indexer", indexer, Indexer, "an Indexer")
    check_type("validate", values, bool, "a bool")
    check_tensors({"k": k, "slot_mapping": slot_mapping}, {"index_cache": index_cache})
    check_vector("slot_mapping", slot_mapping, torch.int64)
    _check_tensor("k", k, ("T_k", indexer.head_size), FLOAT_DTYPES)
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


class _AtLeast(int):
    """The least size of a dimension."""

    def __str__(self) -> str:
        return f"at least {int(self)}"


def _check_tensor(name: str, tensor: torch.Tensor, shape: tuple[int | str, ...], dtypes: Collection[torch.dtype]) -> None:
    """Check a tensor's shape, its dtype, and that rows are dense. A word in the shape is a dimension of any size."""

    def fits(has: int, size: int | str) -> bool:
        return isinstance(size, str) or has == size or (isinstance(size, _AtLeast) and has > size)

    if tensor.dim() != len(shape) or not all(map(fits, tensor.shape, shape)):
        raise ContractError(name, f"shape {tuple(tensor.shape)}", f"shape ({', '.join(map(str, shape))})")
    if tensor.dtype not in dtypes:
        raise ContractError(name, tensor.dtype, " or ".join(map(str, dtypes)))
    check_dense_last(name, tensor)
