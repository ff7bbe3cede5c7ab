"""Dimensions of the KV cache: its layout, its allocation, its dtype, its scales, and what unused slots hold."""

from collections.abc import Callable, Collection

from attn_contract import Layout, PhysicalOrder
from attn_fuzz.cases.case import Cache, Case, Quantized, ScaleKind
from attn_fuzz.cases.dimensions.dimension import (
    Asks,
    Dimension,
    Value,
    aspect,
    dimension,
    feature,
    has,
    of_cache,
)


def _layout(layout: Layout) -> Value:
    return feature(str(layout), of_cache(lambda cache: cache.layout is layout), layouts=has(layout))


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
    asks: dict[str, Asks] = {"layouts": _any_layout(_holds_content), "orders": has(order)}
    return feature(f"order {order}", of_cache(lambda cache: cache.holds_content_rows and cache.order is order), **asks)


def _allocation(fields: str) -> Callable[..., Dimension]:
    """A dimension of some fields of Cache."""
    names = " ".join(f"cache.{name}" for name in fields.split())
    return dimension(fields.split()[0], "allocation", names, needs_cache=True)


def _is_written_elsewhere(case: Case) -> bool:
    return case.cache is not None and case.writes and case.cache.writer not in (None, case.cache.layout)


def _has_neighbour(cache: Cache) -> bool:
    return cache.neighbour not in (None, cache.layout)


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
            layouts=_any_layout(_holds_content),
            num_layers=lambda counts: max(counts) > 1,
        ),
    ),
    _allocation("planes")(
        feature(
            "K and V planes",
            of_cache(lambda cache: cache.planes),
            layouts=_any_layout(_has_planes),
            planes=has(True),
        ),
    ),
    _allocation("padding")(
        feature("padded blocks", of_cache(lambda c: c.padding), padding=any),
    ),
    _allocation("slot_padding")(
        feature(
            "padded rows",
            of_cache(lambda cache: cache.slot_padding and cache.layout.has_latent_value),
            layouts=_any_layout(_has_padded_rows),
            padding=any,
        ),
    ),
    _allocation("block_size")(
        feature(
            "block size no power of two",
            of_cache(lambda cache: _is_no_power_of_two(cache.block_size)),
            block_sizes=lambda sizes: any(map(_is_no_power_of_two, sizes)),
        ),
    ),
    _allocation("writer")(feature("writer in another layout", _is_written_elsewhere, **_SHARED)),
    _allocation("neighbour")(feature("neighbour in another layout", of_cache(_has_neighbour), **_SHARED)),
)


def _dtype(dtype: Quantized) -> Value:
    return feature(f"cache {dtype}", of_cache(lambda c: c.dtype == dtype), cache_dtypes=has(dtype))


def _scale_per(kind: ScaleKind, words: str) -> Value:
    return feature(f"scale per {words}", of_cache(lambda cache: cache.scales == kind), cache_dtypes=any, scales=has(kind))


FORMATS = (
    dimension("cache dtype", "cache dtype", "cache.dtype", of_layers=True, needs_cache=True)(
        feature("cache of the layer's dtype", of_cache(lambda c: c.dtype is None)),
        _dtype("fp8_e4m3fn"),
        _dtype("fp8_e4m3fnuz"),
        _dtype("int8"),
    ),
    dimension("scales", "scales", "cache.scales", of_layers=True, needs_cache=True)(
        _scale_per("tensor", "tensor"),
        _scale_per("head", "head"),
        _scale_per("token", "token, separate"),
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
