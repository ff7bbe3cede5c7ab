"""Layers: heads, sizes, scale, the rules that are fixed for a model, and the form of its cache."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from attn_contract import AttentionType, Layout
from attn_fuzz.cases.case import ITEMSIZE
from attn_fuzz.cases.contradictions import ROWS
from attn_fuzz.strategies.choices import pick
from attn_fuzz.strategies.rules import MIN_CAP, NUMBERS, rules, window
from attn_fuzz.targets.engine import ANY_ENGINE, WindowKind
from attn_fuzz.targets.support import Support
from hypothesis import strategies as st

MODEL_WIDTHS = (192, 128)
"""K's and V's of MiMo-V2, and of MLA's expanded keys."""
USUAL_GROUP, USUAL_BLOCK = 8, 128
"""The most query heads of a KV head, and slots of a block, that are drawn often."""
ROW_UNIT = 32
"""Elements of which padded rows have a multiple."""
USUAL_HEADS = 3 * USUAL_GROUP
"""The most query heads of a layer that has several KV heads."""


class DrawnLayer(NamedTuple):
    """A layer, as drawn once: fields of a Case, fields of its Cache ({} for no cache), and names of rules.

    `window_kind` is the kind of window that the engine sends, if the layer has a window.
    """

    case: dict[str, Any]
    cache: dict[str, Any]
    rules: set[str]
    window_kind: WindowKind


def layer(draw: st.DrawFn, support: Support) -> DrawnLayer:
    """A layer that a support allows: an attention type, rules and their numbers, heads, sizes, and the form of the cache."""
    attn_type = _attn_type(draw, support)
    chosen = rules(draw, support, attn_type)
    dtype = pick(draw, support.dtypes)
    latent = attn_type is AttentionType.DECODER and _is_latent(draw, support, chosen)
    if latent:
        chosen = chosen - {"rope"} | {"head_size_v"}  # a latent cache is written with keys that are rotated
        if support.cache_dtypes and pick(draw, (False, True)):
            chosen = chosen | {"quantized"}  # few rows over elements of one byte are a path of their own
    cache = _cache(draw, support, dtype, chosen, latent) if attn_type.reads_cache else {}
    step = _multiple_of(cache.get("layout"), _itemsize(dtype, cache.get("dtype")))[0]
    widths = _latent_widths(draw, support, cache["layout"]) if latent else _widths(draw, support, step, "head_size_v" in chosen)
    if cache and cache["layout"] in ROWS and support.engine == ANY_ENGINE and pick(draw, (False, True)):
        cache["slot_padding"] = -widths["head_size"] % ROW_UNIT or ROW_UNIT  # as rows of an odd number of dims may lie
    ranges_clamped = "bidirectional_ranges" in chosen and "ranges_clamped" in support.rules and pick(draw, (False, True))
    if ranges_clamped and "chunked_local" in support.rules and pick(draw, (False, True)):
        chosen = chosen | {"chunked_local"}  # which ranges reach beyond, and as far as the window clamps them
    has_no_effect = "sink_tokens" in chosen or ranges_clamped
    if has_no_effect and "window" in support.rules and pick(draw, (True, True, True, False)):
        chosen = chosen | {"window"}
    if "key_unit" in chosen and "selection_unit" in {*support.rules}.difference(support.required_rules):
        # about half of those that are taken, as DeepSeek-V4 has them: they have more features than the others
        selects = pick(draw, (False, False, False, True))
        chosen = chosen | {"selection_unit"} if selects else chosen - {"selection_unit"}
    window_kind = pick(draw, support.engine.windows)
    numbers = {name: number(draw, support) for name, number in NUMBERS.items() if name in chosen and name != "window"}
    if "window" in chosen:
        numbers["window"] = window(draw, support, window_kind)
    group_size = pick(draw, support.latent.group_sizes) if latent else _usual(draw, support.group_sizes, USUAL_GROUP)
    layer = {
        "attn_type": attn_type,
        "dtype": dtype,
        "num_kv_heads": 1 if latent else _num_kv_heads(draw, group_size),
        "group_size": group_size,
        **widths,
        "scale": _scale(draw, support, widths["head_size"], numbers.get("logits_soft_cap")),
        **numbers,
        "q_scale": _q_scale(draw, support, cache, chosen),
        "signed_slopes": "alibi_slopes" in chosen and support.engine.signed_slopes and pick(draw, (False, True)),
        "ranges_clamped": ranges_clamped,
        **_selection_unit(draw, support, cache, dtype, chosen),
        **_selection(draw, support, chosen),
        "narrow_sinks": "sinks" in chosen and pick(draw, (False, True)),
        "output_dtype": pick(draw, support.output_dtypes) if "output_dtype" in chosen else None,
    }
    return DrawnLayer(layer, cache, chosen, window_kind)


