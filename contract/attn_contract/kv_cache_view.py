"""One layer's view of a raw allocation: where the element of (K or V, block, slot, KV head, dim) lies.

A layout is passed, never guessed from a shape: with two blocks or two KV heads, two layouts have one shape. The formulas below
are the definition. Implementations under test derive their own addressing and are pinned to literal tables.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict, Unpack

import torch

from attn_contract.arguments import check_dense_last, check_dims, check_int, check_tensor, check_type
from attn_contract.errors import ContractError
from attn_contract.layouts import BYTES_OF_SCALE, K, Layout, PhysicalOrder, V
from attn_contract.memory import overlaps_itself

_A_LAYOUT = f"a Layout: {', '.join(Layout)}"  # written once: every call reads a view back


class _Sizes(TypedDict):
    num_blocks: int
    block_size: int
    num_kv_heads: int
    head_size: int
    itemsize: int
    head_size_v: NotRequired[int | None]


@dataclass(frozen=True, kw_only=True)
class KVCacheSizes:
    """The sizes of one layer's part of a cache, wherever it lies.

    Args:
        layout: the order of the view's dimensions.
        num_blocks: NB, may be 0.
        block_size: BS, slots of a block.
        num_kv_heads: HK.
        head_size: D.
        itemsize: bytes of one element.
        head_size_v: the width of V, which rows of CONTENT_PACKED and latent rows with scales depend on. None: V is as wide as
            K, or the layout is LATENT, which does not need it.

    Raises:
        ContractError: a size has another type or is out of range; the layout is x-packed and the head or block size is no
            multiple of x; the layout holds scales and the elements are not one byte or the widths are no multiples that keep
            scales on multiples of 4 bytes; V is a part of K and there are several KV heads; or V is of another width than K in
            a layout that holds both in one width.
    """

    layout: Layout
    num_blocks: int
    block_size: int
    num_kv_heads: int
    head_size: int
    itemsize: int
    head_size_v: int | None = None

    def __post_init__(self) -> None:
        sizes = ("num_blocks", "block_size", "num_kv_heads", "head_size", "itemsize")
        _check_sizes(self.layout, **{name: getattr(self, name) for name in sizes})
        if self.layout.has_inline_scales and self.itemsize != 1:
            raise ContractError("kv_cache", f"elements of {self.itemsize} bytes", f"1 byte in layout {self.layout}")
        self.layout.check_sizes(self.head_size, self.block_size, self.itemsize)
        self.layout.check_widths(self.head_size, self.head_size_v)
        if self.layout.has_latent_value and self.num_kv_heads != 1:
            raise ContractError("num_kv_heads", self.num_kv_heads, f"1 in layout {self.layout}")

    @property
    def x(self) -> int:
        """x: the number of elements in 16 bytes."""
        return 16 // self.itemsize

    @property
    def row_size(self) -> int:
        """The number of elements of one slot's K of one head, with inline scales."""
        return self.row_sizes[K]

    @property
    def row_sizes(self) -> tuple[int, int]:
        """The numbers of elements of one slot's K of one head and of its V, with inline scales."""
        return self.layout.row_sizes(self.head_size, self.head_size_v)

    @property
    def num_slots(self) -> int:
        return self.num_blocks * self.block_size

    @property
    def size_of(self) -> dict[str, int]:
        """The size of each dimension that any layout may have, by the dimension's name."""
        return {
            "block": self.num_blocks,
            "kv": 2,
            "slot": self.block_size,
            "head": self.num_kv_heads,
            "dim": self.head_size,
            "page": self.block_size * self.num_kv_heads * self.row_size,
            "row": self.row_size,
            "content": sum(self.row_sizes),
        }


