"""Dimensions of the KV cache: its layout, its allocation, its dtype, its scales, and what unused slots hold."""

import itertools
from collections.abc import Callable, Collection
from typing import Any, get_args

import torch
from attn_contract import KVCacheView, Layout, PhysicalOrder
from attn_contract.latent_format import LatentFormat
from attn_fuzz.cases.case import Cache, Case, Float8, Quantized, ScaleKind
from attn_fuzz.cases.dimensions.dimension import (
    Asks,
    Dimension,
    Setting,
    Value,
    aspect,
    dimension,
    feature,
    has,
    idle_stride,
    illegal,
    in_step,
    not_drawn,
    of_cache,
    of_tensor,
    of_view,
    region,
    setting,
    unscoped,
)
from attn_fuzz.cases.poison import LEFTOVER

PACKED: dict[str, Any] = {"layout": Layout.CONTENT_PACKED}


def _settings_of(layout: Layout) -> tuple[Setting, ...]:
    """Scopes have layouts that store K and V apart. A target of a latent layout has it in its plainest call."""
    own = {"layout": layout}
    if layout.latent_format is not None:
        sizes = {"dtype": "bfloat16", **_smallest_sizes(layout, layout.latent_format)}
        return tuple(unscoped({**own, "dtype": dtype, "scales": None}, **sizes) for dtype in get_args(Float8))
    if layout.has_latent_value:
        return (unscoped(own, head_size_v=8),)
    if layout.has_inline_scales:
        int8 = setting({**own, "dtype": "int8"})
        return int8, *(unscoped({**own, "dtype": dtype, "scales": None}) for dtype in get_args(Quantized))
    if layout.is_x_packed:
        return setting({**own, "block_size": 4}), unscoped(own)
    return (unscoped(own) if layout is Layout.BLOCKS_FIRST_NHD else setting(own),)


def _smallest_sizes(layout: Layout, form: LatentFormat) -> dict[str, int]:
    """The least head_size and head_size_v of a latent format with scales, with two dims after V if it may have any."""
    past_v, kept = (2, 0) if form.kept_dims is None else (0, form.kept_dims)
    for count in itertools.count(1):
        v_head_size = count * form.scale_dims + kept
        if layout.has_widths(v_head_size + past_v, v_head_size):
            return {"head_size": v_head_size + past_v, "head_size_v": v_head_size}
    raise AssertionError


def _layout(layout: Layout) -> Value:
    return feature(str(layout), of_cache(lambda cache: cache.layout is layout), *_settings_of(layout), layouts=has(layout))


def _any_layout(holds: Callable[[Layout], object]) -> Callable[[Collection[Layout]], bool]:
    return lambda layouts: any(map(holds, layouts))


def _holds_content(layout: Layout) -> bool:
    return "content" in layout.dims


def _has_planes(layout: Layout) -> bool:
    return not _holds_content(layout) and not layout.has_latent_value


def _has_padded_rows(layout: Layout) -> bool:
    return layout.has_latent_value and not layout.has_dense_pages


def _may_share(layouts: Collection[Layout]) -> bool:
    return sum(not (layout.has_inline_scales or layout.has_latent_value) for layout in layouts) > 1


def _order(order: PhysicalOrder) -> Value:
    second = {**PACKED, "order": order, "num_layers": 2, "layer": 1}
    settings = (setting(second, num_kv_heads=2), unscoped({"order": order, "writer": Layout.CONTENT_PACKED}))
    asks: dict[str, Asks] = {"layouts": _any_layout(_holds_content), "orders": has(order)}
    return feature(
        f"order {order}", of_cache(lambda cache: cache.holds_content_rows and cache.order is order), *settings, **asks
    )


def _allocation(fields: str, contract: str = "") -> Callable[..., Dimension]:
    """A dimension of some fields of Cache, and of KVCacheView."""
    names = " ".join(f"cache.{name}" for name in fields.split())
    of_contract = " ".join(f"KVCacheView.{name}" for name in contract.split())
    return dimension(fields.split()[0], "allocation", names, of_contract, choice="layout", needs_cache=True)


def _of_blocks(name: str, holds: Callable[[KVCacheView], object]) -> Value:
    return of_view(name, lambda view: view.num_blocks > 1 and holds(view))


def _of_heads(name: str, holds: Callable[[KVCacheView], object]) -> Value:
    """A region of views whose blocks have several slots and several heads: one of the two lies inside the other."""
    return of_view(name, lambda view: view.block_size > 1 and view.num_kv_heads > 1 and holds(view))


def _is_dense(view: KVCacheView) -> bool:
    return view.block_stride % (view.block_size * view.num_kv_heads * view.row_size) == 0


def _is_written_elsewhere(case: Case) -> bool:
    return case.cache is not None and case.writes and case.cache.writer not in (None, case.cache.layout)


def _has_neighbour(cache: Cache) -> bool:
    return cache.neighbour not in (None, cache.layout)


