"""The Triton kernels on tensors that reach beyond 2^31 elements: an offset that is computed in 32 bits leads astray.

Each tensor of a call is copied into memory of its own, where the rows of one of its dimensions lie far apart. Most of that
memory is never touched, and costs nothing: the system gives a process only the pages that it writes. Offsets of 32 bits lead
into such memory, too, and not out of it. So they give wrong numbers, and no crash.
"""

import contextlib
import dataclasses
import functools
import mmap
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from attn_contract import Batch, Layer
from attn_fuzz.cases.poison import bits
from attn_fuzz.targets.choices import choices_by
from attn_fuzz.targets.target import Target
from attn_fuzz.targets.triton import (
    TRITON,
    TRITON_LATENT,
    TRITON_LATENT_E8M0,
    TRITON_LATENT_E8M0_PLANES,
    TRITON_LATENT_SCALED,
    missing_triton,
)

REACH = 1 << 32
"""How many units the rows span: half of them lie at offsets that int32 does not hold."""
UNIT_BYTES = 16
"""Kernels count the strides of most tensors in units of 16 bytes, where all of the strides are multiples of that."""
ALIGNMENT = 4
"""Of every stride, in bytes: scales in the rows of a cache are float32."""
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # a constant of Python 3.13 and later; the number is Linux's


class Spread:
    """Copies of tensors whose rows lie far apart.

    Args:
        choose: makes the choices: which rows of a tensor, and whether strides are multiples of 16 bytes.
    """

    def __init__(self, choose: random.Random) -> None:
        self._choose = choose
        self._unit_bytes = choose.choice((UNIT_BYTES, 0))
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
            self._copies[key] = (tensor, _far(tensor, self._choose.choice(dims), unit_bytes, multiple, self._choose))
        return self._copies[key][1]

    def write_back(self) -> None:
        """Copy all that a call has written, inputs included, to where the call's tensors lie."""
        for tensor, far in self._copies.values():
            bits(tensor).copy_(bits(far))


