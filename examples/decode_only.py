"""A kernel of decodes: q [R, H, D] has one query of each request, which sees all keys of the request."""

import my_unified_attention
import torch
from attn_contract import AttentionType, Layout
from attn_fuzz import foreign
from attn_fuzz.targets import Engine, Rounding, Support, Target
from my_unified_attention import TILE, unified_attention


def decode(out, q, k_cache, v_cache, block_table, seq_lens, scale):  # put yours here
    starts = torch.arange(len(q) + 1, dtype=torch.int32, device=q.device)
    unified_attention(q, k_cache, v_cache, out, starts, 1, seq_lens, 0, scale, True, (-1, -1), block_table, 0.0)


def attention(q, k, v, kv_cache, layer, batch, *, out, lse):
    k_cache, v_cache = foreign.keys_and_values(kv_cache, layer)
    rows = batch.num_requests  # q and out may have rows after those of requests
    decode(out[:rows], q[:rows], k_cache, v_cache, batch.block_table, batch.seq_lens, layer.scale)


TARGET = Target(
    name="my-decode",
    description="one query of each request",
    attention=attention,
    support=lambda device: Support(
        attn_types=(AttentionType.DECODER,), dtypes=("float32", "bfloat16"), layouts=(Layout.KV_FIRST_NHD,), max_seq_len=128,
        engine=Engine(query_lens=("one",), empty_requests=False, empty_batches=False, flat_out=(False,)),
    ),
    refuses=False,
    rounding=lambda device: Rounding(keys_per_tile=TILE, dot_is_chained=device != "cpu"),
    modules=lambda: [my_unified_attention],
)  # fmt: skip
