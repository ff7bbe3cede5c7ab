"""How (k or v, block, slot, KV head, dim) maps to an element of one raw allocation.

A layout is passed, never guessed from a shape: with two blocks or two KV heads, two layouts have one shape. The formulas
below are the definition. Implementations under test derive their own addressing and are pinned to literal tables.
"""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch

from attn_contract.arguments import check_dense_last, check_dims, check_int, check_tensor, check_type
from attn_contract.errors import ContractError
from attn_contract.memory import overlaps_itself

K, V = 0, 1


class Layout(StrEnum):
    """How a KV cache view is ordered: NB blocks of BS slots, HK KV heads, head size D, x elements in 16 bytes."""

    BLOCKS_FIRST_NHD = "BLOCKS_FIRST_NHD"
    """[NB, 2, BS, HK, D]: AITER's unified attention, vLLM's Triton attention (vLLM #43660)."""
    BLOCKS_FIRST_HND = "BLOCKS_FIRST_HND"
    """[NB, 2, HK, BS, D]"""
    KV_FIRST_NHD = "KV_FIRST_NHD"
    """[2, NB, BS, HK, D]: FlashAttention's; a K plane, then a V plane."""
    KV_FIRST_HND = "KV_FIRST_HND"
    """[2, NB, HK, BS, D]"""
    X_PACKED = "X_PACKED"
    """[2, NB, page] with page = HK*D*BS: each page of K is a dense [HK, D/x, BS, x], each of V a dense [HK, D, BS]. vLLM's
    ROCM_ATTN, AITER's paged_attention_rocm."""
    SHUFFLED = "SHUFFLED"
    """[2, NB, page]: K as in X_PACKED, each page of V a dense [HK, BS/x, D, x]. AITER's assembly paged attention."""
    CONTENT_PACKED = "CONTENT_PACKED"
    """[NB, HK, BS, 2*D]: K, then V, in each row. One layer of vLLM 0.33's [L, B, H, N, C], whose six physical orders are six
    sets of strides: see PhysicalOrder."""
    CONTENT_PACKED_SCALED = "CONTENT_PACKED_SCALED"
    """[NB, HK, BS, 2*(D + 4)] of one-byte elements: K, its float32 scale, V and its scale in each row."""

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the view's dimensions, outermost first."""
        return _DIMS[self]

    @property
    def is_x_packed(self) -> bool:
        """Whether pages are dense and packed in units of x elements, so that the view has no dimension for slots or heads."""
        return self in (Layout.X_PACKED, Layout.SHUFFLED)

    @property
    def has_inline_scales(self) -> bool:
        """Whether each row of K and of V is followed by its scale."""
        return self is Layout.CONTENT_PACKED_SCALED

    def units(self, itemsize: int) -> tuple[int, int]:
        """Numbers of which head_size and block_size must be multiples, for elements of `itemsize` bytes.

        X_PACKED and SHUFFLED cut heads and blocks into units of 16 bytes. Inline scales are float32 behind each row of bytes.
        """
        if self.is_x_packed:
            return 16 // itemsize, 16 // itemsize
        return (4, 1) if self.has_inline_scales else (1, 1)

    def check_sizes(self, head_size: int, block_size: int, itemsize: int) -> None:
        """Raise ContractError for a head or block size that is no multiple of its unit."""
        for name, size, unit in zip(("head_size", "block_size"), (head_size, block_size), self.units(itemsize), strict=True):
            if size % unit:
                raise ContractError(name, size, f"a multiple of {unit} ({unit * itemsize} bytes) in layout {self}")


class PhysicalOrder(StrEnum):
    """Order in memory, outermost first, of vLLM 0.33's cache: L layers, B blocks, H KV heads, N slots, C content of a row."""

    LBHNC = "LBHNC"
    LBNHC = "LBNHC"
    LHBNC = "LHBNC"
    BLHNC = "BLHNC"
    BLNHC = "BLNHC"
    BHLNC = "BHLNC"