def _far(tensor: torch.Tensor, dim: int, unit_bytes: int, multiple: int, choose: random.Random) -> torch.Tensor:
    """A copy of a tensor in memory that it has for itself, dense but for the stride of one dimension."""
    itemsize = tensor.element_size()
    unit = unit_bytes // itemsize or 1
    apart = (REACH // tensor.shape[dim] - choose.randrange(UNIT_BYTES)) * unit
    if not unit_bytes:
        apart = apart // UNIT_BYTES * UNIT_BYTES + max(1, ALIGNMENT // itemsize)
    apart = apart // multiple * multiple
    others = [size for i, size in enumerate(tensor.shape) if i != dim]
    stride = list(torch.empty(others, device="meta").stride())
    stride.insert(dim, apart)
    before = REACH // 2 * unit
    span = sum((size - 1) * step for size, step in zip(tensor.shape, stride, strict=True)) + 1
    memory = _memory((before + span + before) * itemsize).view(tensor.dtype)
    far = memory.as_strided(tensor.shape, stride, before)
    bits(far).copy_(bits(tensor))
    return far


def _memory(size: int) -> torch.Tensor:
    """[size] uint8: zeros, of which only the pages take memory that somebody writes. They are given back with the tensor."""
    size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


@contextlib.contextmanager
def spread(choose: random.Random) -> Iterator[Spread]:
    """A Spread for one call, whose writes are copied back in the end, even if the call raises."""
    copies = Spread(choose)
    try:
        yield copies
    finally:
        copies.write_back()


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    with spread(choices_by((q.shape, batch.query_start_loc, batch.seq_lens))) as far:
        q, k, v = (far.rows(tensor) for tensor in (q, k, v))
        cache, far_layer = _cache_and_layer(kv_cache, layer, far)
        far_batch = _batch(batch, far)
        TRITON.attention(q, k, v, cache, far_layer, far_batch, out=far.rows(out), lse=far.elements(lse))


def _cache_and_layer(kv_cache: torch.Tensor | None, layer: Layer, far: Spread) -> tuple[Any, Layer]:
    """A cache far apart, and its layer, whose scales of tokens are far apart."""
    scales = {name: far.elements(getattr(layer, name), range(3)) for name in ("k_scale_cache", "v_scale_cache")}
    return _cache(kv_cache, layer, far), dataclasses.replace(layer, **scales)


def _cache(kv_cache: torch.Tensor | None, layer: Layer, far: Spread) -> Any:
    """A cache far apart, but for what lies in a page of a layout whose pages are dense."""
    if layer.layout is None:
        return far.rows(kv_cache)
    dims = range(layer.layout.dims.index("page")) if layer.layout.has_dense_pages else None
    return far.rows(kv_cache, dims, layer.layout.unit_of_blocks(layer.head_size, layer.head_size_v))


def _batch(batch: Batch, far: Spread) -> Batch:
    tensors = {name: far.elements(getattr(batch, name)) for name in ("block_table", "qq_bias")}
    return dataclasses.replace(batch, **tensors)


def _write(k, v, kv_cache, layer, slot_mapping) -> None:
    import attn_optimized

    with spread(choices_by((k.shape, slot_mapping))) as far:
        cache, far_layer = _cache_and_layer(kv_cache, layer, far)
        attn_optimized.write_kv_cache(far.rows(k), far.rows(v), cache, far_layer, slot_mapping, validate=True)


def _rope(q, k, v, positions, cos_sin_cache, kv_cache, layer, slot_mapping, *, is_neox) -> None:
    import attn_optimized

    with spread(choices_by((k.shape, slot_mapping))) as far:
        cache, far_layer = _cache_and_layer(kv_cache, layer, far)
        q, k, v, table = (far.rows(tensor) for tensor in (q, k, v, cos_sin_cache))
        options = {"is_neox": is_neox, "validate": True}
        attn_optimized.rope_and_write_kv_cache(q, k, v, positions, table, cache, far_layer, slot_mapping, **options)


def _write_latent(kv_c, k_pe, kv_cache, layer, slot_mapping) -> None:
    import attn_optimized

    with spread(choices_by((kv_c.shape, slot_mapping))) as far:
        rows = far.rows(kv_c), far.rows(k_pe), _cache(kv_cache, layer, far)
        attn_optimized.write_latent_cache(*rows, layer, slot_mapping, validate=True)


def merge_attn_states(merge: Callable[..., object], out_a, lse_a, out_b, lse_b, *, out, lse, **options) -> None:
    """Call a merge with tensors far apart. An output that is an input stays one."""
    with spread(choices_by((out_a.shape, out_a.stride(), lse_a.stride()))) as far:
        a, b = ((far.rows(out), far.elements(lse)) for out, lse in ((out_a, lse_a), (out_b, lse_b)))
        merge(*a, *b, out=far.rows(out), lse=far.elements(lse), **options)


def merge_attn_parts(merge: Callable[..., object], outs, lses, *, out, lse, **options) -> None:
    """Call a merge of any number of parts with tensors far apart."""
    with spread(choices_by((outs.shape, outs.stride(), lses.stride()))) as far:
        merge(far.rows(outs), far.elements(lses), out=far.rows(out), lse=far.elements(lse), **options)


@functools.cache
def _missing(device: str) -> str | None:
    if device != "cpu":
        return "it needs memory that costs nothing until it is written: --device cpu"
    try:
        _memory(1 << 40)
    except (OSError, ValueError, AttributeError) as error:
        return f"this system gives no memory of 1 TB that is not touched: {error}"
    return missing_triton(device)


def _far_away(target: Target, description: str) -> Target:
    """A target of the Triton kernels whose tensors reach beyond 2^31 elements."""
    return dataclasses.replace(
        target,
        name=f"{target.name}-far",
        description=f"{description} on tensors that reach beyond 2^31 elements",
        attention=_attention,
        write_kv_cache=_write,
        rope_and_write_kv_cache=_rope,
        write_latent_cache=target.write_latent_cache and _write_latent,
        # three rows reach as far as many
        support=lambda device: dataclasses.replace(target.support(device), max_tokens=48, max_seq_len=192, long_seq_len=None),
        unavailable=_missing,
        siblings=(),
        checks_arguments=False,
        sanitizes=False,
        exact=False,
    )


TRITON_FAR = _far_away(TRITON, "the shipping Triton kernels")
TRITON_LATENT_FAR = _far_away(TRITON_LATENT, "the shipping Triton kernels for latent caches")
TRITON_LATENT_SCALED_FAR = _far_away(TRITON_LATENT_SCALED, "triton-latent-scaled")
TRITON_LATENT_E8M0_FAR = _far_away(TRITON_LATENT_E8M0, "triton-latent-e8m0")
TRITON_LATENT_E8M0_PLANES_FAR = _far_away(TRITON_LATENT_E8M0_PLANES, "triton-latent-e8m0-planes")
