"""Dimensions of the KV cache: its layout, its allocation, its dtype and its scales."""

from collections.abc import Callable, Collection
from typing import get_args

import torch
from attn_contract import ContractError, KVCacheView, Layout, PhysicalOrder
from attn_fuzz.cases.case import Case, Quantized, ScaleKind
from attn_fuzz.cases.dimensions.dimension import (
    Dimension,
    Setting,
    Value,
    aspect,
    feature,
    has,
    idle_stride,
    illegal,
    not_drawn,
    of_cache,
    of_view,
    region,
    setting,
    step_region,
    tensor_regions,
    unscoped,
)
from attn_fuzz.cases.poison import LEFTOVER
from attn_fuzz.cases.tensors import Step

_PLAINEST = Layout.BLOCKS_FIRST_NHD
_FLOAT8 = ("fp8_e4m3fn", "fp8_e4m3fnuz")
_WIDTHS = ((16, 8), (128, 130), (32, 32), (128, 128))
"""head_size_v and head_size of latent caches: each layout has one of them."""


def _settings_of(layout: Layout) -> tuple[Setting, ...]:
    """Scopes have layouts that store K and V apart. A target of a latent layout has it in its plainest call."""
    own = {"layout": layout}
    if layout.has_latent_scales:
        head_size_v, head_size = next(widths for widths in _WIDTHS if _fits(layout, *widths))
        sizes = {"dtype": "bfloat16", "head_size": head_size, "head_size_v": head_size_v}
        return tuple(unscoped({**own, "dtype": dtype, "scales": None}, **sizes) for dtype in _FLOAT8)
    if layout.has_latent_value:
        return (unscoped(own, head_size_v=8),)
    if layout.has_inline_scales:
        int8 = setting(f"int8 in {layout}", {**own, "dtype": "int8"})
        return int8, *(unscoped({**own, "dtype": dtype, "scales": None}) for dtype in get_args(Quantized))
    if layout is _PLAINEST:
        return (unscoped(own),)
    return (
        (setting(str(layout), {**own, "block_size": 4}), unscoped(own)) if layout.is_x_packed else (setting(str(layout), own),)
    )


def _fits(layout: Layout, head_size_v: int, head_size: int) -> bool:
    try:
        layout.check_widths(head_size, head_size_v)
    except ContractError:
        return False
    return True


def _layout(layout: Layout) -> Value:
    return feature(str(layout), of_cache(lambda cache: cache.layout is layout), *_settings_of(layout), layouts=has(layout))


LAYOUT = Dimension(
    name="layout",
    group="layout",
    fields=("cache.layout",),
    contract=("Layer.layout", "KVCacheView.layout"),
    values=(
        *map(_layout, Layout),
        region("none", lambda case: case.cache is None),
        region("any head size of a layer", lambda case: case.cache is not None),
    ),
    needs_cache=True,
)


def _any_layout(holds: Callable[[Layout], object]) -> Callable[[Collection[Layout]], bool]:
    return lambda layouts: any(map(holds, layouts))


def _holds_content(layout: Layout) -> bool:
    return "content" in layout.dims


def _may_be_shared(layouts: Collection[Layout]) -> bool:
    return sum(not (layout.has_inline_scales or layout.has_latent_value) for layout in layouts) > 1


def _order(order: PhysicalOrder) -> Value:
    second = {"layout": Layout.CONTENT_PACKED, "order": order, "num_layers": 2, "layer": 1}
    return feature(
        f"order {order}",
        of_cache(lambda cache: cache.holds_content_rows and cache.order is order),
        setting(f"the second of 2 layers in {order}", second, num_kv_heads=2),
        unscoped({"order": order, "writer": Layout.CONTENT_PACKED}),
        layouts=_any_layout(_holds_content),
        orders=has(order),
    )


