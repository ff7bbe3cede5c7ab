"""Layers: heads, sizes, scale, and the rules that are fixed for a model."""

from typing import Any, NamedTuple

from attn_contract import AttentionType, Layout
from attn_fuzz.cases.case import ITEMSIZE
from attn_fuzz.strategies.rules import NUMBERS, rules
from attn_fuzz.targets.target import Support
from hypothesis import strategies as st


class DrawnLayer(NamedTuple):
    """What the strategies draw once per layer: fields of a Case, fields of its Cache ({} for no cache), and names of rules."""

    case: dict[str, Any]
    cache: dict[str, Any]
    rules: set[str]


@st.composite
def layers(draw: st.DrawFn, support: Support) -> DrawnLayer:
    """Layers that a support allows: an attention type, rules and their numbers, heads, sizes, and the form of the cache."""
    attn_type = draw(attn_types(support))
    chosen = draw(rules(support, attn_type))
    dtype = draw(st.sampled_from(support.dtypes))
    cache = draw(caches_of_layers(support, dtype, "quantized" in chosen)) if attn_type.reads_cache else {}
    step = _multiple_of(cache.get("layout"), _itemsize(dtype, cache.get("dtype")))[0]
    head_size = draw(st.sampled_from([size for size in support.head_sizes if size % step == 0]))
    ranges_clamped = "bidirectional_ranges" in chosen and "ranges_clamped" in support.rules and draw(st.booleans())
    if (
        ("sink_tokens" in chosen or ranges_clamped)
        and "window" in support.rules
        and draw(st.sampled_from([True, True, True, False]))
    ):
        chosen = chosen | {"window"}  # without a window, neither rule has an effect
    layer = {
        "attn_type": attn_type,
        "dtype": dtype,
        "num_kv_heads": draw(st.sampled_from([1, 2, 3])),
        "group_size": draw(st.sampled_from(support.group_sizes)),
        "head_size": head_size,
        "scale": draw(st.sampled_from([0.25, round(head_size**-0.5, 6), 1.0, 0.1])),
        **{name: draw(numbers(support)) for name, numbers in NUMBERS.items() if name in chosen},
        "ranges_clamped": ranges_clamped,
        "narrow_sinks": draw(st.booleans()),
        "output_dtype": draw(st.sampled_from(support.output_dtypes)) if "output_dtype" in chosen else None,
    }
    return DrawnLayer(layer, cache, chosen)


def attn_types(support: Support) -> st.SearchStrategy[AttentionType]:
    """DECODER is drawn twice as often as all other types together, because it has the most ways to be wrong."""
    others = [attn_type for attn_type in support.attn_types if attn_type is not AttentionType.DECODER]
    decoder = [AttentionType.DECODER] * max(1, 2 * len(others)) if AttentionType.DECODER in support.attn_types else []
    return st.sampled_from(decoder + others)


@st.composite
def caches_of_layers(draw: st.DrawFn, support: Support, dtype: str, quantized: bool) -> dict[str, Any]:
    """A layout that fits some of the support's sizes, a block size, and a quantized cache's dtype and kind of scales."""
    cache_dtype = draw(st.sampled_from(support.cache_dtypes)) if quantized else None
    itemsize = _itemsize(dtype, cache_dtype)
    fitting = [layout for layout in support.layouts if _fits(support, layout, itemsize, quantized)]
    inline = [layout for layout in fitting if layout.has_inline_scales]
    layout = draw(st.sampled_from(fitting + inline))  # inline scales are drawn as often as each other kind of scales
    scales = None
    if cache_dtype is not None and not layout.has_inline_scales:
        scales = "token" if cache_dtype == "int8" else draw(st.sampled_from(support.scales))
    step = _multiple_of(layout, itemsize)[1]
    block_size = draw(block_sizes([size for size in support.block_sizes if size % step == 0]))
    return {"layout": layout, "dtype": cache_dtype, "scales": scales, "block_size": block_size}


@st.composite
def block_sizes(draw: st.DrawFn, fitting: list[int]) -> int:
    """A block size among those that fit. Very large sizes make a case slow, and are drawn rarely."""
    usual = [size for size in fitting if size <= 128] or fitting
    return draw(st.sampled_from(fitting if draw(st.integers(0, 9)) == 9 else usual))


def _fits(support: Support, layout: Layout, itemsize: int, quantized: bool) -> bool:
    heads, blocks = _multiple_of(layout, itemsize)
    has_sizes = any(size % heads == 0 for size in support.head_sizes) and any(
        size % blocks == 0 for size in support.block_sizes
    )
    return has_sizes and (quantized or not layout.has_inline_scales)


def _multiple_of(layout: Layout | None, itemsize: int) -> tuple[int, int]:
    """The numbers of which head size and block size must be multiples."""
    return (1, 1) if layout is None else layout.units(itemsize)


def _itemsize(dtype: str, cache_dtype: str | None) -> int:
    return 1 if cache_dtype else ITEMSIZE[dtype]
