"""Steps of index layers, made of steps of attention over a selection."""

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import attn_reference
import torch
from attn_contract import Batch, Indexer, IndexLayout, IndexScore, Layer
from attn_contract.indexer import TILE
from attn_contract.layouts import BYTES_OF_SCALE
from attn_fuzz.cases.poison import poison
from attn_fuzz.targets.rng import rng_of

Terms = Mapping[str, Sequence[Any] | Mapping[torch.dtype, Any]]
"""The values that a target serves, by the field of Indexer, or the one value for each cache_dtype. None is the default, and for
key_unit the selection_unit, if it divides a block. A top_k is the most that is drawn. FLAT takes the place of
TILED where blocks have no whole tiles, and PLAIN that of both where a cache is not float8. "q_dtype" is q's; None: that of the
cache."""
NUMBERS: Final = ("random", "equal", "zero", "near", "near", "small", "one")
"""Kinds of numbers. "random": normal numbers. "equal": all keys are the same, so all logits of a row are equal. "zero": no
product is positive, so all logits of SUM_RELU are 0. "near": logits are equal or neighbours in float32, because scales are
neighbours or one dim is very small. "small": small integers, so that many logits are equal. "one": all keys are 0 except a few
where units, blocks or tiles of the cache begin and end."""
GUARD, MAX_PADDING = 64, 48
EDGES = (0, 1, 15, 16, 31, 32, 63, 64, 127, 128, 255, 256)


@dataclass(frozen=True, kw_only=True)
class IndexStep:
    """One step of an index layer.

    Attributes:
        indexer, batch: the layer and the step, whose block table is that of the index cache.
        q: [T, Hi, D] of a float dtype or float8; rows are padded, and rows of no request hold NaN.
        weights: [T, Hi] float32, or None.
        k: [slots, D] of the dtype of the model: rows for `slot_mapping`; NaN in rows that are not written.
        slot_mapping: [slots] int64: every slot that holds a key of a request, in some order, and -1.
        buffer: the memory that the index cache is a part of, with nothing written yet.
        index_cache: a view of `buffer`.
    """

    indexer: Indexer
    batch: Batch
    q: torch.Tensor
    weights: torch.Tensor | None
    k: torch.Tensor
    slot_mapping: torch.Tensor
    buffer: torch.Tensor
    index_cache: torch.Tensor

    @property
    def rows(self) -> int:
        """The number of rows that requests own."""
        return int(self.batch.query_start_loc[-1])

    def written_by(self, write: Callable[..., object], last: int = 0) -> torch.Tensor:
        """A copy of the buffer, written by a function: see `IndexerFunctions.write_index_cache`. The `last` last rows have a
        call of their own, as a decode after a prefill."""
        buffer, first = self.buffer.clone(), max(len(self.k) - last, 0)
        for rows in (slice(first), slice(first, None)) if 0 < last <= first else (slice(None),):
            write(self.k[rows], self.cache_in(buffer), self.indexer, self.slot_mapping[rows])
        return buffer

    def cache_in(self, buffer: torch.Tensor) -> torch.Tensor:
        """The view of a copy of the buffer that corresponds to `index_cache`."""
        cache = self.index_cache
        own = buffer.view(cache.dtype)
        return own.as_strided(cache.shape, cache.stride(), cache.storage_offset())

    def on(self, device: torch.device) -> "IndexStep":
        """The same step on a device, with the same strides and the same memory between rows."""
        buffer = self.buffer.to(device)
        moved = {name: on_device(getattr(self, name), device) for name in ("q", "weights", "k", "slot_mapping")}
        return dataclasses.replace(
            self, **moved, batch=batch_on(self.batch, device), buffer=buffer, index_cache=self.cache_in(buffer)
        )


def on_device(tensor: Any, device: torch.device) -> Any:
    """A tensor on a device, with its strides and all memory that it is a view of; None as it is."""
    if tensor is None or tensor.device == device:
        return tensor
    whole = tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.itemsize,), (1,), 0)
    return whole.to(device).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def batch_on(batch: Batch, device: torch.device) -> Batch:
    """A batch whose tensors are on a device."""
    given = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    moved = {name: on_device(value, device) for name, value in given.items() if isinstance(value, torch.Tensor)}
    return dataclasses.replace(batch, **moved)


