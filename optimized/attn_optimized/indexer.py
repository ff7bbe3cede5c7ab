"""The index layer of sparse attention: the index cache, the logits of units, and the selection of the units."""

import torch
from attn_contract import Batch, Indexer, IndexLayout, IndexScore, ScaleFormat, UnsupportedError
from attn_contract.signatures import tensor_signature
from attn_contract.validation import check_index_logits, check_select, check_write_index_cache

from attn_optimized.device import architecture_of, has_bfloat16_conversion
from attn_optimized.kernel_call import KernelCall, Launch
from attn_optimized.kernels.index_logits import IndexLogitsKind, index_logits_kernel
from attn_optimized.kernels.select_units import SelectKind, select_units_kernel
from attn_optimized.kernels.write_index_cache import IndexWriteKind, write_index_cache_kernel
from attn_optimized.kv_cache import INTEGER_OF_SIZE
from attn_optimized.launch.indexer import logit_tiles, select_tiles
from attn_optimized.launch.tiles import row_grid, row_tiles
from attn_optimized.launch.units import in_units
from attn_optimized.launch.workload import rounded
from attn_optimized.quantization import stored_format
from attn_optimized.signature_cache import SignatureCache
from attn_optimized.strides import without_idle_strides

# one for all layers of a model and for many steps of a decode
_LAUNCHES: SignatureCache[Launch] = SignatureCache()


def write_index_cache(
    k: torch.Tensor,
    index_cache: torch.Tensor,
    indexer: Indexer,
    slot_mapping: torch.Tensor,
    *,
    validate: bool = False,
) -> None:
    """Write rows of index keys to slots of an index cache; every other byte stays as it is.

    A key with a scale is stored as the float8 number k / scale, with `scale = max(a, 1e-4) / F`: a is the largest magnitude of
    its row, and F is `indexer.largest`. A ue8m0 scale is the next power of two. Keys without a scale are rounded once.

    Args:
        k: [T_k, D] float32, float16 or bfloat16, finite; the last dimension is dense. Rows past S are not read.
        index_cache: shaped as `indexer.layout` says.
        indexer: its head_size, layout, cache_dtype, scale_format and largest are used.
        slot_mapping: [S] int64, `block * BS + offset`; -1 writes nothing.
        validate: also check the slots, which waits for the device.

    Raises:
        ContractError: the arguments contradict the contract. Nothing was written.
        UnsupportedError: rows of more than MAX_ROW_SIZE dims, or tensors on a CPU without Triton's interpreter. Nothing was
            written.
    """
    check_write_index_cache(k, index_cache, indexer, slot_mapping, values=validate)
    write_index_cache_call(k, index_cache, indexer, slot_mapping).run(k.device)


def write_index_cache_call(
    k: torch.Tensor,
    index_cache: torch.Tensor,
    indexer: Indexer,
    slot_mapping: torch.Tensor,
    *,
    architecture: str | None = None,
) -> KernelCall:
    """The launch of `write_index_cache`. No argument is checked, and no element is read.

    Args:
        architecture: that of the GPU to launch on, which need not be in this machine if the tensors are on meta; None: that of
            k's device.
    """
    architecture = architecture or architecture_of(k.device, k.dtype)
    if indexer.cache_dtype is None:
        # as integers: a copy of a float may change the bits of a NaN
        integer = INTEGER_OF_SIZE[k.element_size()]
        k, stored, cache_format = k.view(integer), index_cache.view(integer), "float"
    else:
        stored, cache_format = stored_format(index_cache.view(indexer.cache_dtype), architecture)
    signature = (
        write_index_cache_kernel,
        architecture,
        k.device,
        indexer,
        *map(tensor_signature, (k, index_cache, slot_mapping)),
    )
    launch = _LAUNCHES.shared(
        signature, lambda: _write_launch(k, stored, cache_format, indexer, len(slot_mapping), architecture)
    )
    return KernelCall(launch, {"index_cache_ptr": stored, "k_ptr": k, "slot_mapping_ptr": slot_mapping})


