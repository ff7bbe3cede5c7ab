"""NAME@far: tensors that reach beyond 2^31 elements, where an offset that is computed in 32 bits leads astray.

Each tensor of a call is copied into memory of its own, where rows lie far apart. Most of that memory is never touched, and
costs nothing: the system gives a process only the pages that it writes. Offsets of 32 bits lead into such memory, too, and not
out of it. So they give wrong numbers, and no crash.

If kernels take any strides (`with_any_strides`), the rows of any dimension lie far apart. For other targets only rows lie far
apart whose strides an engine sends: those of q, k, v and out, and of the block table. Their cache is dense, and has so many
blocks that the call's own lie far apart in it. Parts of the keys, which engines keep in one memory for all steps, get rows by
`parts`.
"""

import contextlib
import dataclasses
import functools
import math
import mmap
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from attn_contract import Batch, Layer
from attn_contract.memory import extent
from attn_contract.rules import held_rules
from attn_fuzz.cases.poison import bits, storage_of
from attn_fuzz.targets.engine import Engine
from attn_fuzz.targets.rng import rng_of, rng_of_metadata
from attn_fuzz.targets.support import Support
from attn_fuzz.targets.target import Target

REACH = 1 << 32
"""The units that the rows span: half of them lie at offsets that int32 does not hold."""
UNIT_BYTES = 16
"""Kernels count the strides of most tensors in units of 16 bytes, where all of the strides are multiples of that."""
ALIGNMENT = 4
"""The unit of every stride, in bytes: scales in the rows of a cache are float32."""
PART_ROWS_APART = 1 << 30
"""Elements. Two rows that are this far apart have the same offset of 32 bits: a kernel reads there what it has written."""
MAX_TOKENS, MAX_KEYS = 48, 192
_SCALES = ("k_scale_cache", "v_scale_cache")
_DENSE = ("bidirectional_ranges",)
"""Rules whose tensors the contract asks to be dense."""
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # a constant of Python 3.13 and later; the number is Linux's


class Spread:
    """Copies of tensors whose rows lie far apart.

    Args:
        rng: makes the choices: which rows of a tensor, and whether strides are multiples of 16 bytes.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._unit_bytes = rng.choice((UNIT_BYTES, 0))
        self._copies: dict[tuple[Any, ...], tuple[torch.Tensor, torch.Tensor]] = {}

    def rows(self, tensor: torch.Tensor | None, dims: Sequence[int] | None = None, multiple: int = 1) -> Any:
        """A copy of a tensor whose strides kernels count in units; None of None.

        Args:
            dims: one of these dimensions has its rows far apart; None: any but the last.
            multiple: of which the elements from row to row are a multiple.
        """
        return self._copy(tensor, self._unit_bytes, dims, multiple)

    def elements(self, tensor: torch.Tensor | None, dims: Sequence[int] | None = None) -> Any:
        """A copy of a tensor whose strides kernels count in elements; None of None."""
        return self._copy(tensor, 0, dims)

    def _copy(self, tensor: torch.Tensor | None, unit_bytes: int, dims: Sequence[int] | None, multiple: int = 1) -> Any:
        if tensor is None or not tensor.numel():
            return tensor
        dims = [dim for dim in (range(tensor.dim() - 1) if dims is None else dims) if tensor.shape[dim] > 1]
        if not dims:
            return tensor
        key = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if key not in self._copies:  # an output may be an input, too
            self._copies[key] = (tensor, _far(tensor, self._rng.choice(dims), unit_bytes, multiple, self._rng))
        return self._copies[key][1]

    def keep(self, tensor: torch.Tensor, far: torch.Tensor) -> None:
        """Have `write_back` copy `far` to where the call's tensor lies."""
        self._copies[tensor.data_ptr(), tensor.shape, tensor.stride()] = tensor, far

    def write_back(self) -> None:
        """Copy all that a call has written, inputs included, to where the call's tensors lie."""
        for tensor, far in self._copies.values():
            bits(tensor).copy_(bits(far))


