"""The emulated targets with little to compile: `--target planted_emulated:SMALL_GFX942`."""

import dataclasses

from attn_contract import AttentionType
from attn_fuzz.targets.emulated import TRITON_GFX942, TRITON_GFX1201
from attn_fuzz.targets.target import EVERYTHING, Support, Target
from attn_fuzz.targets.triton import TRITON

SMALL = dataclasses.replace(
    EVERYTHING,
    attn_types=(AttentionType.DECODER,),
    dtypes=("float16",),
    head_sizes=(16,),
    group_sizes=(1,),
    block_sizes=(4, 16),
    tile_sizes=(16,),
    rules=("non_causal", "lse"),
    cache_dtypes=(),
    scales=(),
    output_dtypes=(),
    max_tokens=16,
    max_seq_len=32,
    steps_per_layer=4,
)


def _small(target: Target) -> Target:
    def support(device: str) -> Support:
        return SMALL

    return dataclasses.replace(target, name=f"small-{target.name}", support=support)


SMALL_GFX942 = _small(TRITON_GFX942)
SMALL_GFX1201 = _small(TRITON_GFX1201)
WITHOUT_KERNELS = dataclasses.replace(TRITON, modules=list)
"""It names modules, and none of them has a kernel."""
