"""Sizes that each latent format with scales can have, by its record."""

import itertools

from attn_contract import Layout
from attn_contract.layouts import LATENT_FORMATS


def latent_sizes(layout: Layout, scales: int = 1) -> dict[str, int]:
    """The head_size and head_size_v of slots with so many scales, or the next number of them that fills whole units.

    If the format keeps the dims of K after V, there are two of them.
    """
    form = LATENT_FORMATS[layout]
    past_v, kept = (2, 0) if form.kept_dims is None else (0, form.kept_dims)
    for count in itertools.count(scales):
        v_head_size = count * form.scale_dims + kept
        sizes = {"head_size": v_head_size + past_v, "head_size_v": v_head_size}
        if layout.has_widths(**sizes):
            return sizes
    raise AssertionError
