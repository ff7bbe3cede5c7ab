"""vLLM's Triton decode over two caches of DeepSeek-V4 on ROCm (v1/attention/ops/rocm_aiter_mla_sparse.py:4561).

A row has slots of tokens in one cache and slots of compressed entries in another one, and one softmax with a sink over both. To
the kernel a key is a key. So what a row selects is dealt onto two caches, of which the second is a copy with its blocks in
another order, and the call is judged as attention over the selection. The GPUs that are tuned split the keys into parts.
"""

import functools
import random
from types import ModuleType

import torch
from attn_contract import Layout
from attn_fuzz import foreign
from attn_fuzz.targets.merge import rows_of
from attn_fuzz.targets.packages import vllm_package
from attn_fuzz.targets.packages.declaring import triton_target
from attn_fuzz.targets.packages.latent_rows import SPARSE_TOKENS, latent_support, ragged, selected_slots
from attn_fuzz.targets.packages.vllm_sparse_mla import FILES, stubs
from attn_fuzz.targets.rng import rng_of_lengths
from attn_fuzz.targets.target import LatentSizes
from attn_fuzz.verdict.rounding import Rounding

ROTATED, SLOT = 64, 584
"""Dims of a row that are bfloat16, and bytes of a slot."""


@functools.cache
def _load() -> list[ModuleType]:
    return foreign.load("vllm", FILES, stubs=stubs())


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    block_size = layer.view_of(kv_cache).block_size
    slots = selected_slots(layer, batch, block_size)[0]
    rows, rng = len(slots), rng_of_lengths(batch)
    if not rows:
        return
    pages = kv_cache.view(torch.uint8)
    tokens = pages[:, : block_size * SLOT].unflatten(1, (block_size, SLOT))
    order = torch.tensor(rng.sample(range(len(pages)), len(pages)), device=pages.device)
    entries = torch.empty_strided(pages.shape, pages.stride(), dtype=pages.dtype, device=pages.device)
    entries[order] = pages
    is_entry = _dealt(slots, rng)
    of_tokens, tokens_indptr = ragged(torch.where(is_entry, -1, slots), rng)
    moved = torch.where(slots < 0, -1, order[slots.clamp(min=0) // block_size].int() * block_size + slots % block_size)
    of_entries, entries_indptr = ragged(torch.where(is_entry, moved, -1), rng)
    swa_only = not bool(is_entry.any())
    [module] = _load()
    with foreign.as_on_a_gpu():
        module.rocm_sparse_attn_decode(
            q=q[:rows],
            kv_cache=None if swa_only else entries[:, : block_size * SLOT].unflatten(1, (block_size, SLOT)),
            swa_k_cache=tokens,
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
            output=rows_of(out, layer, rows),
        )


def _dealt(slots: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """[rows, W] bool: which slots are those of entries: none, all, or some of each row."""
    share = rng.choice((0.0, 0.3, 0.7, 1.0))
    drawn = [[rng.random() < share for _ in range(slots.shape[1])] for _ in range(len(slots))]
    return torch.tensor(drawn, dtype=torch.bool, device=slots.device).view(slots.shape)


VLLM_TWO_CACHES = triton_target(
    name="vllm-two-caches",
    description="rocm_sparse_attn_decode of vLLM 0.33.0, over two caches of 584 bytes a slot",
    attention=_attention,
    support=latent_support(
        dtypes=("bfloat16",),
        layouts=(Layout.LATENT_E8M0_PLANES,),
        cache_dtypes=("fp8_e4m3fn",),
        scales=("tensor",),
        rules=("selection_unit", "head_size_v", "sinks"),
        latent=LatentSizes(widths=((512, 0),), group_sizes=(16, 12, 64), block_sizes=(16, 4, 64)),
        engine=SPARSE_TOKENS,
    ),
    rounding=Rounding(keys_per_tile=32, splits=16),
    unavailable=vllm_package.missing_files(*FILES),
    modules=_load,
)
