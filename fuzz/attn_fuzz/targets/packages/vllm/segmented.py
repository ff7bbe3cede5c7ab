"""vLLM's segmented attention as RocmSegmentedAttentionImpl of v1/attention/backends/rocm_segmented_attn.py calls it on RDNA.

Lines of that file: 69-79 have the dtypes, 94 the head sizes, 97-112 say that there are windows, sinks and steps that are not
causal, 185-189 that there are up to 16 query heads to a KV head; 248-251 take K and V from the cache, 284-307 are the call. The
impl hands soft caps and quantized outputs on to unified_attention, which has a target of its own. On a CPU
`can_use_segmented_attention` of ops/segmented_attention.py says no: run_segmented_attention is called as its line 1033 does,
with the parameters of `select_segmented_config`, which a server has that does not tune when it starts.
"""

import dataclasses
from collections.abc import Iterable

from attn_contract import Layout
from attn_fuzz import foreign
from attn_fuzz.cases.tensors import Step
from attn_fuzz.findings.vllm import SEGMENTED
from attn_fuzz.targets.engine import VLLM
from attn_fuzz.targets.packages.vllm import package as vllm_package
from attn_fuzz.targets.rows import rows_of
from attn_fuzz.verdict.rounding import Rounding

SOURCES = vllm_package.ops("segmented_attention", "triton_unified_attention", "triton_attention_helpers", is_rocm=True)


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    module, *_ = SOURCES.load()
    rows = batch.num_actual_tokens
    key_cache, value_cache = foreign.keys_and_values(kv_cache, layer)
    one = q.new_ones((), dtype=q.dtype).float()
    module.run_segmented_attention(
        q[:rows],
        rows_of(out, layer, rows),
        key_cache,
        value_cache,
        batch.block_table,
        batch.query_start_loc,
        batch.seq_lens,
        batch.max_query_len,
        batch.max_seq_len,
        one if layer.k_scale is None else layer.k_scale,
        one if layer.v_scale is None else layer.v_scale,
        layer.scale,
        sliding_window=layer.window[0],
        causal=batch.causal,
        sinks=layer.sinks,
    )


def _events(step: Step) -> Iterable[str]:
    return ["two queries or fewer" if step.batch.max_query_len <= 2 else "more queries"]


VLLM_SEGMENTED_ATTENTION = SOURCES.target(
    name="vllm-segmented-attention",
    description="the Triton segmented attention of vLLM, as its ROCM_SEGMENTED_ATTN calls it on RDNA",
    attention=_attention,
    support=vllm_package.support(
        layouts=(Layout.BLOCKS_FIRST_NHD, Layout.KV_FIRST_NHD),
        rules=("window", "non_causal", "sinks"),
        head_sizes=(64, 128, 256),
        group_sizes=(1, 2, 3, 4, 5, 7, 8, 16),
        engine=dataclasses.replace(VLLM, writes=(True,), unwritten=False),
        tile_sizes=(32, 64),
        max_tokens=160,
    ),
    rounding=Rounding(keys_per_tile=32, splits=64, rounds_dequantized=True),
    events=_events,
    findings=SEGMENTED,
)
