"""Layers: heads, sizes, scale, window and sinks."""

from typing import Any

from attn_contract import AttentionType
from attn_fuzz.targets import Support
from hypothesis import strategies as st

SINKS = ("zero", "near", "above", "below", "off")


@st.composite
def layers(draw: st.DrawFn, support: Support) -> dict[str, Any]:
    """The fields of a Case that are fixed for a model."""
    attn_type = draw(attn_types(support))
    head_size = draw(st.sampled_from(support.head_sizes))
    window = (-1, -1)
    if support.window and attn_type is not AttentionType.ENCODER_DECODER and draw(st.booleans()):
        window = draw(windows(support))
    return {
        "attn_type": attn_type,
        "dtype": draw(st.sampled_from(support.dtypes)),
        "num_kv_heads": draw(st.sampled_from([1, 2, 3])),
        "group_size": draw(st.sampled_from(support.group_sizes)),
        "head_size": head_size,
        "scale": draw(st.sampled_from([0.25, round(head_size**-0.5, 6), 1.0, 0.1])),
        "window": window,
        "sinks": draw(st.sampled_from(SINKS)) if support.sinks and draw(st.booleans()) else None,
        "narrow_sinks": draw(st.booleans()),
    }


def attn_types(support: Support) -> st.SearchStrategy[AttentionType]:
    """DECODER as often as all others together: it has the most ways to be wrong."""
    others = [attn_type for attn_type in support.attn_types if attn_type is not AttentionType.DECODER]
    decoder = [AttentionType.DECODER] * max(1, len(others)) if AttentionType.DECODER in support.attn_types else []
    return st.sampled_from(decoder + others)


def windows(support: Support) -> st.SearchStrategy[tuple[int, int]]:
    """(left, right), each unlimited, 0, small, or around a tile's end; and as engines have it, nothing to the right."""
    around = [tile + more for tile in support.tile_sizes for more in (-1, 0, 1)]
    side = st.sampled_from([-1, 0, 1, 2, 7, *around])
    return st.one_of(st.tuples(side, st.sampled_from([-1, 0])), st.tuples(side, side))