_DIMS = {
    Layout.BLOCKS_FIRST_NHD: ("block", "kv", "slot", "head", "dim"),
    Layout.BLOCKS_FIRST_HND: ("block", "kv", "head", "slot", "dim"),
    Layout.KV_FIRST_NHD: ("kv", "block", "slot", "head", "dim"),
    Layout.KV_FIRST_HND: ("kv", "block", "head", "slot", "dim"),
    Layout.X_PACKED: ("kv", "block", "page"),
    Layout.SHUFFLED: ("kv", "block", "page"),
    Layout.CONTENT_PACKED: ("block", "head", "slot", "content"),
    Layout.CONTENT_PACKED_SCALED: ("block", "head", "slot", "content"),
}


@dataclass(frozen=True, kw_only=True)
class KVCacheView:
    """One layer's view of a raw allocation. Strides and offset count elements of `itemsize` bytes.

    `dense` and `content_packed` build the views of allocations that hold nothing else; larger strides describe padded blocks
    and several layers interleaved in one allocation. The pages of X_PACKED and SHUFFLED are dense: only their kv_stride and
    block_stride are free, the other two are 0 and mean nothing.

    Raises:
        ContractError: an x-packed layout whose head or block size is no multiple of x, or scaled content of elements that are
            not one byte or of a head size that is no multiple of 4.
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

    def __post_init__(self) -> None:
        if self.layout.has_inline_scales and self.itemsize != 1:
            raise ContractError("kv_cache", f"elements of {self.itemsize} bytes", f"1 byte in layout {self.layout}")
        self.layout.check_sizes(self.head_size, self.block_size, self.itemsize)

    @classmethod
    def dense(
        cls, layout: Layout, *, num_blocks: int, block_size: int, num_kv_heads: int, head_size: int, itemsize: int
    ) -> "KVCacheView":
        """The view of an allocation that holds this layer and nothing else."""
        _check_sizes(
            layout,
            num_blocks=num_blocks,
            block_size=block_size,
            num_kv_heads=num_kv_heads,
            head_size=head_size,
            itemsize=itemsize,
        )
        sizes = {
            "block": num_blocks,
            "kv": 2,
            "slot": block_size,
            "head": num_kv_heads,
            "dim": head_size,
            "page": block_size * num_kv_heads * head_size,
            "content": 2 * _row_size(layout, head_size),
        }
        strides, stride = {"kv": _row_size(layout, head_size), "slot": 0, "head": 0}, 1
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
    def content_packed(
        cls,
        layout: Layout,
        order: PhysicalOrder,
        *,
        num_layers: int,
        layer: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_size: int,
        itemsize: int,
    ) -> "KVCacheView":
        """The view of layer `layer` of a CONTENT_PACKED or CONTENT_PACKED_SCALED cache of `num_layers` in a physical order."""
        _check_sizes(
            layout,
            num_layers=num_layers,
            num_blocks=num_blocks,
            block_size=block_size,
            num_kv_heads=num_kv_heads,
            head_size=head_size,
            itemsize=itemsize,
        )
        check_type("order", order, PhysicalOrder, f"a PhysicalOrder: {', '.join(PhysicalOrder)}")
        check_int("layer", layer, minimum=0)
        if layer >= num_layers:
            raise ContractError("layer", layer, f"one of the {num_layers} layers, from 0")
        if "content" not in layout.dims:
            raise ContractError("layout", layout, "CONTENT_PACKED or CONTENT_PACKED_SCALED: only those have a physical order")
        row_size = _row_size(layout, head_size)
        sizes = {"L": num_layers, "B": num_blocks, "H": num_kv_heads, "N": block_size, "C": 2 * row_size}
        strides, stride = {}, 1
        for dim in reversed(order):
            strides[dim] = stride
            stride *= sizes[dim]
        return cls(
            layout=layout,
            num_blocks=num_blocks,
            block_size=block_size,
            num_kv_heads=num_kv_heads,
            head_size=head_size,
            itemsize=itemsize,
            kv_stride=row_size,
            block_stride=strides["B"],
            slot_stride=strides["N"],
            head_stride=strides["H"],
            offset=layer * strides["L"],
        )

    @classmethod
    def of(cls, kv_cache: torch.Tensor, layout: Layout, *, num_kv_heads: int, head_size: int) -> "KVCacheView":
        """Read a view back from a tensor shaped as the layout says.

        Raises:
            ContractError: it has not the layout's dimensions, other sizes than they say, no slots, a last dimension that is
                not dense, elements that share memory, or inline scales that do not lie on multiples of 4 bytes.
        """
        _check_sizes(layout, num_kv_heads=num_kv_heads, head_size=head_size)
        check_tensor("kv_cache", kv_cache)
        check_dims("kv_cache", kv_cache, layout.dims)
        row_size = _row_size(layout, head_size)
        expected = {"kv": 2, "head": num_kv_heads, "dim": head_size, "content": 2 * row_size}
        size = dict(zip(layout.dims, kv_cache.shape, strict=True))
        stride = {"kv": row_size, "slot": 0, "head": 0, **dict(zip(layout.dims, kv_cache.stride(), strict=True))}
        for axis, dim in enumerate(layout.dims):
            if size[dim] != expected.get(dim, size[dim]):
                raise ContractError(
                    "kv_cache", f"shape {tuple(kv_cache.shape)}", f"{expected[dim]} ({dim}) in dimension {axis} of {layout}"
                )
        slots, rest = divmod(size.get("page", 0), num_kv_heads * head_size)
        if rest:
            raise ContractError(
                "kv_cache", f"shape {tuple(kv_cache.shape)}", f"pages of {num_kv_heads} heads of size {head_size} in {layout}"
            )
        block_size = size.get("slot", slots)
        if block_size == 0:
            raise ContractError("kv_cache", f"shape {tuple(kv_cache.shape)}", "at least one slot in a block")
        check_dense_last("kv_cache", kv_cache)
        if overlaps_itself(kv_cache.shape, kv_cache.stride()):
            raise ContractError("kv_cache", f"strides {tuple(kv_cache.stride())}", "elements that do not share memory")
        view = cls(
            layout=layout,
            num_blocks=size["block"],
            block_size=block_size,
            num_kv_heads=num_kv_heads,
            head_size=head_size,
            itemsize=kv_cache.element_size(),
            kv_stride=stride["kv"],
            block_stride=stride["block"],
            slot_stride=stride["slot"],
            head_stride=stride["head"],
            offset=int(kv_cache.storage_offset()),
        )
        steps = [step for size, step in zip(kv_cache.shape, kv_cache.stride(), strict=True) if size > 1][:-1]
        if layout.has_inline_scales and any(step % 4 for step in (*steps, view.offset)):
            raise ContractError(
                "kv_cache", f"strides {tuple(kv_cache.stride())} from {view.offset}", "multiples of 4: scales are float32"
            )
        return view

    def element(self, kv: int, block: Any, slot: Any, head: Any, dim: Any) -> Any:
        """Index into the raw allocation; kv is K or V, the others are ints or int64 tensors that broadcast.

        Dense BLOCKS_FIRST_NHD, page = BS*HK*D: `(block*2 + kv)*page + (slot*HK + head)*D + dim`; dense KV_FIRST_NHD:
        `(kv*NB + block)*page + (slot*HK + head)*D + dim`; the HND ones swap slot and head. In CONTENT_PACKED_SCALED the four
        bytes of a row's scale are its dims D to D + 3.
        """
        x, block_size, head_size = self.x, self.block_size, self.head_size
        page = self.offset + kv * self.kv_stride + block * self.block_stride
        if self.layout.is_x_packed and kv == K:
            return page + ((head * (head_size // x) + dim // x) * block_size + slot) * x + dim % x
        if self.layout is Layout.X_PACKED:
            return page + (head * head_size + dim) * block_size + slot
        if self.layout is Layout.SHUFFLED:
            return page + ((head * (block_size // x) + slot // x) * head_size + dim) * x + slot % x
        return page + slot * self.slot_stride + head * self.head_stride + dim

    def tensor(self, raw: torch.Tensor) -> torch.Tensor:
        """The view as a tensor over `raw`, a one-dimensional allocation of elements of the cache's dtype."""
        size = {
            "block": self.num_blocks,
            "kv": 2,
            "slot": self.block_size,
            "head": self.num_kv_heads,
            "dim": self.head_size,
            "page": self.block_size * self.num_kv_heads * self.head_size,
            "content": 2 * self.row_size,
        }
        stride = {
            "block": self.block_stride,
            "kv": self.kv_stride,
            "slot": self.slot_stride,
            "head": self.head_stride,
            "dim": 1,
            "page": 1,
            "content": 1,
        }
        return raw.as_strided([size[dim] for dim in self.layout.dims], [stride[dim] for dim in self.layout.dims], self.offset)

    @property
    def x(self) -> int:
        """Elements in 16 bytes."""
        return 16 // self.itemsize

    @property
    def row_size(self) -> int:
        """Elements of one slot's K (or V) of one head, its inline scale included."""
        return _row_size(self.layout, self.head_size)

    @property
    def num_slots(self) -> int:
        return self.num_blocks * self.block_size

    @property
    def end(self) -> int:
        """One past the largest element index."""
        last = (self.num_blocks - 1, self.block_size - 1, self.num_kv_heads - 1, self.row_size - 1)
        return max(self.element(kv, *last) for kv in (K, V)) + 1

    def first_block_elements(self) -> torch.Tensor:
        """[2, BS, HK, row_size] int64: the element index of everything in block 0."""
        slot = torch.arange(self.block_size).view(-1, 1, 1)
        head = torch.arange(self.num_kv_heads).view(-1, 1)
        dim = torch.arange(self.row_size)
        return torch.stack([self.element(kv, 0, slot, head, dim) for kv in (K, V)])


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


