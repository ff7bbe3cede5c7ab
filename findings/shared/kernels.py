"""Load kernels of a package of which nothing else is imported, and end a script of findings/.

A script runs by itself with this folder in the path: `PYTHONPATH=findings/shared python findings/PACKAGE/NAME.py`.
"""

import functools
import importlib.abc
import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import SimpleNamespace

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
NVIDIA = DEVICE == "cuda" and torch.version.hip is None
AMD = ("waves_per_eu", "matrix_instr_nonkdim", "kpack")
"""Options of a launch that Triton's compiler for NVIDIA refuses."""

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

FILES = {
    "aiter": ("aiter.ops.triton.",),
    "lmdeploy": ("lmdeploy.pytorch.kernels.cuda.", "lmdeploy.pytorch.backends.cuda.attention"),
    "sglang": ("sglang.kernels.ops.attention.", "sglang.srt.layers.attention.", "sglang.srt.models.gemma2."),
    "vllm": ("vllm.v1.attention.", "vllm.utils.math_utils."),
}
"""The modules of a package that are executed. All others have stand-ins."""


def no(*arguments):
    return False


def yes(*arguments):
    return True


def nothing(owner, name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Nothing


class Names(type):
    __getattr__ = nothing

    def __bool__(cls):
        return False


class Nothing(metaclass=Names):
    """Any name of a stand-in: a class to inherit from, a function whose result is false, or a decorator without effect."""

    __getattr__ = nothing

    def __new__(cls, *arguments, **named):
        decorated = cls is Nothing and len(arguments) == 1 and callable(arguments[0])
        return arguments[0] if decorated else super().__new__(cls)

    def __init__(self, *arguments, **named):
        pass

    def __class_getitem__(cls, key):
        return cls

    def __call__(self, decorated=None, **named):
        return decorated

    __bool__ = Names.__bool__


class Platform(Nothing):
    fp8_dtype = staticmethod(lambda: torch.float8_e4m3fn)


UNITS = {"multi_processor_count": 16, "compute_capability": (9, 4), "warps_per_sm": 32}
VALUES = {
    "aiter": {
        "aiter.dtypes": {"fp8": torch.float8_e4m3fn if NVIDIA else torch.float8_e4m3fnuz},
        "aiter.ops.triton.utils.device_info": {"get_num_sms": lambda: 16, "get_num_xcds": lambda: 8},
        "aiter.ops.triton.utils._triton.arch_info": {
            "get_arch": lambda: "gfx942",
            "get_device": lambda: "MI300X",
            "is_fp8_avail": lambda: True,
        },
        "aiter.ops.triton._triton_kernels.flash_attn_triton_amd": {"flash_attn_2": None, "flash_attn_3": None},
        "aiter.ops.triton._triton_kernels.flash_attn_triton_amd.utils": {
            "get_arch": lambda: SimpleNamespace(name="gfx942", is_rdna=False)
        },
    },
    "lmdeploy": {
        "lmdeploy.messages": {"QuantPolicy": SimpleNamespace(NONE=0, INT4=4, FP8=16, FP8_E5M2=17, TURBO_QUANT=42)},
        "lmdeploy.pytorch.kernels.cuda.utils": {"get_device_props": lambda index: UNITS, "is_cuda": no},
    },
    "sglang": {
        "sglang.srt.utils": dict.fromkeys(("is_hip", "is_gfx95_supported", "is_gfx1250_supported"), no),
        "aiter.ops.triton.utils.device_info": {"get_num_sms": lambda: 16},
        "aiter.ops.triton.utils.types": {"e4m3_dtype": torch.float8_e4m3fn},
        "aiter": {},
    },
    "vllm": {
        "vllm.config": {"get_current_vllm_config_or_none": lambda: None},
        "vllm.distributed.parallel_state": {"get_dcp_world_size_and_rank": lambda enabled: (1, 0)},
        "vllm.platforms": {"current_platform": Platform},
        "vllm.model_executor.layers.quantization.utils.quant_utils": {"get_fp8_min_max": lambda: (-448.0, 448.0)},
        "vllm.utils.torch_utils": {
            "async_tensor_h2d": lambda tensor, device: tensor.to(device),
            "is_torch_equal_or_newer": yes,
        },
        "vllm.triton_utils": {"triton": triton, "tl": tl},
        "vllm.v1.kv_cache_interface": {
            "KVQuantMode": SimpleNamespace(NONE=0, INT8_PER_TOKEN_HEAD=2, FP8_PER_TOKEN_HEAD=3, INT4_PER_TOKEN_HEAD=4)
        },
        "vllm.v1.attention.ops.cp_common": {},
    },
}
"""The contents of stand-ins for modules. All others are empty."""


@triton.jit
def exp2(x):
    return tl.exp2(x)


@triton.jit
def log2(x):
    return tl.log2(x)


class Kernels(SourceFileLoader):
    def exec_module(self, module):
        super().exec_module(module)
        if DEVICE == "cpu" and hasattr(module, "tl_exp2"):  # Triton's interpreter knows its own functions by their own names
            vars(module).update(tl_exp2=exp2, tl_log2=log2)


def without_options_of_amd(run):
    def launch(self, *arguments, **named):
        refused = {name for name in AMD if name not in self.arg_names}
        return run(self, *arguments, **{name: value for name, value in named.items() if name not in refused})

    return launch


if NVIDIA:
    triton.JITFunction.run = without_options_of_amd(triton.JITFunction.run)


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of a package: files of kernels, and stand-ins for all that asks for a GPU or for other packages."""

    def __init__(self, package):
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ImportError(f"{package} is not installed")
        self.package, self.folder = package, spec.submodule_search_locations[0]

    def find_spec(self, name, path=None, target=None):
        package, *parts = name.split(".")
        if package != self.package:
            return ModuleSpec(name, self, is_package=True) if package in VALUES[self.package] else None
        place = os.path.join(self.folder, *parts, *(["__init__"] if name in FILES[package] else []))
        if name not in VALUES[package] and f"{name}.".startswith(FILES[package]) and not os.path.isdir(place):
            file = f"{place}.py"
            loader = Kernels(name, file)
            return importlib.util.spec_from_file_location(name, file, loader=loader) if os.path.isfile(file) else None
        return ModuleSpec(name, self, is_package=True)

    def exec_module(self, module):
        name, files = module.__name__, FILES[self.package]
        vars(module).update(VALUES[self.package].get(name, {}))
        is_folder = f"{name}.".startswith(files) or any(each.startswith(f"{name}.") for each in (*files, *VALUES[self.package]))
        if name in VALUES[self.package] or not is_folder:
            vars(module)["__getattr__"] = functools.partial(nothing, module)


def load(name):
    """A module of kernels, with stand-ins where it cannot be imported. An older release may have it outside of `attention`."""
    package, *parts = name.split(".")
    finder = next((each for each in sys.meta_path if getattr(each, "package", None) == package), None)
    if finder is None:
        finder = StandIns(package)
        if DEVICE == "cuda":
            try:
                return importlib.import_module(name)
            except Exception:
                for each in [each for each in sys.modules if each.partition(".")[0] == package]:
                    del sys.modules[each]
        sys.meta_path.insert(0, finder)
    is_there = os.path.isfile(os.path.join(vars(finder)["folder"], *parts) + ".py")
    return importlib.import_module(name if is_there else name.replace(".attention.", ".", 1))


def ints(*numbers):
    return torch.tensor(numbers, dtype=torch.int32, device=DEVICE)


def compare(expected, got):
    """Print both, and exit: with 1 where they differ, else with 0. What is expected may be numbers."""
    expected, got = torch.as_tensor(expected).float().cpu(), got.float().cpu()
    for name, tensor in (("expected", expected), ("got", got)):
        print(f"{name:9}", *(f"{number:.4g}" for number in tensor.flatten().tolist()))
    sys.exit(0 if torch.allclose(got, expected, rtol=1e-3, atol=1e-4) else 1)


def cannot_run(kind, error, trace):
    sys.__excepthook__(kind, error, trace)
    sys.exit(2)


sys.excepthook = cannot_run
