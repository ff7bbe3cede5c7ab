"""A kernel of prompts: causal attention of q to this step's own k and v, of one request after another."""

import itertools

from attn_contract import AttentionType, Layout
from attn_fuzz.targets import Engine, Rounding, Support, Target
from torch.nn.functional import scaled_dot_product_attention  # put yours here


def attention(q, k, v, kv_cache, layer, batch, *, out, lse):
    for start, end in itertools.pairwise(batch.query_start_loc.tolist()):
        query, key, value = (x[start:end].transpose(0, 1)[None] for x in (q, k, v))  # [1, heads, tokens, D]
        found = scaled_dot_product_attention(query, key, value, is_causal=True, scale=layer.scale, enable_gqa=True)
        out[start:end] = found[0].transpose(0, 1)


TARGET = Target(
    name="my-prefill",
    description="prompts, which have no context",
    attention=attention,
    support=lambda device: Support(
        attn_types=(AttentionType.DECODER,), dtypes=("float32", "bfloat16"), layouts=(Layout.KV_FIRST_NHD,), max_seq_len=128,
        engine=Engine(
            contexts=False, more_queries_than_keys=False, empty_batches=False, scale_signs=(1,),
            writes=(True,), unwritten=False, saturated=False, flat_out=(False,),
        ),
    ),
    dense_keys=lambda case: [True] * len(case.requests),  # it reads k and v, and nothing of the cache
    refuses=False,
    rounding=lambda device: Rounding(keys_per_tile=16, dot_is_chained=True, splits=64),
)  # fmt: skip
