"""A cache of the contract as the tensors that AITER's kernels take for K and for V: views, never copies."""

import torch
from attn_contract import Layer, Layout, UnsupportedError


def key_value_rows(kv_cache: torch.Tensor, layer: Layer, function: str) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V as [NB, BS, HK, D] of any strides.

    Raises:
        UnsupportedError: the layout packs or scales what should be a row of one head's dims.
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
            k, v = kv_cache.transpose(1, 2).split(layer.head_size, dim=3)
            return k, v
        case _:
            reason = "it reads rows of dims by their strides"
            raise UnsupportedError(f"AITER's {function}", f"layout {layer.layout}", reason, "TRITON_ATTN")


def shuffled_pages(kv_cache: torch.Tensor, layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """K as [NB, HK, D/x, BS, x] and V as [NB, HK, BS/x, D, x], x elements in 16 bytes, of a SHUFFLED cache [2, NB, page]."""
    x = 16 // kv_cache.element_size()
    heads, dims = layer.num_kv_heads, layer.head_size
    slots = kv_cache.shape[2] // (heads * dims)
    return kv_cache[0].unflatten(1, (heads, dims // x, slots, x)), kv_cache[1].unflatten(1, (heads, slots // x, dims, x))