_LAYERS = (unscoped({**PACKED, "num_layers": 2}), unscoped({"num_layers": 2, "writer": Layout.CONTENT_PACKED}))
_PADDED_ROWS = (setting({"slot_padding": 4}), unscoped({"layout": Layout.LATENT, "slot_padding": 4}, head_size_v=8))
_WRITERS = (
    setting({"writer": Layout.KV_FIRST_HND}),
    setting({"planes": True, "writer": Layout.BLOCKS_FIRST_HND}),
    *(unscoped({"writer": layout}) for layout in (Layout.BLOCKS_FIRST_HND, Layout.CONTENT_PACKED)),
    *(unscoped({"writer": layout, "block_size": n}) for layout in (Layout.X_PACKED, Layout.SHUFFLED) for n in (4, 8, 16)),
)
_NEIGHBOURS = (setting({"neighbour": Layout.KV_FIRST_NHD}), unscoped({"neighbour": Layout.BLOCKS_FIRST_NHD}))
_SHARED: dict[str, Asks] = {"layouts": _may_share, "other_views": bool}


def _is_no_power_of_two(number: int) -> bool:
    return number.bit_count() > 1


ALLOCATION = (
    dimension("layout", "layout", "cache.layout", "Layer.layout KVCacheView.layout", needs_cache=True)(*map(_layout, Layout)),
    _allocation("order")(*map(_order, PhysicalOrder)),
    _allocation("num_layers layer")(
        feature(
            "interleaved layers",
            of_cache(lambda cache: cache.num_layers > 1),
            *_LAYERS,
            layouts=_any_layout(_holds_content),
            num_layers=lambda counts: max(counts) > 1,
        ),
        of_view("blocks or layers between heads", lambda view: view.head_stride > view.block_stride > 0),
    ),
    _allocation("planes", "kv_stride")(
        feature(
            "K and V planes",
            of_cache(lambda cache: cache.planes),
            setting({"planes": True}),
            layouts=_any_layout(_has_planes),
            planes=has(True),
        ),
        _of_blocks("planes of several blocks", lambda view: view.kv_stride > view.block_stride),
        _of_blocks("V beside K in a block", lambda view: view.kv_stride < view.block_stride),
        of_view("V is the beginning of K's row", lambda view: view.kv_stride == 0),
        not_drawn("beyond 31 bits", "a target's own: the rows of `triton@far` lie so far apart"),
    ),
    _allocation("padding", "block_stride")(
        feature("padded blocks", of_cache(lambda c: c.padding), setting({"padding": 8}), padding=any),
        of_view("dense", _is_dense),
    ),
    _allocation("slot_padding", "slot_stride head_stride")(
        feature(
            "padded rows",
            of_cache(lambda cache: cache.slot_padding and cache.layout.has_latent_value),
            *_PADDED_ROWS,
            layouts=_any_layout(_has_padded_rows),
            padding=any,
        ),
        _of_heads("heads inside a slot", lambda view: view.slot_stride > view.head_stride),
        _of_heads("slots inside a head", lambda view: view.head_stride > view.slot_stride),
        of_view("a stride of slots without a meaning", lambda view: view.slot_stride == 0),
    ),
    _allocation("block_size", "block_size")(
        feature(
            "block size no power of two",
            of_cache(lambda cache: _is_no_power_of_two(cache.block_size)),
            unscoped({"block_size": 48}),
            block_sizes=lambda sizes: any(map(_is_no_power_of_two, sizes)),
        ),
        region("1", of_cache(lambda cache: cache.block_size == 1)),
        region("above 128", of_cache(lambda cache: cache.block_size > 128)),
    ),
    _allocation("writer")(feature("writer in another layout", _is_written_elsewhere, *_WRITERS, **_SHARED)),
    _allocation("neighbour")(feature("neighbour in another layout", of_cache(_has_neighbour), *_NEIGHBOURS, **_SHARED)),
)


def _dtype(dtype: Quantized, *settings: Setting) -> Value:
    apart = (unscoped({"dtype": dtype, "scales": "token"}), unscoped({"dtype": dtype, "scales": None}))
    return feature(f"cache {dtype}", of_cache(lambda c: c.dtype == dtype), *settings, *apart, cache_dtypes=has(dtype))


def _scale_per(kind: ScaleKind, words: str, *dtypes: Quantized) -> Value:
    own = {dtype: {"dtype": dtype, "scales": kind} for dtype in dtypes}
    settings = [setting(own[dtype], num_kv_heads=2) for dtype in dtypes]
    others = (unscoped({"scales": kind}), unscoped(own[dtypes[0]]))
    holds = of_cache(lambda cache: cache.scales == kind)
    return feature(f"scale per {words}", holds, *settings, *others, cache_dtypes=any, scales=has(kind))


