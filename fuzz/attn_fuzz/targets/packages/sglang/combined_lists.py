"""SGLang's combine_topk_swa_indices: which rows of a gathered workspace a prefill of DeepSeek-V4 attends to.

kernels/ops/attention/dsv4/sparse_prefill_kernels.py:159, called by srt/layers/attention/dsv4/sparse_prefill_utils.py. Rows of a
request begin anywhere, and chosen entries may be -1. Queries of no request have no rows. Windows that are given slot by slot
(`swa_indices`) are not here.
"""

from attn_fuzz.foreign.loading import Stubs
from attn_fuzz.targets.packages import SGLANG
from attn_fuzz.targets.packages.combined_lists import ListInputs, Prefill, lists_target
from attn_fuzz.targets.packages.declaring import Sources
from attn_fuzz.targets.packages.sglang import package as sglang_package


def _stubs() -> Stubs:
    return sglang_package.stubs() | {"sglang.srt.utils": {"ceil_align": lambda number, unit: -(-number // unit) * unit}}


SOURCES = Sources(SGLANG, ("kernels/ops/attention/dsv4/sparse_prefill_kernels",), _stubs)


def _combine(step: Prefill, lists, lengths) -> None:
    SOURCES.load()[0].combine_topk_swa_indices(
        topk_indices=step.chosen,
        query_start_loc=step.query_start_loc,
        query_pos=step.positions,
        seq_lens=step.seq_lens,
        gather_lens=step.gather_lens,
        compressed_base=step.first_entries,
        swa_base=step.first_keys,
        window_size=step.window,
        compress_ratio=step.ratio,
        topk=step.top_k,
        out_indices=lists,
        out_lens=lengths,
    )


SGLANG_COMBINED_LISTS = lists_target(
    "sglang-combined-lists",
    _combine,
    ListInputs(holes=True, ragged=True, unowned=(0, 1, 3)),
    description="combine_topk_swa_indices of SGLang",
    **SOURCES.fields(),
)
