"""A kernel that takes K and V as two caches [num_blocks, block_size, HK, D], as FlashAttention's paged functions do."""

import my_unified_attention
from attn_contract import AttentionType, Layout
from attn_fuzz import foreign
from attn_fuzz.targets import Engine, Rounding, Support, Target
from my_unified_attention import TILE, unified_attention  # put yours here


def attention(q, k, v, kv_cache, layer, batch, *, out, lse):
    k_cache, v_cache = foreign.keys_and_values(kv_cache, layer)  # views: they share no block with each other
    unified_attention(
        q, k_cache, v_cache, out,
        cu_seqlens_q=batch.query_start_loc, max_seqlen_q=batch.max_query_len,
        seqused_k=batch.seq_lens, max_seqlen_k=batch.max_seq_len, block_table=batch.block_table,
        softmax_scale=layer.scale, causal=True, window_size=layer.window, softcap=0.0,
    )  # fmt: skip


TARGET = Target(
    name="my-separate-tensors",
    description="K and V are two tensors",
    attention=attention,
    support=lambda device: Support(
        attn_types=(AttentionType.DECODER,), dtypes=("float32", "bfloat16"), layouts=(Layout.KV_FIRST_NHD,),
        rules=("window",), max_tokens=64, max_seq_len=128,
        engine=Engine(planes=(True,), num_layers=(1,), padding=(0,), other_views=False, flat_out=(False,)),
    ),
    refuses=False,
    rounding=lambda device: Rounding(keys_per_tile=TILE, dot_is_chained=device != "cpu"),
    modules=lambda: [my_unified_attention],
)  # fmt: skip
