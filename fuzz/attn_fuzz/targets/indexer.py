"""Targets that choose keys: an index cache is written, units are scored, and the best are selected.

A step of an index layer is made of a step of attention over a selection, so that drawing, shrinking, verdicts and findings are
those of every target. The case says the lengths, blocks, drafts and padding, and whether rows of q are a part of longer ones
(`fused_qkv`). Its query heads are index heads, its head size theirs, its selection_unit the unit, and the width of its
`selected` is top_k. The case's seed draws the rest: the terms of the index layer that a target serves, and the numbers, of one
of `NUMBERS`. Slots without a key hold NaN, and so do rows of no request.

The input of each stage is the reference's result of the stage before, or the target's own result if it was right:

    write_index_cache   every byte of the cache is compared with what the reference writes
    gather              the keys of all requests, one behind the other: every byte is one of the cache
    index_logits        each logit that a row sees, within a derived bound (`attn_fuzz.verdict.indexer`)
    select              by the very logits that it is given, which are drawn if the target makes none: half of them are
                        neighbours in float32. Logits that a row does not see hold anything. In some steps the selection is
                        made twice, and must be the same set if the target promises that
    choose              logits and selection in one: the selection could be made of some logits within the bound

Before some steps, logits were computed while the cache held other keys: nothing of that step may remain.

There is no attention: the output of the step is 0.
"""

import dataclasses
import functools
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import attn_reference
import torch
from attn_contract import AttentionType, Batch, Indexer, IndexLayout, IndexScore, Layer, Layout, PhysicalOrder, ScaleFormat
from attn_contract.indexer import TILE
from attn_contract.layouts import BYTES_OF_SCALE
from attn_fuzz.cases.poison import bits, canary, poison
from attn_fuzz.errors import FailedCheckError
from attn_fuzz.targets.engine import ANY_ENGINE, Engine
from attn_fuzz.targets.merge import rows_of
from attn_fuzz.targets.modes import far
from attn_fuzz.targets.rng import rng_of, rng_of_lengths, rng_of_metadata
from attn_fuzz.targets.target import AttentionFunction, Support, Target
from attn_fuzz.targets.triton import TRITON, missing_triton, modules, planned
from attn_fuzz.verdict.indexer import index_oracle, wrong_logits, wrong_selection
from attn_fuzz.verdict.rounding import Rounding
from attn_reference.indexer import request_rows

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
GUARD, MOST_PADDING = 64, 48
EARLIER: Final = 0.25
"""The share of steps before which another one ran over the same cache."""
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
        """A copy of the buffer, written by a function: see `Stages.write_index_cache`. The `last` last rows have a call of
        their own, as a decode after a prefill."""
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
        moved = {name: _moved(getattr(self, name), device) for name in ("q", "weights", "k", "slot_mapping")}
        return dataclasses.replace(
            self, **moved, batch=_batch_on(self.batch, device), buffer=buffer, index_cache=self.cache_in(buffer)
        )


@dataclass(frozen=True, kw_only=True)
class Stages:
    """The functions of a target, with the arguments and results of those of `attn_reference`. None: it has no such function.

    `gather` gets the cache, the indexer, the batch and the number of keys, and returns codes and scales as GatheredKeys has
    them. `index_logits` may return more units than the step has, and `select` entries of any width.

    Args:
        repeats: True if a selection that is made twice is the same set.
    """

    write_index_cache: Callable[[torch.Tensor, torch.Tensor, Indexer, torch.Tensor], object] | None = None
    gather: Callable[[torch.Tensor, Indexer, Batch, int], tuple[torch.Tensor, torch.Tensor]] | None = None
    index_logits: Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor, Indexer, Batch], torch.Tensor] | None = None
    select: Callable[[torch.Tensor, Indexer, Batch], torch.Tensor] | None = None
    choose: Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor, Indexer, Batch], torch.Tensor] | None = None
    repeats: bool = False