def _write_launch(
    k: torch.Tensor, index_cache: torch.Tensor, cache_format: str, indexer: Indexer, num_mapped: int, architecture: str
) -> Launch:
    """The launch of a write, with k and the cache in the kernel's form."""
    tiles = row_tiles(architecture, head_size=indexer.head_size)
    num_blocks, block_size, _ = index_cache.shape
    k = without_idle_strides(k)
    row_unit, of_rows = in_units(k.element_size(), stride_k=k.stride(0))
    cache_unit, of_cache = _cache_strides(index_cache, indexer)
    kind = IndexWriteKind(
        row_unit=row_unit,
        cache_unit=cache_unit,
        layout=indexer.layout.lower(),
        cache_format=cache_format,
        has_e8m0_scales=indexer.scale_format is ScaleFormat.UE8M0,
        head_size=indexer.head_size,
        block_rows=tiles.block_rows,
        block_d=tiles.block_d,
    )
    largest = 1.0 if indexer.cache_dtype is None else float(indexer.largest or torch.finfo(indexer.cache_dtype).max)
    return Launch.of(
        write_index_cache_kernel,
        row_grid(tiles, num_mapped),
        {"KIND": kind},
        tiles.options,
        num_mapped=num_mapped,
        num_cache_slots=num_blocks * block_size,
        block_size=block_size,
        largest=largest,
        **of_rows,
        **of_cache,
    )


def index_logits(
    q: torch.Tensor,
    weights: torch.Tensor | None,
    index_cache: torch.Tensor,
    indexer: Indexer,
    batch: Batch,
    *,
    out: torch.Tensor | None = None,
    validate: bool = False,
) -> torch.Tensor:
    """Score the units that each row sees (DeepSeek-V3.2, arXiv:2512.02556, equation 1; or the largest product, MiniMax-M3).

    Args:
        q: [T, Hi, D] index queries, of a float dtype or float8; the last dimension is dense.
        weights: [T, Hi] float32 for SUM_RELU, None for MAX.
        index_cache: shaped as `indexer.layout` says. Its blocks are those of `batch.block_table`, and hold keys, not tokens.
        indexer: the terms of the index layer.
        batch: causal.
        out: [HS, T, units or more] float32 to write and return; the last dimension is dense. None: a new tensor.
        validate: also check lengths and blocks, which waits for the device.

    Returns:
        out, or [HS, T, units] float32 for `indexer.num_units(batch.max_seq_len)` units. Logits of units that a row
        does not see may be anything. Columns from there on and rows of no request are not written, and in a new tensor may hold
        anything. A row's logits do not depend on other rows or requests.

    Raises:
        ContractError: the arguments contradict the contract.
        UnsupportedError: heads of more than MAX_HEAD_SIZE dims, or tensors on a CPU without Triton's interpreter.
    """
    check_index_logits(q, weights, index_cache, indexer, batch, out, values=validate)
    if out is not None:
        index_logits_call(q, weights, index_cache, indexer, batch, logits=out).run(q.device)
        return out
    units = indexer.num_units(batch.max_seq_len)
    # as wide as the next steps of a decode need, so that these steps share a launch
    shape = indexer.num_selections, len(q), rounded(units)
    logits = torch.empty(shape, dtype=torch.float32, device=q.device)
    index_logits_call(q, weights, index_cache, indexer, batch, logits=logits).run(q.device)
    return logits[:, :, :units]


