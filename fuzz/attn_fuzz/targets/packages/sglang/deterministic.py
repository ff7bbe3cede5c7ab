"""SGLang's Triton attention of `--enable-deterministic-inference`, whose outputs do not depend on the batch.

An extend reads all keys from the cache by one kernel (1797-1809, _forward_extend_unified 2141-2284). In a layer with a window
it gets the last keys of the prefix, and copies of the first of them before it, so that the list begins at a multiple of 128
(1106-1113, 2181-2190). A decode splits the keys into parts of 256 (360-372, 453-461). The decode of a layer with a window is
left to sglang-triton, which knows a finding about it.

Both promise equal bits in any batch, and the extend in steps of any size, which two properties check. On a CPU a dot rounds a
row in another way at another place of its tile, so the steps are whole tiles.
"""

import dataclasses

import torch
from attn_contract import Batch, Layer
from attn_fuzz import foreign, properties
from attn_fuzz.findings.sglang import DECODE as DECODE_FINDINGS
from attn_fuzz.targets.packages.sglang import package as sglang_package
from attn_fuzz.targets.packages.sglang.package import window_slots
from attn_fuzz.targets.packages.slots import slots_of_requests
from attn_fuzz.targets.rows import rows_of
from attn_fuzz.verdict.rounding import Rounding

DECODE, EXTEND = sglang_package.ops("decode_attention"), sglang_package.ops("extend_attention")
SPLIT_TILE_SIZE = 256
MAX_CONTEXT_LEN = 2048
MAX_KV_SPLITS = MAX_CONTEXT_LEN // SPLIT_TILE_SIZE
CHUNK = 64
"""Queries of a step into which a prefill is cut: a tile of the kernel where it is interpreted."""


def _extend(q, k, v, kv_cache, layer: Layer, batch: Batch, *, out, lse) -> None:
    [module] = EXTEND.load()
    k_cache, v_cache = foreign.keys_and_values(kv_cache, layer)
    rows, page, size = int(batch.query_start_loc[-1]), k_cache.shape[1], layer.window[0]
    query_lens = batch.query_start_loc.diff()
    prefixes = batch.seq_lens - query_lens
    indptr, indices = window_slots(batch, prefixes, size, page)
    window_start = None
    if size > 0:
        window_start = prefixes - indptr.diff()
        if hasattr(module, "align_window_kv_to_tiles"):  # from 0.5.22 on
            indptr, indices = module.align_window_kv_to_tiles(indptr, indices, window_start, batch.num_requests)
            window_start = prefixes - indptr.diff()
    _, own = slots_of_requests(batch, batch.seq_lens, page, prefixes)
    unified_indptr, unified_indices, prefix_lens = module.build_unified_kv_indices(
        indptr, indices, batch.query_start_loc[:-1], query_lens, own, batch.num_requests
    )
    foreign.call(
        module.extend_attention_fwd_unified,
        q[:rows],
        rows_of(out, layer, rows),
        k_cache.flatten(0, 1),
        v_cache.flatten(0, 1),
        1.0,
        1.0,
        batch.query_start_loc.long(),
        unified_indptr,
        unified_indices,
        prefix_lens.to(torch.int32),
        batch.max_query_len,
        sm_scale=layer.scale,
        logit_cap=layer.logits_soft_cap or 0.0,
        sliding_window_size=size,
        sinks=layer.sinks,
        window_start_pos=window_start,
        hints={"page_size": page},
    )


def _decode(q, k, v, kv_cache, layer: Layer, batch: Batch, *, out, lse) -> None:
    """Each request has one query."""
    [module] = DECODE.load()
    caches, splits = foreign.keys_and_values(kv_cache, layer), (batch.seq_lens + SPLIT_TILE_SIZE - 1) // SPLIT_TILE_SIZE
    parts = {"splits": splits, "max_splits": MAX_KV_SPLITS, "uneven": batch.seq_lens.new_zeros(1)}
    sglang_package.decode(module, q, caches, layer, batch, out.view(q.shape), window=-1, **parts)


SGLANG_EXTEND_DETERMINISTIC = EXTEND.target(
    name="sglang-extend-deterministic",
    description="the Triton extend attention of SGLang in deterministic mode: also alone and in chunks, bit by bit",
    attention=_extend,
    support=sglang_package.support(
        rules=("window", "logits_soft_cap", "sinks"),
        tile_sizes=(64, 128),
        max_tokens=160,
    ),
    rounding=Rounding(keys_per_tile=64),
    properties=(properties.batch_composition(), properties.chunked_prefill(lambda step: CHUNK)),
)
SGLANG_DECODE_DETERMINISTIC = DECODE.target(
    name="sglang-decode-deterministic",
    description="the Triton decode attention of SGLang in deterministic mode: each request also alone, bit by bit",
    attention=_decode,
    support=sglang_package.support(
        rules=("logits_soft_cap", "sinks"),
        engine=dataclasses.replace(sglang_package.ENGINE, query_lens=("one",)),
        tile_sizes=(64, SPLIT_TILE_SIZE),
        max_seq_len=600,
        long_seq_len=MAX_CONTEXT_LEN,
    ),
    rounding=Rounding(keys_per_tile=64, splits=MAX_KV_SPLITS),
    properties=(properties.batch_composition(),),
    findings=DECODE_FINDINGS,
)
