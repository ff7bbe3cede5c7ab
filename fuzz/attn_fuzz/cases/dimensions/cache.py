"""Dimensions of the KV cache: its layout, its allocation, its dtype, its scales, and what unused slots hold."""

import itertools
from collections.abc import Callable, Collection
from typing import Any, get_args

from attn_contract import Layout, PhysicalOrder
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
    of_cache,
    setting,
)

PACKED: dict[str, Any] = {"layout": Layout.CONTENT_PACKED}


def _settings_of(layout: Layout) -> tuple[Setting, ...]:
    own = {"layout": layout}
    if layout.latent_format is not None:
        sizes = {"dtype": "bfloat16", **_smallest_sizes(layout, layout.latent_format)}
        return tuple(setting({**own, "dtype": dtype, "scales": None}, **sizes) for dtype in get_args(Float8))
    if layout.has_latent_value:
        return (setting(own, head_size_v=8),)
    if layout.has_inline_scales:
        return tuple(setting({**own, "dtype": dtype, "scales": None}) for dtype in get_args(Quantized))
    if layout.is_x_packed:
        return setting({**own, "block_size": 4}), setting(own)
    return (setting(own),)


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
    settings = (setting(second, num_kv_heads=2), setting({"order": order, "writer": Layout.CONTENT_PACKED}))
    asks: dict[str, Asks] = {"layouts": _any_layout(_holds_content), "orders": has(order)}
    return feature(
        f"order {order}", of_cache(lambda cache: cache.holds_content_rows and cache.order is order), *settings, **asks
    )


def _allocation(fields: str) -> Callable[..., Dimension]:
    """A dimension of some fields of Cache."""
    names = " ".join(f"cache.{name}" for name in fields.split())
    return dimension(fields.split()[0], "allocation", names, needs_cache=True)


def _is_written_elsewhere(case: Case) -> bool:
    return case.cache is not None and case.writes and case.cache.writer not in (None, case.cache.layout)


def _has_neighbour(cache: Cache) -> bool:
    return cache.neighbour not in (None, cache.layout)


_LAYERS = (setting({**PACKED, "num_layers": 2}), setting({"num_layers": 2, "writer": Layout.CONTENT_PACKED}))
_PADDED_ROWS = (setting({"slot_padding": 4}), setting({"layout": Layout.LATENT, "slot_padding": 4}, head_size_v=8))
_WRITERS = (
    setting({"writer": Layout.KV_FIRST_HND}),
    setting({"planes": True, "writer": Layout.BLOCKS_FIRST_HND}),
    *(setting({"writer": layout}) for layout in (Layout.BLOCKS_FIRST_HND, Layout.CONTENT_PACKED)),
    *(setting({"writer": layout, "block_size": n}) for layout in (Layout.X_PACKED, Layout.SHUFFLED) for n in (4, 8, 16)),
)
_NEIGHBOURS = (setting({"neighbour": Layout.KV_FIRST_NHD}), setting({"neighbour": Layout.BLOCKS_FIRST_NHD}))
_SHARED: dict[str, Asks] = {"layouts": _may_share, "other_views": bool}


def _is_no_power_of_two(number: int) -> bool:
    return number.bit_count() > 1


ALLOCATION = (
    dimension("layout", "layout", "cache.layout", of_layers=True, needs_cache=True)(*map(_layout, Layout)),
    _allocation("order")(*map(_order, PhysicalOrder)),
    _allocation("num_layers layer")(
        feature(
            "interleaved layers",
            of_cache(lambda cache: cache.num_layers > 1),
            *_LAYERS,
            layouts=_any_layout(_holds_content),
            num_layers=lambda counts: max(counts) > 1,
        ),
    ),
    _allocation("planes")(
        feature(
            "K and V planes",
            of_cache(lambda cache: cache.planes),
            setting({"planes": True}),
            layouts=_any_layout(_has_planes),
            planes=has(True),
        ),
    ),
    _allocation("padding")(
        feature("padded blocks", of_cache(lambda c: c.padding), setting({"padding": 8}), padding=any),
    ),
    _allocation("slot_padding")(
        feature(
            "padded rows",
            of_cache(lambda cache: cache.slot_padding and cache.layout.has_latent_value),
            *_PADDED_ROWS,
            layouts=_any_layout(_has_padded_rows),
            padding=any,
        ),
    ),
    _allocation("block_size")(
        feature(
            "block size no power of two",
            of_cache(lambda cache: _is_no_power_of_two(cache.block_size)),
            setting({"block_size": 48}),
            block_sizes=lambda sizes: any(map(_is_no_power_of_two, sizes)),
        ),
    ),
    _allocation("writer")(feature("writer in another layout", _is_written_elsewhere, *_WRITERS, **_SHARED)),
    _allocation("neighbour")(feature("neighbour in another layout", of_cache(_has_neighbour), *_NEIGHBOURS, **_SHARED)),
)


def _dtype(dtype: Quantized, *settings: Setting) -> Value:
    apart = (setting({"dtype": dtype, "scales": "token"}), setting({"dtype": dtype, "scales": None}))
    return feature(f"cache {dtype}", of_cache(lambda c: c.dtype == dtype), *settings, *apart, cache_dtypes=has(dtype))


def _scale_per(kind: ScaleKind, words: str, *dtypes: Quantized) -> Value:
    own = {dtype: {"dtype": dtype, "scales": kind} for dtype in dtypes}
    settings = [setting(own[dtype], num_kv_heads=2) for dtype in dtypes]
    others = (setting({"scales": kind}), setting(own[dtypes[0]]))
    holds = of_cache(lambda cache: cache.scales == kind)
    return feature(f"scale per {words}", holds, *settings, *others, cache_dtypes=any, scales=has(kind))


_INT8 = {"dtype": "int8", "scales": "token"}
INFINITE = setting(_INT8, num_kv_heads=2, saturated=True)
FORMATS = (
    dimension("cache dtype", "cache dtype", "cache.dtype", of_layers=True, needs_cache=True)(
        feature("cache of the layer's dtype", of_cache(lambda c: c.dtype is None), setting({"dtype": None, "scales": None})),
        _dtype("fp8_e4m3fn", setting({"dtype": "fp8_e4m3fn", "scales": "tensor"})),
        _dtype("fp8_e4m3fnuz", setting({"dtype": "fp8_e4m3fnuz", "scales": "tensor"}), setting({"dtype": "fp8_e4m3fnuz"})),
        _dtype("int8", setting(_INT8, num_kv_heads=2, unlike_strides=True)),
    ),
    dimension("scales", "scales", "cache.scales", of_layers=True, needs_cache=True)(
        _scale_per("tensor", "tensor", "fp8_e4m3fn"),
        _scale_per("head", "head", "fp8_e4m3fn", "fp8_e4m3fnuz"),
        _scale_per("token", "token, separate", "fp8_e4m3fn", "int8"),
    ),
)


CONTENTS = (
    dimension("unused slots", "memory", "recycled finite_slots")(
        aspect("NaN in keys that no query sees", lambda case: case.recycled),
        aspect("NaN in unused slots", lambda case: case.cache is not None and not case.finite_slots),
    ),
    dimension("neighbour's numbers", "memory", "ordinary_writes")(),
)
CACHE = (*ALLOCATION, *FORMATS, *CONTENTS)