def _allocation(name: str, *values: Value, fields: tuple[str, ...], contract: tuple[str, ...] = ()) -> Dimension:
    return Dimension(
        name=name,
        group="allocation",
        fields=tuple(f"cache.{field}" for field in fields),
        contract=tuple(f"KVCacheView.{field}" for field in contract),
        values=values,
        choice="layout",
        needs_cache=True,
    )


def _has_both(view: KVCacheView) -> bool:
    """Whether a block has several slots and several heads, so that one of the two lies inside the other."""
    return view.block_size > 1 and view.num_kv_heads > 1


def _is_dense(view: KVCacheView) -> bool:
    return view.block_stride % (view.block_size * view.num_kv_heads * view.row_size) == 0


def _is_written_elsewhere(case: Case) -> bool:
    return case.cache is not None and case.writes and case.cache.writer not in (None, case.cache.layout)


def _views(*layouts: Layout, block_sizes: tuple[int, ...]) -> tuple[Setting, ...]:
    return tuple(unscoped({"writer": layout, "block_size": size}) for layout in layouts for size in block_sizes)


ALLOCATION = (
    _allocation("order", *map(_order, PhysicalOrder), fields=("order",)),
    _allocation(
        "num_layers",
        feature(
            "interleaved layers",
            of_cache(lambda cache: cache.num_layers > 1),
            unscoped({"num_layers": 2, "layout": Layout.CONTENT_PACKED}),
            unscoped({"num_layers": 2, "writer": Layout.CONTENT_PACKED}),
            layouts=_any_layout(_holds_content),
            num_layers=lambda counts: max(counts) > 1,
        ),
        step_region("blocks or layers between heads", of_view(lambda view: view.head_stride > view.block_stride > 0)),
        fields=("num_layers", "layer"),
    ),
    _allocation(
        "planes",
        feature(
            "K and V planes",
            of_cache(lambda cache: cache.planes),
            setting("K and V planes", {"planes": True}),
            layouts=_any_layout(lambda layout: not _holds_content(layout) and not layout.has_latent_value),
            planes=has(True),
        ),
        step_region("planes of 2 blocks", of_view(lambda view: view.num_blocks > 1 and view.kv_stride > view.block_stride)),
        step_region("V beside K in a block", of_view(lambda view: view.num_blocks > 1 and view.kv_stride < view.block_stride)),
        step_region("V is the beginning of K's row", of_view(lambda view: view.kv_stride == 0)),
        not_drawn("beyond 31 bits", "a target's own: the rows of `triton-far` lie so far apart"),
        fields=("planes",),
        contract=("kv_stride",),
    ),
    _allocation(
        "padding",
        feature("padded blocks", of_cache(lambda cache: cache.padding), setting("padded blocks", {"padding": 8}), padding=any),
        step_region("dense", of_view(_is_dense)),
        fields=("padding",),
        contract=("block_stride",),
    ),
    _allocation(
        "slot_padding",
        feature(
            "padded rows",
            of_cache(lambda cache: cache.slot_padding),
            setting("padded rows of a latent cache", {"slot_padding": 4}),
            unscoped({"slot_padding": 4, "layout": Layout.LATENT}, head_size_v=8),
            layouts=_any_layout(lambda layout: layout.has_latent_value and not layout.has_dense_pages),
            padding=any,
        ),
        step_region("heads inside a slot", of_view(lambda view: _has_both(view) and view.slot_stride > view.head_stride)),
        step_region("slots inside a head", of_view(lambda view: _has_both(view) and view.head_stride > view.slot_stride)),
        step_region("a stride of slots without a meaning", of_view(lambda view: view.slot_stride == 0)),
        fields=("slot_padding",),
        contract=("slot_stride", "head_stride"),
    ),
    _allocation(
        "block_size",
        feature(
            "block size no power of two",
            of_cache(lambda cache: cache.block_size.bit_count() > 1),
            unscoped({"block_size": 48}),
            block_sizes=lambda sizes: any(size.bit_count() > 1 for size in sizes),
        ),
        region("1", of_cache(lambda cache: cache.block_size == 1)),
        region("a power of two", of_cache(lambda cache: cache.block_size.bit_count() == 1)),
        region("above 128", of_cache(lambda cache: cache.block_size > 128)),
        fields=("block_size",),
        contract=("block_size",),
    ),
    _allocation(
        "writer",
        feature(
            "writer in another layout",
            _is_written_elsewhere,
            setting("written in another layout", {"writer": Layout.KV_FIRST_HND}),
            setting("planes, written in another layout", {"planes": True, "writer": Layout.BLOCKS_FIRST_HND}),
            *_views(Layout.BLOCKS_FIRST_HND, Layout.CONTENT_PACKED, block_sizes=(16,)),
            *_views(Layout.X_PACKED, Layout.SHUFFLED, block_sizes=(4, 8, 16)),
            layouts=_may_be_shared,
            other_views=bool,
        ),
        fields=("writer",),
    ),
    _allocation(
        "neighbour",
        feature(
            "neighbour in another layout",
            of_cache(lambda cache: cache.neighbour not in (None, cache.layout)),
            setting("a neighbour in another layout", {"neighbour": Layout.KV_FIRST_NHD}),
            unscoped({"neighbour": Layout.BLOCKS_FIRST_NHD}),
            layouts=_may_be_shared,
            other_views=bool,
        ),
        fields=("neighbour",),
    ),
)


