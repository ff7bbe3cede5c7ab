"""conch's varlen and paged attention: ATTN_PARITY_CONCH names a folder that holds conch of conch-triton-kernels 1.3.

`varlen_attention` takes a query's place in the step for its position (kernels/attention/varlen_attention.py: causal_mask), so
a request has one query, or no context. Both kernels keep maxima, sums, weights and outputs of 16 bits in the dtype of the
output, and paged_attention the LSE of a part, too (`dtype` of both files).
"""

import functools
from types import SimpleNamespace

import torch
from attn_contract import AttentionType, Layout
from attn_fuzz import foreign
from attn_fuzz.targets import Engine, Rounding, Support, Target

FILES = tuple(f"{kind}/attention/{name}_attention.py" for kind in ("kernels", "ops") for name in ("varlen", "paged"))
PLATFORM = SimpleNamespace(is_amd=lambda: True, get_device_name=lambda: "AMD Instinct MI300X", fp8_dtype=torch.float8_e4m3fnuz)


@functools.cache
def modules():
    return foreign.load("conch", FILES, stubs={"conch.platforms": {"current_platform": PLATFORM}})


def _varlen(q, k, v, kv_cache, layer, batch, *, out, lse):
    keys, values = foreign.keys_and_values(kv_cache, layer)
    modules()[2].varlen_attention(
        q, keys, values, batch.query_start_loc, batch.max_query_len, batch.seq_lens, batch.max_seq_len, batch.block_table,
        output=out.view(q.shape), causal=True, scale=layer.scale, softcap=layer.logits_soft_cap or 0.0,
    )  # fmt: skip


def _paged(q, k, v, kv_cache, layer, batch, *, out, lse):
    keys, values = foreign.keys_and_values(kv_cache, layer)
    softcap = layer.logits_soft_cap or 0.0
    modules()[3].paged_attention(
        q, keys, values, batch.block_table, batch.seq_lens, output=out.view(q.shape), scale=layer.scale, softcap=softcap
    )


def _excluded(case):
    has_several = any(1 < each.query_len < each.seq_len for each in case.requests)
    return "a context of several queries" if has_several else None


def _target(name, attention, dtype, *, top_left=False):
    coarse = dict.fromkeys(("maximum", "sums", "outputs", *(("logits",) if attention is _paged else ())), "q")
    queries = ("one",) if attention is _paged else ("any",)
    engine = Engine(
        more_queries_than_keys=False, empty_requests=False, empty_batches=False, saturated=False, unlike_strides=(False,),
        scale_signs=(1,), unowned_rows=(0,), rows_past=(0,), query_lens=queries,
    )  # fmt: skip
    return Target(
        name=f"conch-{name}-{dtype}",
        description=f"conch's {name}_attention",
        attention=attention,
        support=lambda device: Support(
            attn_types=(AttentionType.DECODER,), dtypes=(dtype,), layouts=(Layout.KV_FIRST_NHD,), rules=("logits_soft_cap",),
            head_sizes=(64, 128), block_sizes=(16, 32), max_tokens=64, max_seq_len=256, engine=engine,
            exclude=(lambda case: None) if top_left else _excluded,
        ),
        refuses=False,
        unavailable=lambda device: foreign.missing("conch", FILES, "conch-triton-kernels==1.3"),
        rounding=lambda device: Rounding(
            keys_per_tile=32, splits=16, dot_is_chained=device != "cpu", **({} if dtype == "float32" else coarse)
        ),
        modules=modules,
    )  # fmt: skip


VARLEN, VARLEN_FP16, VARLEN_BF16 = (_target("varlen", _varlen, each) for each in ("float32", "float16", "bfloat16"))
PAGED, PAGED_FP16, PAGED_BF16 = (_target("paged", _paged, each) for each in ("float32", "float16", "bfloat16"))
TOP_LEFT = _target("varlen", _varlen, "float32", top_left=True)
