"""A fault below every bound: the sinks are off by one unit in the last place."""

import dataclasses

import numpy as np
import torch
from attn_contract import AttentionType, Layout
from attn_fuzz.targets import registry
from attn_fuzz.targets.target import Support


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    if layer.sinks is not None:
        nudged = np.nextafter(layer.sinks.numpy(), np.float32(np.inf))
        layer = dataclasses.replace(layer, sinks=torch.from_numpy(nudged))
    _TRITON.attention(q, k, v, kv_cache, layer, batch, out=out, lse=lse)


_TRITON = registry.load("triton")
NUDGES = dataclasses.replace(
    _TRITON,
    name="nudges",
    attention=_attention,
    support=lambda device: Support(
        attn_types=(AttentionType.DECODER,),
        dtypes=("float16",),
        layouts=(Layout.BLOCKS_FIRST_NHD,),
        rules=("sinks",),
        head_sizes=(16,),
        group_sizes=(1,),
        max_tokens=8,
        max_seq_len=64,
    ),
    refuses=False,
)
