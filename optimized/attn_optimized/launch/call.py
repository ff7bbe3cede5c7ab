"""A call of attention, whose keys and values are in a cache or in rows of tokens, as the attention kernel takes it."""

from typing import Any, NamedTuple

import torch
from attn_contract import Batch, Layer, Layout
from attn_contract.validation import check_paged_attention, check_varlen_attention

from attn_optimized.quantization import stored_format
from attn_optimized.strides import (
    kv_cache_strides,
    parts_of_e8m0_planes,
    parts_of_scaled_rows,
    scales_of_e8m0_rows,
    token_scales,
    without_idle_strides,
)


class KeyTensors(NamedTuple):
    """K and V as the attention kernel takes them, and their scales."""

    k: torch.Tensor
    v: torch.Tensor
    k_scale: torch.Tensor | None = None
    v_scale: torch.Tensor | None = None


class PagedKeys(NamedTuple):
    """K and V in the blocks of a cache."""

    kv_cache: torch.Tensor

    def inputs(self, q: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors that a call reads, by the names of its arguments."""
        return {"q": q, "kv_cache": self.kv_cache}

    def check(
        self, q: torch.Tensor, layer: Layer, batch: Batch, out: torch.Tensor | None, lse: torch.Tensor | None, *, values: bool
    ) -> None:
        check_paged_attention(q, self.kv_cache, layer, batch, out, lse, values=values)

    def tensors(self, layer: Layer, architecture: str) -> KeyTensors:
        """The cache twice, in a type that the architecture's compiler knows, and its scales.

        In rows of several types, what stands for V is the dims of the second type.
        """
        stored, _ = stored_format(self.kv_cache, architecture)
        if layer.layout is Layout.LATENT_SCALED:
            scales, rotated = parts_of_scaled_rows(self.kv_cache, layer)
            return KeyTensors(stored, rotated, scales)
        if layer.layout is Layout.LATENT_E8M0:
            return KeyTensors(stored, stored, scales_of_e8m0_rows(self.kv_cache, layer))
        if layer.layout is Layout.LATENT_E8M0_PLANES:
            scales, kept = parts_of_e8m0_planes(self.kv_cache, layer)
            return KeyTensors(stored, kept, scales)
        k_scale, v_scale = token_scales(self.kv_cache, layer) or (layer.k_scale, layer.v_scale)
        if layer.layout is Layout.LATENT:
            v_scale = k_scale
        return KeyTensors(stored, stored, k_scale, v_scale)

    def strides(self, layer: Layer) -> dict[str, int]:
        """In elements, by the kernel's names."""
        cache = kv_cache_strides(without_idle_strides(self.kv_cache), layer)
        return {
            "stride_kv": cache.kv,
            "stride_block": cache.block,
            "stride_k_slot": cache.slot,
            "stride_k_head": cache.head,
            "stride_v_slot": cache.slot,
            "stride_v_head": cache.head,
        }

    def kind(self, layer: Layer, architecture: str) -> dict[str, Any]:
        """Fields of the kernel's Kind."""
        cache = kv_cache_strides(self.kv_cache, layer)
        kv_format = stored_format(self.kv_cache, architecture)[1]
        if cache.interior.startswith("latent"):
            # the instruction takes a register for each byte, and tiles of latent keys have none to spare
            kv_format = kv_format.replace("_byte", "_bits")
        return {
            "is_paged": True,
            "block_size": cache.block_size,
            "interior": cache.interior,
            "x": 16 // self.kv_cache.element_size(),
            "kv_format": kv_format,
            "has_token_scales": token_scales(self.kv_cache, layer) is not None,
        }


class DenseKeys(NamedTuple):
    """K and V of a step's own tokens, [T_kv, HK, D] each."""

    k: torch.Tensor
    v: torch.Tensor

    def inputs(self, q: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors that a call reads, by the names of its arguments."""
        return {"q": q, "k": self.k, "v": self.v}

    def check(
        self, q: torch.Tensor, layer: Layer, batch: Batch, out: torch.Tensor | None, lse: torch.Tensor | None, *, values: bool
    ) -> None:
        check_varlen_attention(q, self.k, self.v, layer, batch, out, lse, values=values)

    def tensors(self, layer: Layer, architecture: str) -> KeyTensors:
        """K and V, which have no scales."""
        return KeyTensors(self.k, self.v)

    def strides(self, layer: Layer) -> dict[str, int]:
        """In elements, by the kernel's names."""
        k, v = without_idle_strides(self.k), without_idle_strides(self.v)
        return {
            "stride_kv": 0,
            "stride_block": 0,
            "stride_k_slot": k.stride(0),
            "stride_k_head": k.stride(1),
            "stride_v_slot": v.stride(0),
            "stride_v_head": v.stride(1),
        }

    def kind(self, layer: Layer, architecture: str) -> dict[str, Any]:
        """Fields of the kernel's Kind."""
        return {
            "is_paged": False,
            "block_size": 1,
            "interior": "rows",
            "x": 1,
            "kv_format": "float",
            "has_token_scales": False,
        }


Keys = PagedKeys | DenseKeys


class AttentionCall(NamedTuple):
    """The arguments of a call of attention."""

    q: torch.Tensor
    keys: Keys
    layer: Layer
    batch: Batch
    out: torch.Tensor
    lse: torch.Tensor | None


def new_output(q: torch.Tensor, layer: Layer) -> torch.Tensor:
    """[T, H, Dv] of q's dtype and device."""
    return q.new_empty((len(q), layer.num_heads, layer.value_size))
