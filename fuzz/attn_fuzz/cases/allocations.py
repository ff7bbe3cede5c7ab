"""The memory of a case's KV cache: one allocation filled with poison, and the views that its layers have of it.

An allocation has a guard of one block on either side. A kernel that writes too far writes into a guard, where the write is
found, and not into memory of others.
"""

import dataclasses

import torch
from attn_contract import KVCacheView, Layout, PhysicalOrder
from attn_contract.latent_format import E8M0_NAN, LatentFormat
from attn_contract.layouts import K, V
from attn_fuzz.cases.case import Cache, Case
from attn_fuzz.cases.contradictions import ROWS, scatters_heads
from attn_fuzz.cases.idle_strides import idle_stride
from attn_fuzz.cases.poison import DTYPES, leftovers, poison

SCALE_BYTES = 4


def cache_view(case: Case, cache: Cache) -> KVCacheView:
    """The view of the layer under test."""
    view = dataclasses.replace(_strides(case, cache, cache.layer), layout=cache.layout)
    if not case.unlike_strides:
        return view
    free = {"block", "slot", "head"}.intersection(view.layout.dims)
    strides = {f"{dim}_stride": idle_stride(case, view.size_of[dim], getattr(view, f"{dim}_stride")) for dim in free}
    return dataclasses.replace(view, **strides)


def layer_views(case: Case, cache: Cache) -> list[KVCacheView]:
    """The views of all layers that share the allocation, the layer under test included."""
    return [dataclasses.replace(_strides(case, cache, layer), layout=cache.layout) for layer in range(cache.num_layers)]


def writer_view(case: Case, cache: Cache) -> KVCacheView:
    """The view through which this step is written. It may address the same elements by another layout."""
    return dataclasses.replace(cache_view(case, cache), layout=cache.writer or cache.layout)


def neighbour_view(case: Case, cache: Cache, layout: Layout) -> KVCacheView:
    """The view of a second layer, whose layout arranges the elements of each block differently."""
    view = cache_view(case, cache)
    if layout.has_latent_value or ("content" in layout.dims and cache.holds_content_rows):
        return dataclasses.replace(view, layout=layout)
    # pages in a block, or a head's rows of K and then those of V where other blocks lie between the heads
    rows = cache.block_size * (case.head_size + cache.slot_padding)
    kv_stride = view.kv_stride
    if not cache.planes:
        kv_stride = rows if scatters_heads(case, cache) else rows * case.num_kv_heads
    interior = _interior(case, cache, layout)
    if scatters_heads(case, cache):
        interior |= {"slot_stride": case.head_size, "head_stride": view.head_stride}
    return dataclasses.replace(view, layout=layout, **{"kv_stride": kv_stride, **interior})


def place_of(view: KVCacheView, element: int) -> str:
    """The part of a layer that an element of its allocation belongs to, in words."""
    first_of_block = torch.arange(view.num_blocks).view(-1, 1, 1, 1) * view.block_stride
    for name, inside in zip("KV", view.first_block_elements(), strict=True):
        if len(found := (inside + first_of_block == element).nonzero()):
            block, slot, head, dim = found[0].tolist()
            return f"{name} of block {block}, slot {slot}, head {head}, dim {dim}"
    return f"element {element} of the allocation, which belongs to no block"


def poisoned(case: Case, cache: Cache, device: torch.device | str) -> torch.Tensor:
    """The raw allocation before anything is written: poison, and NaN in the scales of every layer's rows; or finite numbers."""
    dtype, size = DTYPES[cache.dtype or case.dtype], 2 * _guard(case, cache) + _size(case, cache)
    if case.finite_slots:
        return leftovers((size,), dtype, device)
    raw = poison((size,), dtype, device)
    if cache.layout.latent_format is not None:
        row = _poisoned_row(case, cache, cache.layout.latent_format, device)
        raw.view(torch.uint8)[rows_of_latent(cache_view(case, cache), device)] = row
    elif cache.layout.has_inline_scales:
        scale = poison((1,), torch.float32, device).view(torch.uint8)
        for layer in range(cache.num_layers):
            raw.view(torch.uint8)[
                _inline_scales(dataclasses.replace(_strides(case, cache, layer), layout=cache.layout), device)
            ] = scale
    return raw


