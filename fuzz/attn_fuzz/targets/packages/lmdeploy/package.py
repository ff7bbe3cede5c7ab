"""Shared by the targets of LMDeploy's Triton attention: its modules, and its engine.

The lines that are cited are those of the wheel of LMDeploy 0.18.0, in lmdeploy/pytorch. `ATTN_PARITY_LMDEPLOY=FOLDER` takes the
sources of another release.
"""

import enum
import functools
import importlib.metadata
from types import ModuleType, SimpleNamespace

from attn_fuzz import foreign
from attn_fuzz.foreign.loading import Stubs, nothing
from attn_fuzz.targets.engine import GIVES_KEYS, Engine
from attn_fuzz.targets.packages import LMDEPLOY
from attn_fuzz.targets.packages.declaring import Sources

ATTENTION = "pytorch/backends/cuda/attention/"
KERNELS = "pytorch/kernels/cuda/"
OPS = ("fill_kv_cache", "flashattention", "flatten_kv_cache", "pagedattention")
UNITS = 64
"""Compute units, so few that parts of the keys have several blocks. They are the most parts, too."""
DEVICE = {"multi_processor_count": UNITS, "compute_capability": (9, 4), "warps_per_sm": 32, "blocks_per_sm": 16}
"""Properties of a gfx942 with so many compute units (kernels/cuda/utils.py:33-47)."""
ENGINE = Engine(
    windows=("by causality",),
    one_token_windows=False,
    scale_signs=(1,),
    signed_slopes=False,
    mixed_alibi=False,
    more_queries_than_keys=False,
    empty_requests=False,
    empty_batches=False,
    planes=(False,),
    num_layers=(1,),
    other_views=False,
    **GIVES_KEYS,
    recycled=False,
    unowned_rows=(0,),
    kv_rows_past=(0,),
    cited={"planes": "engine/cache_engine/layout.py:62-70"},
)
"""The calls of TritonAttentionImpl. A block of the cache holds K, and then V, in memory that was zeros at first. So slots
without a key hold finite numbers (the same lines). No model asks for ALiBi.
"""


class QuantPolicy(enum.IntEnum):
    """messages.py:19-27."""

    NONE = 0
    INT4 = 4
    INT8 = 8
    FP8 = 16
    FP8_E5M2 = 17
    TURBO_QUANT = 42


def _stubs() -> Stubs:
    logger = SimpleNamespace(debug=nothing, info=nothing, warning=nothing)
    classes = ("CudaAttentionMetaBuilder", "CudaSequenceMetadata")
    return {
        "lmdeploy.messages": {"QuantPolicy": QuantPolicy},
        "lmdeploy.utils": {"get_logger": lambda name: logger},
        "lmdeploy.pytorch": {"envs": None},
        "lmdeploy.pytorch.backends.cuda.attention.v4": {"TritonV4AttentionBuilder": None},
        "lmdeploy.pytorch.backends.base": {"BuildSpec": _Generic},
        "lmdeploy.pytorch.backends.cuda.step_metadata": {
            **dict.fromkeys(classes, _Generic),
            "register_step_metadata_impl": nothing,
        },
        # TritonAttentionImpl imports functions here, and the targets replace them
        "lmdeploy.pytorch.kernels.cuda": dict.fromkeys(("flash_attn_varlen_func", "flash_attn_with_kvcache")),
        "lmdeploy.pytorch.kernels.cuda.utils": {"get_device_props": lambda index: DEVICE, "is_cuda": lambda: False},
    }


class _Generic:
    """In place of a class that others extend."""

    def __class_getitem__(cls, key: object) -> type:
        return cls


def _change(modules: list[ModuleType]) -> None:
    from attn_fuzz.targets.packages.lmdeploy import functions

    for module in modules:
        if hasattr(module, "_nv_cap"):  # before 0.17, in place of get_device_props
            vars(module)["_nv_cap"] = DEVICE["compute_capability"]
        replaced = {"tl_exp2": functions.exp2, "tl_log2": functions.log2, "tanh": functions.tanh}
        vars(module).update({name: function for name, function in replaced.items() if hasattr(module, name)})


SOURCES = Sources(
    LMDEPLOY,
    (f"{ATTENTION}__init__", f"{ATTENTION}default", "pytorch/backends/attention", *(f"{KERNELS}{name}" for name in OPS)),
    _stubs,
    folders=(KERNELS,),
    change=_change,
)


def backend() -> ModuleType:
    """The module that builds an attention layer."""
    return SOURCES.load()[0]


def kernels() -> dict[str, ModuleType]:
    """All modules, by the last parts of their names."""
    return {module.__name__.rpartition(".")[2]: module for module in SOURCES.load()}


@functools.cache
def serves_float8() -> bool:
    """True if the sources that are here have float8 caches, as releases from 0.14 on."""
    try:
        file = foreign.sources("lmdeploy") / f"{KERNELS}fill_kv_cache.py"
    except foreign.MissingSourcesError:
        return True
    return not file.is_file() or "FP8" in file.read_text(encoding="utf-8")


def needs_block_pointers(device: str) -> str | None:
    """`Target.unavailable` of a target whose kernel makes block pointers."""
    if reason := SOURCES.unavailable(device):
        return reason
    version = importlib.metadata.version("triton")
    if tuple(map(int, version.split(".")[:2])) < (3, 9):
        return None
    return f"Triton {version} has no block pointers, which {LMDEPLOY.requirement} makes: it requires triton<=3.7.1"
