"""SGLang's Triton attention as TritonAttnBackend of srt/layers/attention/triton_backend.py calls it: decode, or extend.

A step in which each request has one query is a decode, and reads all its keys from the cache. Any other step is an extend, and
reads this step's keys from k and v. The lines that are cited are those of the wheel of SGLang 0.5.23, in the file above:

    kv_indices    525-535: int64 slots of all keys of all requests. Of a layer with a window, 2869-2879: the last
                  `sliding_window_size` keys; a window of W tokens is W - 1 there (models/gemma2.py:53, models/gpt_oss.py:132)
    num_kv_splits 971-981, 2479: of all keys, also where a window has fewer (469-481: get_num_kv_splits_triton), at most 8, the
                  default of triton_attention_num_kv_splits
    extend        1811-1830: sliding_window_size; 1888-1909: the call

`ATTN_PARITY_SGLANG=FOLDER` takes the sources of another release.
"""

from collections.abc import Iterable

import torch
from attn_contract import Batch, Layer
from attn_fuzz import foreign
from attn_fuzz.cases.case import Case
from attn_fuzz.cases.tensors import Step
from attn_fuzz.findings.sglang import TRITON
from attn_fuzz.targets.packages.sglang import package as sglang_package
from attn_fuzz.targets.packages.sglang.package import COMPUTE_UNITS, extend_arguments, is_decode, window_slots
from attn_fuzz.verdict.rounding import Rounding

SOURCES = sglang_package.ops("decode_attention", "extend_attention", "metadata")
MAX_KV_SPLITS = 8


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    out = out.view(q.shape)
    caches = foreign.keys_and_values(kv_cache, layer)
    if is_decode(batch.query_start_loc.diff().tolist()):
        _decode(q, *caches, layer, batch, out)
    else:
        _extend(q, k, v, *caches, layer, batch, out)


def _decode(q, k_cache, v_cache, layer: Layer, batch: Batch, out) -> None:
    module, _, metadata = SOURCES.load()
    requests = batch.num_requests
    splits, uneven = torch.empty(requests, dtype=torch.int32, device=q.device), batch.seq_lens.new_zeros(1)
    metadata.get_num_kv_splits_triton[(1,)](
        *(splits, batch.seq_lens, requests, 1, layer.num_heads, layer.num_kv_heads, MAX_KV_SPLITS, COMPUTE_UNITS),
        MAX_NUM_SEQ=256,
        **({"uneven_batch_ptr": uneven} if "uneven_batch_ptr" in metadata.get_num_kv_splits_triton.arg_names else {}),
    )
    window = layer.window[0] + (layer.window[0] >= 0 and "sglang-decode-window" in foreign.repaired())
    parts = {"splits": splits, "max_splits": MAX_KV_SPLITS, "uneven": uneven}
    sglang_package.decode(module, q, (k_cache, v_cache), layer, batch, out, window=window, **parts)


def _extend(q, k, v, k_cache, v_cache, layer: Layer, batch: Batch, out) -> None:
    _, module, _ = SOURCES.load()
    prefixes = batch.seq_lens - batch.query_start_loc.diff()
    indptr, indices = window_slots(batch, prefixes, layer.window[0], k_cache.shape[1])
    foreign.call(
        module.extend_attention_fwd,
        *extend_arguments(q, k, v, out, k_cache, v_cache, batch, indptr, indices),
        batch.max_query_len,
        1.0,
        1.0,
        layer.scale,
        logit_cap=layer.logits_soft_cap or 0.0,
        sliding_window_size=layer.window[0],
        sinks=layer.sinks,
        hints={"page_size": k_cache.shape[1]},
    )


def _dense_keys(case: Case) -> list[bool]:
    return [not is_decode([request.query_len for request in case.requests])] * len(case.requests)


def _events(step: Step) -> Iterable[str]:
    return ["decode" if is_decode(step.batch.query_start_loc.diff().tolist()) else "extend"]


SGLANG_TRITON = SOURCES.target(
    name="sglang-triton",
    description="the Triton decode and extend attention of SGLang, as its triton backend calls them",
    attention=_attention,
    support=sglang_package.support(rules=("window", "logits_soft_cap", "sinks")),
    rounding=Rounding(keys_per_tile=64, splits=MAX_KV_SPLITS),
    dense_keys=_dense_keys,
    events=_events,
    findings=TRITON,
)