def with_own_numbers(draw: st.DrawFn, support: Support, drawn: DrawnLayer) -> DrawnLayer:
    """The layer with other numbers: what its rules hold, its scale and its heads, of which a group has as many as before.

    Its rules, its formats and what its cache's blocks are like stay, for which kernels are compiled. That holds but for a scale
    of another sign, and for a window that is worth other tiles.
    """
    own = [name for name in NUMBERS if name in drawn.case and name not in ("window", "key_unit")]  # kernels have the key_unit
    numbers = {name: NUMBERS[name](draw, support) for name in own}
    if "window" in drawn.rules:
        numbers["window"] = window(draw, support, drawn.window_kind)
    if "alibi_slopes" in drawn.rules and support.engine.signed_slopes:
        numbers["signed_slopes"] = pick(draw, (False, True))
    numbers |= _selection(draw, support, drawn.rules)
    if "sinks" in drawn.rules:
        numbers["narrow_sinks"] = pick(draw, (False, True))
    if "bidirectional_ranges" in drawn.rules and "ranges_clamped" in support.rules:
        numbers["ranges_clamped"] = pick(draw, (False, True))
    if not (drawn.cache and drawn.cache["layout"].has_latent_value):
        numbers["num_kv_heads"] = _num_kv_heads(draw, drawn.case["group_size"])
    scale = _scale(draw, support, drawn.case["head_size"], numbers.get("logits_soft_cap"))
    case = {**drawn.case, **numbers, "scale": scale}
    return drawn._replace(case=case, cache={**drawn.cache, **_own_cache(draw, support, drawn.cache)})


