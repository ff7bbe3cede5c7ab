"""vLLM's block-sparse attention of MiniMax-M3, as MiniMaxM3SparseTritonImpl calls it: a decode with splits, and a prefill.

models/minimax_m3/common/sparse_attention.py:452-520: requests that decode come first and have as many queries each; all others
are prefills. A block is a page of 128 slots, and each KV head has a selection of its own. The indexer names as many blocks for
a query as a row has entries, or all blocks that it sees: the prefill reads no sign, but counts the visible blocks
(common/ops/sparse_attn.py:122-124). Both read the keys of a block up to the request's last, and hide those that are ahead of
the query: an engine has written them, also where no query selects them. On ROCm the prefill is another one, in tiles of 32 keys
on gfx942 (amd/ops/sparse_attn.py).

Parts of the decode are rounded to the dtype of q before they are merged (common/ops/sparse_attn.py:663).
"""

import dataclasses
import functools
import itertools

from attn_contract import Layout
from attn_fuzz.targets import engine
from attn_fuzz.targets.packages import VLLM
from attn_fuzz.targets.packages.declaring import Sources
from attn_fuzz.targets.packages.vllm import package as vllm_package
from attn_fuzz.targets.rows import rows_of
from attn_fuzz.verdict.rounding import Rounding

COMMON, ROCM = (f"models/minimax_m3/{side}/ops/sparse_attn" for side in ("common", "amd"))
BLOCK, MAX_DRAFTS, SUB_BLOCK = 128, 3, 32
ENGINE = dataclasses.replace(
    engine.VLLM,
    selection_units=(BLOCK,),
    selections=("top",),
    empty_selections=False,
    selected_per_head=(True,),
    recycled=False,
    other_scales=False,
    empty_requests=False,
    cited={"selections": "models/minimax_m3/common/ops/sparse_attn.py:122-124"},
)


OF_COMMON = Sources(VLLM, (COMMON,), functools.partial(vllm_package.stubs, is_rocm=False))
OF_ROCM = Sources(VLLM, (ROCM, COMMON), functools.partial(vllm_package.stubs, is_rocm=True))


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse, sources: Sources) -> None:
    query_lens = batch.query_start_loc.diff().tolist()
    rows, drafts = sum(query_lens), query_lens[0]
    decodes = len(list(itertools.takewhile(lambda length: length == drafts <= MAX_DRAFTS, query_lens)))
    first = decodes * drafts
    out = rows_of(out, layer, rows)
    selected = batch.selected.expand(layer.num_kv_heads, -1, -1)
    common = {
        "kv_cache": kv_cache,
        "num_kv_heads": layer.num_kv_heads,
        "sm_scale": layer.scale,
        "k_scale": layer.k_scale,
        "v_scale": layer.v_scale,
    }
    if decodes:
        OF_COMMON.load()[0].minimax_m3_sparse_attn_decode(
            q=q[:first],
            topk_idx=selected[:, :first],
            block_table=batch.block_table[:decodes],
            seq_lens=batch.seq_lens[:decodes],
            output=out[:first],
            decode_query_len=drafts,
            **common,
        )
    if decodes < len(query_lens):
        starts = batch.query_start_loc[decodes:] - first
        sources.load()[0].minimax_m3_sparse_attn(
            q=q[first:rows],
            topk_idx=selected[:, first:rows],
            block_table=batch.block_table[decodes:],
            cu_seqlens_q=starts,
            seq_lens=batch.seq_lens[decodes:],
            prefix_lens=batch.seq_lens[decodes:] - starts.diff(),
            max_query_len=max(query_lens[decodes:]),
            output=out[first:],
            **common,
        )


VLLM_MINIMAX_M3 = OF_COMMON.target(
    name="vllm-minimax-m3",
    description="minimax_m3_sparse_attn and minimax_m3_sparse_attn_decode of vLLM",
    attention=functools.partial(_attention, sources=OF_COMMON),
    support=vllm_package.support(
        dtypes=("bfloat16",),
        layouts=(Layout.CONTENT_PACKED,),
        rules=("selection_unit",),
        required_rules=("selection_unit",),
        head_sizes=(128, 64),
        group_sizes=(16, 8),
        block_sizes=(BLOCK,),
        engine=ENGINE,
        tile_sizes=(BLOCK,),
        max_seq_len=700,
    ),
    rounding=Rounding(keys_per_tile=BLOCK, splits=8, merged_parts=2, rounds_dequantized=True),
)
VLLM_MINIMAX_M3_ROCM = dataclasses.replace(
    VLLM_MINIMAX_M3,
    name="vllm-minimax-m3-rocm",
    description="minimax_m3_sparse_attn of vLLM for ROCm, and minimax_m3_sparse_attn_decode",
    attention=functools.partial(_attention, sources=OF_ROCM),
    rounding=lambda device: dataclasses.replace(VLLM_MINIMAX_M3.rounding(device), keys_per_tile=SUB_BLOCK),
    **OF_ROCM.fields(),
)