def attention_by(stages: Callable[[], Stages], terms: Terms, numbers: Sequence[str] = NUMBERS) -> AttentionFunction:
    """A step of an index layer in place of attention, which is judged here.

    Args:
        stages: loads the functions.
        terms: the terms of an index layer that the target serves.
        numbers: the kinds of NUMBERS to draw.
    """

    def attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        cpu = torch.device("cpu")
        step = index_step(q.to(cpu), kv_cache, layer, _batch_on(batch, cpu), terms, numbers)
        if step.rows:
            check(step, stages(), rng_of((step.batch.query_start_loc, step.batch.seq_lens)), q.device)
        rows_of(out, layer, step.rows).zero_()

    return attention


def check(step: IndexStep, stages: Stages, rng: random.Random, device: torch.device | None = None) -> None:
    """Call each function of a target, and judge its result.

    Args:
        step: on the CPU, where it is judged.
        device: where the functions get it; None: on the CPU.

    Raises:
        FailedCheckError: a byte of the cache, a logit or a selection is wrong.
    """
    called = step if device is None else step.on(device)
    right = step.written_by(attn_reference.write_index_cache)
    if stages.write_index_cache is not None:
        written = called.written_by(stages.write_index_cache, rng.choice((0, 0, 1, 2))).cpu()
        if len(wrong := (written != right).nonzero()):
            at = int(wrong[0])
            numbers = f"got 0x{int(written[at]):02X}, expected 0x{int(right[at]):02X}; {len(wrong)} bytes differ"
            raise FailedCheckError("cache", "index_cache", f"{_place(step, at)}: {numbers}")
    buffer = right.clone().to(called.buffer.device)
    cache, arguments = called.cache_in(buffer), (called.indexer, called.batch)
    if stages.gather is not None:
        _check_gathered(step, step.cache_in(right), cache, arguments, stages.gather)
    if rng.random() < EARLIER:
        buffer.copy_(step.written_by(lambda k, *others: attn_reference.write_index_cache(-k, *others)))
        for function in (stages.index_logits, stages.choose):
            if function is not None:
                function(called.q, called.weights, cache, *arguments)
        buffer.copy_(right)
    oracle = index_oracle(step.q, step.weights, step.cache_in(right), step.indexer, step.batch)
    logits = oracle.logits.float()
    if stages.index_logits is not None:
        q = called.q.clone()
        logits = stages.index_logits(called.q, called.weights, cache, *arguments).cpu()
        if not (torch.equal(buffer.cpu(), right) and torch.equal(bits(q), bits(called.q))):
            raise FailedCheckError("input", "index_cache", "index_logits changed the index cache or q")
        if wrong := wrong_logits(oracle, logits, step.indexer, step.batch):
            raise FailedCheckError(wrong.kind, "index_logits", wrong.message, wrong.ratio)
    if stages.select is not None:
        given = logits.float() if stages.index_logits else _with_garbage(_near(logits, rng), rng)
        selected = stages.select(_moved(given, called.q.device), *arguments).cpu()
        if message := wrong_selection(selected, given, step.indexer, step.batch):
            raise FailedCheckError("value", "selected", message)
        if stages.repeats and rng.random() < EARLIER:
            again = stages.select(_moved(given, called.q.device), *arguments).cpu()
            if not torch.equal(*(units[:, : step.rows].sort(-1).values for units in (selected, again))):
                raise FailedCheckError("property", "selected", "of the same logits, another set was selected the second time")
    if stages.choose is not None:
        chosen = stages.choose(called.q, called.weights, cache, *arguments).cpu()
        if message := wrong_selection(chosen, oracle.logits, step.indexer, step.batch, oracle.bound):
            raise FailedCheckError("value", "selected", message)


