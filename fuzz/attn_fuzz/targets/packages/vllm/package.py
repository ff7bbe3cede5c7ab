"""Shared by the targets of vLLM's kernels: its modules, and its engine.

The lines that are cited are those of the wheel of vLLM 0.33.0. `ATTN_PARITY_VLLM=FOLDER` takes the sources of another release.
"""

import ast
import enum
import functools
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import torch
from attn_contract import AttentionType, Layer
from attn_fuzz import foreign
from attn_fuzz.foreign.loading import Stubs, nothing
from attn_fuzz.targets import engine
from attn_fuzz.targets.packages import VLLM
from attn_fuzz.targets.packages.declaring import Sources, as_they_are
from attn_fuzz.targets.support import Support

FP8 = torch.float8_e4m3fn
"""`current_platform.fp8_dtype()` on CUDA, gfx950 and gfx12."""
OPS = "v1/attention/ops/"


class KVQuantMode(enum.IntEnum):
    """v1/kv_cache_interface.py:40."""

    NONE = 0
    FP8_PER_TENSOR = 1
    INT8_PER_TOKEN_HEAD = 2
    FP8_PER_TOKEN_HEAD = 3
    INT4_PER_TOKEN_HEAD = 4


def stubs(is_rocm: bool) -> Stubs:
    import triton
    import triton.language as tl

    platform = SimpleNamespace(
        fp8_dtype=lambda: FP8,
        is_rocm=lambda: is_rocm,
        is_cuda=lambda: not is_rocm,
        is_cuda_alike=lambda: True,
        is_xpu=lambda: False,
        is_cpu=lambda: False,
        is_fp8_fnuz=lambda: False,
        has_device_capability=lambda capability: True,
        get_device_capability=lambda: (9, 0),
        is_device_capability_family=lambda capability: False,
        is_arch_support_pdl=lambda: False,
    )
    no = ("on_gfx1x", "on_gfx950", "on_mi3xx")
    rocm = {**{name: lambda: False for name in no}, "use_rocm_custom_paged_attention": lambda *arguments, **options: False}
    fp8_types = {"FP8_DTYPE": FP8, "get_fp8_min_max": lambda: (torch.finfo(FP8).min, torch.finfo(FP8).max)}
    is_quantized = {"is_quantized_kv_cache": lambda kv_cache_dtype: kv_cache_dtype.startswith("fp8")}
    return {
        "vllm.envs": {"VLLM_BATCH_INVARIANT": False},
        "vllm._custom_ops": {},
        "vllm.logger": {"init_logger": lambda name: SimpleNamespace(debug_once=nothing, warning_once=nothing)},
        "vllm.platforms": {"current_platform": platform},
        "vllm.platforms.rocm": rocm,
        "vllm.triton_utils": {"tl": tl, "triton": triton},
        "vllm.utils.math_utils": {"RCP_LN2": 1.4426950408889634},
        "vllm.model_executor.layers.quantization.utils.quant_utils": fp8_types,
        "vllm.v1.kv_cache_interface": {
            "KVQuantMode": KVQuantMode,
            "get_kv_quant_mode": lambda kv_cache_dtype: KVQuantMode(int(kv_cache_dtype.startswith("fp8"))),
            **is_quantized,
        },
        "vllm.utils.torch_utils": is_quantized,  # before 0.33
        "vllm.v1.worker.workspace": {
            "current_workspace_manager": None,
            "is_workspace_manager_initialized": lambda: False,
        },
    }


LAUNCHER = ("model_executor/warmup/jit_warmup", "model_executor/warmup/jit_warmup_triton_helper")


class _Attributes(type):
    def __getattr__(cls, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Anything(metaclass=_Attributes):
    """A stand-in for imports of a file's classes and host code, which a kernel's launch does not need."""

    def __init__(self, *arguments: object, **options: object) -> None:
        pass

    def __call__(self, *arguments: object, **options: object) -> "_Anything":
        return self

    def __class_getitem__(cls, parameters: object) -> "type[_Anything]":
        return cls


def amid_anything(*names: str, change: Callable[[list[ModuleType]], object] = as_they_are) -> Sources:
    """Modules of the package. Else they find Triton, the platform, two functions, and anything."""
    return Sources(VLLM, names, functools.partial(_anything, names), change=change)


def _anything(names: tuple[str, ...]) -> Stubs:
    imports = {
        node.module or ""
        for name in names
        for node in ast.parse((foreign.sources("vllm") / f"{name}.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vllm")
    }
    anything = {"__getattr__": lambda name: type(name, (_Anything,), {})}
    known = {name: stubs(is_rocm=True)[name] for name in ("vllm.platforms", "vllm.triton_utils")}
    known["vllm.triton_utils"]["HAS_TRITON"] = True
    known["vllm.utils.math_utils"] = {
        "next_power_of_2": lambda number: 1 << max(number - 1, 0).bit_length(),
        "cdiv": lambda a, b: -(-a // b),
    }
    return dict.fromkeys(imports, anything) | known


def keys_values_and_scales(kv_cache: torch.Tensor, layer: Layer) -> tuple[torch.Tensor, ...]:
    """K and V [NB, BS, HK, D + 4] and their scales [NB, BS, HK] float32 of a CONTENT_PACKED_SCALED cache.

    v1/attention/backends/triton_attn.py:414-475 and :738-748 take them so.
    """
    half = layer.head_size + 4
    k, v = kv_cache.transpose(1, 2).split(half, dim=3)
    scales = kv_cache.view(torch.int8).unflatten(3, (2, half))[..., -4:].view(torch.float32)[..., 0].transpose(1, 2)
    return k, v, scales[..., 0], scales[..., 1]


def ops(*names: str, is_rocm: bool = False) -> Sources:
    """Modules of vllm/v1/attention/ops."""
    return Sources(VLLM, names, functools.partial(stubs, is_rocm), (OPS,))


support = functools.partial(
    Support,
    attn_types=(AttentionType.DECODER,),
    dtypes=("float16", "bfloat16"),
    cache_dtypes=("fp8_e4m3fn",),
    scales=("tensor",),
    head_sizes=(32, 64, 80, 96, 128),
    block_sizes=(16, 32, 48, 80, 544),
    engine=engine.VLLM,
    max_seq_len=256,
)
"""Sizes and dtypes of a cache of vLLM's that are drawn, with more fields."""
