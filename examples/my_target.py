"""The target for my_unified_attention: how to call it, what it supports, and where it rounds."""

import my_unified_attention
from attn_contract import AttentionType, Layout
from attn_fuzz.targets import Rounding, Support, Target
from my_unified_attention import TILE, unified_attention


def attention(q, k, v, kv_cache, layer, batch, *, out, lse):
    k_cache, v_cache = kv_cache.unbind(0 if layer.layout is Layout.KV_FIRST_NHD else 1)
    unified_attention(
        q,
        k_cache,
        v_cache,
        out.view(q.shape),
        cu_seqlens_q=batch.query_start_loc,
        max_seqlen_q=batch.max_query_len,
        seqused_k=batch.seq_lens,
        max_seqlen_k=batch.max_seq_len,
        softmax_scale=layer.scale,
        causal=True,  # `Support` names no non-causal steps
        window_size=layer.window,
        block_table=batch.block_table,
        softcap=layer.logits_soft_cap or 0.0,
    )


TARGET = Target(
    name="my-unified-attention",
    description="the example kernel",
    attention=attention,
    support=lambda device: Support(
        attn_types=(AttentionType.DECODER,), dtypes=("float32", "float16", "bfloat16"),
        layouts=(Layout.BLOCKS_FIRST_NHD, Layout.KV_FIRST_NHD), rules=("window", "logits_soft_cap"),
        tile_sizes=(TILE,), max_tokens=64, max_seq_len=128,
    ),
    refuses=False,
    rounding=lambda device: Rounding(keys_per_tile=TILE, dot_is_chained=device != "cpu"),
    modules=lambda: [my_unified_attention],
)  # fmt: skip
