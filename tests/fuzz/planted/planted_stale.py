"""Targets `planted_stale:NAME` of one head, without NaN in unused slots. They take the slot after the last key for a key."""

import dataclasses

from attn_contract import AttentionType, Layout
from attn_fuzz.targets import Engine, Support, Target
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_fuzz.targets.support import LatentSizes

BLOCK_SIZE = 16
PLAIN = Support(
    attn_types=(AttentionType.DECODER,),
    dtypes=("bfloat16", "float32"),
    layouts=(Layout.BLOCKS_FIRST_NHD,),
    head_sizes=(16, 32),
    group_sizes=(1,),
    block_sizes=(BLOCK_SIZE,),
    engine=Engine(query_lens=("one",)),
    unused_slots="finite",
    max_seq_len=128,
)


def one_key_too_many(q, k, v, kv_cache, layer, batch, *, out, lse):
    longer = batch.seq_lens + ((batch.seq_lens > 0) & (batch.seq_lens % BLOCK_SIZE > 0))
    batch = dataclasses.replace(batch, seq_lens=longer, max_seq_len=batch.max_seq_len + 1)
    REFERENCE_FP32.attention(q, k, v, kv_cache, layer, batch, out=out, lse=lse)


def _over(support: Support) -> Target:
    return dataclasses.replace(
        REFERENCE_FP32,
        name="one-key-too-many",
        description="reads a stale slot",
        attention=one_key_too_many,
        refuses=False,
        support=lambda device: support,
    )


OF_PLAIN = _over(PLAIN)
OF_FLOAT8 = _over(dataclasses.replace(PLAIN, cache_dtypes=("fp8_e4m3fn",), scales=("tensor", "token")))
OF_INT8 = _over(dataclasses.replace(PLAIN, cache_dtypes=("int8",), scales=("token",)))
_LATENT = LatentSizes(widths=((32, 16),), group_sizes=(1,), block_sizes=(BLOCK_SIZE,))
OF_LATENT = _over(dataclasses.replace(PLAIN, layouts=(Layout.LATENT,), rules=("head_size_v",), latent=_LATENT))
