"""vLLM's index layer of DeepSeek-V3.2 on ROCm (v1/attention/ops/rocm_aiter_mla_sparse.py): writer, gathering and logits.

The writer is flat where blocks have one slot, and else tiled (:188). The gathering is of either (:381-437). The decode of flat
blocks of a multiple of 64 slots is Triton (:624-691); DeepSeek-V4 takes it. The dtype is that of the platform: float8_e4m3fnuz
on gfx942, of which scales are made for 224, and float8_e4m3fn on gfx950.

Torch functions stand in for AITER where it is missing or off: one for decodes (:441-539), and one for prefills (:872-921). The
first is a target on a flat cache, and another one as an engine reaches it: by the function that chooses between kernels
(:756-902), on a cache of the writer, as on gfx950 while VLLM_ROCM_USE_AITER is off.
"""

import functools
import itertools
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from attn_contract import IndexLayout, ScaleFormat
from attn_fuzz import foreign
from attn_fuzz.findings import vllm
from attn_fuzz.targets.indexer import IndexerFunctions, drafts_of, gathered_keys, guarded, index_engine, index_target, of_ranges
from attn_fuzz.targets.packages.vllm import sparse_mla as vllm_sparse_mla

FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
FLAT, TILED = IndexLayout.FLAT, IndexLayout.TILED
QUANTIZED = {"cache_dtype": (FNUZ, FN), "scale_format": tuple(ScaleFormat), "largest": {FNUZ: 224.0}}