def of_scale(name: str) -> tuple[Value, ...]:
    """Regions of k_scale, v_scale and output_scale."""
    return (
        of_tensor(name, "below 1", lambda scale: (scale < 1).any()),
        of_tensor(name, "1 or more", lambda scale: (scale >= 1).any()),
        of_tensor(name, "shape ()", lambda scale: scale.dim() == 0),
        of_tensor(name, "shape (1,)", lambda scale: scale.shape == (1,)),
        idle_stride(name),
    )


def _of_scales(name: str) -> tuple[Value, ...]:
    """Regions of k_scale_cache and v_scale_cache."""
    return (
        of_tensor(name, "dense rows of heads", lambda scales: scales.stride(2) == 1),
        of_tensor(name, "NaN in slots without a key", lambda scales: scales.isnan().any()),
        of_tensor(name, "negative", lambda scales: (scales < 0).any()),
        idle_stride(name),
    )


ONE_SCALE = (
    not_drawn("beyond 2^-6 to 2^4", "a factor of numbers with a few bits: another power of two changes no rounding"),
    illegal("below 2^-126, NaN, infinity", "`validation.values` refuses them: kernels divide by it"),
)


def _is_by_heads(scales: torch.Tensor) -> bool:
    """True if scales [NB, BS, HK] of several heads lie in memory head by head."""
    return scales.shape[2] > 1 and scales.stride(2) != 1


def _has_several_scales(view: KVCacheView) -> bool:
    form = view.layout.latent_format
    return form is not None and form.quantized_size(view.head_size, view.head_size_v) > form.scale_dims


_INT8 = {"dtype": "int8", "scales": "token"}
INFINITE = setting(_INT8, num_kv_heads=2, saturated=True)
_SCALES = "Layer.k_scale Layer.v_scale Layer.k_scale_cache Layer.v_scale_cache"
QUANTIZED: dict[str, Any] = {"choice": "quantized cache", "needs_cache": True}
FORMATS = (
    dimension("cache dtype", "cache dtype", "cache.dtype", "Layer.kv_cache_dtype KVCacheView.itemsize", **QUANTIZED)(
        feature("cache of the layer's dtype", of_cache(lambda c: c.dtype is None), unscoped({"dtype": None, "scales": None})),
        _dtype("fp8_e4m3fn", setting({"dtype": "fp8_e4m3fn", "scales": "tensor"})),
        _dtype("fp8_e4m3fnuz", setting({"dtype": "fp8_e4m3fnuz", "scales": "tensor"}), setting({"dtype": "fp8_e4m3fnuz"})),
        _dtype("int8", setting(_INT8, num_kv_heads=2, unlike_strides=True)),
        *(of_view(f"{size} bytes", lambda view, size=size: view.itemsize == size) for size in (1, 2, 4)),
        illegal("float8_e5m2", "Layer refuses it: two bits of mantissa are too few"),
    ),
    dimension("scales", "scales", "cache.scales", _SCALES, **QUANTIZED)(
        _scale_per("tensor", "tensor", "fp8_e4m3fn"),
        _scale_per("head", "head", "fp8_e4m3fn", "fp8_e4m3fnuz"),
        _scale_per("token", "token, separate", "fp8_e4m3fn", "int8"),
        *(value for name in ("k_scale", "v_scale") for value in of_scale(name)),
        *(value for name in ("k_scale_cache", "v_scale_cache") for value in _of_scales(name)),
        of_tensor("v_scale_cache", "strides unlike k_scale_cache", _is_by_heads),
        of_view("several scales of a row", _has_several_scales),
        *ONE_SCALE,
        not_drawn("0 in a scale cache", "the product with a key is 0, as that of a key of zeros"),
    ),
)


def _has_hidden_nan(case: Case) -> bool:
    return case.recycled and any(0 <= case.window[0] < request.context_len for request in case.requests)


SEEN = illegal("NaN, infinity in a key or value that is seen", "the contract says that they are finite")
_OF_A_NEIGHBOUR = "it is of a neighbour's own numbers, which no output may depend on: a neighbour has the harder ones"
CONTENTS = (
    dimension("unused slots", "memory", "recycled finite_slots", "argument.kv_cache", choice="form")(
        aspect("NaN in keys that no query sees", lambda case: case.recycled, setting(recycled=True, window=(1, -1))),
        aspect("NaN in unused slots", lambda case: case.cache is not None and not case.finite_slots),
        region("NaN in keys outside all windows", _has_hidden_nan),
        not_drawn(f"{LEFTOVER} in slots without a key", "NaN shows more; targets that ask for finite slots draw it"),
        SEEN,
    ),
    dimension("neighbour's numbers", "memory", "ordinary_writes", left_out=_OF_A_NEIGHBOUR)(
        in_step("NaN, infinities and zeros", lambda case, step: len(step.writes) > 1 and not case.ordinary_writes),
    ),
)
CACHE = (*ALLOCATION, *FORMATS, *CONTENTS)
