"""A kernel without a cache: q, k and v [T, heads, D] of one request after another, as `flash_attn_varlen_func` takes."""

import itertools

import torch
from attn_contract import AttentionType
from attn_fuzz.targets import Rounding, Support, Target
from torch.nn.functional import scaled_dot_product_attention


def varlen(q, k, v, cu_seqlens, max_seqlen, scale):  # put yours here
    out = torch.zeros_like(q)
    for start, end in itertools.pairwise(cu_seqlens.tolist()):
        query, key, value = (x[start:end].transpose(0, 1)[None] for x in (q, k, v))
        out[start:end] = scaled_dot_product_attention(query, key, value, scale=scale, enable_gqa=True)[0].transpose(0, 1)
    return out


def attention(q, k, v, kv_cache, layer, batch, *, out, lse):
    rows = int(batch.query_start_loc[-1])  # q, k, v and out may have rows after those of requests
    out.view(q.shape)[:rows] = varlen(q[:rows], k[:rows], v[:rows], batch.query_start_loc, batch.max_query_len, layer.scale)


TARGET = Target(
    name="my-dense-varlen",
    description="attention without a cache",
    attention=attention,
    support=lambda device: Support(
        attn_types=(AttentionType.ENCODER, AttentionType.ENCODER_ONLY), dtypes=("float32", "bfloat16"), max_tokens=128
    ),
    refuses=False,
    rounding=lambda device: Rounding(keys_per_tile=16, dot_is_chained=True, splits=64),
)  # fmt: skip
