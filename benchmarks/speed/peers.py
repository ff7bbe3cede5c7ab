"""vLLM's and AITER's Triton kernels, from their own files as they are, without importing the rest of their packages.

`import vllm` wants dozens of packages, and `import aiter` ROCm. What the kernels' modules import is little: packages are taken
for their folders, without what their `__init__` does, and these modules are stood in for, none of which computes anything:

    vllm.envs, vllm.logger              batch invariance off; Python's logger
    vllm.platforms                      which GPU this is; the float8 type of its kind
    vllm.triton_utils                   `triton` and `tl`
    vllm.v1.kv_cache_interface          the numbers of KVQuantMode that are used here
    aiter ... arch_info                 not on ROCm: gfx942, for which the kernel's choices are made
    aiter ... device_info               not on a GPU: 16 compute units

Off ROCm, `waves_per_eu`, which only Triton's compiler for AMD knows, is taken out of AITER's launch options.

The GPU is the one that is here, or, for what is compiled and not run, one of the architecture that is given.
"""

import enum
import importlib
import importlib.metadata
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from attn_parity.binaries.architectures import ARCHITECTURES

AITER_MODULES = ("aiter.ops.triton.attention.unified_attention", "aiter.ops.triton.unified_attention")
"""Where it is, the newest first."""
AITER_ARCHITECTURE, INTERPRETED_COMPUTE_UNITS = "gfx942", 16


class KVQuantMode(enum.IntEnum):
    NONE = 0
    FP8_PER_TENSOR = 1
    INT8_PER_TOKEN_HEAD = 2
    FP8_PER_TOKEN_HEAD = 3
    INT4_PER_TOKEN_HEAD = 4


class MissingPeerError(RuntimeError):
    """The package is not there, or has other functions than expected."""


class _Logger(logging.Logger):
    debug_once, info_once, warning_once = logging.Logger.debug, logging.Logger.info, logging.Logger.warning


def load_vllm(folder: Path | None, architecture: str | None = None) -> SimpleNamespace:
    """vLLM's attention kernels from a folder that holds the package `vllm`; from the installed one if None.

    Args:
        architecture: the GPU's, one of ARCHITECTURES; None: of the one that is here.

    Raises:
        MissingPeerError: there is none, or its modules import what is not there.
    """
    root = _package("vllm", folder)
    gpu = architecture or _gpu()
    capability = _capability(gpu)
    platform = SimpleNamespace(
        fp8_dtype=lambda: torch.float8_e4m3fnuz if gpu == "gfx942" else torch.float8_e4m3fn,
        is_device_capability_family=lambda family: capability // 10 == family // 10,
        has_device_capability=lambda least: capability >= least,
        is_cuda_alike=lambda: bool(gpu),
        is_rocm=lambda: gpu.startswith("gfx"),
    )
    answers = {
        "envs": {"VLLM_BATCH_INVARIANT": False},
        "logger": {"init_logger": _Logger},
        "platforms": {"current_platform": platform},
        "triton_utils": {"tl": tl, "triton": triton},
        "v1.kv_cache_interface": {"KVQuantMode": KVQuantMode},
    }
    with as_package("vllm", root, ("utils", "v1", "v1.attention", "v1.attention.ops"), answers):
        unified = imported("vllm.v1.attention.ops.triton_unified_attention")
        prefill = imported("vllm.v1.attention.ops.triton_prefill_attention")
    # on ROCm it imports vllm.platforms.rocm when it is called, which is not there any more
    vars(prefill)["_prefer_narrow_kv_tile"] = lambda: gpu.startswith(("gfx11", "gfx120"))
    return SimpleNamespace(
        version=_version("vllm", root),
        unified_attention=unified.unified_attention,
        MAX_3D_QUERY_LEN=unified.MAX_3D_QUERY_LEN,
        KVQuantMode=KVQuantMode,
        context_attention_fwd=prefill.context_attention_fwd,
    )


