"""Calls of modules of kernels that several scripts of this folder make: of one request, but for what a script says itself.

Each returns the output, which holds -1 before the call.
"""

import torch


def _ints(q, *numbers):
    return torch.tensor(numbers, dtype=torch.int32, device=q.device)


def _unwritten(q, out=None):
    return torch.full_like(q, -1.0) if out is None else out


def unified_attention(module, q, k, v, out=None, *, keys, queries=1, **others):
    """vLLM's and AITER's, without a window. A cache of up to 16 keys is one block."""
    out = _unwritten(q, out)
    call = {
        "cu_seqlens_q": _ints(q, 0, queries),
        "max_seqlen_q": queries,
        "seqused_k": _ints(q, keys),
        "max_seqlen_k": keys,
        "softmax_scale": 1.0,
        "causal": True,
        "window_size": (-1, -1),
        "block_table": _ints(q, [0, 0, 0, 0]),
        "softcap": 0.0,
        "q_descale": None,
        "k_descale": None,
        "v_descale": None,
    }
    module.unified_attention(q=q, k=k, v=v, out=out, **(call | others))
    return out


def chunked_prefill_paged_decode(module, q, k, v, k_cache, v_cache, out=None, *, keys, queries=1, **others):
    """vLLM's and AITER's. A cache of up to 16 keys is one block."""
    out = _unwritten(q, out)
    one = torch.ones((), device=q.device)
    call = {
        "kv_cache_dtype": "auto",
        "block_table": _ints(q, [0]),
        "query_start_loc": _ints(q, 0, queries),
        "seq_lens": _ints(q, keys),
        "max_query_len": queries,
        "k_scale": one,
        "v_scale": one,
        "sm_scale": 1.0,
    }
    tensors = {"query": q, "key": k, "value": v, "output": out, "key_cache": k_cache, "value_cache": v_cache}
    module.chunked_prefill_paged_decode(**tensors, **(call | others))
    return out


def run_segmented_attention(module, q, k_cache, v_cache, *, keys, scale=1.0, **others):
    """vLLM's, over the blocks of a cache in their order."""
    out = _unwritten(q)
    one, table = torch.ones((), device=q.device), _ints(q, list(range(len(k_cache))))
    lengths = (_ints(q, 0, len(q)), _ints(q, keys), len(q), keys)
    module.run_segmented_attention(q, out, k_cache, v_cache, table, *lengths, one, one, scale, **others)
    return out


def unified_attention_sparse_mla(module, q, kv, *, latent_size, topk_indices):
    """AITER's, of one query and one key. The output holds NaN before the call."""
    out = torch.full_like(q[..., :latent_size], torch.nan)
    module.unified_attention_sparse_mla(
        q=q,
        kv=kv,
        out=out,
        cu_seqlens_q=_ints(q, 0, 1),
        max_seqlen_q=1,
        seqused_k=_ints(q, 1),
        max_seqlen_k=1,
        softmax_scale=1.0,
        topk_indices=topk_indices,
        block_table=_ints(q, [0]),
        kv_lora_rank=latent_size,
    )
    return out


def decode_attention_fwd(module, q, k, v, indptr, indices):
    """SGLang's, of one head, with keys that are not split."""
    out = _unwritten(q)
    scratch = {
        "attn_logits": torch.empty(1, 1, 8, q.shape[2], device=q.device),
        "attn_lse": torch.empty(1, 1, 8, device=q.device),
    }
    splits = {"num_kv_splits": _ints(q, 1), "max_kv_splits": 8}
    module.decode_attention_fwd(q, k, v, out, indptr, indices, **scratch, **splits, sm_scale=1.0, k_scale=1.0, v_scale=1.0)
    return out


def image_metadata(module, q, *, blocks, window):
    """FLEX_ATTENTION's, of an image that fills blocks of 16 slots. Block 0 is vLLM's null block."""
    tokens, table = 16 * blocks, _ints(q, [*range(1, blocks + 1)])
    seq_lens, starts = _ints(q, tokens), _ints(q, 0, tokens)
    return module.FlexAttentionMetadata(
        causal=True,
        num_actual_tokens=tokens,
        max_query_len=tokens,
        query_start_loc=starts,
        query_start_loc_cpu=starts.cpu(),
        max_seq_len=tokens,
        seq_lens=seq_lens,
        block_table=table,
        slot_mapping=None,
        total_cache_tokens=tokens + 16,
        block_size=16,
        max_possible_sequence_length=tokens,
        num_reqs=1,
        physical_to_logical=module.physical_to_logical_mapping(table, seq_lens, 16, blocks + 1),
        decode_offset=_ints(q, 0),
        num_blocks_per_seq=_ints(q, blocks),
        persistent_kv_indices=torch.empty(blocks, 16 * blocks, dtype=torch.int32, device=q.device),
        persistent_kv_num_blocks=_ints(q, *[0] * blocks),
        persistent_doc_ids=torch.empty(tokens, dtype=torch.int32, device=q.device),
        sliding_window=window,
        mm_prefix_range={0: [(0, tokens - 1)]},
    )


def keys_seen(block_mask, queries, blocks):
    """The number of slots that each query sees: those that mask_mod shows, in blocks that the mask lists."""
    slots = torch.arange(16 * (blocks + 1), device=queries.device)
    zero = torch.zeros((), dtype=torch.int32, device=queries.device)  # of the batch, and of the heads
    shown = block_mask.mask_mod(zero, zero, *torch.meshgrid(queries, slots, indexing="ij"))
    listed = block_mask.to_dense()[0, 0, :, : blocks + 1].bool().repeat_interleave(16, dim=1)
    return (shown & listed[queries // 16]).sum(dim=1)