def _check_gathered(
    step: IndexStep,
    right_cache: torch.Tensor,
    cache: torch.Tensor,
    arguments: tuple[Indexer, Batch],
    gather: Callable[..., Any],
) -> None:
    right = gathered_keys(right_cache, step.indexer, step.batch, len(step.q))
    found = [tensor.cpu() for tensor in gather(cache, *arguments, len(right.codes))]
    for name, got, expected in zip(("codes", "scales"), found, (right.codes, right.scales), strict=True):
        width = expected[:1].numel() * expected.itemsize
        of_keys = (tensor.view(torch.uint8).view(len(expected), width) for tensor in (got, expected))
        wrong = torch.ne(*of_keys).nonzero()
        if len(wrong):
            message = f"gathered {name} of key {int(wrong[0, 0])} are not those of the cache; {len(wrong)} bytes differ"
            raise FailedCheckError("cache", f"gathered {name}", message)


def _near(logits: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """In half of the steps, logits that are one of three neighbours in float32; otherwise the logits as they are."""
    if rng.random() < 0.5:
        return logits
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    neighbours = rng.choice((1.0, -1.0, 0.1, 1000.0)) * (1 + torch.randint(0, 3, logits.shape, generator=generator) * 2.0**-23)
    return torch.where(logits > -torch.inf, neighbours, logits)


def _with_garbage(logits: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Logits with rows and columns beyond the step's, and with numbers that must not be read where a row sees no unit."""
    heads, rows, units = logits.shape
    garbage = rng.choice((torch.nan, torch.inf, -torch.inf, 3e38))
    wide = torch.full((heads, rows + 1, units + rng.choice((0, 1, MOST_PADDING))), garbage)
    wide[:, :rows, :units] = torch.where(logits > -torch.inf, logits, garbage)
    return wide[:, :rows]


@contextmanager
def guarded(shape: tuple[int, ...], dtype: torch.dtype, about: str) -> Iterator[torch.Tensor]:
    """A tensor to write results to. Memory between its rows and around them must not change.

    Raises:
        FailedCheckError: it has changed.
    """
    *rows, columns = shape
    wide = (*(size + 1 for size in rows), columns + GUARD)
    before = canary(wide, torch.float32, "cpu") if dtype is torch.float32 else torch.full(wide, -2, dtype=dtype)
    buffer, inner = before.clone(), tuple(slice(size) for size in shape)
    yield buffer[inner]
    after = buffer.clone()
    after[inner] = before[inner]
    if len(wrong := (bits(after) != bits(before)).nonzero()):
        where = ", ".join(map(str, wrong[0].tolist()))
        raise FailedCheckError(
            "guard", about, f"it wrote to [{where}] of {about}, which has shape {shape}; {len(wrong)} elements"
        )


def _moved(tensor: Any, device: torch.device) -> Any:
    """A tensor on a device, with its strides and all memory that it is a view of; None as it is."""
    if tensor is None or tensor.device == device:
        return tensor
    whole = tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.itemsize,), (1,), 0)
    return whole.to(device).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _batch_on(batch: Batch, device: torch.device) -> Batch:
    """A batch whose tensors are on a device."""
    given = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    moved = {name: _moved(value, device) for name, value in given.items() if isinstance(value, torch.Tensor)}
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
    page = block_size * indexer.row_size + rng.choice((0, 0, 16, MOST_PADDING))
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


def _place(step: IndexStep, at: int) -> str:
    """The place of a byte of the buffer, in words."""
    cache = step.index_cache
    page = cache.stride(0) * cache.itemsize
    byte = at - int(cache.storage_offset()) * cache.itemsize
    block, byte = byte // page, byte % page
    return f"byte {byte} of block {block} of the index cache ({step.indexer.layout})"


FORCED: Final = {"first_units": (0, 0, 0, 1, 2), "last_units": (0, 0, 0, 1, 2)}
EVERY_TERM: Final[Terms] = {
    "layout": tuple(IndexLayout),
    "cache_dtype": (torch.float8_e4m3fn, torch.float8_e4m3fnuz, None),
    "q_dtype": (None, None, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e4m3fnuz),
    "scale_format": tuple(ScaleFormat),
    "score": tuple(IndexScore),
    "key_unit": (1, None),
    **FORCED,
}


