"""vLLM's index layer of MiniMax-M3: scores of blocks of 128 tokens, and the best blocks for each index head.

models/minimax_m3/common/ops/index_topk.py, and amd/ops/index_topk.py on ROCm: prefills score and select by two functions,
decodes by one, whose selection is judged end to end. A block is a page. Each index head selects for one KV head. Autotuned
kernels run with one of their configurations, the smallest. ROCm's prefill is no target: it loads q by a tensor descriptor, with
which the interpreter does not run programs together.
"""

import dataclasses
import functools
from types import ModuleType
from typing import Any

import torch
from attn_contract import IndexLayout, IndexScore
from attn_fuzz import foreign
from attn_fuzz.cases.case import Case
from attn_fuzz.targets.indexer import FORCED, Stages, drafts_of, index_engine, index_target
from attn_fuzz.targets.packages import vllm_package
from attn_fuzz.targets.packages.declaring import choose_config

COMMON, ROCM = (f"models/minimax_m3/{side}/ops/index_topk.py" for side in ("common", "amd"))
BLOCK = 128
TERMS = {
    "layout": (IndexLayout.PLAIN,),
    "cache_dtype": (None, torch.float8_e4m3fn),
    "score": (IndexScore.MAX,),
    "top_k": (16,),
    **FORCED,
}


@functools.cache
def _load(file: str) -> list[ModuleType]:
    stubs = vllm_package.stubs(is_rocm=file == ROCM)
    stubs["vllm.utils.math_utils"] |= {"round_up": lambda number, unit: -(-number // unit) * unit}
    stubs["vllm.models.minimax_m3.common.ops.sparse_attn"] = {"SPARSE_BLOCK_SIZE": BLOCK}
    stubs["vllm.utils.platform_utils"] = {"num_compute_units": lambda *device: 16}
    stubs["vllm.platforms"]["current_platform"].is_device_capability = lambda capability: False
    files = (file, "models/minimax_m3/amd/ops/sparse_pa.py") if file == ROCM else (file,)
    modules = foreign.load("vllm", files, stubs=stubs)
    choose_config(modules, -1)
    return modules[:1]


def _odd_heads(case: Case) -> str | None:
    """Why a case is left out: the kernels take a power of two of heads (:346)."""
    return "heads that are no power of two" if case.num_kv_heads & (case.num_kv_heads - 1) else None


def _score(q, weights, index_cache, indexer, batch, *, file: str) -> torch.Tensor:
    starts, rows = batch.query_start_loc, int(batch.query_start_loc[-1])
    found = torch.full((indexer.num_selections, len(q), indexer.num_units(batch.max_seq_len)), torch.nan)
    prefixes, longest = batch.seq_lens - starts.diff(), int(starts.diff().max())
    lengths = (longest, batch.max_seq_len, indexer.num_heads)
    score = _load(file)[0].minimax_m3_index_score(
        q[:rows], index_cache, batch.block_table, starts, batch.seq_lens, prefixes, *lengths
    )
    found[:, :rows] = score[..., : found.shape[2]]
    return found


def _select(logits, indexer, batch, *, file: str) -> torch.Tensor:
    starts = batch.query_start_loc
    forced = (indexer.first_units, indexer.last_units)
    return _load(file)[0].minimax_m3_index_topk(
        logits, starts, batch.seq_lens - starts.diff(), int(starts.diff().max()), indexer.top_k, *forced
    )


def _decode(q, weights, index_cache, indexer, batch, *, file: str) -> torch.Tensor:
    rows, drafts = int(batch.query_start_loc[-1]), drafts_of(batch)
    sizes = (indexer.top_k, indexer.first_units, indexer.last_units, indexer.num_heads, drafts, drafts)
    return _load(file)[0].minimax_m3_index_decode(
        q[:rows], index_cache, batch.block_table, batch.seq_lens, batch.max_seq_len, *sizes
    )


_ENGINE = index_engine(selection_units=(BLOCK,), selected_per_head=(True,), more_queries_than_keys=False, empty_requests=False)
_DECODES = dataclasses.replace(_ENGINE, query_lens=("equal",), more_queries_than_keys=True)


def _target(name: str, file: str, stages: Any, engine: Any, words: str) -> Any:
    return index_target(
        name,
        stages,
        TERMS,
        description=f"{words} of vLLM 0.33.0 ({file})",
        engine=engine,
        group_sizes=(1,),
        head_sizes=(128, 32),
        block_sizes=(BLOCK,),
        max_seq_len=700,
        long_seq_len=80 * BLOCK,  # more than the 64 blocks that a selection sorts at once
        tile_sizes=(BLOCK,),
        exclude=_odd_heads,
        max_tokens=8 if engine is _DECODES else 16,
        unavailable=vllm_package.missing_files(file),
        modules=functools.partial(_load, file),
    )


def _prefill(file: str) -> Stages:
    return Stages(index_logits=functools.partial(_score, file=file), select=functools.partial(_select, file=file))


VLLM_MINIMAX_INDEXER = _target(
    "vllm-minimax-indexer",
    COMMON,
    functools.partial(_prefill, COMMON),
    _ENGINE,
    "minimax_m3_index_score and minimax_m3_index_topk",
)
VLLM_MINIMAX_INDEX_DECODE, VLLM_MINIMAX_INDEX_DECODE_ROCM = (
    _target(
        name, file, lambda file=file: Stages(choose=functools.partial(_decode, file=file)), _DECODES, "minimax_m3_index_decode"
    )
    for name, file in (("vllm-minimax-index-decode", COMMON), ("vllm-minimax-index-decode-rocm", ROCM))
)
