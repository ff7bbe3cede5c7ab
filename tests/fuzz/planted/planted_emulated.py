"""The shipping kernels with little to compile: `--target planted_emulated:SMALL_TRITON@gfx942`."""

import dataclasses

from attn_contract import AttentionType
from attn_fuzz.targets.support import EVERYTHING
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


SMALL_TRITON = dataclasses.replace(TRITON, name="small-triton", support=lambda device: SMALL, refuses=False, siblings=())
WITHOUT_KERNELS = dataclasses.replace(TRITON, modules=list)
"""It names modules, and none of them has a kernel."""
