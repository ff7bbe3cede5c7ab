"""Targets `planted_compiled:NAME` under torch.compile: a step of torch's own attention over the pages of each request."""

import dataclasses
import itertools

import torch
from attn_contract import AttentionType, Layout
from attn_fuzz.cases.poison import storage_of
from attn_fuzz.targets import VLLM, Rounding, Support, Target
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention


def _step(q, keys, values, mask, scale):
    return scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale, enable_gqa=True)


def _doubling_step(q, keys, values, mask, scale):
    return _step(q * 2 if torch.compiler.is_compiling() else q, keys, values, mask, scale)


def _always_doubling_step(q, keys, values, mask, scale):
    return _step(q * 2, keys, values, mask, scale)


def _breaking_step(q, keys, values, mask, scale):
    for _ in range(2):
        torch._dynamo.graph_break()
    return _step(q, keys, values, mask, scale)


def _traces_the_tool(q, keys, values, mask, scale):
    return q * storage_of(q)[0]


def _over_pages(name, step, **options) -> Target:
    compiled = torch.compile(step, **options)

    def attention(q, k, v, kv_cache, layer, batch, *, out, lse):
        out = out.view(q.shape)
        starts = batch.query_start_loc.tolist()
        pages = zip(starts, starts[1:], batch.seq_lens.tolist(), batch.block_table, strict=False)
        for begin, end, seq_len, table in pages:
            if begin == end:
                continue
            blocks = table[: -(-seq_len // kv_cache.shape[2])].long()
            keys, values = (cache[blocks].flatten(0, 1)[:seq_len].transpose(0, 1)[None] for cache in kv_cache.unbind(1))
            seen = torch.arange(seq_len) <= torch.arange(seq_len - (end - begin), seq_len)[:, None]
            query = q[begin:end].transpose(0, 1)[None]
            out[begin:end] = compiled(query, keys, values, seen, layer.scale)[0].transpose(0, 1)

    return Target(
        name=name,
        description="planted",
        attention=attention,
        support=lambda device: Support(
            attn_types=(AttentionType.DECODER,),
            dtypes=("float32",),
            layouts=(Layout.BLOCKS_FIRST_NHD,),
            engine=dataclasses.replace(VLLM, more_queries_than_keys=False, empty_requests=False, scale_signs=(1,)),
            max_tokens=16,
            max_seq_len=32,
        ),
        refuses=False,
        rounding=lambda device: Rounding(keys_per_tile=16, dot_is_chained=True, splits=64),
    )


def _flex(name, **options) -> Target:
    compiled = torch.compile(flex_attention, **options)

    def attention(q, k, v, kv_cache, layer, batch, *, out, lse):
        starts = batch.query_start_loc.tolist()
        for begin, end in itertools.pairwise(starts):
            if begin < end:
                query, key, value = (rows[begin:end].transpose(0, 1)[None] for rows in (q, k, v))
                attended = compiled(query, key, value, scale=layer.scale, enable_gqa=True)
                out.view(q.shape)[begin:end] = attended[0].transpose(0, 1)

    return Target(
        name=name,
        description="planted",
        attention=attention,
        support=lambda device: Support(attn_types=(AttentionType.ENCODER_ONLY,), dtypes=("float32",), max_tokens=16),
        refuses=False,
        rounding=lambda device: Rounding(keys_per_tile=16, dot_is_chained=True, splits=64),
    )


RIGHT = _over_pages("compiled", _step, backend="aot_eager")
ALWAYS_DOUBLES = _over_pages("doubles", _always_doubling_step, backend="aot_eager")
DOUBLES = _over_pages("compiled-doubles", _doubling_step, backend="aot_eager")
DOUBLES_BY_INDUCTOR = _over_pages("inductor-doubles", _doubling_step)
BREAKS = _over_pages("compiled-breaks", _breaking_step, backend="aot_eager")
TRACES_THE_TOOL = _over_pages("compiled-tool", _traces_the_tool, backend="eager", fullgraph=True)
FLEX = _flex("flex", backend="aot_eager")
FLEX_BY_INDUCTOR = _flex("flex-inductor")
