"""Targets with right numbers, each of which reads one element beside one tensor: `planted_fence:END_OF_NAME`, `START_OF_NAME`.

Attention is that of this project's kernels, with a GPU, or else of the reference. On a GPU a Triton kernel makes the read, and
on a CPU C code does (`memmove` of ctypes).
"""

import ctypes
import dataclasses

import attn_optimized
import torch
import triton
import triton.language as tl
from attn_contract.memory import extent
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_fuzz.targets.target import Target
from attn_fuzz.targets.triton import TRITON


@triton.jit
def read_kernel(tensor_ptr, seen_ptr, element):
    tl.store(seen_ptr, tl.load(tensor_ptr + element).to(tl.int32))


def _read(tensor: torch.Tensor, element: int) -> None:
    """Read an element of int8, by its index from the first one of a tensor."""
    if tensor.device.type == "cpu":
        ctypes.string_at(tensor.data_ptr() + element, 1)
    else:
        memory = tensor.as_strided((1,), (1,)).view(torch.int8)
        read_kernel[(1,)](memory, torch.empty(1, dtype=torch.int32, device=tensor.device), element)


def _target(name: str, side: str) -> Target:
    def attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        if kv_cache is not None and q.is_cuda:
            attn_optimized.paged_attention(q, kv_cache, layer, batch, out=out, lse=lse)
        else:
            REFERENCE_FP32.attention(q, k, v, kv_cache, layer, batch, out=out, lse=lse)
        named = {"q": q, "k": k, "v": v, "kv_cache": kv_cache, "out": out, "lse": lse, **layer.tensors, **batch.tensors}
        tensor = named.get(name)
        if tensor is not None and tensor.numel():
            _read(tensor, -1 if side == "START" else extent(tensor.shape, tensor.stride()) * tensor.itemsize)

    small = {"head_sizes": (16, 32), "group_sizes": (1, 2), "block_sizes": (4, 1, 16), "max_tokens": 32, "max_seq_len": 64}
    return dataclasses.replace(
        REFERENCE_FP32,
        name=f"{side.lower()}-of-{name}",
        attention=attention,
        support=lambda device: dataclasses.replace(TRITON.support(device), **small),
        rounding=lambda device: (TRITON if device == "cuda" else REFERENCE_FP32).rounding(device),
        refuses=False,
    )


def __getattr__(attribute: str) -> Target:
    side, found, name = attribute.partition("_OF_")
    if not found:
        raise AttributeError(attribute)
    return _target(name.lower(), side)
