"""Shared by the targets of AITER's Triton attention: its modules.

`ATTN_PARITY_AITER=FOLDER` takes the sources of another release, also of one in which attention has a folder of its own. Tile
sizes are those of AITER's configuration for MI300X (aiter/ops/triton/configs).
"""

import functools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from attn_fuzz import foreign
from attn_fuzz.interpreted.aiter import FOLDERS, STUBS
from attn_fuzz.targets.packages import AITER
from attn_fuzz.targets.packages.declaring import triton_target
from attn_fuzz.targets.target import Target
from attn_fuzz.targets.triton import missing_triton

REQUIREMENT = AITER.requirement
PLACES = ("ops/triton/", "ops/triton/attention/")
_OTHER_BACKENDS = {"aiter.ops.triton._triton_kernels.flash_attn_triton_amd": {"flash_attn_2": None, "flash_attn_3": None}}


def _file(name: str) -> str:
    """The path of a module in the sources; that of the release above if there is none."""
    try:
        folder = foreign.sources("aiter")
    except foreign.MissingSourcesError:
        return f"{PLACES[0]}{name}.py"
    return next((f"{place}{name}.py" for place in PLACES if (folder / place / f"{name}.py").is_file()), f"{PLACES[0]}{name}.py")


@functools.cache
def load(*names: str) -> list[ModuleType]:
    """Modules of aiter/ops/triton. One that another imports comes with it."""
    folder = foreign.sources("aiter")
    folders = [place for place in (*PLACES, *FOLDERS, "ops/triton/_triton_kernels/quant/") if (folder / place).is_dir()]
    return foreign.load("aiter", (*map(_file, names), *folders), stubs={**STUBS, **_OTHER_BACKENDS})


def root() -> Path:
    """The folder that has csrc/, hsa/ and 3rdparty/: in the wheel beside aiter/, in a checkout its parent."""
    beside = foreign.sources("aiter").parent
    return beside / "aiter_meta" if (beside / "aiter_meta").is_dir() else beside


def missing(*names: str) -> Callable[[str], str | None]:
    """`Target.unavailable` of a target that loads these modules."""

    def unavailable(device: str) -> str | None:
        return missing_triton(device) or foreign.missing("aiter", tuple(map(_file, names)), REQUIREMENT)

    return unavailable


def needs_rocm(*names: str) -> Callable[[str], str | None]:
    """As `missing`, of a target whose launches take options from AITER's configurations."""

    def unavailable(device: str) -> str | None:
        if device != "cpu" and torch.version.hip is None:
            return "AITER launches it with waves_per_eu, which Triton knows for ROCm GPUs alone: --device cpu interprets it"
        return missing(*names)(device)

    return unavailable


def target(*names: str, **declared: Any) -> Target:
    """A target of these modules; `declared` is for `triton_target`."""
    return triton_target(**{"unavailable": missing(*names), "modules": functools.partial(load, *names), **declared})