def index_logits_call(
    q: torch.Tensor,
    weights: torch.Tensor | None,
    index_cache: torch.Tensor,
    indexer: Indexer,
    batch: Batch,
    *,
    logits: torch.Tensor,
    architecture: str | None = None,
) -> KernelCall:
    """The launch of `index_logits`, which writes to `logits`: see `write_index_cache_call`."""
    assert batch.block_table is not None
    cache_dtype = indexer.cache_dtype or index_cache.dtype
    operand = _operand_dtype(q.dtype, cache_dtype)
    architecture = architecture or architecture_of(q.device, operand)
    stored_q, q_format = stored_format(q, architecture)
    stored, cache_format = stored_format(index_cache.view(cache_dtype), architecture)
    signature = (
        index_logits_kernel,
        architecture,
        q.device,
        indexer,
        batch.signature,
        *map(tensor_signature, (q, weights, index_cache, logits)),
    )

    tensors = {
        "logits_ptr": logits,
        "q_ptr": stored_q,
        "index_cache_ptr": stored,
        "weights_ptr": weights,
        "query_start_loc_ptr": batch.query_start_loc,
        "seq_lens_ptr": batch.seq_lens,
        "block_table_ptr": batch.block_table,
    }
    formats = {"q_format": q_format, "cache_format": cache_format, "operand": operand}
    launch = _LAUNCHES.shared(
        signature, lambda: _logits_launch(q, weights, stored, indexer, batch, logits, architecture, **formats)
    )
    return KernelCall(launch, tensors)