def index_engine(**fields: Any) -> Engine:
    """The Engine of index layers, which have no K, V or out."""
    settings = {
        "selections": ("top",),
        "empty_selections": False,
        "other_views": False,
        "other_scales": False,
        "scale_signs": (1,),
        "orders": (PhysicalOrder.LBHNC,),
        "planes": (False,),
        "flat_out": (False,),
        "dense_out": (True,),
        "unlike_strides": (False,),
        "saturated": False,
        "recycled": False,
        "padding": (0,),
        "num_layers": (1,),
    }
    return dataclasses.replace(ANY_ENGINE, **(settings | fields))


def index_target(name: str, stages: Callable[[], Stages], terms: Terms, **fields: Any) -> Target:
    """A target that chooses keys.

    Args:
        name: the name of the target.
        stages, terms: see `attention_by`.
        fields: for `judged_target`.
    """
    return judged_target(name, attention_by(stages, terms), **fields)


def judged_target(name: str, attention: AttentionFunction, **fields: Any) -> Target:
    """A target whose function judges what it calls, for a step of attention over a selection.

    Args:
        name: the name of the target.
        attention: sets the output to 0, or raises FailedCheckError.
        fields: other fields of Target, and those of its Support beside the ones that all such targets have.
    """
    support = {
        "attn_types": (AttentionType.DECODER,),
        "dtypes": ("bfloat16",),
        "layouts": (Layout.CONTENT_PACKED,),
        "rules": ("selection_unit",),
        "required_rules": ("selection_unit",),
        "head_sizes": (32, 128, 16, 64),
        "group_sizes": (4, 1, 16, 64),
        "block_sizes": (16, 64, 1, 128),
        "engine": index_engine(),
        "max_tokens": 16,
        "max_seq_len": 300,
    }
    of_support = {field.name for field in dataclasses.fields(Support)}
    support |= {field: fields.pop(field) for field in [*fields] if field in of_support}
    return Target(
        name=name,
        attention=attention,
        support=lambda device: Support(**support),
        rounding=lambda device: Rounding(keys_per_tile=1),
        refuses=False,
        oracle=False,
        exact=False,
        properties=(),
        **fields,
    )


class GatheredKeys(NamedTuple):
    """The index keys of all requests, one behind the other, as engines gather them for a prefill.

    Attributes:
        codes: [keys, D], as they are stored.
        scales: [keys] float32.
        starts, ends: [T] int32: the keys that each row sees are `[starts, ends)`; of rows of no request 0 and 0.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    starts: torch.Tensor
    ends: torch.Tensor


def gathered_keys(index_cache: torch.Tensor, indexer: Indexer, batch: Batch, rows: int) -> GatheredKeys:
    """Gather the keys of a cache with scales for `rows` rows of q."""
    assert batch.block_table is not None
    assert indexer.cache_dtype is not None
    view, lengths = indexer.view_of(index_cache), (batch.seq_lens // indexer.key_unit).tolist()
    request = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.int64))
    before = [0, *itertools.accumulate(lengths)]
    i = torch.arange(before[-1]) - torch.tensor(before)[request]
    block, slot = batch.block_table[request, i // view.block_size].long()[:, None], (i % view.block_size)[:, None]
    memory = index_cache.as_strided((index_cache.untyped_storage().nbytes() - index_cache.storage_offset(),), (1,))
    codes = memory[view.element(block, slot, torch.arange(indexer.head_size))].view(indexer.cache_dtype)
    scales = memory[view.scale(block, slot) + torch.arange(BYTES_OF_SCALE)].view(torch.float32).flatten()
    starts, ends = torch.zeros(rows, dtype=torch.int32), torch.zeros(rows, dtype=torch.int32)
    for r in range(batch.num_requests):
        own, p = request_rows(batch, r)
        starts[own], ends[own] = before[r], (before[r] + (p + 1).clamp(min=0) // indexer.key_unit).int()
    return GatheredKeys(codes, scales, starts, ends)


def of_ranges(logits: torch.Tensor, keys: GatheredKeys, units: int) -> torch.Tensor:
    """[1, T, units]: logits [T, keys] of gathered keys, with each row's own ones first, and NaN behind them."""
    found = torch.full((1, len(logits), units), torch.nan)
    for row, (start, end) in enumerate(zip(keys.starts.tolist(), keys.ends.tolist(), strict=True)):
        found[0, row, : end - start] = logits[row, start:end]
    return found