def _poisoned_row(case: Case, cache: Cache, form: LatentFormat, device: torch.device | str) -> torch.Tensor:
    """[row] uint8: a slot of a latent cache with scales, of poison of each of its types.

    The padding after the scales is filled as the scales are.
    """
    quantized = form.quantized_size(case.head_size, case.head_size_v)
    codes = poison((quantized,), DTYPES[cache.dtype or case.dtype], device).view(torch.uint8)
    kept = poison((case.head_size - quantized,), torch.bfloat16, device).view(torch.uint8)
    size = form.scales_size(case.head_size, case.head_size_v)
    if form.scale_dtype == torch.float32:
        scales = poison((size // 4,), torch.float32, device).view(torch.uint8)
    else:
        scales = codes.new_full((size,), E8M0_NAN)
    return torch.cat([codes, kept, scales] if form.scales_apart else [codes, scales, kept])


def poisoned_scales(case: Case, cache: Cache, device: torch.device | str) -> dict[str, torch.Tensor]:
    """Buffers full of NaN, whose inner parts are k_scale_cache and v_scale_cache. Empty unless each token has a scale.

    With unlike strides, the buffer of V's scales lies in memory as [HK, NB, BS].
    """
    if cache.scales != "token":
        return {}
    shape = (cache.num_blocks + 2, cache.block_size, case.num_kv_heads + 1)
    unused = leftovers if case.finite_slots else poison
    buffers = {name: unused(shape, torch.float32, device) for name in ("k_scale_cache", "v_scale_cache")}
    if case.unlike_strides:
        buffers["v_scale_cache"] = unused((shape[2], *shape[:2]), torch.float32, device).permute(1, 2, 0)
    return buffers


def inside(scales: torch.Tensor) -> torch.Tensor:
    """[NB, BS, HK] of a buffer of scales."""
    return scales[1:-1, :, :-1]


def _strides(case: Case, cache: Cache, layer: int) -> KVCacheView:
    """The strides of a layer's view, which do not depend on the layout's name."""
    guard = _guard(case, cache)
    sizes = {
        "num_blocks": cache.num_blocks,
        "block_size": cache.block_size,
        "num_kv_heads": case.num_kv_heads,
        "head_size": case.head_size,
        "itemsize": case.itemsize,
        "head_size_v": case.head_size_v,
    }
    if cache.holds_content_rows:
        strides = _content_strides(case, cache)
        return KVCacheView(
            layout=Layout.CONTENT_PACKED_SCALED if cache.layout.has_inline_scales else Layout.CONTENT_PACKED,
            **sizes,
            kv_stride=_row_sizes(case, cache)[K],
            block_stride=strides["B"],
            slot_stride=strides["N"],
            head_stride=strides["H"],
            offset=guard + layer * strides["L"],
        )
    page, block_stride = _page_size(case, cache), _block_stride(case, cache)
    return KVCacheView(
        layout=cache.layout,
        **sizes,
        kv_stride=cache.num_blocks * block_stride if cache.planes else page * (_pages(cache) - 1),
        block_stride=block_stride,
        **_interior(case, cache, cache.layout),
        offset=guard,
    )


def _interior(case: Case, cache: Cache, layout: Layout) -> dict[str, int]:
    """Strides in a page whose dimensions are dense, in the order that the layout has them in."""
    view = KVCacheView.dense(
        layout,
        num_blocks=1,
        block_size=cache.block_size,
        num_kv_heads=case.num_kv_heads,
        head_size=case.head_size + (cache.slot_padding if layout in ROWS else 0),
        head_size_v=case.head_size_v,
        itemsize=case.itemsize,
    )
    of_latent = cache.slot_padding if layout.has_latent_value else 0
    strides = {"slot_stride": view.slot_stride + of_latent, "head_stride": view.head_stride}
    return strides | ({"kv_stride": view.kv_stride} if "content" in layout.dims else {})


def _page_size(case: Case, cache: Cache) -> int:
    """Elements from the first row of K or V of a block to the end of its last row."""
    return cache.block_size * case.num_kv_heads * (_row_sizes(case, cache)[K] + cache.slot_padding)


def _block_stride(case: Case, cache: Cache) -> int:
    """The elements from a block to the next, if no other layer's blocks lie between them."""
    stride, unit = (
        _pages(cache) * _page_size(case, cache) + cache.padding,
        cache.layout.block_alignment(case.head_size, case.head_size_v),
    )
    return -(-stride // unit) * unit


def _pages(cache: Cache) -> int:
    """Pages of K and of V that lie side by side in a block. V has none in a plane of its own, or as the beginning of K."""
    return 1 if cache.planes or cache.layout.has_latent_value else 2


def _content_strides(case: Case, cache: Cache) -> dict[str, int]:
    """The stride of each dimension of the physical order, and the whole's size as "". Padding follows the dims of one block."""
    sizes = {
        "L": cache.num_layers,
        "B": cache.num_blocks,
        "H": case.num_kv_heads,
        "N": cache.block_size,
        "C": sum(_row_sizes(case, cache)),
    }
    strides, stride = {}, 1
    for dim in reversed(PhysicalOrder(cache.order)):
        stride += cache.padding if dim == "B" else 0
        strides[dim] = stride
        stride *= sizes[dim]
    return {**strides, "": stride}


def _row_sizes(case: Case, cache: Cache) -> tuple[int, int]:
    return cache.layout.row_sizes(case.head_size, case.head_size_v)


def _size(case: Case, cache: Cache) -> int:
    """Elements of the allocation without its guards."""
    if cache.holds_content_rows:
        return _content_strides(case, cache)[""]
    return cache.num_blocks * (2 if cache.planes else 1) * _block_stride(case, cache)


def inside_guards(case: Case, cache: Cache) -> slice:
    """The elements of the allocation that belong to its layers."""
    return slice(_guard(case, cache), _guard(case, cache) + _size(case, cache))


def _guard(case: Case, cache: Cache) -> int:
    """The number of elements of each guard, before the first block and after the last: as many as one block."""
    row_size = sum(_row_sizes(case, cache)) + 2 * cache.slot_padding
    size = cache.block_size * case.num_kv_heads * row_size + cache.padding
    return size + _is_at_an_odd_byte(case, cache)


def _is_at_an_odd_byte(case: Case, cache: Cache) -> bool:
    """True if a cache of bytes begins one byte later. Caches with wider numbers in their rows, or in pieces of 16 bytes, never
    do."""
    has_bytes = cache.dtype is not None and not (cache.layout.has_inline_scales or cache.layout.is_x_packed)
    return case.unlike_strides and has_bytes and cache.writer is None and cache.neighbour is None


def rows_of_latent(view: KVCacheView, device: torch.device | str) -> torch.Tensor:
    """[NB, BS, row] int64: the elements of all rows of a latent cache."""
    block = torch.arange(view.num_blocks, device=device).view(-1, 1, 1)
    slot = torch.arange(view.block_size, device=device).view(-1, 1)
    return view.element(K, block, slot, 0, torch.arange(view.row_size, device=device))


def _inline_scales(view: KVCacheView, device: torch.device | str) -> torch.Tensor:
    """[2, NB, BS, HK, 4] int64: the elements that hold the scales of all slots."""
    block = torch.arange(view.num_blocks, device=device).view(-1, 1, 1, 1)
    slot = torch.arange(view.block_size, device=device).view(-1, 1, 1)
    head = torch.arange(view.num_kv_heads, device=device).view(-1, 1)
    byte = view.head_size + torch.arange(SCALE_BYTES, device=device)
    return torch.stack([view.element(kv, block, slot, head, byte) for kv in (K, V)])