@functools.cache
def load(dtype: torch.dtype) -> ModuleType:
    stubs = vllm_sparse_mla.stubs()
    stubs["vllm.platforms.rocm"] |= {"_ON_GFX942": dtype is FNUZ, "_ON_GFX950": dtype is FN}
    aiter_is_off = {"is_enabled": lambda: False, "is_rdna_aiter_enabled": lambda: False}
    stubs["vllm._aiter_ops"] = {"rocm_aiter_ops": SimpleNamespace(**aiter_is_off)}
    platform = stubs["vllm.platforms"]["current_platform"]
    stubs["vllm.platforms"] = {"current_platform": SimpleNamespace(**(vars(platform) | {"fp8_dtype": lambda: dtype}))}
    stubs["vllm.utils.math_utils"] |= {"cdiv": lambda a, b: -(-a // b)}
    [module] = foreign.load("vllm", vllm_sparse_mla.SOURCES.files(), stubs=stubs)
    return module


def _unavailable(device: str) -> str | None:
    """The layout of the writer. vLLM 0.20 has a flat one (`"NHD",`), and calls another."""
    if why := vllm_sparse_mla.SOURCES.unavailable(device):
        return why
    file = foreign.sources("vllm") / "v1/attention/ops/rocm_aiter_mla_sparse.py"
    return "the vLLM here writes index keys in no tiles" if '"NHD",' in file.read_text(encoding="utf-8") else None


def _written(k, index_cache, indexer, slot_mapping) -> None:
    load(indexer.cache_dtype).indexer_k_quant_and_cache_triton(
        k[: len(slot_mapping)], index_cache, slot_mapping, indexer.head_size, indexer.scale_format.value
    )


def _gathered(index_cache, indexer, batch, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = batch.seq_lens.long()
    starts = torch.tensor([0, *itertools.accumulate(lengths.tolist())], dtype=torch.int32)
    request = torch.repeat_interleave(torch.arange(batch.num_requests, dtype=torch.int32), lengths)
    codes = torch.zeros(count, indexer.head_size, dtype=torch.uint8).view(indexer.cache_dtype)
    scales = torch.zeros(count, 4, dtype=torch.uint8)
    load(indexer.cache_dtype).cp_gather_indexer_k_quant_cache_triton(
        index_cache,
        codes,
        scales,
        batch.block_table,
        starts,
        request,
        cache_layout="NORMAL" if indexer.layout is FLAT else None,
    )
    return codes, scales.view(torch.float32).flatten()


def _paged_logits(q, weights, index_cache, indexer, batch, *, call: Callable[..., torch.Tensor]) -> torch.Tensor:
    module, rows = load(indexer.cache_dtype), int(batch.query_start_loc[-1])
    queries = q[:rows].unflatten(0, (-1, drafts_of(batch))).contiguous()
    # a model's longest request is whole blocks here: the torch function takes no other
    length = -(-batch.max_seq_len // index_cache.shape[1]) * index_cache.shape[1]
    found = torch.full((1, len(q), length), torch.nan)
    with guarded((rows, length), torch.float32, "logits") as logits:
        workspace = SimpleNamespace(get_simultaneous=lambda *shapes: (logits,))
        vars(module).update(current_workspace_manager=lambda: workspace, _decode_cu_count=lambda: 16)
        cache, given = index_cache.contiguous().unsqueeze(2), weights[:rows].contiguous()
        found[0, :rows] = call(module, queries, cache, given, batch.seq_lens, batch.block_table, length)
    return found


def _chosen(module, q, cache, weights, seq_lens, block_table, length: int) -> torch.Tensor:
    """rocm_aiter_sparse_attn_indexer:1382, whose engine hands on how many keys each row sees (mla/indexer.py:1264-1280)."""
    drafts = q.shape[1]
    of_rows = (seq_lens[:, None] - drafts + 1 + torch.arange(drafts)).clamp(min=0).int()
    return module.rocm_fp8_paged_mqa_logits(q, cache, weights, of_rows, block_table, None, length)


def _gathered_logits(q, weights, index_cache, indexer, batch) -> torch.Tensor:
    keys = gathered_keys(index_cache, indexer, batch, len(q))
    given = ((keys.codes, keys.scales[:, None]), weights, keys.starts, keys.ends)
    logits = load(indexer.cache_dtype).fp8_mqa_logits_torch(q, *given)
    return of_ranges(logits, keys, indexer.num_units(batch.max_seq_len))


_SIZES: dict[str, Any] = {"selection_units": (1,), "selected_per_head": (False,)}
_FIELDS: dict[str, Any] = {
    "group_sizes": (16, 64, 32),
    "head_sizes": (128, 64, 32),
    "unavailable": vllm_sparse_mla.SOURCES.unavailable,
}
VLLM_INDEXER = index_target(
    "vllm-indexer",
    lambda: IndexerFunctions(write_index_cache=_written, gather=_gathered),
    QUANTIZED | {"layout": (TILED,)},
    description="the writer of index keys of vLLM for ROCm, and the gathering of keys",
    engine=index_engine(**_SIZES),
    **(_FIELDS | {"unavailable": _unavailable}),
)
VLLM_PAGED_MQA_LOGITS = index_target(
    "vllm-paged-mqa-logits",
    lambda: IndexerFunctions(
        index_logits=functools.partial(
            _paged_logits, call=lambda module, *given: module.rocm_fp8_paged_mqa_logits_triton(*given)
        )
    ),
    QUANTIZED | {"layout": (FLAT,)},
    description="rocm_fp8_paged_mqa_logits_triton of vLLM",
    modules=lambda: [load(FNUZ)],
    engine=index_engine(query_lens=("equal",), **_SIZES),
    **(_FIELDS | {"block_sizes": (64, 128)}),
)
VLLM_PAGED_MQA_LOGITS_TORCH = index_target(
    "vllm-paged-mqa-logits-torch",
    lambda: IndexerFunctions(
        index_logits=functools.partial(_paged_logits, call=lambda module, *given: module.fp8_paged_mqa_logits_torch(*given))
    ),
    QUANTIZED | {"layout": (FLAT,)},
    description="fp8_paged_mqa_logits_torch of vLLM, which stands in where AITER is missing",
    engine=index_engine(query_lens=("equal",), **_SIZES),
    findings=vllm.PAGED_MQA_LOGITS_TORCH,
    **_FIELDS,
)
VLLM_INDEX_DECODE = index_target(
    "vllm-index-decode",
    lambda: IndexerFunctions(write_index_cache=_written, index_logits=functools.partial(_paged_logits, call=_chosen)),
    QUANTIZED | {"layout": (TILED,), "cache_dtype": (FN,)},
    description="a decode of the index layer of vLLM on gfx950 while AITER is off: its writer, and what it reads by",
    engine=index_engine(query_lens=("equal",), **_SIZES),
    findings=vllm.INDEX_DECODE,
    **(_FIELDS | {"unavailable": _unavailable}),
)
VLLM_MQA_LOGITS_TORCH = index_target(
    "vllm-mqa-logits-torch",
    lambda: IndexerFunctions(index_logits=_gathered_logits),
    QUANTIZED | {"layout": (FLAT,)},
    description="fp8_mqa_logits_torch of vLLM, which stands in where AITER is missing",
    engine=index_engine(**_SIZES),
    findings=vllm.MQA_LOGITS_TORCH,
    **_FIELDS,
)