@dataclass(frozen=True, kw_only=True)
class KVCacheView(KVCacheSizes):
    """One layer's view of a raw allocation.

    `dense` and `content_packed` build the views of allocations that hold nothing else. Larger strides describe padded blocks,
    and several layers interleaved in one allocation. The pages of X_PACKED and SHUFFLED are dense: only their kv_stride and
    block_stride are free, and the other two are 0 and mean nothing. In a latent layout only block_stride and slot_stride are
    free: kv_stride is 0, because V begins where K does. If its scales lie apart, only block_stride is free, and is a multiple
    of a slot's data: `dense` rounds pages up to that.

    Args:
        kv_stride: elements from K to V.
        block_stride, slot_stride, head_stride: elements from one block, slot or KV head to the next.
        offset: elements before the view's first one.

    The other arguments and the errors are those of KVCacheSizes.
    """

    kv_stride: int
    block_stride: int
    slot_stride: int
    head_stride: int
    offset: int = 0

    @classmethod
    def dense(cls, layout: Layout, **sizes: Unpack[_Sizes]) -> "KVCacheView":
        """The view of an allocation that holds only this layer. `sizes` are the arguments of KVCacheSizes."""
        size_of = KVCacheSizes(layout=layout, **sizes).size_of
        strides = _dense_strides(layout.dims, size_of)
        unit = layout.block_alignment(sizes["head_size"], sizes.get("head_size_v"))
        return cls._of_strides(layout, sizes, strides | {"block": -(-strides["block"] // unit) * unit})

    @classmethod
    def content_packed(
        cls, layout: Layout, order: PhysicalOrder, *, num_layers: int, layer: int, **sizes: Unpack[_Sizes]
    ) -> "KVCacheView":
        """The view of one layer of a CONTENT_PACKED or CONTENT_PACKED_SCALED cache of several layers.

        Args:
            layout: CONTENT_PACKED or CONTENT_PACKED_SCALED.
            order: the order of the allocation's dimensions in memory.
            num_layers: layers of the allocation.
            layer: which of them, from 0.
            sizes: the other arguments of KVCacheSizes.

        Raises:
            ContractError: as KVCacheSizes, or another layout, no such order, or no such layer.
        """
        _check_sizes(layout, num_layers=num_layers)
        check_type("order", order, PhysicalOrder, f"a PhysicalOrder: {', '.join(PhysicalOrder)}")
        check_int("layer", layer, minimum=0)
        if layer >= num_layers:
            raise ContractError("layer", layer, f"one of the {num_layers} layers, from 0")
        if "content" not in layout.dims:
            raise ContractError("layout", layout, "CONTENT_PACKED or CONTENT_PACKED_SCALED: only those have a physical order")
        size_of = KVCacheSizes(layout=layout, **sizes).size_of
        strides = _dense_strides(order.dims, {**size_of, "layer": num_layers})
        return cls._of_strides(layout, sizes, strides, offset=layer * strides["layer"])

    @classmethod
    def of(
        cls,
        kv_cache: torch.Tensor,
        layout: Layout,
        *,
        num_kv_heads: int,
        head_size: int,
        head_size_v: int | None = None,
    ) -> "KVCacheView":
        """Read a view back from a tensor shaped as the layout says.

        Raises:
            ContractError: the tensor has not the layout's dimensions, or other sizes than they say; blocks have no slots; the
                last dimension is not dense; elements share memory; float32 inline scales do not lie on multiples of 4 bytes, or
                bfloat16 not on multiples of 2; or pages whose scales lie apart do not lie on multiples of a slot's data.
        """
        _check_sizes(layout, num_kv_heads=num_kv_heads, head_size=head_size)
        layout.check_widths(head_size, head_size_v)
        check_tensor("kv_cache", kv_cache)
        check_dims("kv_cache", kv_cache, layout.dims)
        sizes = _sizes_of(kv_cache, layout, num_kv_heads, head_size, head_size_v)
        check_dense_last("kv_cache", kv_cache)
        if overlaps_itself(kv_cache.shape, kv_cache.stride()):
            raise ContractError("kv_cache", f"strides {tuple(kv_cache.stride())}", "elements that do not share memory")
        strides = dict(zip(layout.dims, kv_cache.stride(), strict=True))
        view = cls._of_strides(layout, sizes, strides, offset=int(kv_cache.storage_offset()))
        view._check_alignment(kv_cache)
        return view

    def _check_alignment(self, kv_cache: torch.Tensor) -> None:
        """Check that the offset, and the strides of dimensions of several elements, are multiples as the layout requires."""
        steps = [step for size, step in zip(kv_cache.shape, kv_cache.stride(), strict=True) if size > 1][:-1]
        alignment, block_alignment = self.layout.stride_alignment, self.layout.block_alignment(self.head_size, self.head_size_v)
        got = f"strides {tuple(kv_cache.stride())} from {self.offset}"
        if any(step % alignment for step in (*steps, self.offset)):
            wide = "scales are float32" if alignment == BYTES_OF_SCALE else "the last dims are bfloat16"
            raise ContractError("kv_cache", got, f"multiples of {alignment}: {wide}")
        if self.num_blocks > 1 and self.block_stride % block_alignment:
            expected = f"blocks that begin at multiples of {block_alignment}, a slot's data, in {self.layout}"
            raise ContractError("kv_cache", got, expected)

    @classmethod
    def _of_strides(cls, layout: Layout, sizes: _Sizes, strides: Mapping[str, int], offset: int = 0) -> "KVCacheView":
        """The view with these strides, which are given by the layout's dimensions."""
        v_in_row = 0 if layout.has_latent_value else layout.row_size(sizes["head_size"])
        return cls(
            layout=layout,
            **sizes,
            kv_stride=strides.get("kv", v_in_row),
            block_stride=strides["block"],
            slot_stride=strides.get("slot", 0),
            head_stride=strides.get("head", 0),
            offset=offset,
        )

    def element(self, kv: int, block: Any, slot: Any, head: Any, dim: Any) -> Any:
        """Index into the raw allocation of one element, or of several.

        Dense BLOCKS_FIRST_NHD, page = BS*HK*D: `(block*2 + kv)*page + (slot*HK + head)*D + dim`. Dense KV_FIRST_NHD:
        `(kv*NB + block)*page + (slot*HK + head)*D + dim`. The HND layouts swap slot and head. Dense CONTENT_PACKED, with
        Dv dims of V: `((block*HK + head)*BS + slot)*(D + Dv) + kv*D + dim`. In CONTENT_PACKED_SCALED the four bytes of a row's
        scale are its dims D to D + 3. LATENT: `block*block_stride + slot*slot_stride + dim`, of K and of V alike; V ends before
        dim `head_size_v`.

        A latent layout with scales is the same, in bytes. Let Q dims be in float8, each s of them with a scale of w bytes, and
        the others in bfloat16 (`LatentFormat`): the dim d is byte `d`, its scale is bytes `Q + d//s*w` to `+ w - 1`, and the
        dim Q + r is bytes `Q + Q//s*w + padding + 2*r` and the next. If the scales lie apart, a slot's row is its data, of
        `n = Q + 2*(D - Q)` bytes, and then its scales, of `m = Q//s*w + padding` bytes, each from a byte 0 on:
        `block*block_stride + slot*n + byte` of the data, and `block*block_stride + BS*n + slot*m + byte` of the scales.

        Args:
            kv: K or V.
            block, slot, head: ints, or int64 tensors that broadcast.
            dim: the same; in rows with scales, an element of the row, its scales included.
        """
        x, block_size, head_size = self.x, self.block_size, self.head_size
        page = self.offset + kv * self.kv_stride + block * self.block_stride
        if self.layout.is_x_packed and kv == K:
            return page + ((head * (head_size // x) + dim // x) * block_size + slot) * x + dim % x
        if self.layout is Layout.X_PACKED:
            return page + (head * head_size + dim) * block_size + slot
        if self.layout is Layout.SHUFFLED:
            return page + ((head * (block_size // x) + slot // x) * head_size + dim) * x + slot % x
        if self.layout.latent_format is not None and self.layout.latent_format.scales_apart:
            data_size = self.layout.block_alignment(head_size, self.head_size_v)
            in_data = slot * data_size + dim
            in_scales = block_size * data_size + slot * (self.row_size - data_size) + dim - data_size
            is_scale = dim // data_size  # 1 from the end of the data on, as a slot has fewer scales than data
            return page + (1 - is_scale) * in_data + is_scale * in_scales
        return page + slot * self.slot_stride + head * self.head_stride + dim

    def tensor(self, raw: torch.Tensor) -> torch.Tensor:
        """The view as a tensor over `raw`, a one-dimensional allocation of elements of the cache's dtype."""
        outer = {"block": self.block_stride, "kv": self.kv_stride, "slot": self.slot_stride, "head": self.head_stride}
        dims, size_of = self.layout.dims, self.size_of
        return raw.as_strided([size_of[dim] for dim in dims], [outer.get(dim, 1) for dim in dims], self.offset)

    @property
    def end(self) -> int:
        """One past the largest element index."""
        last = (self.num_blocks - 1, self.block_size - 1, self.num_kv_heads - 1)
        return max(self.element(kv, *last, self.row_sizes[kv] - 1) for kv in (K, V)) + 1

    def first_block_elements(self) -> tuple[torch.Tensor, torch.Tensor]:
        """[BS, HK, row] int64 of K and of V: the element index of everything in block 0. If V is a part of K, both are K's."""
        slot = torch.arange(self.block_size, device="cpu").view(-1, 1, 1)
        head = torch.arange(self.num_kv_heads, device="cpu").view(-1, 1)
        k, v = (self.element(kv, 0, slot, head, torch.arange(self.row_sizes[kv], device="cpu")) for kv in (K, V))
        return k, v


def _check_sizes(layout: Layout, **sizes: int) -> None:
    check_type("layout", layout, Layout, _A_LAYOUT)
    for name, size in sizes.items():
        check_int(name, size, minimum=0 if name == "num_blocks" else 1)


def _dense_strides(dims: Iterable[str], size_of: Mapping[str, int]) -> dict[str, int]:
    """The strides of an allocation with these dimensions, outermost first, and without padding."""
    strides, stride = {}, 1
    for dim in reversed(tuple(dims)):
        strides[dim] = stride
        stride *= size_of[dim]
    return strides


def _sizes_of(kv_cache: torch.Tensor, layout: Layout, num_kv_heads: int, head_size: int, head_size_v: int | None) -> _Sizes:
    """The sizes that a tensor with the layout's dimensions has, checked against the layer's."""
    shape = f"shape {tuple(kv_cache.shape)}"
    row_size, value_row_size = layout.row_sizes(head_size, head_size_v)
    content = row_size + value_row_size
    expected = {"kv": 2, "head": num_kv_heads, "dim": head_size, "row": row_size, "content": content}
    size = dict(zip(layout.dims, kv_cache.shape, strict=True))
    for axis, dim in enumerate(layout.dims):
        if size[dim] != expected.get(dim, size[dim]):
            raise ContractError("kv_cache", shape, f"{expected[dim]} ({dim}) in dimension {axis} of {layout}")
    slots, rest = divmod(size.get("page", 0), num_kv_heads * row_size)
    if rest:
        slot = f"{num_kv_heads} heads of size {head_size}" if layout.is_x_packed else f"slots of {row_size} elements"
        raise ContractError("kv_cache", shape, f"pages of {slot} in {layout}")
    block_size = size.get("slot", slots)
    if block_size == 0:
        raise ContractError("kv_cache", shape, "at least one slot in a block")
    return {
        "num_blocks": size["block"],
        "block_size": block_size,
        "num_kv_heads": num_kv_heads,
        "head_size": head_size,
        "itemsize": kv_cache.element_size(),
        "head_size_v": head_size_v,
    }
