"""SGLang's Triton attention as TritonAttnBackend of srt/layers/attention/triton_backend.py calls it: decode, or extend.

A step in which each request has one query is a decode, and reads all its keys from the cache. Any other step is an extend, and
reads this step's keys from k and v. The lines that are cited are those of the wheel of SGLang 0.5.23, in the file above:

    kv_indices    525-535: int64 slots of all keys of all requests. Of a layer with a window, 2869-2879: the last
                  `sliding_window_size` keys; a window of W tokens is W - 1 there (models/gemma2.py:53, models/gpt_oss.py:132)
    num_kv_splits 469-481: of get_num_kv_splits_triton, at most 8, the default of triton_attention_num_kv_splits
    extend        1811-1830: sliding_window_size; 1888-1909: the call

`ATTN_PARITY_SGLANG=FOLDER` takes the sources of another release.
"""

import functools
import logging
from collections.abc import Iterable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from attn_contract import AttentionType, Batch, Layer, Layout
from attn_fuzz import foreign
from attn_fuzz.cases.case import Case
from attn_fuzz.cases.tensors import Step
from attn_fuzz.findings.sglang import TRITON
from attn_fuzz.targets.engine import Engine
from attn_fuzz.targets.target import Support, Target
from attn_fuzz.targets.triton import missing_triton
from attn_fuzz.verdict.rounding import Rounding

REQUIREMENT = "sglang==0.5.23"
FILES = tuple(
    f"kernels/ops/attention/{name}.py"
    for name in ("decode_attention", "extend_attention", "metadata", "score_mod", "merge_state")
)
MAX_KV_SPLITS = 8
COMPUTE_UNITS = 132
"""What `get_device_core_count` says of an H200."""


def _stubs() -> dict[str, dict[str, Any]]:
    flags = SimpleNamespace(get=lambda: False)
    no = ("is_cuda", "is_hip", "is_gfx95_supported", "is_gfx1250_supported")
    return {
        "sglang.srt.environ": {"envs": SimpleNamespace(SGLANG_TRITON_FP8_PREFILL_ATTN=flags)},
        "sglang.srt.utils": {"get_device_core_count": lambda device: COMPUTE_UNITS, **{name: lambda: False for name in no}},
    }


@functools.cache
def modules() -> list[ModuleType]:
    logging.getLogger("sglang").setLevel(logging.WARNING)
    return foreign.load("sglang", FILES, stubs=_stubs())


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    out = out.view(q.shape)
    caches = foreign.keys_and_values(kv_cache, layer)
    if _is_decode(batch.query_start_loc.diff().tolist()):
        _decode(q, *caches, layer, batch, out)
    else:
        _extend(q, k, v, *caches, layer, batch, out)


def _is_decode(query_lens: list[int]) -> bool:
    return all(length == 1 for length in query_lens)


def _decode(q, k_cache, v_cache, layer: Layer, batch: Batch, out) -> None:
    module, _, metadata, *_ = modules()
    requests = batch.num_requests
    lengths = batch.seq_lens if layer.window[0] < 0 else batch.seq_lens.clamp(max=layer.window[0])
    indptr, indices = _slots(batch, batch.seq_lens - lengths, batch.seq_lens, k_cache.shape[1])
    scratch = (requests, layer.num_heads, MAX_KV_SPLITS)
    splits = torch.empty(requests, dtype=torch.int32, device=q.device)
    metadata.get_num_kv_splits_triton[(1,)](
        *(splits, lengths, requests, 1, layer.num_heads, layer.num_kv_heads, MAX_KV_SPLITS, COMPUTE_UNITS),
        MAX_NUM_SEQ=256,
    )
    module.decode_attention_fwd(
        q[:requests],
        k_cache.flatten(0, 1),
        v_cache.flatten(0, 1),
        out[:requests],
        indptr,
        indices,
        q.new_full((*scratch, layer.head_size), torch.nan, dtype=torch.float32),
        q.new_full(scratch, torch.nan, dtype=torch.float32),
        splits,
        MAX_KV_SPLITS,
        layer.scale,
        1.0,
        1.0,
        logit_cap=layer.logits_soft_cap or 0.0,
        sinks=layer.sinks,
    )


def _extend(q, k, v, k_cache, v_cache, layer: Layer, batch: Batch, out) -> None:
    _, module, *_ = modules()
    rows = int(batch.query_start_loc[-1])
    prefixes = batch.seq_lens - batch.query_start_loc.diff()
    lengths = prefixes if layer.window[0] < 0 else prefixes.clamp(max=layer.window[0])
    indptr, indices = _slots(batch, prefixes - lengths, prefixes, k_cache.shape[1])
    module.extend_attention_fwd(
        q[:rows],
        k[:rows].contiguous(),
        v[:rows].contiguous(),
        out[:rows],
        k_cache.flatten(0, 1),
        v_cache.flatten(0, 1),
        batch.query_start_loc,
        indptr,
        indices,
        None,
        True,
        None,
        batch.max_query_len,
        1.0,
        1.0,
        layer.scale,
        logit_cap=layer.logits_soft_cap or 0.0,
        sliding_window_size=layer.window[0],
        sinks=layer.sinks,
    )


def _slots(batch: Batch, first: torch.Tensor, end: torch.Tensor, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """kv_indptr [R + 1] int32 and kv_indices int64: the slots of each request's keys [first, end)."""
    assert batch.block_table is not None
    slots = []
    for table, low, high in zip(batch.block_table, first.tolist(), end.tolist(), strict=True):
        position = torch.arange(low, high, device=table.device)
        slots.append(table[position // block_size].long() * block_size + position % block_size)
    indptr = torch.nn.functional.pad((end - first).cumsum(0), (1, 0)).to(torch.int32)
    return indptr, torch.cat(slots)


def _support(device: str) -> Support:
    return Support(
        attn_types=(AttentionType.DECODER,),
        dtypes=("float16", "bfloat16"),
        layouts=(Layout.KV_FIRST_NHD,),
        rules=("window", "logits_soft_cap", "sinks"),
        head_sizes=(32, 64, 80, 96, 128),
        engine=Engine(
            windows=("by causality",),
            scale_signs=(1,),
            more_queries_than_keys=False,
            empty_requests=False,
            empty_batches=False,
            planes=(True,),
            padding=(0,),
            num_layers=(1,),
            other_views=False,
            writes=(True,),
            unwritten=False,
            saturated=False,
            flat_out=(True,),
            dense_out=(True,),
            unowned_rows=(0,),
            kv_rows_past=(0,),
        ),
        exclude=_beyond,
        tile_sizes=(32, 64),
        max_tokens=96,
        max_seq_len=320,
    )


def _beyond(case: Case) -> str | None:
    return "a window of one token" if case.window[0] == 0 else None


def _dense_keys(case: Case) -> list[bool]:
    return [not _is_decode([request.query_len for request in case.requests])] * len(case.requests)


def _events(step: Step) -> Iterable[str]:
    return ["decode" if _is_decode(step.batch.query_start_loc.diff().tolist()) else "extend"]


def missing(device: str) -> str | None:
    return missing_triton(device) or foreign.missing("sglang", FILES, REQUIREMENT)


SGLANG_TRITON = Target(
    name="sglang-triton",
    description="the Triton decode and extend attention of SGLang 0.5.23, as its triton backend calls them",
    attention=_attention,
    support=_support,
    rounding=lambda device: Rounding(keys_per_tile=64, dot_is_chained=device != "cpu", splits=MAX_KV_SPLITS),
    refuses=False,
    unavailable=missing,
    dense_keys=_dense_keys,
    events=_events,
    findings=TRITON,
)