def load_vllm_with_writes(folder: Path | None) -> SimpleNamespace:
    """`load_vllm`, and vLLM's kernel that writes a cache, `triton_reshape_and_cache_flash`.

    Raises:
        MissingPeerError: there is none, or its modules import what is not there.
    """
    kernels, root = load_vllm(folder), _package("vllm", folder)
    least, most = torch.finfo(torch.float8_e4m3fn).min, torch.finfo(torch.float8_e4m3fn).max
    answers = {
        "model_executor.layers.quantization.utils.quant_utils": {
            "FP8_DTYPE": torch.float8_e4m3fn,
            "get_fp8_min_max": lambda: (least, most),
        },
        "platforms": {"current_platform": SimpleNamespace(is_rocm=lambda: _gpu().startswith("gfx"), is_xpu=lambda: not _gpu())},
        "triton_utils": {"tl": tl, "triton": triton},
        "v1.kv_cache_interface": {"KVQuantMode": KVQuantMode, "is_quantized_kv_cache": lambda name: name != "auto"},
    }
    with as_package("vllm", root, ("v1", "v1.attention", "v1.attention.ops"), answers):
        module = imported("vllm.v1.attention.ops.triton_reshape_and_cache_flash")
    return SimpleNamespace(**vars(kernels), triton_reshape_and_cache_flash=module.triton_reshape_and_cache_flash)


def load_vllm_latent(folder: Path | None) -> SimpleNamespace:
    """vLLM's kernel of absorbed latent attention, `decode_attention_fwd`; see `load_vllm`.

    Raises:
        MissingPeerError: there is none, or its module imports what is not there.
    """
    root = _package("vllm", folder)
    platform = SimpleNamespace(is_rocm=lambda: _gpu().startswith("gfx"))
    answers = {"platforms": {"current_platform": platform}, "triton_utils": {"tl": tl, "triton": triton}}
    with as_package("vllm", root, ("v1", "v1.attention", "v1.attention.ops"), answers):
        module = imported("vllm.v1.attention.ops.triton_decode_attention")
    return SimpleNamespace(version=_version("vllm", root), decode_attention_fwd=module.decode_attention_fwd)


def load_aiter(folder: Path | None, architecture: str | None = None) -> SimpleNamespace:
    """AITER's `unified_attention` from a folder that holds the package `aiter`; from the installed one if None.

    Args:
        architecture: see `load_vllm`.

    Raises:
        MissingPeerError: there is none, or its modules import what is not there.
    """
    root = _package("aiter", folder)
    names = [name for name in AITER_MODULES if root.parent.joinpath(*name.split(".")).with_suffix(".py").is_file()]
    if not names:
        raise MissingPeerError(f"{root} has no Triton unified_attention; PyPI's package `aiter` is another one than AMD's")
    gpu = architecture or _gpu()
    on_rocm = gpu.startswith("gfx")
    answers: dict[str, dict[str, Any]] = {}
    if architecture or not on_rocm:
        answers["ops.triton.utils._triton.arch_info"] = {
            "get_arch": lambda: gpu if on_rocm else AITER_ARCHITECTURE,
            "is_fp8_avail": lambda: not on_rocm or gpu in ("gfx942", "gfx950"),
        }
    if architecture or not gpu:
        units = ARCHITECTURES[gpu].compute_units if gpu else INTERPRETED_COMPUTE_UNITS
        answers["ops.triton.utils.device_info"] = {"get_num_sms": lambda: units}
    packages = ("ops", "ops.triton", "ops.triton.attention", "ops.triton.utils", "ops.triton.utils._triton")
    with as_package("aiter", root, packages, answers):
        module = imported(names[0])
    if not on_rocm:
        for name in ("select_2d_config", "select_3d_config"):
            setattr(module, name, _without_waves(getattr(module, name)))
    return SimpleNamespace(version=_version("amd-aiter", root), unified_attention=module.unified_attention)


class Kernels(NamedTuple):
    """The modules that were loaded; None: not there."""

    vllm: SimpleNamespace | None
    vllm_latent: SimpleNamespace | None
    aiter: SimpleNamespace | None

    @property
    def versions(self) -> dict[str, str]:
        there = {"vllm": self.vllm, "aiter": self.aiter}
        return {name: module.version for name, module in there.items() if module is not None}


