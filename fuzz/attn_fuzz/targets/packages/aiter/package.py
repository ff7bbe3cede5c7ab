"""Shared by the targets of AITER's Triton attention: its modules.

`ATTN_PARITY_AITER=FOLDER` takes the sources of another release, also of one in which attention has a folder of its own. Tile
sizes are those of AITER's configuration for MI300X (aiter/ops/triton/configs).
"""

from collections.abc import Callable
from pathlib import Path

import torch
from attn_fuzz import foreign
from attn_fuzz.foreign.loading import Stubs
from attn_fuzz.interpreted.aiter import FOLDERS, STUBS
from attn_fuzz.targets.packages import AITER
from attn_fuzz.targets.packages.declaring import Sources

REQUIREMENT = AITER.requirement
PLACES = ("ops/triton/", "ops/triton/attention/")
_OTHER_BACKENDS = {"aiter.ops.triton._triton_kernels.flash_attn_triton_amd": {"flash_attn_2": None, "flash_attn_3": None}}


def _stubs() -> Stubs:
    return {**STUBS, **_OTHER_BACKENDS}


def ops(*names: str) -> Sources:
    """Modules of aiter/ops/triton. One that another imports comes with it."""
    return Sources(AITER, names, _stubs, PLACES, (*PLACES, *FOLDERS))


def root() -> Path:
    """The folder that has csrc/, hsa/ and 3rdparty/: in the wheel beside aiter/, in a checkout its parent."""
    beside = foreign.sources("aiter").parent
    return beside / "aiter_meta" if (beside / "aiter_meta").is_dir() else beside


def needs_rocm(sources: Sources) -> Callable[[str], str | None]:
    """`Target.unavailable` of a target whose launches take options from AITER's configurations."""

    def unavailable(device: str) -> str | None:
        if device != "cpu" and torch.version.hip is None:
            return "AITER launches it with waves_per_eu, which Triton knows for ROCm GPUs alone: --device cpu interprets it"
        return sources.unavailable(device)

    return unavailable
