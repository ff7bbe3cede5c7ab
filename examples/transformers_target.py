"""A function of transformers' attention interface as a target: it gets one request after another, as dense tensors."""

from types import SimpleNamespace
from typing import Any

import attn_reference
import torch
from attn_contract import AttentionType, Layout
from attn_fuzz.targets import Engine, Rounding, Support, Target
from transformers.integrations.sdpa_attention import sdpa_attention_forward as function  # put yours here


def attention(q, k, v, kv_cache, layer, batch, *, out, lse):
    if kv_cache is None:
        requests = attn_reference.varlen_requests(q, k, v, layer, batch, torch.float32)
    else:
        requests = attn_reference.paged_requests(q, kv_cache, layer, batch, torch.float32)
    groups, is_causal = layer.num_heads // layer.num_kv_heads, layer.attn_type is AttentionType.DECODER
    module: Any = SimpleNamespace(is_causal=is_causal, num_key_value_groups=groups, training=False)
    for request in requests:
        tensors = (request.query, request.key, request.value)
        query, key, value = (x.to(q.dtype).transpose(0, 1)[None] for x in tensors)  # [1, heads, tokens, D]
        mask = mask_of(request.visible, is_causal)
        found, _ = function(module, query, key, value, mask, dropout=0.0, scaling=layer.scale)
        out.view(q.shape)[request.rows] = found[0]


def mask_of(visible, is_causal):
    """transformers hands on a mask [1, 1, Q, K], or none where the function sees by `is_causal` what the mask would say."""
    seen_without_mask = torch.ones_like(visible).tril() if is_causal and len(visible) > 1 else torch.ones_like(visible)
    return None if torch.equal(visible, seen_without_mask) else visible[None, None]


TARGET = Target(
    name="my-transformers-attention",
    description="a function of transformers' attention interface",
    attention=attention,
    support=lambda device: Support(
        attn_types=(AttentionType.DECODER, AttentionType.ENCODER), dtypes=("float32", "float16", "bfloat16"),
        layouts=(Layout.BLOCKS_FIRST_NHD,), rules=("non_causal", "window", "chunked_local", "bidirectional_ranges"),
        engine=Engine(more_queries_than_keys=False, empty_requests=False, scale_signs=(1,), saturated=False, recycled=False),
        max_tokens=64, max_seq_len=128,
    ),
    refuses=False,
    rounding=lambda device: Rounding(keys_per_tile=16, dot_is_chained=True, splits=64),
)  # fmt: skip