def load_all(vllm: Path | None, aiter: Path | None, tell: Callable[[str], None], *, writes: bool = False) -> Kernels:
    """Load vLLM's and AITER's kernels, and with `writes` vLLM's cache writes, as far as they are there.

    Raises:
        MissingPeerError: as `load_if_there`.
    """
    dense = load_if_there(load_vllm_with_writes if writes else load_vllm, vllm, tell)
    latent = None if dense is None else load_if_there(load_vllm_latent, vllm, tell)
    return Kernels(dense, latent, load_if_there(load_aiter, aiter, tell))


def load_if_there(
    load: Callable[[Path | None], SimpleNamespace], folder: Path | None, tell: Callable[[str], None]
) -> SimpleNamespace | None:
    """A peer's kernels; None, and why is told, where they were not asked for and are not there.

    Raises:
        MissingPeerError: they were asked for.
    """
    try:
        return load(folder)
    except MissingPeerError as error:
        if folder is not None:
            raise
        tell(str(error))
        return None


def _without_waves(select):
    def selected(*arguments, **options):
        found = select(*arguments, **options)
        if isinstance(found, dict):
            return {name: value for name, value in found.items() if name != "waves_per_eu"}
        return tuple({name: value for name, value in part.items() if name != "waves_per_eu"} for part in found)

    return selected


def _package(name: str, folder: Path | None) -> Path:
    """The folder of a package, which is not imported."""
    if folder is not None:
        if not (folder / name).is_dir():
            raise MissingPeerError(f"--{name}: got {folder}, expected a folder that holds the package `{name}`")
        return folder / name
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPeerError(f"{name} is left out: it is not installed, and no --{name} FOLDER was given")
    return Path(next(iter(spec.submodule_search_locations)))


@contextmanager
def as_package(
    name: str, root: Path, packages: tuple[str, ...] = (), answers: Mapping[str, dict[str, Any]] | None = None
) -> Iterator[None]:
    """The names of a package's parts, while it lasts: folders, and modules that are stood in for. No `__init__.py` runs."""
    before = _drop(name)
    _add(name, __path__=[str(root)])
    for package in packages:
        _add(f"{name}.{package}", __path__=[str(root.joinpath(*package.split(".")))])
    for module, contents in (answers or {}).items():
        _add(f"{name}.{module}", **contents)
    try:
        yield
    finally:
        _drop(name)
        sys.modules.update(before)


def _drop(name: str) -> dict[str, ModuleType]:
    """Take a package and all its parts out of sys.modules."""
    dropped = {part: module for part, module in sys.modules.items() if part == name or part.startswith(f"{name}.")}
    for part in dropped:
        del sys.modules[part]
    return dropped


def _add(name: str, **contents: Any) -> None:
    module = ModuleType(name)
    module.__dict__.update(contents)
    sys.modules[name] = module
    package, _, attribute = name.rpartition(".")
    if package in sys.modules:
        setattr(sys.modules[package], attribute, module)


def imported(name: str) -> ModuleType:
    """A module.

    Raises:
        MissingPeerError: it does not import.
    """
    try:
        return importlib.import_module(name)
    except Exception as error:  # a file that is missing, or another version that asks for more than is answered
        raise MissingPeerError(f"{name} does not import: {type(error).__name__}: {error}") from error


def _version(distribution: str, root: Path) -> str:
    """The version in the metadata beside a package; a checkout or an incomplete folder has none."""
    found = importlib.metadata.distributions(name=distribution, path=[str(root.parent)])
    return next((str(each.version) for each in found), "of unknown version")


def _gpu() -> str:
    """The architecture of the GPU that is here, such as gfx942 or sm90; empty: there is none."""
    if not torch.cuda.is_available():
        return ""
    if torch.version.hip:
        return torch.cuda.get_device_properties().gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability()
    return f"sm{major}{minor}"


def _capability(gpu: str) -> int:
    """Ten times the major version and the minor one, which in a name of AMD's are before a stepping."""
    return int((gpu[3:-1] if gpu.startswith("gfx") else gpu[2:]) or 0)
