"""AITER's kernels that list which rows of a gathered workspace a prefill of DeepSeek-V4 attends to, in AITER's main alone.

_compute_combined_lens_kernel and _combine_topk_swa_indices_ragged_kernel of sparse_attention_dsv4.py (see
`packages.aiter.two_sources`) write one list after the other. No host code of AITER launches them, so the launches are here.
"""

import torch
from attn_fuzz.targets.indexer import guarded
from attn_fuzz.targets.packages.aiter.package import needs_main
from attn_fuzz.targets.packages.aiter.two_sources import TRITON, loaded_triton
from attn_fuzz.targets.packages.combined_lists import Prefill, lists_target

WORKERS, BLOCK = 16, 64


def _combine(step: Prefill, lists, lengths) -> None:
    [module], requests = loaded_triton(), len(step.seq_lens)
    sizes = {"TOP_K": step.top_k, "COMPRESS_RATIO": step.ratio, "WINDOW_SIZE": step.window}
    module._compute_combined_lens_kernel[requests, WORKERS](lengths, step.query_start_loc, step.seq_lens, **sizes)
    ends = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    with guarded((1, int(ends[-1])), torch.int32, "lists") as flat:
        module._combine_topk_swa_indices_ragged_kernel[requests, WORKERS, -(-lists.shape[1] // BLOCK)](
            flat,
            ends,
            step.chosen,
            step.chosen.stride(0),
            step.query_start_loc,
            step.seq_lens,
            step.gather_lens,
            step.rows_of_a_request,
            step.entries_of_a_request,
            step.chosen.shape[1],
            BLOCK_SIZE=BLOCK,
            **sizes,
        )
    lists[:] = -1
    for row, own in enumerate(flat[0].split(lengths.tolist())):
        lists[row, : len(own)] = own


AITER_COMBINED_LISTS = lists_target(
    "aiter-combined-lists",
    _combine,
    description="the kernels of AITER's sparse_attention_dsv4 that list the rows of a query",
    unavailable=needs_main((TRITON,)),
    modules=loaded_triton,
)