def index_step(
    q: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, batch: Batch, terms: Terms, numbers: Sequence[str] = NUMBERS
) -> IndexStep:
    """The step of an index layer that a step of attention over a selection stands for.

    Args:
        q: the case's q: its first numbers are the seed.
        kv_cache: the case's KV cache: its sizes are used.
        layer, batch: the layer and the step of the case.
        terms, numbers: see `attention_by`.
    """
    rows = int(batch.query_start_loc[-1])
    rng = _rng(q[:rows], batch)
    indexer = _indexer(layer, batch, kv_cache.shape[2], terms, rng)
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    kind = rng.choice(numbers)
    buffer, index_cache = _cache(kv_cache, indexer, rng)
    slots = _slots_of_keys(batch, index_cache.shape[1], indexer)
    k, q_rows, weights = _numbers(kind, index_cache.shape[0] * index_cache.shape[1], rows, indexer, generator)
    order = [*slots, *[-1] * rng.choice((0, 1, 3))]
    rng.shuffle(order)
    mapping = torch.tensor(order, dtype=torch.int64)
    dtype, has_wide_weights = _dtype_of_keys(indexer, kind), rng.choice((False, False, True))
    written = torch.where(mapping[:, None] >= 0, k[mapping.clamp(min=0)], torch.nan).to(dtype)
    q_dtype = rng.choice([*terms.get("q_dtype", (None,))]) or indexer.cache_dtype or dtype
    return IndexStep(
        indexer=indexer,
        batch=batch,
        q=_padded(q_rows, len(q), q.stride(0) > q.shape[1:].numel(), q_dtype),
        weights=_padded(weights, len(q), has_wide_weights, torch.float32) if indexer.score is IndexScore.SUM_RELU else None,
        k=written,
        slot_mapping=mapping,
        buffer=buffer,
        index_cache=index_cache,
    )


def _rng(q: torch.Tensor, batch: Batch) -> random.Random:
    """Random numbers seeded by q's first elements, which are the same for shorter requests. If q is 0, by the lengths."""
    first = q.flatten()[:4].float().tolist()
    return rng_of(first if any(first) else (batch.query_start_loc, batch.seq_lens, q.shape))


def _indexer(layer: Layer, batch: Batch, block_size: int, terms: Terms, rng: random.Random) -> Indexer:
    assert batch.selected is not None
    assert layer.selection_unit is not None
    drawn = {name: values for name, values in terms.items() if name != "q_dtype"}
    chosen = {name: rng.choice(values) for name, values in drawn.items() if not isinstance(values, Mapping)}
    chosen |= {name: values.get(chosen["cache_dtype"]) for name, values in drawn.items() if isinstance(values, Mapping)}
    if chosen.get("cache_dtype") is None:
        chosen["layout"] = IndexLayout.PLAIN
    if chosen.get("key_unit", 1) is None:
        chosen["key_unit"] = 1 if block_size % layer.selection_unit else layer.selection_unit
    if chosen.get("layout") is IndexLayout.TILED and block_size // chosen.get("key_unit", 1) % TILE:
        chosen["layout"] = IndexLayout.FLAT
    if not chosen.get("layout", IndexLayout.PLAIN).has_scales:
        chosen = {name: value for name, value in chosen.items() if name not in ("scale_format", "largest")}
    width = max(batch.selected.shape[2], 1)
    top_k = min(width, chosen.pop("top_k", width))
    first = min(chosen.get("first_units", 0), top_k)
    last = min(chosen.get("last_units", 0), top_k - first)
    return Indexer(
        num_heads=layer.num_heads,
        head_size=layer.head_size,
        top_k=top_k,
        num_selections=len(batch.selected),
        selection_unit=layer.selection_unit,
        **(chosen | {"first_units": first, "last_units": last}),
    )


