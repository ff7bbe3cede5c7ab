"""A call of attention, whose keys and values are in a cache or in rows of tokens, as the attention kernel takes it."""

from typing import Any, NamedTuple

import torch
from attn_contract import Batch, Layer, Layout
from attn_contract.validation import check_paged_attention, check_varlen_attention, dtype_of_output

from attn_optimized.quantization import stored_format
from attn_optimized.strides import LatentRow, kv_cache_strides, token_scales, without_idle_strides


class KeyTensors(NamedTuple):
    """K and V as the attention kernel takes them, and their scales."""

    k: torch.Tensor
    v: torch.Tensor
    k_scale: torch.Tensor | None = None
    v_scale: torch.Tensor | None = None


class KeyForm(NamedTuple):
    """The form of K and V that a launch is made for.

    Args:
        strides: in elements, by the kernel's names.
        begins_even: True if K begins at an even address.

    All other fields are fields of the kernel's Kind.
    """

    strides: dict[str, int]
    begins_even: bool = False
    is_paged: bool = False
    block_size: int = 1
    interior: str = "rows"
    x: int = 1
    scale_dims: int = 0
    kept_dims: int = 0
    kv_format: str = "float"
    has_token_scales: bool = False

    @property
    def kind(self) -> dict[str, Any]:
        """Fields of the kernel's Kind."""
        fields = self._asdict()
        del fields["strides"], fields["begins_even"]
        return fields


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

        In a latent layout with scales, V is the bfloat16 part of a row.
        """
        stored, _ = stored_format(self.kv_cache, architecture)
        if (row := LatentRow.of(layer)) is not None:
            scales, kept = row.parts(self.kv_cache)
            return KeyTensors(stored, stored if kept is None else kept, scales)
        k_scale, v_scale = token_scales(self.kv_cache, layer) or (layer.k_scale, layer.v_scale)
        if layer.layout is Layout.LATENT:
            v_scale = k_scale
        return KeyTensors(stored, stored, k_scale, v_scale)

    def form(self, layer: Layer, architecture: str) -> KeyForm:
        cache, row = kv_cache_strides(without_idle_strides(self.kv_cache), layer), LatentRow.of(layer)
        kv_format = stored_format(self.kv_cache, architecture)[1]
        if cache.interior.startswith("latent"):
            # the instruction needs a register for each byte, and tiles of latent keys have no registers left
            kv_format = kv_format.replace("_byte", "_bits")
        return KeyForm(
            strides={
                "stride_kv": cache.kv,
                "stride_block": cache.block,
                "stride_k_slot": cache.slot,
                "stride_k_head": cache.head,
                "stride_v_slot": cache.slot,
                "stride_v_head": cache.head,
            },
            begins_even=self.kv_cache.data_ptr() % 2 == 0,
            is_paged=True,
            block_size=cache.block_size,
            interior=cache.interior,
            x=16 // self.kv_cache.element_size(),
            scale_dims=0 if row is None else row.scale_dims,
            kept_dims=0 if row is None else layer.v_head_size - row.quantized,
            kv_format=kv_format,
            has_token_scales=token_scales(self.kv_cache, layer) is not None,
        )


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

    def form(self, layer: Layer, architecture: str) -> KeyForm:
        k, v = without_idle_strides(self.k), without_idle_strides(self.v)
        return KeyForm(
            strides={
                "stride_kv": 0,
                "stride_block": 0,
                "stride_k_slot": k.stride(0),
                "stride_k_head": k.stride(1),
                "stride_v_slot": v.stride(0),
                "stride_v_head": v.stride(1),
            }
        )


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
    """[T, H, Dv] of q's dtype and device.

    Raises:
        ContractError: q is float8, from which no dtype of the output follows.
    """
    return q.new_empty((len(q), layer.num_heads, layer.v_head_size), dtype=dtype_of_output(q, layer))
