"""Shape, dtype and strides of the tensors that several operations take: q, k and v, the cache, the LSE."""

import torch

from attn_contract.arguments import check_dense_last, check_dims
from attn_contract.errors import ContractError
from attn_contract.kv_cache_view import KVCacheView
from attn_contract.layer import FLOAT_DTYPES, Layer


def check_heads(name: str, tensor: torch.Tensor, rows: str, num_heads: int, head_size: int) -> None:
    """Check that the tensor is [any number of rows, num_heads, head_size]. `rows` names the first dimension in messages."""
    if tuple(tensor.shape[1:]) != (num_heads, head_size):
        raise ContractError(name, f"shape {tuple(tensor.shape)}", f"shape ({rows}, {num_heads}, {head_size})")


def check_key_value(k: torch.Tensor, v: torch.Tensor, layer: Layer, dtype: torch.dtype) -> None:
    """Check that k and v are [T_kv, HK, D] and [T_kv, HK, v_head_size] of `dtype`, dense in the last dimension."""
    for name, tensor in {"k": k, "v": v}.items():
        check_dims(name, tensor, ("T_kv", "num_kv_heads", "head_size"))
        if tensor.dtype != dtype:
            raise ContractError(name, tensor.dtype, f"{dtype}: one dtype for q, k and v")
        check_dense_last(name, tensor)
    value_shape = (*k.shape[:2], k.shape[2] if layer.head_size_v is None else layer.head_size_v)
    if tuple(v.shape) != value_shape:
        why = "as k has" if layer.head_size_v is None else "as k and head_size_v say"
        raise ContractError("v", f"shape {tuple(v.shape)}", f"shape {value_shape}, {why}")


def check_cache(kv_cache: torch.Tensor, layer: Layer, dtype: torch.dtype) -> KVCacheView:
    """Check a cache, and the caches of its scales, against a layer that has a layout.

    Args:
        dtype: the dtype of q, k and v; an unquantized cache has the same.
    """
    expected = layer.kv_cache_dtype or dtype
    if kv_cache.dtype != expected:
        why = "the layer's kv_cache_dtype" if layer.kv_cache_dtype else "one dtype for q, k, v and an unquantized cache"
        raise ContractError("kv_cache", kv_cache.dtype, f"{expected}: {why}")
    view = layer.view_of(kv_cache)
    for name in ("k_scale_cache", "v_scale_cache"):
        scales = layer.tensors.get(name)
        if scales is not None and tuple(scales.shape[:2]) != (view.num_blocks, view.block_size):
            raise ContractError(
                name, f"shape {tuple(scales.shape)}", f"shape ({view.num_blocks}, {view.block_size}, {view.num_kv_heads})"
            )
    return view


def check_rotated_dtype(name: str, dtype: torch.dtype, layer: Layer) -> None:
    """Check that q, or what is written, is bfloat16 beside latent rows with scales.

    Rows hold some of their dims in it. It holds every number with a ue8m0 scale within its range, as float16 does not.
    """
    if layer.layout is not None and layer.layout.latent_format is not None and dtype != torch.bfloat16:
        raise ContractError(name, dtype, f"torch.bfloat16: the only dtype beside {layer.layout}")


def check_lse(name: str, lse: torch.Tensor, like: torch.Tensor) -> None:
    """Check that an LSE is float32 [H, T], heads first, for `like` [T, H, D]."""
    expected = (like.shape[1], like.shape[0])
    if tuple(lse.shape) != expected or lse.dtype != torch.float32:
        raise ContractError(name, f"{lse.dtype} {tuple(lse.shape)}", f"torch.float32 {expected}: heads, then tokens")
    check_dense_last(name, lse)


def check_float(name: str, tensor: torch.Tensor) -> None:
    """Check that the tensor's dtype is one that attention computes on."""
    if tensor.dtype not in FLOAT_DTYPES:
        raise ContractError(name, tensor.dtype, "float32, float16 or bfloat16")


def given(**optional: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The tensors that are not None."""
    return {name: tensor for name, tensor in optional.items() if tensor is not None}