def _cache_dtype(dtype: Quantized, *settings: Setting) -> Value:
    apart = (unscoped({"dtype": dtype, "scales": "token"}), unscoped({"dtype": dtype, "scales": None}))
    return feature(f"cache {dtype}", of_cache(lambda cache: cache.dtype == dtype), *settings, *apart, cache_dtypes=has(dtype))


def _one_scale(dtype: Quantized) -> Setting:
    return setting(f"{dtype}, one scale", {"dtype": dtype, "scales": "tensor"})


def _scale_per(kind: ScaleKind, words: str, *dtypes: Quantized) -> Value:
    return feature(
        f"scale per {words}",
        of_cache(lambda cache: cache.scales == kind),
        *(setting(f"{dtype}, a scale per {kind}", {"dtype": dtype, "scales": kind}, num_kv_heads=2) for dtype in dtypes),
        unscoped({"scales": kind}),
        unscoped({"dtype": dtypes[-1], "scales": kind}),
        cache_dtypes=any,
        scales=has(kind),
    )


CACHE_DTYPE = Dimension(
    name="cache dtype",
    group="cache dtype",
    fields=("cache.dtype",),
    contract=("Layer.kv_cache_dtype", "KVCacheView.itemsize"),
    values=(
        feature(
            "cache of the layer's dtype",
            of_cache(lambda cache: cache.dtype is None),
            unscoped({"dtype": None, "scales": None}),
        ),
        _cache_dtype("fp8_e4m3fn", _one_scale("fp8_e4m3fn")),
        _cache_dtype(
            "fp8_e4m3fnuz",
            _one_scale("fp8_e4m3fnuz"),
            setting("fp8_e4m3fnuz in latent rows with scales", {"dtype": "fp8_e4m3fnuz"}),
        ),
        _cache_dtype(
            "int8",
            setting(
                "int8, scales of unlike strides",
                {"dtype": "int8", "scales": "token"},
                num_kv_heads=2,
                unlike_strides=True,
            ),
        ),
        *(step_region(f"{size} bytes", of_view(lambda view, size=size: view.itemsize == size)) for size in (1, 2, 4)),
        illegal("float8_e5m2", "Layer refuses it: two bits of mantissa are too few"),
    ),
    choice="quantized cache",
    needs_cache=True,
)


def regions_of_scale(name: str) -> tuple[Value, ...]:
    """Regions of k_scale, v_scale and output_scale."""
    return (
        *tensor_regions(
            name,
            {
                f"{name} below 1": lambda scale: (scale < 1).any(),
                f"{name} of 1 or more": lambda scale: (scale >= 1).any(),
                f"{name} of shape ()": lambda scale: scale.dim() == 0,
                f"{name} of shape (1,)": lambda scale: scale.shape == (1,),
            },
        ),
        idle_stride(name),
    )


