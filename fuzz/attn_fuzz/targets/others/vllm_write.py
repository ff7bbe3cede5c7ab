"""vLLM's triton_reshape_and_cache_flash, as do_kv_cache_update of TritonAttentionImpl calls it; the reference attends.

Lines of v1/attention/backends/triton_attn.py: 834-843 are the call. Its sibling for scales of tokens (815-824) is not declared:
it multiplies by 1 / scale where the contract divides, so bytes may differ by one step of the float8.
"""

import attn_reference
import torch
from attn_contract import AttentionType, Layer, Layout
from attn_fuzz import foreign
from attn_fuzz.findings.vllm import WRITE
from attn_fuzz.targets.engine import VLLM
from attn_fuzz.targets.others import vllm_package
from attn_fuzz.targets.target import Support, Target
from attn_fuzz.verdict.rounding import Rounding

MODULES = ("triton_reshape_and_cache_flash",)


def _write_kv_cache(k: torch.Tensor, v: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, slot_mapping: torch.Tensor) -> None:
    [module] = vllm_package.load(*MODULES, is_rocm=k.device.type == "cpu")  # on CUDA it asks the device for its capability
    k_cache, v_cache = foreign.keys_and_values(kv_cache, layer)
    one = k.new_ones(1, dtype=torch.float32)
    dtype = "auto" if layer.kv_cache_dtype is None else "fp8"
    scales = [one if scale is None else scale for scale in (layer.k_scale, layer.v_scale)]
    module.triton_reshape_and_cache_flash(k, v, k_cache, v_cache, slot_mapping, dtype, *scales)


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    attn_reference.paged_attention(q, kv_cache, layer, batch, out=out)


def _support(device: str) -> Support:
    return Support(
        attn_types=(AttentionType.DECODER, AttentionType.ENCODER_DECODER),
        dtypes=("float32", "float16", "bfloat16"),
        layouts=(Layout.CONTENT_PACKED,),
        rules=("non_causal",),
        cache_dtypes=("fp8_e4m3fn",),
        scales=("tensor",),
        head_sizes=(32, 64, 80, 96, 128),
        block_sizes=(16, 32, 48, 80, 544),
        engine=VLLM,
        max_tokens=64,
        max_seq_len=128,
    )


VLLM_WRITE = Target(
    name="vllm-reshape-and-cache",
    description="the triton_reshape_and_cache_flash of vLLM 0.33.0, as its TRITON_ATTN calls it; the reference attends",
    attention=_attention,
    write_kv_cache=foreign.with_nan_in_new_memory(_write_kv_cache),
    support=_support,
    rounding=lambda device: Rounding(keys_per_tile=64),
    refuses=False,
    unavailable=vllm_package.missing(*MODULES),
    findings=WRITE,
)
