"""Sizes that each latent format with scales can have, by its record."""

from attn_contract import Layout
from attn_contract.layouts import LATENT_FORMATS


def latent_sizes(layout: Layout, scales: int = 1) -> dict[str, int]:
    """The head_size and head_size_v of slots with so many scales; two dims of K are behind V if the format keeps such dims."""
    form = LATENT_FORMATS[layout]
    quantized = scales * form.scale_dims
    if form.kept_dims is None:
        return {"head_size": quantized + 2, "head_size_v": quantized}
    return dict.fromkeys(("head_size", "head_size_v"), quantized + form.kept_dims)