def _cache(kv_cache: torch.Tensor, indexer: Indexer, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory of bytes, and an index cache in it, full of NaN. Pages are padded, and more memory lies around them."""
    blocks, block_size = kv_cache.shape[0], kv_cache.shape[2] // indexer.key_unit
    dtype = torch.uint8 if indexer.layout.has_scales else indexer.cache_dtype or kv_cache.dtype
    page = block_size * indexer.row_size + rng.choice((0, 0, 16, MAX_PADDING))
    before = GUARD // dtype.itemsize
    code = 0x80 if indexer.cache_dtype is torch.float8_e4m3fnuz else 0xFF
    size = (before + blocks * page) * dtype.itemsize + GUARD
    buffer = torch.full((size,), code, dtype=torch.uint8)
    own = buffer.view(dtype)
    cache = own.as_strided((blocks, block_size, indexer.row_size), (page, indexer.row_size, 1), before)
    if indexer.layout.has_scales and blocks:
        scales = buffer.as_strided((blocks, block_size * BYTES_OF_SCALE), (page, 1), before + block_size * indexer.head_size)
        scales[:] = torch.full((block_size,), torch.nan).view(torch.uint8)
    return buffer, cache


def _slots_of_keys(batch: Batch, block_size: int, indexer: Indexer) -> list[int]:
    """The slots that hold a key of some request, each once: requests may share blocks."""
    assert batch.block_table is not None
    tables = zip(batch.seq_lens.tolist(), batch.block_table.tolist(), strict=True)
    keys = ((table, i) for seq_len, table in tables for i in range(seq_len // indexer.key_unit))
    return sorted({table[i // block_size] * block_size + i % block_size for table, i in keys})


def _dtype_of_keys(indexer: Indexer, numbers: str) -> torch.dtype:
    """The dtype of the rows to write: bfloat16, or float32 for neighbours, whose scales differ only in their last bit."""
    return torch.float32 if numbers == "near" and indexer.layout.has_scales else torch.bfloat16


def _numbers(
    kind: str, slots: int, rows: int, indexer: Indexer, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """k [slots, D], q [rows, Hi, D] and weights [rows, Hi] in float32, of one of NUMBERS."""
    k = torch.randn(slots, indexer.head_size, generator=generator)
    q = torch.randn(rows, indexer.num_heads, indexer.head_size, generator=generator)
    weights = torch.randn(rows, indexer.num_heads, generator=generator)
    if kind == "small":
        return k.clamp(-1, 1).round(), q.clamp(-2, 2).round(), weights.clamp(-2, 2).round()
    if kind == "equal":
        k = k[:1].expand(slots, -1) if slots else k
    elif kind == "zero":
        k, q = k.abs(), -q.abs()
    elif kind == "near" and slots:
        steps = torch.randint(0, 3, (slots,), generator=generator)
        k = k[:1] / k[:1].abs().amax() * torch.ones(slots, 1)
        if indexer.layout.has_scales:
            # the largest number of a row is 1: a step more, and the scale is the next float32
            k = k * (1 + steps[:, None] * 2.0**-23)
        else:
            k[:, 0] = steps * (2.0**-20 if indexer.cache_dtype is None else 2.0**-9)
    elif kind == "one":
        at = torch.tensor([slot for slot in EDGES if slot < slots], dtype=torch.int64)
        kept, k = k[at], torch.zeros_like(k)
        k[at] = kept
    return k, q, weights


def _padded(rows: torch.Tensor, count: int, wide: bool, dtype: torch.dtype) -> torch.Tensor:
    """The first rows of a tensor of `count` rows; the others hold NaN. Wide rows are longer than their numbers."""
    padded = poison((count + 1, rows.shape[1] + wide, *rows.shape[2:]), dtype, rows.device)[:count, : rows.shape[1]]
    padded[: len(rows)] = attn_reference.quantize(rows, torch.ones(()), dtype) if dtype.itemsize == 1 else rows.to(dtype)
    return padded
