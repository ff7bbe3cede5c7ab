"""vLLM's index layer of MiniMax-M3: scores of blocks of 128 tokens, and the best blocks for each index head.

models/minimax_m3/common/ops/index_topk.py, and amd/ops/index_topk.py on ROCm: prefills score and select by two functions,
decodes by one, whose selection is judged end to end. A block is a page. Each index head selects for one KV head. Autotuned
kernels run with one of their configurations, the smallest. ROCm's prefill is no target: it loads q by a tensor descriptor, with
which the interpreter does not run programs together.
"""

import dataclasses
import functools
from typing import Any

import torch
from attn_contract import IndexLayout, IndexScore
from attn_fuzz.cases.case import Case
from attn_fuzz.foreign.loading import Stubs
from attn_fuzz.targets.indexer import FORCED, IndexerFunctions, drafts_of, index_engine, index_target
from attn_fuzz.targets.packages import VLLM
from attn_fuzz.targets.packages.declaring import Sources, choose_config
from attn_fuzz.targets.packages.vllm import package as vllm_package

BLOCK = 128
TERMS = {
    "layout": (IndexLayout.PLAIN,),
    "cache_dtype": (None, torch.float8_e4m3fn),
    "score": (IndexScore.MAX,),
    "top_k": (16,),
    **FORCED,
}


def _stubs(is_rocm: bool) -> Stubs:
    stubs = vllm_package.stubs(is_rocm)
    stubs["vllm.utils.math_utils"] |= {"round_up": lambda number, unit: -(-number // unit) * unit}
    stubs["vllm.models.minimax_m3.common.ops.sparse_attn"] = {"SPARSE_BLOCK_SIZE": BLOCK}
    stubs["vllm.utils.platform_utils"] = {"num_compute_units": lambda *device: 16}
    stubs["vllm.platforms"]["current_platform"].is_device_capability = lambda capability: False
    return stubs


def _sources(*names: str, is_rocm: bool) -> Sources:
    stubs, change = functools.partial(_stubs, is_rocm), functools.partial(choose_config, which=-1)
    return Sources(VLLM, names, stubs, (f"models/minimax_m3/{'amd' if is_rocm else 'common'}/ops/",), change=change)


COMMON, ROCM = _sources("index_topk", is_rocm=False), _sources("index_topk", "sparse_pa", is_rocm=True)


def _odd_heads(case: Case) -> str | None:
    """The reason why a case is left out: the kernels take a power of two of heads (:346)."""
    return "heads that are no power of two" if case.num_kv_heads & (case.num_kv_heads - 1) else None


def _score(q, weights, index_cache, indexer, batch, *, sources: Sources) -> torch.Tensor:
    starts, rows = batch.query_start_loc, int(batch.query_start_loc[-1])
    found = torch.full((indexer.num_selections, len(q), indexer.num_units(batch.max_seq_len)), torch.nan)
    prefixes, longest = batch.seq_lens - starts.diff(), int(starts.diff().max())
    lengths = (longest, batch.max_seq_len, indexer.num_heads)
    score = sources.load()[0].minimax_m3_index_score(
        q[:rows], index_cache, batch.block_table, starts, batch.seq_lens, prefixes, *lengths
    )
    found[:, :rows] = score[..., : found.shape[2]]
    return found


def _select(logits, indexer, batch, *, sources: Sources) -> torch.Tensor:
    starts = batch.query_start_loc
    forced = (indexer.first_units, indexer.last_units)
    return sources.load()[0].minimax_m3_index_topk(
        logits, starts, batch.seq_lens - starts.diff(), int(starts.diff().max()), indexer.top_k, *forced
    )


def _decode(q, weights, index_cache, indexer, batch, *, sources: Sources) -> torch.Tensor:
    rows, drafts = int(batch.query_start_loc[-1]), drafts_of(batch)
    sizes = (indexer.top_k, indexer.first_units, indexer.last_units, indexer.num_heads, drafts, drafts)
    return sources.load()[0].minimax_m3_index_decode(
        q[:rows], index_cache, batch.block_table, batch.seq_lens, batch.max_seq_len, *sizes
    )


_ENGINE = index_engine(selection_units=(BLOCK,), selected_per_head=(True,), more_queries_than_keys=False, empty_requests=False)
_DECODES = dataclasses.replace(_ENGINE, query_lens=("equal",), more_queries_than_keys=True)


def _target(name: str, sources: Sources, functions: Any, engine: Any, words: str) -> Any:
    return index_target(
        name,
        functions,
        TERMS,
        description=f"{words} of vLLM ({sources.files()[0]})",
        engine=engine,
        group_sizes=(1,),
        head_sizes=(128, 32),
        block_sizes=(BLOCK,),
        max_seq_len=700,
        long_seq_len=80 * BLOCK,  # more than the 64 blocks that a selection sorts at once
        tile_sizes=(BLOCK,),
        exclude=_odd_heads,
        max_tokens=8 if engine is _DECODES else 16,
        **sources.fields(),
    )


def _prefill() -> IndexerFunctions:
    return IndexerFunctions(
        index_logits=functools.partial(_score, sources=COMMON), select=functools.partial(_select, sources=COMMON)
    )


VLLM_MINIMAX_INDEXER = _target(
    "vllm-minimax-indexer",
    COMMON,
    _prefill,
    _ENGINE,
    "minimax_m3_index_score and minimax_m3_index_topk",
)
VLLM_MINIMAX_INDEX_DECODE, VLLM_MINIMAX_INDEX_DECODE_ROCM = (
    _target(
        name,
        sources,
        lambda sources=sources: IndexerFunctions(choose=functools.partial(_decode, sources=sources)),
        _DECODES,
        "minimax_m3_index_decode",
    )
    for name, sources in (("vllm-minimax-index-decode", COMMON), ("vllm-minimax-index-decode-rocm", ROCM))
)