def _far(tensor: torch.Tensor, dim: int, unit_bytes: int, multiple: int, rng: random.Random) -> torch.Tensor:
    """A copy of a tensor in memory that it has for itself, dense but for the stride of one dimension."""
    itemsize = tensor.element_size()
    unit = unit_bytes // itemsize or 1
    apart = (REACH // tensor.shape[dim] - rng.randrange(UNIT_BYTES)) * unit
    if not unit_bytes:
        apart = apart // UNIT_BYTES * UNIT_BYTES + max(1, ALIGNMENT // itemsize)
    return _copied_apart(tensor, dim, apart // multiple * multiple, REACH // 2 * unit)


def _copied_apart(tensor: torch.Tensor, dim: int, apart: int, before: int) -> torch.Tensor:
    """A copy of a tensor with a given distance between the rows of a dimension, and with that much memory before and after
    it."""
    itemsize = tensor.element_size()
    others = [size for i, size in enumerate(tensor.shape) if i != dim]
    stride = list(torch.empty(others, device="meta").stride())
    stride.insert(dim, apart)
    memory = reserved_memory((before + extent(tensor.shape, tuple(stride)) + before) * itemsize).view(tensor.dtype)
    far = memory.as_strided(tensor.shape, stride, before)
    bits(far).copy_(bits(tensor))
    return far


def reserved_memory(size: int) -> torch.Tensor:
    """[size] uint8: zeros, of which only written pages take memory. It is given back with the tensor."""
    size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


@contextlib.contextmanager
def spread(rng: random.Random) -> Iterator[Spread]:
    """A Spread for one call, whose writes are copied back in the end, even if the call raises."""
    copies = Spread(rng)
    try:
        yield copies
    finally:
        copies.write_back()


is_far = False
"""True if a call of this mode runs."""


def parts(shape: Sequence[int], device: torch.device, width: int | None = None) -> torch.Tensor:
    """Memory of a step for parts of the keys, [rows, ...] float32 and full of NaN. In this mode its rows lie far apart.

    Args:
        width: of other parts, [*shape, width]: these lie as they do, by strides that are divided by the width. None: they are
            such parts themselves.
    """
    memory = torch.full(tuple(shape), torch.nan, device=device)
    if not is_far:
        return memory
    whole, own = (shape[-1], 1) if width is None else (width, width)
    return _copied_apart(memory, 0, PART_ROWS_APART // whole * whole // own, REACH // 2)


def pool(rows: int, like: torch.Tensor) -> torch.Tensor:
    """Memory for a number of rows as those of `like`, full of NaN. In this mode it has 2^32 elements, which are 0."""
    width = like.shape[-1]
    if not is_far:
        return like.new_full((rows, width), torch.nan)
    memory = reserved_memory(2 * REACH * like.element_size()).view(like.dtype)  # half of it before and after the rows
    return memory[REACH // 2 : REACH // 2 + REACH].view(-1, width)


def with_any_strides(target: Target) -> Target:
    """The mode of kernels that take tensors of any strides, and may count them in units of 16 bytes, for `Target.modes`."""
    return _with(target, _AnyStrides)


def in_a_large_cache(target: Target) -> Target:
    return _with(target, functools.partial(_LargeCache, target.support("cpu").engine))


class _AnyStrides:
    """The tensors of a call, of which any dimension but the last may have far rows."""

    def __init__(self, spread: Spread) -> None:
        self._spread = spread
        self.rows = self.out = spread.rows
        self.lse = spread.elements

    def cached(self, kv_cache: torch.Tensor | None, layer: Layer) -> tuple[Any, Layer]:
        """A cache and its layer with scales of tokens that lie far apart. Data inside a dense page stays together."""
        scales = {name: self._spread.elements(getattr(layer, name), range(3)) for name in _SCALES}
        layer = dataclasses.replace(layer, **self._far_rules(layer), **scales)
        if layer.layout is None:
            return self._spread.rows(kv_cache), layer
        dims = range(layer.layout.dims.index("page")) if layer.layout.has_dense_pages else None
        return self._spread.rows(kv_cache, dims, layer.layout.block_alignment(layer.head_size, layer.head_size_v)), layer

    def slots(self, slots: torch.Tensor) -> torch.Tensor:
        return slots

    def batch(self, batch: Batch) -> Batch:
        tensors = {name: self._spread.elements(getattr(batch, name)) for name in ("block_table", "selected")}
        return dataclasses.replace(batch, **self._far_rules(batch), **tensors)

    def _far_rules(self, holder: Layer | Batch) -> dict[str, torch.Tensor]:
        """The tensors of rules, which kernels read by their strides."""
        named = [name for name, rule in held_rules(holder).items() if rule.is_tensor and name not in _DENSE]
        return {name: self._spread.elements(getattr(holder, name)) for name in named}


class _LargeCache:
    """The tensors of a call as an engine with long steps and a large cache sends them.

    Block b of the call's cache is block b * `_apart` + `_apart` - 1 of the large one.
    """

    def __init__(self, engine: Engine, spread: Spread) -> None:
        self._engine, self._spread = engine, spread
        self._apart, self._block_size = 1, 1

    def rows(self, tensor: torch.Tensor | None) -> Any:
        return self._far_rows(tensor) if True in self._engine.fused_qkv else tensor

    def out(self, tensor: torch.Tensor) -> Any:
        return self._far_rows(tensor) if False in self._engine.dense_out else tensor

    def lse(self, tensor: torch.Tensor | None) -> Any:
        return tensor

    def _far_rows(self, tensor: torch.Tensor | None) -> Any:
        """Rows of k and v have one stride, as an engine may send no others."""
        if tensor is None or len(tensor) < 2:
            return tensor
        row = tensor[0].numel()
        far = _copied_apart(tensor, 0, max(1, REACH // len(tensor) // row) * row, REACH // 2)
        self._spread.keep(tensor, far)
        return far

    def cached(self, kv_cache: torch.Tensor | None, layer: Layer) -> tuple[Any, Layer]:
        if kv_cache is None or layer.layout is None:
            return kv_cache, layer
        self._block_size = layer.view_of(kv_cache).block_size
        self._apart = max(1, REACH // kv_cache.numel())
        scales = {name: self._large(getattr(layer, name), 0) for name in _SCALES}
        return self._large(kv_cache, layer.layout.dims.index("block")), dataclasses.replace(layer, **scales)

    def _large(self, tensor: torch.Tensor | None, dim: int) -> Any:
        """A dense tensor with more blocks, and with its dimensions in the same order in memory."""
        if tensor is None:
            return None
        # the stride of a dimension of one element has no meaning
        steps = list(zip(tensor.shape, tensor.stride(), strict=True))
        inside = [max((size * step for size, step in steps[i + 1 :] if size > 1), default=1) for i in range(len(steps))]
        order = sorted(range(tensor.dim()), key=lambda i: steps[i][1] if steps[i][0] > 1 else inside[i], reverse=True)
        shape = [size * (self._apart if i == dim else 1) for i, size in enumerate(tensor.shape)]
        ordered = [shape[i] for i in order]
        stride = torch.empty(ordered, device="meta").stride()
        before = REACH // 2
        memory = reserved_memory((before + math.prod(shape) + before) * tensor.element_size()).view(tensor.dtype)
        large = memory.as_strided(shape, [stride[order.index(i)] for i in range(tensor.dim())], before)
        far = large[(slice(None),) * dim + (slice(self._apart - 1, None, self._apart),)]
        bits(far).copy_(bits(tensor))
        self._spread.keep(tensor, far)
        return large

    def slots(self, slots: torch.Tensor) -> torch.Tensor:
        moved = self._moved(slots // self._block_size) * self._block_size + slots % self._block_size
        return torch.where(slots >= 0, moved, slots)

    def _moved(self, blocks: torch.Tensor) -> torch.Tensor:
        return blocks * self._apart + self._apart - 1

    def batch(self, batch: Batch) -> Batch:
        slots, table = batch.slot_mapping, batch.block_table
        if slots is not None:
            slots = self.slots(slots)
        if table is not None:
            last = torch.iinfo(table.dtype).max // self._apart - 1
            moved = torch.where((table >= 0) & (table < last), self._moved(table), table)
            # some kernels read what lies after the last row
            storage = storage_of(table).clone()
            table = storage.as_strided(table.shape, table.stride(), table.storage_offset()).copy_(moved)
            if max(self._engine.table_padding) > 0:
                table = self._far_rows(table)
        return dataclasses.replace(batch, block_table=table, slot_mapping=slots)


_PARAMETERS = {
    "attention": ("q", "k", "v", "kv_cache", "layer", "batch"),
    "write_kv_cache": ("k", "v", "kv_cache", "layer", "slot_mapping"),
    "write_latent_cache": ("kv_c", "k_pe", "kv_cache", "layer", "slot_mapping"),
    "rope_and_write_kv_cache": ("q", "k", "v", "positions", "cos_sin_cache", "kv_cache", "layer", "slot_mapping"),
}
_CHANGED_BY = {
    **dict.fromkeys(("q", "k", "v", "kv_c", "k_pe", "cos_sin_cache"), "rows"),
    "out": "out",
    "lse": "lse",
    "batch": "batch",
    "slot_mapping": "slots",
}
"""The method that gives far rows to a parameter of a target's functions, in addition to `cached`."""


def _with(target: Target, tensors_of: Callable[[Spread], _AnyStrides | _LargeCache]) -> Target:
    """A target whose calls get tensors with far rows."""

    def far_apart(field: str, function: Callable[..., Any]) -> Any:
        parameters = _PARAMETERS[field]

        def call(*arguments: Any, **options: Any) -> None:
            given = dict(zip(parameters, arguments, strict=True)) | options
            with mock.patch(f"{__name__}.is_far", True), spread(rng_of_metadata(arguments)) as copies:
                far = tensors_of(copies)
                given["kv_cache"], given["layer"] = far.cached(given["kv_cache"], given["layer"])
                given |= {name: getattr(far, how)(given[name]) for name, how in _CHANGED_BY.items() if name in given}
                function(*(given[name] for name in parameters), **{name: given[name] for name in options})

        return call

    def support(device: str) -> Support:
        # three rows reach as far as many
        declared = target.support(device)
        sizes = {"max_tokens": min(MAX_TOKENS, declared.max_tokens), "max_seq_len": min(MAX_KEYS, declared.max_seq_len)}
        return dataclasses.replace(declared, long_seq_len=None, many_requests=None, **sizes)

    return target.wrapped(
        far_apart,
        support=support,
        unavailable=lambda device: unavailable(device) or target.unavailable(device),
        checks_arguments=False,
        sanitizes=False,
        exact=False,
    )


def unavailable(device: str) -> str | None:
    """The reason why tensors cannot lie far apart on a device, or None."""
    if device != "cpu":
        return "it needs memory that costs nothing until it is written: --device cpu"
    return missing_memory()


def merge_attn_states(merge: Callable[..., object], out_a, lse_a, out_b, lse_b, *, out, lse, **options) -> None:
    """Call a merge with tensors far apart. An output that is an input stays one."""
    with spread(rng_of((out_a.shape, out_a.stride(), lse_a.stride()))) as far:
        a, b = ((far.rows(out), far.elements(lse)) for out, lse in ((out_a, lse_a), (out_b, lse_b)))
        merge(*a, *b, out=far.rows(out), lse=far.elements(lse), **options)


def merge_attn_parts(merge: Callable[..., object], outs, lses, *, out, lse, **options) -> None:
    """Call a merge of any number of parts with tensors far apart."""
    with spread(rng_of((outs.shape, outs.stride(), lses.stride()))) as far:
        merge(far.rows(outs), far.elements(lses), out=far.rows(out), lse=far.elements(lse), **options)


@functools.cache
def missing_memory() -> str | None:
    try:
        reserved_memory(1 << 40)
    except (OSError, ValueError, AttributeError) as error:
        return f"this system gives no memory of 1 TB that is not touched: {error}"
    return None