def _logits_launch(
    q: torch.Tensor,
    weights: torch.Tensor | None,
    index_cache: torch.Tensor,
    indexer: Indexer,
    batch: Batch,
    logits: torch.Tensor,
    architecture: str,
    *,
    q_format: str,
    cache_format: str,
    operand: torch.dtype,
) -> Launch:
    """The launch that scores keys, with the cache in the kernel's form."""
    assert batch.block_table is not None
    tiles = logit_tiles(architecture, indexer, operand.itemsize)
    q_strides = without_idle_strides(q).stride()
    q_unit, of_q = in_units(q.element_size(), stride_q_row=q_strides[0], stride_q_head=q_strides[1])
    cache_unit, of_cache = _cache_strides(index_cache, indexer)
    kind = IndexLogitsKind(
        q_unit=q_unit,
        cache_unit=cache_unit,
        layout=indexer.layout.lower(),
        q_format=q_format,
        cache_format=cache_format,
        operand=str(operand).removeprefix("torch."),
        has_integer_bfloat16=not has_bfloat16_conversion(architecture),
        has_weights=indexer.score is IndexScore.SUM_RELU,
        head_size=indexer.head_size,
        num_heads=indexer.num_heads // indexer.num_selections,
        key_unit=indexer.key_unit,
        keys_per_unit=indexer.selection_unit // indexer.key_unit,
        block_q=tiles.block_q,
        block_h=tiles.block_h,
        block_units=tiles.block_units,
        block_keys=tiles.block_keys,
        block_d=tiles.block_d,
    )
    num_selections, num_tokens, num_units = logits.shape
    # see kernels/query_tiles.py
    tiles_of_queries = batch.num_actual_tokens // tiles.block_q + batch.num_requests if batch.num_requests else 0
    return Launch.of(
        index_logits_kernel,
        (tiles_of_queries, -(-num_units // tiles.block_units), num_selections),
        {"KIND": kind},
        {"num_warps": tiles.num_warps},
        num_requests=batch.num_requests,
        num_tokens=num_tokens,
        num_units=num_units,
        block_size=index_cache.shape[1],
        stride_logits_selection=logits.stride(0),
        stride_logits_row=logits.stride(1),
        stride_weights_row=0 if weights is None else weights.stride(0),
        stride_block_table=batch.block_table.stride(0),
        **of_q,
        **of_cache,
    )


def select(
    logits: torch.Tensor,
    indexer: Indexer,
    batch: Batch,
    *,
    out: torch.Tensor | None = None,
    validate: bool = False,
) -> torch.Tensor:
    """Find the units that each row selects, exactly: the first and last ones that `indexer` forces, and those of the greatest
    logits.

    Args:
        logits: [HS, T, units] float32; the last dimension is dense. Logits of units that a row does not see are not read.
        indexer: the terms of the index layer.
        batch: causal.
        out: the tensor to write and return; its last dimension is dense. None: a new tensor.
        validate: also check the lengths, and that no logit which a row sees is NaN. It waits for the device. Without it, NaN is
            less than every number.

    Returns:
        [HS, T, indexer.selected_width] int32, as `Batch.selected` has it: units in rising order, then -1, and in the last
        column the open unit, if the layer has one. Among equal logits, the first units are selected. A row of no request
        is not written, and in a new tensor may hold anything.

    Raises:
        ContractError: the arguments contradict the contract.
        UnsupportedError: logits of another dtype, or tensors on a CPU without Triton's interpreter.
    """
    check_select(logits, indexer, batch, out, values=validate)
    if logits.dtype != torch.float32:
        reason = "it compares the bits of float32"
        raise UnsupportedError("attn_optimized", f"logits of {logits.dtype}", reason, "attn_reference")
    if out is None:
        shape = (indexer.num_selections, logits.shape[1], indexer.selected_width)
        out = torch.empty(shape, dtype=torch.int32, device=logits.device)
    select_call(logits, indexer, batch, selected=out).run(logits.device)
    return out


def select_call(
    logits: torch.Tensor,
    indexer: Indexer,
    batch: Batch,
    *,
    selected: torch.Tensor,
    architecture: str | None = None,
) -> KernelCall:
    """The launch of `select`, which writes to `selected`: see `write_index_cache_call`."""
    architecture = architecture or architecture_of(logits.device, logits.dtype)
    num_units = _units_in_memory(logits)
    signature = (
        select_units_kernel,
        architecture,
        logits.device,
        indexer,
        batch.signature,
        (logits.shape[:2], logits.stride(), num_units),
        tensor_signature(selected),
    )
    launch = _LAUNCHES.shared(signature, lambda: _select_launch(logits, num_units, indexer, batch, selected, architecture))
    tensors: dict[str, torch.Tensor | None] = {
        "selected_ptr": selected,
        "logits_ptr": logits,
        "query_start_loc_ptr": batch.query_start_loc,
        "seq_lens_ptr": batch.seq_lens,
    }
    return KernelCall(launch, tensors)


def _units_in_memory(logits: torch.Tensor) -> int:
    """The most units of a row that a launch may read: those of the tensor, or those that the next steps of a decode have, if
    the memory of the logits holds that many from the beginning of each row on. Lengths that were not checked cannot exceed
    them."""
    selections, rows, units = logits.shape
    wide = rounded(units)
    last_row = logits.storage_offset() + (selections - 1) * logits.stride(0) + (rows - 1) * logits.stride(1)
    return wide if (last_row + wide) * logits.itemsize <= logits.untyped_storage().nbytes() else units


def _select_launch(
    logits: torch.Tensor, num_units: int, indexer: Indexer, batch: Batch, selected: torch.Tensor, architecture: str
) -> Launch:
    tiles = select_tiles(architecture, indexer)
    kind = SelectKind(
        selection_unit=indexer.selection_unit,
        key_unit=indexer.key_unit,
        block=tiles.block,
        block_requests=tiles.block_requests,
    )
    num_selections, num_tokens, _ = logits.shape
    return Launch.of(
        select_units_kernel,
        (num_tokens, num_selections),
        {"KIND": kind},
        {"num_warps": tiles.num_warps},
        num_requests=batch.num_requests,
        num_units=num_units,
        top_k=indexer.top_k,
        first_units=indexer.first_units,
        last_units=indexer.last_units,
        stride_selected_selection=selected.stride(0),
        stride_selected_row=selected.stride(1),
        stride_logits_selection=logits.stride(0),
        stride_logits_row=logits.stride(1),
    )


def _cache_strides(index_cache: torch.Tensor, indexer: Indexer) -> tuple[int, dict[str, int]]:
    """The unit of a cache's strides, and the strides in it. Pages of a layout with scales are dense."""
    cache = without_idle_strides(index_cache)
    slot = cache.stride(1) if indexer.layout is IndexLayout.PLAIN else 0
    return in_units(cache.element_size(), stride_block=cache.stride(0), stride_slot=slot)


def _operand_dtype(q: torch.dtype, cache: torch.dtype) -> torch.dtype:
    """The dtype of a dot's operands, which holds each number of both. float16 holds all float8 numbers."""
    wide = {dtype for dtype in (q, cache) if dtype.itemsize > 1}
    if len(wide) > 1:
        return torch.float32
    return wide.pop() if wide else torch.float16
