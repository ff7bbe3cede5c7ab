"""One call of attention, by the tensors that a kernel is given."""

from dataclasses import dataclass

import torch
from attn_contract import Batch, ContractError, Layer
from attn_contract.arguments import check_dims, check_tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Call:
    """The arguments of `attn_reference.paged_attention` or `varlen_attention`, as tensors on any device.

    Args:
        q: [T, H, D] float32, float16 or bfloat16, or of the cache's float8 type with a `layer.q_scale`.
        layer, batch: the fields that are fixed for the layer, and the fields of this step.
        kv_cache: of a layer that reads a cache (DECODER, ENCODER_DECODER), this step's keys and values already written; shaped
            as `layer.layout` says.
        k, v: [T_kv, HK, D] and [T_kv, HK, Dv] of q's dtype, of a layer that has no cache (ENCODER, ENCODER_ONLY).

    Raises:
        ContractError: q is no tensor of three dimensions, the layer reads a cache and there is none, or the layer reads no
            cache and there are no k and v.
    """

    q: torch.Tensor
    layer: Layer
    batch: Batch
    kv_cache: torch.Tensor | None = None
    k: torch.Tensor | None = None
    v: torch.Tensor | None = None

    def __post_init__(self) -> None:
        check_tensor("q", self.q)
        check_dims("q", self.q, ("T", "num_heads", "head_size"))
        attn_type = self.layer.attn_type
        if attn_type.reads_cache and self.kv_cache is None:
            raise ContractError("kv_cache", None, f"a tensor for {attn_type}")
        if not attn_type.reads_cache and (self.k is None or self.v is None or self.kv_cache is not None):
            raise ContractError("k, v", "none, or a kv_cache", f"tensors of this step's tokens, and no cache, for {attn_type}")
