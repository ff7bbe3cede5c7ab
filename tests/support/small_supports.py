"""What targets of few and small sizes support: latent caches, latent caches with scales, and dense keys and values."""

import dataclasses

from attn_contract import AttentionType, Layout
from attn_contract.layouts import LATENT_FORMATS
from attn_fuzz.targets.support import WITH_LATENT, LatentSizes, Support

from tests.support.latent_formats import latent_sizes

SMALL = dataclasses.replace(WITH_LATENT, head_sizes=(16, 32, 20), group_sizes=(1, 2), max_tokens=32, max_seq_len=64)
LATENT = dataclasses.replace(SMALL, attn_types=(AttentionType.DECODER,), layouts=(Layout.LATENT,))


def _with_scales(layout: Layout) -> Support:
    """Slots of one scale and of three, and widths that no format can have."""
    sizes = latent_sizes(layout), latent_sizes(layout, scales=3)
    widths = tuple((one["head_size_v"], one["head_size"] - one["head_size_v"]) for one in sizes)
    drawn = LatentSizes(widths=(*widths, (16, 16)))
    return dataclasses.replace(LATENT, layouts=(layout,), dtypes=("bfloat16",), latent=drawn)


WITH_SCALES = {layout: _with_scales(layout) for layout in LATENT_FORMATS}
SCALED = WITH_SCALES[Layout.LATENT_SCALED]
DENSE = dataclasses.replace(SMALL, attn_types=(AttentionType.ENCODER, AttentionType.ENCODER_ONLY))
