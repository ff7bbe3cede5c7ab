"""AITER's Triton kernels that score index keys: fp8_mqa_logits of gathered keys, and those of a decode.

They were read at commit e4048607a5 of ROCm/aiter, which `ATTN_PARITY_AITER=FOLDER` names; paths are below ops/triton/attention.

The host code of fp8_mqa_logits runs as it is, and takes Triton on gfx942, where it converts float8_e4m3fn.

`deepgemm_fp8_paged_mqa_logits` ends with the key of a compiled kernel, which an interpreter has not: its kernel is launched
here as it does where there is no Gluon (pa_mqa_logits.py:676-711). stage1 gives logits of each head, which vLLM fills with -inf
before and adds up after, on RDNA (v1/attention/ops/rocm_aiter_mla_sparse.py:846-857). Rows of logits are max_seq_len long,
and where the case's bounds have no slack, a whole number of chunks.

`deepgemm_fp8_paged_mqa_logits_ragged_k` is given the slots of all keys, of a cache whose blocks have one slot.
"""

import functools
import itertools
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from attn_contract import IndexLayout
from attn_fuzz import foreign
from attn_fuzz.errors import LimitError
from attn_fuzz.extras import triton_unavailable
from attn_fuzz.findings.aiter.mqa_logits import MQA_LOGITS, MQA_LOGITS_RAGGED, MQA_LOGITS_STAGE1
from attn_fuzz.foreign.loading import Stubs
from attn_fuzz.interpreted.aiter import COMPUTE_UNITS
from attn_fuzz.targets.indexer import (
    IndexerFunctions,
    drafts_of,
    gathered_keys,
    guarded,
    index_engine,
    index_target,
    of_ranges,
)
from attn_fuzz.targets.packages import AITER
from attn_fuzz.targets.packages.aiter import package as aiter_package

FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
HOST = "ops/triton/attention/pa_mqa_logits.py"
KERNELS = "ops/triton/_triton_kernels/attention/pa_mqa_logits.py"
GATHERED = aiter_package.ops("fp8_mqa_logits")
CHUNK = 256
TERMS = {"layout": (IndexLayout.FLAT,), "cache_dtype": (FNUZ, FN)}


def _logits(q, weights, index_cache, indexer, batch) -> torch.Tensor:
    keys = gathered_keys(index_cache, indexer, batch, len(q))
    [module] = GATHERED.load()
    # the arguments of vLLM 0.33.0, rocm_aiter_mla_sparse.py:991-993
    logits = foreign.call(
        module.fp8_mqa_logits, q, keys.codes, keys.scales, weights, keys.starts, keys.ends, hints={"clean_logits": False}
    )
    return of_ranges(logits, keys, indexer.num_units(batch.max_seq_len))


@functools.cache
def load_paged(dtype: torch.dtype) -> list[ModuleType]:
    """The host code of the paged kernels on an architecture without Gluon, whose float8 is of the dtype."""
    stubs: Stubs = {
        "aiter": {"dtypes": SimpleNamespace(fp8=dtype)},
        "aiter.jit.utils.chip_info": {"get_gfx": lambda: "gfx1201"},
        "aiter.ops.triton.utils.core": {"AITER_TRITON_CONFIGS_PATH": ""},
        "aiter.ops.triton.utils.device_info": {"get_num_sms": lambda: COMPUTE_UNITS},
        "aiter.utility.triton.triton_metadata_redirect": {"AOTMetadataContext": None},
        "aiter.ops.triton.gluon.pa_decode_gluon": {"get_cdna_version": lambda: 0},
        "aiter.ops.triton.gluon.pa_mqa_logits": {
            f"_gluon_deepgemm_fp8_paged_mqa_logits{kind}": None for kind in ("", "_preshuffle", "_preshuffle_varctx")
        },
    }
    return foreign.load("aiter", (HOST, KERNELS), stubs=stubs)


