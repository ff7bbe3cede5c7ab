"""Lets vLLM's backends run on a CPU: vLLM's Triton kernels interpreted, and in the place of kernels that need a GPU."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import attn_vllm_recording
import pytest
import torch
from attn_fuzz import Recording
from attn_vllm_recording import VARIABLE, watching
from vllm.model_executor.layers.attention import Attention, MLAAttention
from vllm.model_executor.layers.sparse_attn_indexer import SparseAttnIndexer
from vllm.utils import torch_utils
from vllm.v1.attention.ops import triton_reshape_and_cache_flash as writers
from vllm.v1.attention.ops.paged_attn import PagedAttention
from vllm.v1.attention.ops.triton_prefill_attention import context_attention_fwd
from vllm.v1.attention.ops.triton_unified_attention import unified_attention
from vllm.v1.worker.gpu.model_runner import GPUModelRunner as SecondModelRunner
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

PAGED = ("q", "k", "v", "out", "cu_seqlens_q", "max_seqlen_q", "seqused_k", "max_seqlen_k", "softmax_scale", "causal")
RULES = ("window_size", "block_table", "softcap", "q_descale", "k_descale", "v_descale", "alibi_slopes", "sinks")


def interpret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer vLLM's questions about the GPU before it launches its Triton kernels, on a machine without one."""
    if torch.cuda.is_available():
        return
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch_utils, "PIN_MEMORY", False)
    monkeypatch.setattr(writers, "_is_supported_kv_cache_dtype", lambda kv_cache_dtype: True)
    monkeypatch.setattr(PagedAttention, "write_to_paged_cache", write_pages)
    rocm = ModuleType("vllm.platforms.rocm")
    vars(rocm).update(
        use_rocm_custom_paged_attention=lambda *arguments, **named: False,
        on_gfx11=lambda: False,
        on_gfx1250=lambda: False,
    )
    monkeypatch.setitem(sys.modules, "vllm.platforms.rocm", rocm)


def recorded(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Recording:
    """The recording of this process, which judges every call of the layers that are built from now on, until the test ends."""
    for owner, name in (
        (Attention, "__init__"),
        (MLAAttention, "forward_impl"),
        (SparseAttnIndexer, "forward_hip"),
        (GPUModelRunner, "execute_model"),
        (SecondModelRunner, "prepare_inputs"),
        (SecondModelRunner, "execute_model"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # and back, when the test ends
    monkeypatch.setattr(watching, "recordings", {})
    monkeypatch.setenv(VARIABLE, f"{folder},every=1")
    attn_vllm_recording.register()
    return watching.current().recording


def stand_in_for_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """FLASH_ATTN on Triton's unified attention."""
    from vllm.v1.attention.backends import flash_attn

    monkeypatch.setattr(flash_attn, "_FA4_DENSE_ATTENTION_KERNEL", paged)
    monkeypatch.setattr(flash_attn, "get_flash_attn_version", lambda **named: 2)
    monkeypatch.setattr(flash_attn, "reshape_and_cache_flash", writers.triton_reshape_and_cache_flash, raising=False)


def stand_in_for_aiter(monkeypatch: pytest.MonkeyPatch) -> None:
    """ROCM_AITER_UNIFIED_ATTN and ROCM_AITER_FA on vLLM's Triton kernels. Without their kernels for extends."""
    unified = ModuleType("aiter.ops.triton.unified_attention")
    vars(unified)["unified_attention"] = paged
    for name in ("aiter", "aiter.ops", "aiter.ops.triton"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, unified.__name__, unified)
    from vllm._aiter_ops import rocm_aiter_ops
    from vllm.v1.attention.backends import rocm_aiter_fa, rocm_aiter_unified_attn

    monkeypatch.setattr(rocm_aiter_unified_attn, "ops", SimpleNamespace(reshape_and_cache_flash=write), raising=False)
    monkeypatch.setattr(rocm_aiter_ops, "flash_attn_varlen_func", varlen)
    impl = rocm_aiter_fa.AiterFlashAttentionImpl

    def update(self, layer, key, value, kv_cache, slot_mapping):
        write(key, value, *self._split_kv_cache(kv_cache), slot_mapping, self.kv_cache_dtype, layer._k_scale, layer._v_scale)

    monkeypatch.setattr(impl, "do_kv_cache_update", update)


def paged(**arguments) -> None:
    taken = {name: arguments.get(name) for name in (*PAGED, *RULES)}
    for name in ("k_descale", "v_descale"):
        if taken[name] is not None:
            taken[name] = taken[name].expand(len(taken["seqused_k"]), taken["k"].shape[2])
    unified_attention(**taken)


def with_wider_window(kernel: Callable[..., None]) -> Callable[..., None]:
    """A wrong kernel: queries see one key too many."""

    def wider(*, window_size, **arguments):
        kernel(window_size=(window_size[0] + 1, window_size[1]), **arguments)

    return wider


def varlen(q, k, v, cu_seqlens_q, max_seqlen_q, softmax_scale, causal, window_size, out, **others) -> None:
    lengths = cu_seqlens_q.diff()
    left, right = window_size
    context_attention_fwd(
        q, k, v, out, cu_seqlens_q, lengths, max_seqlen_q, causal, softmax_scale, sliding_window_q=left, sliding_window_k=right
    )


def write_pages(key, value, key_cache, value_cache, slot_mapping, kv_cache_dtype, k_scale, v_scale, interleaved_v) -> None:
    assert not interleaved_v
    write(key, value, key_cache, value_cache, slot_mapping, kv_cache_dtype, k_scale, v_scale)


def write(*arguments) -> None:
    writers.triton_reshape_and_cache_flash(*arguments)
