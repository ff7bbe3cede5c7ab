"""The project's own Triton kernels of an index layer as a target."""

import dataclasses
import functools
from collections.abc import Callable

import torch
from attn_contract import Batch, Indexer
from attn_contract.layouts import BYTES_OF_SCALE
from attn_fuzz.extras import triton_unavailable
from attn_fuzz.targets.indexer.functions import (
    IndexerFunctions,
    attention_by,
    unchanged_beyond,
    unwritten_logits,
    unwritten_selection,
)
from attn_fuzz.targets.indexer.step import MAX_PADDING
from attn_fuzz.targets.indexer.targets import EVERY_TERM, index_target
from attn_fuzz.targets.modes import far
from attn_fuzz.targets.plans import modules, planned
from attn_fuzz.targets.preceded import preceded
from attn_fuzz.targets.rng import rng_of_lengths, rng_of_metadata
from attn_fuzz.targets.support import Support
from attn_fuzz.targets.target import Target
from attn_fuzz.targets.triton import TRITON


def _triton_functions() -> tuple[Callable[..., object], Callable[..., torch.Tensor], Callable[..., torch.Tensor]]:
    """The functions that write a cache, score units and select them. Half of the calls get a tensor to write to."""
    import attn_optimized

    write = preceded(attn_optimized.write_index_cache)
    logits_of = preceded(attn_optimized.index_logits)
    select_of = preceded(attn_optimized.select)

    def index_logits(q, weights, index_cache, indexer: Indexer, batch: Batch) -> torch.Tensor:
        rng, out = rng_of_lengths(batch), None
        if rng.random() < 0.5:
            out = unwritten_logits(q, indexer, batch, wider=rng.choice((0, 3, MAX_PADDING)))
        with unchanged_beyond(batch, out, indexer.num_units(batch.max_seq_len), "logits"):
            return logits_of(q, weights, index_cache, indexer, batch, out=out, validate=True)

    def select(logits: torch.Tensor, indexer: Indexer, batch: Batch) -> torch.Tensor:
        rng, out = rng_of_lengths(batch), None
        if rng.random() < 0.5:
            out = unwritten_selection(logits, indexer)
        with unchanged_beyond(batch, out, indexer.selected_width, "selected"):
            # a row may see NaN here, which values that are checked may not be
            return select_of(logits, indexer, batch, out=out)

    return functools.partial(write, validate=True), index_logits, select


def _indexer_functions() -> IndexerFunctions:
    write, index_logits, select = _triton_functions()
    return IndexerFunctions(write_index_cache=write, index_logits=index_logits, select=select, repeats=True, ranks_nan=True)


def _with_far_rows(
    write: Callable[..., object], logits_of: Callable[..., torch.Tensor], select: Callable[..., torch.Tensor]
) -> IndexerFunctions:
    """The functions, called with tensors whose rows, and pages of the cache, lie far apart."""

    def pages(copies: far.Spread, index_cache: torch.Tensor, indexer: Indexer) -> torch.Tensor:
        if indexer.layout.has_scales:
            return copies.rows(index_cache, (0,), BYTES_OF_SCALE)
        return copies.rows(index_cache)

    def write_index_cache(k, index_cache, indexer, slot_mapping) -> None:
        with far.spread(rng_of_metadata((slot_mapping,))) as copies:
            write(copies.rows(k), pages(copies, index_cache, indexer), indexer, slot_mapping)

    def index_logits(q, weights, index_cache, indexer, batch) -> torch.Tensor:
        with far.spread(rng_of_lengths(batch)) as copies:
            batch = dataclasses.replace(batch, block_table=copies.elements(batch.block_table))
            cache = pages(copies, index_cache, indexer)
            return logits_of(copies.rows(q), copies.elements(weights), cache, indexer, batch)

    def select_units(logits, indexer, batch) -> torch.Tensor:
        with far.spread(rng_of_lengths(batch)) as copies:
            return select(copies.elements(logits), indexer, batch)

    return IndexerFunctions(write_index_cache=write_index_cache, index_logits=index_logits, select=select_units, ranks_nan=True)


def _far(target: Target) -> Target:
    return dataclasses.replace(
        target,
        attention=attention_by(lambda: _with_far_rows(*_triton_functions()), EVERY_TERM),
        unavailable=lambda device: far.unavailable(device) or target.unavailable(device),
        sanitizes=False,
    )


_TRITON_ON_CPU = index_target(
    "triton-indexer",
    _indexer_functions,
    EVERY_TERM,
    description="the Triton kernels of an index layer: index cache, logits and selection",
    unavailable=triton_unavailable,
    modules=modules,
    planned=planned,
    forget=TRITON.forget,
    sanitizes=True,
    modes={"returned": "half of its calls are so already", "far": _far},
)


def _triton_support(device: str) -> Support:
    support = _TRITON_ON_CPU.support(device)
    if device == "cpu":
        return support
    # several tiles of queries and keys, and more units than one iteration of the selection
    return dataclasses.replace(support, block_sizes=(16, 64, 128), max_tokens=128, max_seq_len=3000)


TRITON_INDEXER = dataclasses.replace(_TRITON_ON_CPU, support=_triton_support)
