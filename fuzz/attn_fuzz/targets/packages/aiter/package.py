"""Shared by the targets of AITER's kernels: its modules, those of its main, and the folder of its other sources.

`ATTN_PARITY_AITER=FOLDER` takes the sources of another release, also of one in which attention has a folder of its own. Tile
sizes are those of AITER's configuration for MI300X (aiter/ops/triton/configs).
"""

import functools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import torch
from attn_fuzz import foreign
from attn_fuzz.emulated import jobs
from attn_fuzz.extras import triton_unavailable
from attn_fuzz.interpreted.aiter import FOLDERS, stubs
from attn_fuzz.targets.packages import AITER
from attn_fuzz.targets.packages.declaring import Sources

FOLDERS_OF_FILES = ("ops/triton/", "ops/triton/attention/")
GLUON_FOLDERS = (
    "ops/triton/gluon/",
    "ops/triton/_gluon_kernels/gfx950/attention/",
    "ops/triton/_gluon_kernels/gfx1250/attention/",
)
HOST, GLUON = "ops/triton/attention/", "ops/triton/_gluon_kernels/"
_OTHER_BACKENDS = {"aiter.ops.triton._triton_kernels.flash_attn_triton_amd": {"flash_attn_2": None, "flash_attn_3": None}}


def ops(*names: str) -> Sources:
    """Modules of aiter/ops/triton. One that another imports comes with it."""
    return Sources(AITER, names, lambda: stubs() | _OTHER_BACKENDS, FOLDERS_OF_FILES, (*FOLDERS_OF_FILES, *FOLDERS))


def load_main(files: tuple[str, ...], architecture: str | None = None) -> list[ModuleType]:
    """Files of AITER's main, as they are on an architecture; None: the one for which launches are compiled now."""
    return _loaded_main(files, architecture or jobs.architecture.get() or "gfx950")


@functools.cache
def _loaded_main(files: tuple[str, ...], architecture: str) -> list[ModuleType]:
    float8 = torch.float8_e4m3fnuz if architecture == "gfx942" else torch.float8_e4m3fn
    dtypes = SimpleNamespace(fp8=float8, bf16=torch.bfloat16, fp16=torch.float16, fp32=torch.float32)
    logger = {"AiterTritonLogger": lambda: mock.MagicMock()}
    more = {"aiter": {"dtypes": dtypes}, "aiter.ops.triton.utils.logger": logger}
    return foreign.load("aiter", (*files, *FOLDERS, *GLUON_FOLDERS), stubs=stubs(architecture) | more)


def needs_main(files: tuple[str, ...]) -> Callable[[str], str | None]:
    """`Target.unavailable` of a target of files of AITER's main."""

    def unavailable(device: str) -> str | None:
        try:
            folder = foreign.sources("aiter")
        except foreign.MissingSourcesError:
            folder = Path("aiter")
        if not all((folder / each).exists() for each in (*files, *GLUON_FOLDERS)):
            return "it needs AITER's main: ATTN_PARITY_AITER=FOLDER, a checkout of github.com/ROCm/aiter"
        return triton_unavailable(device)

    return unavailable


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
