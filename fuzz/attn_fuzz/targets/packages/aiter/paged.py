"""AITER's Triton paged attention: pa_decode, pa_prefill for all requests that have more than one query, and both in one.

They are what vLLM and SGLang called before unified attention, and what AITER's own tests call (op_tests/triton_tests of
ROCm/aiter). `ATTN_PARITY_AITER=FOLDER` takes the sources of another release.

pa_decode multiplies q by the scale and rounds the product to q's dtype, before it multiplies by K: the judge has no term for
this rounding, so head sizes are powers of 4, whose scales are powers of 2. Its blocks are a power of two (it says
KV_BLK_SZ_POW2 and hands over KV_BLK_SZ). K and V have the same strides. A request has at least one key.

pa_prefill divides weights by the denominator of the keys so far before it rounds them (_triton_kernels/pa_prefill.py:184-203).

pa_decode sums the weights of a tile after it has rounded them to the dtype of q, and so it sums them in this dtype
(_triton_kernels/pa_decode.py:265-268 and :659-662): a tree of 64 keys rounds 6 times, and other orders more often.
"""

import dataclasses
import functools

import torch
from attn_contract import AttentionType, Layout
from attn_fuzz import foreign
from attn_fuzz.findings.aiter.paged import CHUNKED_PREFILL, PAGED_DECODE, PAGED_PREFILL
from attn_fuzz.targets.engine import VLLM
from attn_fuzz.targets.packages import chunked_prefill
from attn_fuzz.targets.packages.aiter import package as aiter_package
from attn_fuzz.targets.packages.latent_rows import decoded_rows
from attn_fuzz.targets.rows import rows_of
from attn_fuzz.targets.support import Support
from attn_fuzz.targets.target import Target
from attn_fuzz.verdict.rounding import Rounding

DECODE, PREFILL = aiter_package.ops("pa_decode"), aiter_package.ops("pa_prefill")
CHUNKED = aiter_package.ops("chunked_pa_prefill", "pa_prefill")
_ENGINE = dataclasses.replace(
    VLLM, signed_slopes=False, empty_requests=False, writes=(True,), unwritten=False, unowned_rows=(0,)
)


def _decode(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    """Each query as a request of its own."""
    import triton.language as tl

    request, seq_lens = decoded_rows(batch)
    rows = len(request)
    k_cache, v_cache = (x.transpose(1, 2) for x in foreign.keys_and_values(kv_cache, layer))
    one = torch.ones((), device=q.device)
    [module] = DECODE.load()
    module.paged_attention_decode(
        output=rows_of(out, layer, rows),
        query=q[:rows],
        key_cache=k_cache,
        value_cache=v_cache,
        seq_lens=seq_lens,
        block_tables=batch.block_table[request],
        attn_scale=layer.scale,
        max_seq_len=batch.max_seq_len,
        compute_type={torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}[q.dtype],
        k_scale=one if layer.k_scale is None else layer.k_scale,
        v_scale=one if layer.v_scale is None else layer.v_scale,
        alibi_slopes=layer.alibi_slopes,
    )


def _prefill(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    k_cache, v_cache = foreign.packed_keys_and_values(kv_cache, layer)
    [module] = PREFILL.load()
    module.context_attention_fwd(
        q=q,
        k=k,
        v=v,
        o=out.view(q.shape),
        k_cache=k_cache,
        v_cache=v_cache,
        b_loc=batch.block_table,
        b_start_loc=batch.query_start_loc,
        b_seq_len=batch.seq_lens,
        max_input_len=batch.max_query_len,
        **chunked_prefill.of_layer(layer, q.device),
    )


def _chunked(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    module, _ = CHUNKED.load()
    rows = int(batch.query_start_loc[-1])
    module.chunked_prefill_paged_decode(**chunked_prefill.arguments(rows, q, k, v, kv_cache, layer, batch, out))


_support = functools.partial(
    Support,
    attn_types=(AttentionType.DECODER,),
    dtypes=("float16", "bfloat16"),
    cache_dtypes=("fp8_e4m3fn",),
    scales=("tensor",),
    max_tokens=96,
    max_seq_len=256,
    engine=_ENGINE,
)
_DECODE_SUPPORT = _support(
    layouts=(Layout.KV_FIRST_HND, Layout.KV_FIRST_NHD),
    rules=("alibi_slopes",),
    head_sizes=(64, 16, 256),
    block_sizes=(16, 32, 64),
    exclude=lambda case: "a scale for each head" if case.cache and case.cache.scales == "head" else None,
    long_seq_len=2500,
    engine=dataclasses.replace(_ENGINE, other_scales=False),
)
_PREFILL_SUPPORT = _support(
    layouts=(Layout.X_PACKED,),
    rules=("window", "alibi_slopes"),
    head_sizes=(32, 64, 80, 96, 128),
    block_sizes=(16, 32, 48, 80),
    exclude=lambda case: "ALiBi with a window" if case.alibi_slopes and case.window != (-1, -1) else None,
    tile_sizes=(32, 64),
)
_CHUNKED_SUPPORT = dataclasses.replace(
    _PREFILL_SUPPORT,
    block_sizes=(16, 32, 64, 128),
    engine=dataclasses.replace(_ENGINE, empty_requests=True),
    unused_slots="mostly finite",
)
AITER_PAGED_DECODE = Target(
    name="aiter-paged-decode",
    description="AITER's Triton pa_decode: each query as a request of its own",
    attention=_decode,
    support=lambda device: _DECODE_SUPPORT,
    rounding=lambda device: Rounding(
        keys_per_tile=64,
        dot_is_chained=device != "cpu",
        splits=8,
        rounds_dequantized=True,
        merged_parts=3,
        narrow_sums=6 if device == "cpu" else 63,
    ),
    refuses=False,
    **DECODE.fields(),
    findings=PAGED_DECODE,
)
AITER_PAGED_PREFILL = PREFILL.target(
    name="aiter-paged-prefill",
    description="AITER's Triton pa_prefill, which reads this step's keys from k and v",
    attention=_prefill,
    support=_PREFILL_SUPPORT,
    rounding=Rounding(keys_per_tile=64, rounds_dequantized=True, normalizes_first=True),
    dense_keys=lambda case: [True] * len(case.requests),
    findings=PAGED_PREFILL,
)
AITER_CHUNKED_PREFILL = dataclasses.replace(
    AITER_PAGED_PREFILL,
    name="aiter-chunked-prefill",
    description="AITER's Triton chunked_pa_prefill: pa_prefill for requests of several queries, and a decode for the others",
    attention=_chunked,
    support=lambda device: _CHUNKED_SUPPORT,
    **CHUNKED.fields(),
    dense_keys=lambda case: [request.query_len > 1 for request in case.requests],
    findings=CHUNKED_PREFILL,
)
