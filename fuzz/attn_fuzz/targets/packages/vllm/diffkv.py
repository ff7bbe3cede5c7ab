"""vLLM's kernels of two widths: unified_attention_diffkv, and the cache write beside it, as its TRITON_ATTN_DIFFKV calls them.

Lines of v1/attention/backends/triton_attn_diffkv.py: 192-193 take K and V from the cache, 195-220 are the call, and 143-151 are
the write. The builder, the windows and the thresholds are those of TRITON_ATTN, from which the backend inherits
(`packages.vllm.unified`). It inherits its declarations too: steps that are not causal and bidirectional ranges, which are not
passed to the kernel (207 says causal=True). Those are not drawn.

Only vLLM's model of MiMo-V2 chooses the backend (model_executor/models/mimo_v2.py:325-341), where V has another width than K.
"""

from collections.abc import Iterable

import torch
from attn_contract import Layer, Layout
from attn_fuzz import foreign
from attn_fuzz.cases.tensors import Step
from attn_fuzz.findings.vllm import DIFFKV
from attn_fuzz.targets.packages.declaring import SHARES_A_QUERY
from attn_fuzz.targets.packages.vllm import package as vllm_package
from attn_fuzz.targets.packages.vllm import unified as vllm_unified
from attn_fuzz.targets.packages.vllm import write as vllm_write

SOURCES, ON_ROCM = (
    vllm_package.ops(
        *("triton_unified_attention_diffkv", "triton_attention_helpers", "triton_reshape_and_cache_flash"), is_rocm=is_rocm
    )
    for is_rocm in (False, True)
)
SPEC_3D_MAX_Q = 16
"""ops/triton_unified_attention_diffkv.py:54: the most queries of a request whose keys are split, without a window."""


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    [module, *_] = SOURCES.load()
    k_cache, v_cache = foreign.keys_and_values(kv_cache, layer)
    foreign.call(
        module.unified_attention_diffkv,
        k=k_cache,
        v=v_cache,
        causal=True,
        k_descale=layer.k_scale,
        v_descale=layer.v_scale,
        **vllm_unified.arguments(q, layer, batch, out),
    )


def _write_kv_cache(k: torch.Tensor, v: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, slot_mapping: torch.Tensor) -> None:
    # on CUDA the module of writes asks the device for its capability
    [*_, module] = (ON_ROCM if k.device.type == "cpu" else SOURCES).load()

    def write(dtype: str, *scales: torch.Tensor) -> None:
        rows = kv_cache.transpose(1, 2)
        module.triton_reshape_and_cache_flash_diffkv(k, v, rows, slot_mapping, dtype, *scales)

    vllm_write.written(write, k, v, kv_cache, layer, slot_mapping)


def _events(step: Step) -> Iterable[str]:
    longest, windowed = step.batch.max_query_len, step.layer.window[0] >= 0
    return ["3D"] if longest <= 1 or (longest <= SPEC_3D_MAX_Q and not windowed) else ["2D"]


VLLM_DIFFKV = ON_ROCM.target(
    name="vllm-diffkv",
    description="unified_attention_diffkv of vLLM and its cache write, as TRITON_ATTN_DIFFKV calls them",
    attention=_attention,
    write_kv_cache=_write_kv_cache,
    support=vllm_package.support(
        dtypes=("float32", "float16", "bfloat16"),
        layouts=(Layout.CONTENT_PACKED,),
        rules=("head_size_v", "window", "logits_soft_cap", "alibi_slopes", "sinks"),
        required_rules=("head_size_v",),
        head_sizes=(32, 64, 80, 96, 128, 192),
        engine=vllm_unified.ENGINE,
        tile_sizes=(16, 32),
        max_tokens=64,
    ),
    rounding=vllm_unified.ROUNDING,
    events=_events,
    findings=DIFFKV,
    races=SHARES_A_QUERY,
)