def _selection_unit(
    draw: st.DrawFn, support: Support, cache: dict[str, Any], dtype: str, chosen: set[str]
) -> dict[str, int | None]:
    """Tokens of a unit, rounded up to what the layout allows."""
    if "selection_unit" not in chosen:
        return {"selection_unit": None}
    unit, step = pick(draw, support.engine.selection_units), _multiple_of(cache["layout"], _itemsize(dtype, cache["dtype"]))[1]
    return {"selection_unit": -(-unit // step) * step}


def _selection(draw: st.DrawFn, support: Support, chosen: set[str]) -> dict[str, Any]:
    """The fields of a selection; none if the layer has no selection."""
    if "selection_unit" not in chosen:
        return {}
    engine = support.engine
    return {
        "selected": pick(draw, engine.selections),
        "empty_selections": engine.empty_selections and pick(draw, (False, True)),
        "selected_per_head": pick(draw, engine.selected_per_head),
    }


def _own_cache(draw: st.DrawFn, support: Support, cache: dict[str, Any]) -> dict[str, Any]:
    """Fields of a cache that kernels take as numbers: where its planes lie, and whether each head has a scale."""
    found = {}
    if "planes" in cache:
        found["planes"] = _planes(draw, support, cache["layout"])
    if cache.get("scales") in _FEW_SCALES and not cache["layout"].has_latent_value:
        found["scales"] = pick(draw, [kind for kind in support.scales if kind in _FEW_SCALES])
    return found


_FEW_SCALES = ("tensor", "head")


def _planes(draw: st.DrawFn, support: Support, layout: Layout) -> bool:
    return "content" not in layout.dims and pick(draw, support.engine.planes)


def _is_latent(draw: st.DrawFn, support: Support, chosen: set[str]) -> bool:
    """True if a layer's cache is latent: where there is no other layout, and if V has a width of its own.

    Then the cache holds K and V of two widths one time in three, if a layout does.
    """
    latent = [layout for layout in support.layouts if layout.has_latent_value]
    if "head_size_v" not in chosen or not latent:
        return len(latent) == len(support.layouts)
    return not any(layout.takes_two_widths for layout in support.layouts) or pick(draw, (True, True, False))


def _widths(draw: st.DrawFn, support: Support, step: int, has_own: bool) -> dict[str, int]:
    """The width of q and k and, if v has its own, another one of v: wider or narrower, or that of a model.

    Beside a v of its own width, an odd one of q and k is drawn often: a row's V then begins at an odd element.
    """
    if has_own and set(MODEL_WIDTHS) <= set(support.head_sizes) and pick(draw, (False, False, False, True)):
        return dict(zip(("head_size", "head_size_v"), MODEL_WIDTHS, strict=True))
    sizes = [size for size in support.head_sizes if size % step == 0]
    odd = [size for size in sizes if size % 2] if has_own else []
    head_size = pick(draw, odd if odd and pick(draw, (False, True)) else sizes)
    others = [size for size in support.head_sizes if size != head_size] if has_own else []
    return {"head_size": head_size, **({"head_size_v": pick(draw, others)} if others else {})}


def _latent_widths(draw: st.DrawFn, support: Support, layout: Layout) -> dict[str, int]:
    fitting = [widths for widths in support.latent.widths if layout.has_widths(sum(widths), widths[0])]
    latent, rotated = pick(draw, fitting)
    return {"head_size": latent + rotated, "head_size_v": latent}


def _scale(draw: st.DrawFn, support: Support, head_size: int, cap: float | None) -> float:
    """A softmax scale. It is positive but for one in ten, if the engine sends others; if it sends 0, one in twenty is tiny.

    Beside the smallest cap it is large: all logits but 0 are then the cap's.
    """
    if not support.engine.other_scales:
        return head_size**-0.5
    signs = [sign for sign in (1,) * 18 + (0, -1) if sign in support.engine.scale_signs] or list(support.engine.scale_signs)
    unit = pick(draw, (1.0,) * 19 + (2.0**-120,)) if 0 in signs else 1.0
    if cap == MIN_CAP:
        unit = 2.0**19
    return pick(draw, (0.25, round(head_size**-0.5, 6), 1.0, 0.1)) * pick(draw, signs) * unit


def _attn_type(draw: st.DrawFn, support: Support) -> AttentionType:
    """DECODER is drawn twice as often as all other types together, because it has the most ways to be wrong."""
    others = [attn_type for attn_type in support.attn_types if attn_type is not AttentionType.DECODER]
    decoder = [AttentionType.DECODER] * max(1, 2 * len(others)) if AttentionType.DECODER in support.attn_types else []
    return pick(draw, decoder + others)


def _cache(draw: st.DrawFn, support: Support, dtype: str, chosen: set[str], latent: bool) -> dict[str, Any]:
    """A layout that fits some of the support's sizes, a block size, a quantized cache's dtype and kind of scales, and the form
    of the allocation."""
    engine, quantized = support.engine, "quantized" in chosen
    if latent:
        return _latent_cache(draw, support, dtype, quantized)
    cache_dtype = pick(draw, support.cache_dtypes) if quantized else None
    itemsize = _itemsize(dtype, cache_dtype)
    apart = [layout for layout in support.layouts if not layout.has_latent_value]
    if "head_size_v" in chosen:
        apart = [layout for layout in apart if layout.takes_two_widths]
    fitting = [layout for layout in apart if _fits(support, layout, itemsize, quantized)]
    inline = [layout for layout in fitting if layout.has_inline_scales]
    layout = pick(draw, fitting + inline)  # inline scales are drawn as often as each other kind of scales
    scales = None
    if cache_dtype is not None and not layout.has_inline_scales:
        scales = "token" if cache_dtype == "int8" else pick(draw, support.scales)
    step = _multiple_of(layout, itemsize)[1]
    return {
        "layout": layout,
        "dtype": cache_dtype,
        "scales": scales,
        "block_size": _usual(draw, [size for size in support.block_sizes if size % step == 0], USUAL_BLOCK),
        "planes": _planes(draw, support, layout),
        "padding": pick(draw, engine.padding[:1] + engine.padding),
    }


def _latent_cache(draw: st.DrawFn, support: Support, dtype: str, quantized: bool) -> dict[str, Any]:
    """The form of a latent cache: its block size, a float8 type with one scale or many, and padding of blocks and of rows.

    Rows in dense pages have no padding.
    """
    engine = support.engine
    float8 = [one for one in support.cache_dtypes if one != "int8"]
    layouts = [layout for layout in support.layouts if layout.has_latent_value]
    if dtype != "bfloat16" or not float8 or (not quantized and Layout.LATENT in layouts):
        layouts = [Layout.LATENT]
    # those with scales in their rows twice as often: they need a dtype and a quantized cache, which few layers have together
    layout = pick(draw, layouts + [layout for layout in layouts if layout.has_inline_scales])
    is_quantized = layout.has_inline_scales or (quantized and "tensor" in support.scales)
    cache_dtype = pick(draw, float8) if is_quantized and float8 else None
    return {
        "layout": layout,
        "dtype": cache_dtype,
        "scales": "tensor" if cache_dtype and not layout.has_inline_scales else None,
        "block_size": pick(draw, support.latent.block_sizes),
        "padding": pick(draw, engine.padding[:1] + engine.padding),
        "slot_padding": 0 if layout.has_dense_pages else pick(draw, engine.padding[:1] * 2 + engine.padding),
    }


def _num_kv_heads(draw: st.DrawFn, group_size: int) -> int:
    """Up to 3, and rarely 4 or 8; one beside a large group."""
    return _usual(draw, [count for count in (1, 2, 3, 4, 8) if count * group_size <= USUAL_HEADS] or [1], 3)


def _usual(draw: st.DrawFn, sizes: Sequence[int], most: int) -> int:
    """One of the sizes. A size above `most` makes a case slow, and is drawn rarely."""
    usual = [size for size in sizes if size <= most] or sizes
    return pick(draw, sizes if pick(draw, range(10)) == 9 else usual)


def _fits(support: Support, layout: Layout, itemsize: int, quantized: bool) -> bool:
    heads, blocks = _multiple_of(layout, itemsize)
    has_sizes = any(size % heads == 0 for size in support.head_sizes) and any(
        size % blocks == 0 for size in support.block_sizes
    )
    return has_sizes and (quantized or not layout.has_inline_scales)


def _q_scale(draw: st.DrawFn, support: Support, cache: dict[str, Any], chosen: set[str]) -> str | None:
    """A scale of float8 queries for one in two of the layers that can have it: queries that the step rotates cannot."""
    is_float8 = cache.get("dtype") not in (None, "int8") and cache["layout"].latent_format is None
    if "q_scale" not in support.rules or not is_float8 or "rope" in chosen:
        return None
    return pick(draw, (None, None, "tensor", "head"))


def _multiple_of(layout: Layout | None, itemsize: int) -> tuple[int, int]:
    """The numbers of which head size and block size must be multiples."""
    return (1, 1) if layout is None else layout.packing_multiples(itemsize)


def _itemsize(dtype: str, cache_dtype: str | None) -> int:
    return 1 if cache_dtype else ITEMSIZE[dtype]