def _decoded(q, index_cache, indexer, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """q [B, drafts, Hi, D] and the cache [NB, BS, 1, D + 4], as an engine gives them."""
    rows = int(batch.query_start_loc[-1])
    # the engine's cache has no padding between pages
    return q[:rows].unflatten(0, (-1, drafts_of(batch))).contiguous(), index_cache.contiguous().unsqueeze(2)


def _paged_logits(q, weights, index_cache, indexer, batch) -> torch.Tensor:
    queries, cache = _decoded(q, index_cache, indexer, batch)
    with guarded((len(q), batch.max_seq_len), torch.float32, "logits") as logits:
        launch_paged(queries, cache, weights, logits, batch.seq_lens, batch.block_table.contiguous(), COMPUTE_UNITS)
    return logits[None]


def launch_paged(queries, cache, weights, logits, seq_lens, table, units: int) -> None:
    """The launch of AITER's host code (pa_mqa_logits.py:676-711), on a GPU with so many compute units.

    Args:
        queries, cache: as `_decoded` gives them; the cache's keys have the dtype of the queries.
        logits: [rows, columns], as many columns as the longest request has keys. They are written.
        table: [B, max_blocks].
    """
    [_, kernels] = load_paged(queries.dtype)
    requests, drafts, heads, size = queries.shape
    pages = cache.flatten(1)
    codes = pages[:, : cache.shape[1] * size].view(queries.dtype).view(len(cache), -1, size)
    scales = pages[:, cache.shape[1] * size :].view(torch.float32)
    splits = (max(1, units // (requests * drafts)) + 4) // 5 * 5
    kernels._deepgemm_fp8_paged_mqa_logits[(requests * drafts * splits,)](
        *(requests, drafts, heads, queries, *queries.stride()[:3], codes, *codes.stride()[:2], scales, *scales.stride()),
        *(seq_lens, table, weights, weights.stride(0), logits, logits.stride(0), logits.shape[1], table.shape[1]),
        ChunkQ=heads,
        ChunkK=CHUNK,
        SplitKV=splits,
        HiddenDim=size,
        KVBlockSize=cache.shape[1],
    )


def _stage1_logits(q, weights, index_cache, indexer, batch) -> torch.Tensor:
    queries, cache = _decoded(q, index_cache, indexer, batch)
    [host, kernels] = load_paged(indexer.cache_dtype)
    if cache.shape[1] > 1 and "KVBlockSize" not in kernels._deepgemm_fp8_paged_mqa_logits_stage1.arg_names:
        raise LimitError("blocks of several slots, which these sources do not take", "0.1.20")
    rows, length, heads = queries.shape[0] * queries.shape[1], batch.max_seq_len, indexer.num_heads
    if length == int(batch.seq_lens.max()):
        length = -(-length // CHUNK) * CHUNK
    with guarded((heads, rows, length), torch.float32, "logits of heads") as of_heads:
        of_heads.fill_(-torch.inf)
        table = batch.block_table.contiguous()
        host.deepgemm_fp8_paged_mqa_logits_stage1(
            queries, cache, weights, of_heads, batch.seq_lens, table, length, ChunkQ=heads
        )
    found = torch.full((1, len(q), length), torch.nan)
    found[0, :rows] = of_heads.sum(0)
    return found


def _ragged_logits(q, weights, index_cache, indexer, batch) -> torch.Tensor:
    queries, cache = _decoded(q, index_cache, indexer, batch)
    [host, _] = load_paged(indexer.cache_dtype)
    lengths = batch.seq_lens.tolist()
    slots = [slot for table, n in zip(batch.block_table.tolist(), lengths, strict=True) for slot in table[:n]]
    ends = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    with guarded((len(q), batch.max_seq_len), torch.float32, "logits") as logits:
        host.deepgemm_fp8_paged_mqa_logits_ragged_k(
            queries, cache.flatten(0, 2), weights, logits, ends, torch.tensor(slots, dtype=torch.int32), batch.max_seq_len
        )
    return logits[None]


def _kernels() -> list[ModuleType]:
    return load_paged(FNUZ)[1:]


_SIZES: dict[str, Any] = {"selection_units": (1,), "selected_per_head": (False,)}
_DECODES = index_engine(query_lens=("equal",), **_SIZES)
_FIELDS: dict[str, Any] = {"group_sizes": (16, 64, 32), "head_sizes": (128, 64, 32)}
_OF_DECODES: dict[str, Any] = {
    **_FIELDS,
    "engine": _DECODES,
    "unavailable": lambda device: triton_unavailable(device) or AITER.missing((HOST, KERNELS)),
    "modules": _kernels,
}
AITER_MQA_LOGITS = index_target(
    "aiter-mqa-logits",
    lambda: IndexerFunctions(index_logits=_logits),
    TERMS,
    description="AITER's fp8_mqa_logits in Triton, of the keys of an index cache",
    engine=index_engine(**_SIZES),
    **GATHERED.fields(),
    findings=MQA_LOGITS,
    **_FIELDS,
)
AITER_PAGED_MQA_LOGITS = index_target(
    "aiter-paged-mqa-logits",
    lambda: IndexerFunctions(index_logits=_paged_logits),
    TERMS,
    description="the Triton kernel of AITER's deepgemm_fp8_paged_mqa_logits, of the keys of a flat index cache",
    **_OF_DECODES,
)
AITER_PAGED_MQA_LOGITS_STAGE1 = index_target(
    "aiter-paged-mqa-logits-stage1",
    lambda: IndexerFunctions(index_logits=_stage1_logits),
    TERMS,
    description="AITER's deepgemm_fp8_paged_mqa_logits_stage1, added up, of the keys of a flat index cache",
    findings=MQA_LOGITS_STAGE1,
    **_OF_DECODES,
)
AITER_RAGGED_MQA_LOGITS = index_target(
    "aiter-ragged-mqa-logits",
    lambda: IndexerFunctions(index_logits=_ragged_logits),
    TERMS,
    description="AITER's deepgemm_fp8_paged_mqa_logits_ragged_k, of the keys of a flat index cache",
    findings=MQA_LOGITS_RAGGED,
    **(_OF_DECODES | {"block_sizes": (1,)}),
)
