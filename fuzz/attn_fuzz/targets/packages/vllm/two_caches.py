"""vLLM's Triton decode over two caches of DeepSeek-V4 on ROCm (v1/attention/ops/rocm_aiter_mla_sparse.py:4561).

A row has slots of tokens in one cache and slots of compressed entries in another one, and one softmax with a sink over both. To
the kernel a key is a key. So what a row selects is dealt onto two caches, of which the second is a copy with its blocks in
another order, and the call is judged as attention over the selection. The GPUs that are tuned split the keys into parts.
"""

from attn_fuzz import foreign
from attn_fuzz.targets.packages.latent_rows import ENTRIES, ragged, selection_target, two_caches
from attn_fuzz.targets.packages.vllm import sparse_mla as vllm_sparse_mla
from attn_fuzz.verdict.rounding import Rounding

ROTATED = 64
"""Dims of a row that are bfloat16."""


def _attend(q, slots, kv_cache, layer, out, rng) -> None:
    rows, tokens, moved, entries = two_caches(kv_cache, slots, layer, rng)
    of_tokens, tokens_indptr = ragged(tokens, rng)
    of_entries, entries_indptr = ragged(entries, rng)
    swa_only = not bool((entries >= 0).any())
    [module] = vllm_sparse_mla.SOURCES.load()
    with foreign.as_on_a_gpu():
        module.rocm_sparse_attn_decode(
            q=q,
            kv_cache=None if swa_only else moved,
            swa_k_cache=rows,
            swa_only=swa_only,
            topk_indices=None,
            topk_lens=None,
            swa_indices=slots,
            swa_lens=(slots >= 0).sum(1).int(),
            swa_ragged_indices=of_tokens,
            swa_ragged_indptr=tokens_indptr,
            topk_ragged_indices=None if swa_only else of_entries,
            topk_ragged_indptr=None if swa_only else entries_indptr,
            attn_sink=layer.sinks,
            scale=layer.scale,
            head_dim=layer.head_size,
            nope_head_dim=layer.head_size - ROTATED,
            rope_head_dim=ROTATED,
            output=out,
        )


VLLM_TWO_CACHES = selection_target(
    _attend,
    name="vllm-two-caches",
    description="rocm_sparse_attn_decode of vLLM, over two caches of 584 bytes a slot",
    support=ENTRIES,
    rounding=Rounding(keys_per_tile=32, splits=16),
    **vllm_sparse_mla.SOURCES.fields(),
)