ONE_SCALE = (
    not_drawn("beyond 2^-6 to 2^4", "a factor of numbers with a few bits: another power of two changes no rounding"),
    illegal("below 2^-126, NaN, infinity", "`validation.values` refuses them: kernels divide by it"),
)


def _is_by_heads(scales: torch.Tensor) -> bool:
    """Whether scales [NB, BS, HK] of several heads lie in memory head by head."""
    return scales.shape[2] > 1 and scales.stride(2) != 1


def _has_several_scales(view: KVCacheView) -> bool:
    return view.layout.has_latent_scales and view.layout.quantized_size(view.head_size_v or 0) > view.layout.dims_of_scale


def _regions_of_scales(name: str) -> tuple[Value, ...]:
    """Regions of k_scale_cache and v_scale_cache."""
    return (
        *tensor_regions(
            name,
            {
                f"{name} of dense rows of heads": lambda scales: scales.stride(2) == 1,
                f"{name} with NaN in slots without a key": lambda scales: scales.isnan().any(),
                f"{name}, negative": lambda scales: (scales < 0).any(),
            },
        ),
        idle_stride(name),
    )


SCALES = Dimension(
    name="scales",
    group="scales",
    fields=("cache.scales",),
    contract=tuple(f"Layer.{name}" for name in ("k_scale", "v_scale", "k_scale_cache", "v_scale_cache")),
    values=(
        _scale_per("tensor", "tensor", "fp8_e4m3fn"),
        _scale_per("head", "head", "fp8_e4m3fn", "fp8_e4m3fnuz"),
        _scale_per("token", "token, separate", "fp8_e4m3fn", "int8"),
        *regions_of_scale("k_scale"),
        *regions_of_scale("v_scale"),
        *_regions_of_scales("k_scale_cache"),
        *_regions_of_scales("v_scale_cache"),
        *tensor_regions("v_scale_cache", {"v_scale_cache with strides unlike k_scale_cache's": _is_by_heads}),
        step_region("several scales of a row", of_view(_has_several_scales)),
        *ONE_SCALE,
        not_drawn("0 in a scale cache", "the product with a key is 0, as that of a key of zeros"),
    ),
    choice="quantized cache",
    needs_cache=True,
)


def _has_hidden_nan(case: Case) -> bool:
    return case.recycled and any(0 <= case.window[0] < request.context_len for request in case.requests)


def _writes_special_numbers(case: Case, step: Step) -> bool:
    return len(step.writes) > 1 and not case.ordinary_writes


SEEN = "the contract says that the K and V of a key that some query of the request sees are finite"
UNUSED_SLOTS = Dimension(
    name="unused slots",
    group="memory",
    fields=("recycled", "finite_slots"),
    contract=("argument kv_cache",),
    values=(
        aspect(
            "NaN in keys that no query sees",
            lambda case: case.recycled,
            setting("NaN in keys that no query sees", recycled=True, window=(1, -1)),
        ),
        aspect("NaN in unused slots", lambda case: case.cache is not None and not case.finite_slots),
        region("NaN in keys outside all windows", _has_hidden_nan),
        not_drawn(f"{LEFTOVER} in slots without a key", "NaN shows more; targets that ask for finite slots draw it"),
        illegal("NaN, infinity in a key or value that is seen", SEEN),
    ),
    choice="form",
)
NEIGHBOURS_NUMBERS = Dimension(
    name="ordinary_writes",
    fields=("ordinary_writes",),
    values=(step_region("NaN, infinities and zeros that are written", _writes_special_numbers),),
    left_out="it is of a neighbour's own numbers, which no output may depend on: a neighbour has the harder ones",
)
CACHE = (LAYOUT, *ALLOCATION, CACHE_DTYPE, SCALES, UNUSED_SLOTS, NEIGHBOURS_NUMBERS)
