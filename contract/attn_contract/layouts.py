"""How (k or v, block, slot, KV head, dim) maps to an element of one raw allocation.

A layout is passed, never guessed from a shape: with two blocks or two KV heads, two layouts have one shape. The formulas
below are the definition. Implementations under test derive their own addressing and are pinned to literal tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch

from attn_contract.arguments import check_dense_last, check_dims, check_tensor, check_type
from attn_contract.errors import ContractError

K, V = 0, 1


class Layout(StrEnum):
    """Order of the dimensions of a KV cache view; NB blocks of BS slots, HK KV heads, head size D."""

    BLOCKS_FIRST_NHD = "BLOCKS_FIRST_NHD"
    """[NB, 2, BS, HK, D]: AITER's unified attention, vLLM's Triton attention (vLLM #43660)."""
    BLOCKS_FIRST_HND = "BLOCKS_FIRST_HND"
    """[NB, 2, HK, BS, D]"""
    KV_FIRST_NHD = "KV_FIRST_NHD"
    """[2, NB, BS, HK, D]: FlashAttention's; a K plane, then a V plane."""
    KV_FIRST_HND = "KV_FIRST_HND"
    """[2, NB, HK, BS, D]"""

    @property
    def dims(self) -> tuple[str, str, str, str, str]:
        """Names of the view's dimensions, outermost first."""
        return _DIMS[self]


_DIMS = {
    Layout.BLOCKS_FIRST_NHD: ("block", "kv", "slot", "head", "dim"),
    Layout.BLOCKS_FIRST_HND: ("block", "kv", "head", "slot", "dim"),
    Layout.KV_FIRST_NHD: ("kv", "block", "slot", "head", "dim"),
    Layout.KV_FIRST_HND: ("kv", "block", "head", "slot", "dim"),
}


@dataclass(frozen=True, kw_only=True)
class KVCacheView:
    """One layer's view of a raw allocation. Strides and offset count elements of `itemsize` bytes.

    `dense` builds the view of an allocation that holds nothing else; larger strides describe padded blocks and several
    layers interleaved in one allocation.
    """

    layout: Layout
    num_blocks: int
    block_size: int
    num_kv_heads: int
    head_size: int
    itemsize: int
    kv_stride: int
    block_stride: int
    slot_stride: int
    head_stride: int
    offset: int = 0

    @classmethod
    def dense(
        cls, layout: Layout, *, num_blocks: int, block_size: int, num_kv_heads: int, head_size: int, itemsize: int
    ) -> "KVCacheView":
        sizes = {"block": num_blocks, "kv": 2, "slot": block_size, "head": num_kv_heads, "dim": head_size}
        strides, stride = {}, 1
        for dim in reversed(layout.dims):
            strides[dim] = stride
            stride *= sizes[dim]
        return cls(
            layout=layout,
            num_blocks=num_blocks,
            block_size=block_size,
            num_kv_heads=num_kv_heads,
            head_size=head_size,
            itemsize=itemsize,
            **{f"{dim}_stride": strides[dim] for dim in ("kv", "block", "slot", "head")},
        )

    @classmethod
    def of(cls, kv_cache: torch.Tensor, layout: Layout) -> "KVCacheView":
        """Read a view back from a tensor shaped as the layout says.

        Raises:
            ContractError: it has not five dimensions, not 2 along kv, no slots, heads or dims, a last dimension that is not
                dense, or elements that share memory.
        """
        check_type("layout", layout, Layout, f"a Layout: {', '.join(Layout)}")
        check_tensor("kv_cache", kv_cache)
        check_dims("kv_cache", kv_cache, layout.dims)
        size = dict(zip(layout.dims, kv_cache.shape, strict=True))
        stride = dict(zip(layout.dims, kv_cache.stride(), strict=True))
        if size["kv"] != 2:
            raise ContractError(
                "kv_cache", f"shape {tuple(kv_cache.shape)}", f"2 (K and V) in dimension {layout.dims.index('kv')} of {layout}"
            )
        if 0 in (size["slot"], size["head"], size["dim"]):
            raise ContractError("kv_cache", f"shape {tuple(kv_cache.shape)}", "at least one slot, head and dim")
        check_dense_last("kv_cache", kv_cache)
        if overlaps_itself(kv_cache.shape, kv_cache.stride()):
            raise ContractError("kv_cache", f"strides {tuple(kv_cache.stride())}", "elements that do not share memory")
        return cls(
            layout=layout,
            num_blocks=size["block"],
            block_size=size["slot"],
            num_kv_heads=size["head"],
            head_size=size["dim"],
            itemsize=kv_cache.element_size(),
            kv_stride=stride["kv"],
            block_stride=stride["block"],
            slot_stride=stride["slot"],
            head_stride=stride["head"],
            offset=int(kv_cache.storage_offset()),
        )

    def element(self, kv: Any, block: Any, slot: Any, head: Any, dim: Any) -> Any:
        """Index into the raw allocation. Takes ints or int64 tensors that broadcast.

        Dense BLOCKS_FIRST_NHD, page = BS*HK*D: `(block*2 + kv)*page + (slot*HK + head)*D + dim`; dense KV_FIRST_NHD:
        `(kv*NB + block)*page + (slot*HK + head)*D + dim`; the HND ones swap slot and head.
        """
        return (
            self.offset
            + kv * self.kv_stride
            + block * self.block_stride
            + slot * self.slot_stride
            + head * self.head_stride
            + dim
        )

    def tensor(self, raw: torch.Tensor) -> torch.Tensor:
        """The view as a tensor over `raw`, a one-dimensional allocation of elements of the cache's dtype."""
        size = {
            "block": self.num_blocks,
            "kv": 2,
            "slot": self.block_size,
            "head": self.num_kv_heads,
            "dim": self.head_size,
        }
        stride = {
            "block": self.block_stride,
            "kv": self.kv_stride,
            "slot": self.slot_stride,
            "head": self.head_stride,
            "dim": 1,
        }
        return raw.as_strided([size[dim] for dim in self.layout.dims], [stride[dim] for dim in self.layout.dims], self.offset)

    @property
    def num_slots(self) -> int:
        return self.num_blocks * self.block_size

    @property
    def end(self) -> int:
        """One past the largest element index."""
        last = (1, self.num_blocks - 1, self.block_size - 1, self.num_kv_heads - 1, self.head_size - 1)
        return self.element(*last) + 1

    def first_block_elements(self) -> torch.Tensor:
        """[2, BS, HK, D] int64: the element index of everything in block 0."""
        kv = torch.arange(2).view(2, 1, 1, 1)
        slot = torch.arange(self.block_size).view(-1, 1, 1)
        head = torch.arange(self.num_kv_heads).view(-1, 1)
        return self.element(kv, 0, slot, head, torch.arange(self.head_size))


def same_footprint(a: KVCacheView, b: KVCacheView) -> bool:
    """Whether every block id covers the same bytes in both views, K and V together.

    Required of any two layers that share an allocation: each owns other block ids and must never touch the other's bytes.
    Blocks-first block 0 lies over blocks 0 and 1 of both planes of a K/V-first view (vLLM #43945).
    """
    if a.num_blocks != b.num_blocks:
        return False
    if a.num_blocks > 1 and a.block_stride * a.itemsize != b.block_stride * b.itemsize:
        return False
    return _byte_runs(a) == _byte_runs(b)


def same_elements(a: KVCacheView, b: KVCacheView) -> bool:
    """Whether every (kv, block, slot, head, dim) has one address in both views.

    Required where layers share the cache's contents: KV sharing between layers, a writer and a reader of one layer.
    """
    sizes_a = (a.num_blocks, a.block_size, a.num_kv_heads, a.head_size, a.itemsize)
    if sizes_a != (b.num_blocks, b.block_size, b.num_kv_heads, b.head_size, b.itemsize):
        return False
    if a.num_blocks > 1 and a.block_stride != b.block_stride:
        return False
    return torch.equal(a.first_block_elements(), b.first_block_elements())


def overlaps_itself(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether two indices of a strided tensor may share memory; nested dimensions, as views of caches have, never do."""
    span = 1
    for step, size in sorted((step, size) for size, step in zip(shape, stride, strict=True) if size > 1):
        if step < span:
            return True
        span = step * (size - 1) + span
    return False


def _byte_runs(view: KVCacheView) -> list[tuple[int, int]]:
    """Block 0 as maximal runs of consecutive bytes, [start, end)."""
    elements = view.first_block_elements().flatten().sort().values
    is_start = torch.ones_like(elements, dtype=torch.bool)
    is_start[1:] = elements[1:] != elements[:-1] + 1
    starts = elements[is_start]
    ends = torch.cat([elements[:-1][is_start[1:]], elements[-1:]]) + 1
    return [(s * view.itemsize, e * view.itemsize) for s, e in zip(starts.tolist(), ends.tolist(), strict=True)]