def check_shared_allocation(views: Mapping[str, KVCacheView], shared_contents: Iterable[tuple[str, str]] = ()) -> None:
    """Check the views that several layers have of one raw allocation.

    Args:
        views: by the layer's name.
        shared_contents: pairs of layers that read and write the same contents, such as a layer and the one that its
            `kv_sharing_target_layer_name` names.

    Raises:
        ContractError: two layers have not the same footprint, or two that share contents not the same elements; or
            `shared_contents` names a layer that `views` has not.
    """
    for name, view in views.items():
        check_type(name, view, KVCacheView, "a KVCacheView")
    for (first, reference), (name, view) in itertools.pairwise(views.items()):
        if not same_footprint(reference, view):
            raise ContractError(
                name, _describe(view), f"the footprint of {first} ({_describe(reference)}): each block id covers the same bytes"
            )
    for writer, reader in shared_contents:
        for name in (writer, reader):
            if name not in views:
                raise ContractError("shared_contents", repr(name), f"one of the layers: {', '.join(views)}")
        if not same_elements(views[writer], views[reader]):
            raise ContractError(
                reader, _describe(views[reader]), f"the elements of {writer} ({_describe(views[writer])}): they share contents"
            )


def _byte_runs(view: KVCacheView) -> list[tuple[int, int]]:
    """Block 0 as maximal runs of consecutive bytes, [start, end)."""
    elements = view.first_block_elements().flatten().sort().values
    is_start = torch.ones_like(elements, dtype=torch.bool)
    is_start[1:] = elements[1:] != elements[:-1] + 1
    starts = elements[is_start]
    ends = torch.cat([elements[:-1][is_start[1:]], elements[-1:]]) + 1
    return [(s * view.itemsize, e * view.itemsize) for s, e in zip(starts.tolist(), ends.tolist(), strict=True)]


def _describe(view: KVCacheView) -> str:
    strides = f"kv {view.kv_stride}, block {view.block_stride}, slot {view.slot_stride}, head {view.head_stride}"
    return f"{view.layout} with strides {strides} in {view.itemsize}-byte elements"


def _check_sizes(layout: Layout, **sizes: int) -> None:
    check_type("layout", layout, Layout, f"a Layout: {', '.join(Layout)}")
    for name, size in sizes.items():
        check_int(name, size, minimum=0 if name == "num_blocks" else 1)


def _row_size(layout: Layout, head_size: int) -> int:
    """Elements of one K or V row; an inline scale is four one-byte elements."""
    return head_size + 4 if layout.has_inline_scales else head_size
