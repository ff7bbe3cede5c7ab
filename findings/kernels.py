"""Load kernels of an installed package, and end a script of this folder."""

import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import triton  # noqa: E402
import triton.language as tl  # noqa: E402


def no(*arguments):
    return False


PLATFORM = SimpleNamespace(
    fp8_dtype=lambda: torch.float8_e4m3fn,
    has_device_capability=no,
    get_device_capability=no,
    is_device_capability_family=no,
    is_cuda_alike=no,
    is_rocm=no,
)
LOGGER = SimpleNamespace(debug_once=no, warning_once=no)
MI300 = SimpleNamespace(name="gfx942", is_rdna=False)
POLICIES = SimpleNamespace(NONE=0, INT4=4, FP8=16, FP8_E5M2=17, TURBO_QUANT=42)
UNITS = {"multi_processor_count": 16, "compute_capability": (9, 4), "warps_per_sm": 32}
MODES = SimpleNamespace(NONE=0, INT8_PER_TOKEN_HEAD=2, FP8_PER_TOKEN_HEAD=3, INT4_PER_TOKEN_HEAD=4)


class Launcher:
    def __class_getitem__(cls, key):
        return cls


CONTEXT_PARALLEL = {
    "vllm.config": ("VllmConfig",),
    "vllm.distributed": ("get_dcp_group",),
    "vllm.model_executor.warmup.jit_warmup": ("WarmupIntRange",),
    "vllm.model_executor.warmup.jit_warmup_triton_helper": (
        "LaunchSpec",
        "TritonWarmupTensor",
        "triton_scalar_specialization_rep",
    ),
    "vllm.v1.attention.backend": ("max_decode_query_len",),
    "vllm.v1.attention.ops.cp_common": ("direct_cp_enabled", "direct_cp_multicast_enabled"),
    "vllm.v1.worker.ubatching": ("dbo_current_ubatch_id",),
}
STAND_INS = {module: dict.fromkeys(names) for module, names in CONTEXT_PARALLEL.items()}
STAND_INS["vllm.model_executor.warmup.jit_warmup"]["kernel_launcher"] = no
STAND_INS["vllm.model_executor.warmup.jit_warmup_triton_helper"]["VllmTritonJitKernel"] = Launcher
STAND_INS["vllm.v1.attention.ops.cp_common"]["DirectCPWorkspace"] = Launcher
STAND_INS |= {
    "vllm.envs": {"VLLM_BATCH_INVARIANT": False},
    "vllm._custom_ops": {},
    "vllm.logger": {"init_logger": lambda name: LOGGER},
    "vllm.platforms": {"current_platform": PLATFORM},
    "vllm.platforms.rocm": {"use_rocm_custom_paged_attention": no},
    "vllm.triton_utils": {"triton": triton, "tl": tl},
    "vllm.utils.math_utils": {"RCP_LN2": 1.4426950408889634},
    "vllm.v1.kv_cache_interface": {"KVQuantMode": MODES, "get_kv_quant_mode": no},
    "vllm.v1.worker.workspace": {"current_workspace_manager": no, "is_workspace_manager_initialized": no},
    "lmdeploy.messages": {"QuantPolicy": POLICIES},
    "lmdeploy.utils": {"get_logger": lambda name: LOGGER},
    "lmdeploy.pytorch.kernels.cuda.utils": {"get_device_props": lambda index: UNITS, "is_cuda": no},
    "sglang.srt.environ": {"envs": None},
    "sglang.srt.utils": {"get_device_core_count": no, "is_hip": no, "is_gfx95_supported": no, "is_gfx1250_supported": no},
    "aiter.ops.triton.utils.device_info": {"get_num_sms": lambda: 16, "get_num_xcds": lambda: 8},
    "aiter.ops.triton.utils._triton.arch_info": {
        "get_arch": lambda: "gfx942",
        "get_device": lambda: "MI300X",
        "is_fp8_avail": lambda: True,
    },
    "aiter.ops.triton._triton_kernels.flash_attn_triton_amd": {"flash_attn_2": None, "flash_attn_3": None},
    "aiter.ops.triton._triton_kernels.flash_attn_triton_amd.utils": {"get_arch": lambda: MI300},
}
"""Stand-ins for modules that files of kernels import and that ask for a GPU, where there is none."""


def load(*names):
    """The first of these modules that its package has: imported where there is a GPU, else its files alone."""
    package = names[0].partition(".")[0]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"{package} is not installed")
    folder = spec.submodule_search_locations[0]
    name = next((name for name in names if os.path.isfile(f"{folder}/../{name.replace('.', '/')}.py")), names[0])
    if DEVICE == "cpu":
        *folders, _ = name.split(".")
        for module, contents in STAND_INS.items():
            sys.modules[module] = ModuleType(module)
            vars(sys.modules[module]).update(contents)
        for depth in range(len(folders)):
            spec = ModuleSpec(".".join(folders[: depth + 1]), None, is_package=True)
            spec.submodule_search_locations = [os.path.join(folder, *folders[1 : depth + 1])]
            sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    return importlib.import_module(name)


def ints(*numbers):
    return torch.tensor(numbers, dtype=torch.int32, device=DEVICE)


def compare(expected, got):
    """Print both, and exit: with 1 where they differ, else with 0."""
    for name, tensor in (("expected", expected), ("got", got)):
        print(f"{name:9}", *(f"{number:.4g}" for number in tensor.flatten().tolist()))
    sys.exit(0 if torch.allclose(got.float(), expected.float(), rtol=1e-3, atol=1e-4) else 1)


def cannot_run(kind, error, trace):
    sys.__excepthook__(kind, error, trace)
    sys.exit(2)


sys.excepthook = cannot_run
