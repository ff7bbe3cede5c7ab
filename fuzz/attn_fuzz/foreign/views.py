"""A cache of the contract as the tensors that kernels take for K and for V: views, never copies."""

import torch
from attn_contract import Layer, Layout


def keys_and_values(kv_cache: torch.Tensor, layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V, each [NB, BS, HK, D] with the strides of the layout: what FlashAttention and vLLM's Triton attention take.

    V of another width is [NB, BS, HK, Dv]. A kernel that takes [NB, HK, BS, D] gets `k.transpose(1, 2)`.

    Raises:
        ValueError: the layout is X_PACKED or SHUFFLED, which no strides describe, or has scales in its rows.
    """
    match layer.layout:
        case Layout.BLOCKS_FIRST_NHD:
            return kv_cache[:, 0], kv_cache[:, 1]
        case Layout.BLOCKS_FIRST_HND:
            return kv_cache[:, 0].transpose(1, 2), kv_cache[:, 1].transpose(1, 2)
        case Layout.KV_FIRST_NHD:
            return kv_cache[0], kv_cache[1]
        case Layout.KV_FIRST_HND:
            return kv_cache[0].transpose(1, 2), kv_cache[1].transpose(1, 2)
        case Layout.CONTENT_PACKED:
            k, v = kv_cache.transpose(1, 2).split([layer.head_size, layer.v_head_size], dim=3)
            return k, v
        case _:
            raise ValueError(f"layout: got {layer.layout}, expected one whose rows of D elements have strides")


def packed_keys_and_values(kv_cache: torch.Tensor, layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V of an X_PACKED or SHUFFLED cache, with x elements in 16 bytes: what paged attention of ROCm takes.

    K is [NB, HK, D/x, BS, x]. V is [NB, HK, D, BS] of X_PACKED, and [NB, HK, BS/x, D, x] of SHUFFLED.

    Raises:
        ValueError: another layout.
    """
    if layer.layout not in (Layout.X_PACKED, Layout.SHUFFLED):
        raise ValueError(f"layout: got {layer.layout}, expected X_PACKED or SHUFFLED")
    x, heads, dims = 16 // kv_cache.element_size(), layer.num_kv_heads, layer.head_size
    slots = kv_cache.shape[2] // (heads * dims)
    of_values = (heads, dims, slots) if layer.layout is Layout.X_PACKED else (heads, slots // x, dims, x)
    return kv_cache[0].unflatten(1, (heads, dims // x, slots, x)), kv_cache[1].unflatten(1, of_values)