def drafts_of(batch: Batch) -> int:
    """The number of queries of each request, in a step in which all requests have the same number."""
    return int(batch.query_start_loc[-1]) // max(batch.num_requests, 1)


REFERENCE_INDEXER = index_target(
    "reference-indexer",
    lambda: Stages(
        write_index_cache=attn_reference.write_index_cache,
        index_logits=attn_reference.index_logits,
        select=attn_reference.select,
        repeats=True,
    ),
    EVERY_TERM,
    description="the reference's index cache, logits and selection: a check of the judge",
)


def unwritten_logits(q: torch.Tensor, indexer: Indexer, batch: Batch, *, wider: int = 0) -> torch.Tensor:
    """[HS, T, units + wider] float32, NaN: a tensor for logits."""
    units = indexer.num_units(batch.max_seq_len) + wider
    return poison((indexer.num_selections, len(q), units), torch.float32, q.device)


def unwritten_selection(logits: torch.Tensor, indexer: Indexer) -> torch.Tensor:
    """[HS, T, indexer.selected_width] int32: a tensor for a selection. Each entry is more than any unit."""
    shape = (indexer.num_selections, logits.shape[1], indexer.selected_width)
    return torch.full(shape, torch.iinfo(torch.int32).max, dtype=torch.int32, device=logits.device)


def _triton_functions() -> tuple[Callable[..., object], Callable[..., torch.Tensor], Callable[..., torch.Tensor]]:
    """The functions of `Stages` that write a cache, score units and select them. Half of the calls get a tensor to write to."""
    import attn_optimized

    def index_logits(q, weights, index_cache, indexer: Indexer, batch: Batch) -> torch.Tensor:
        rng, out = rng_of_lengths(batch), None
        if rng.random() < 0.5:
            out = unwritten_logits(q, indexer, batch, wider=rng.choice((0, 3)))
        return attn_optimized.index_logits(q, weights, index_cache, indexer, batch, out=out, validate=True)

    def select(logits: torch.Tensor, indexer: Indexer, batch: Batch) -> torch.Tensor:
        rng, out = rng_of_lengths(batch), None
        if rng.random() < 0.5:
            out = unwritten_selection(logits, indexer)
        return attn_optimized.select(logits, indexer, batch, out=out, validate=True)

    return functools.partial(attn_optimized.write_index_cache, validate=True), index_logits, select


def _triton_stages() -> Stages:
    write, index_logits, select = _triton_functions()
    return Stages(write_index_cache=write, index_logits=index_logits, select=select, repeats=True)


def _with_far_rows(
    write: Callable[..., object], logits_of: Callable[..., torch.Tensor], select: Callable[..., torch.Tensor]
) -> Stages:
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

    return Stages(write_index_cache=write_index_cache, index_logits=index_logits, select=select_units)


def _far(target: Target) -> Target:
    return dataclasses.replace(
        target,
        attention=attention_by(lambda: _with_far_rows(*_triton_functions()), EVERY_TERM),
        unavailable=lambda device: far.missing(device) or target.unavailable(device),
        sanitizes=False,
    )


_TRITON_ON_CPU = index_target(
    "triton-indexer",
    _triton_stages,
    EVERY_TERM,
    description="the Triton kernels of an index layer: index cache, logits and selection",
    unavailable=missing_triton,
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
