"""vLLM's and AITER's Triton kernels, loaded from a folder such as an unpacked wheel, without the rest of their packages.

`import vllm` wants dozens of packages, and `import aiter` ROCm. `attn_fuzz.foreign` loads the kernels' modules without them.
Other modules that these import have fixed contents, which compute nothing: those of the fuzzer's targets, and here

    vllm.platforms              which GPU this is; the float8 type of its kind
    aiter ... arch_info         not on ROCm: gfx942, for which the kernel's choices are made
    aiter ... device_info       not on a GPU: 16 compute units

Off ROCm, `waves_per_eu`, which only Triton's compiler for AMD knows, is taken out of AITER's launch options.
"""

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import torch
from attn_fuzz import foreign
from attn_fuzz.errors import InputError
from attn_fuzz.interpreted import aiter as aiter_sources
from attn_fuzz.targets.packages.aiter import package as aiter_package
from attn_fuzz.targets.packages.vllm import package as vllm_package

FA3_FILE, FLASHMLA_FILE = "vllm_flash_attn/_vllm_fa3_C.abi3.so", "_flashmla_C.abi3.so"


class MissingPeerError(InputError):
    """The package is not there, or has other functions than expected."""


def load_vllm(folder: Path | None) -> SimpleNamespace:
    """vLLM's attention kernels from a folder that holds the package `vllm`; from the installed one if None.

    Raises:
        MissingPeerError: there is no such package, or its modules import missing ones.
    """
    root = package_folder("vllm", folder)
    names = ("unified_attention", "prefill_attention", "decode_attention")
    unified, prefill, latent = _of_vllm(root, _gpu(), *(f"triton_{name}" for name in names))
    return SimpleNamespace(
        version=_version("vllm", root),
        unified_attention=unified.unified_attention,
        MAX_3D_QUERY_LEN=unified.MAX_3D_QUERY_LEN,
        KVQuantMode=vllm_package.KVQuantMode,
        context_attention_fwd=prefill.context_attention_fwd,
        decode_attention_fwd=latent.decode_attention_fwd,
    )


def _of_vllm(root: Path, gpu: str, *names: str) -> list[ModuleType]:
    """Modules of vllm/v1/attention/ops."""
    capability, on_rocm = _capability(gpu), gpu.startswith("gfx")
    platform = SimpleNamespace(
        fp8_dtype=lambda: torch.float8_e4m3fnuz if gpu == "gfx942" else torch.float8_e4m3fn,
        is_device_capability_family=lambda family: capability // 10 == family // 10,
        has_device_capability=lambda least: capability >= least,
        is_cuda_alike=lambda: bool(gpu),
        is_rocm=lambda: on_rocm,
        is_xpu=lambda: not gpu,
    )
    stubs = {
        **vllm_package.stubs(on_rocm),
        "vllm.platforms": {"current_platform": platform},
        "vllm.platforms.rocm": {"on_gfx1x": lambda: gpu.startswith(("gfx11", "gfx120"))},
    }
    return _loaded("vllm", root, [f"{vllm_package.OPS}{name}.py" for name in names], (vllm_package.OPS,), stubs)


def load_aiter(folder: Path | None) -> SimpleNamespace:
    """AITER's `unified_attention` from a folder that holds the package `aiter`; from the installed one if None.

    Raises:
        MissingPeerError: there is none, or its modules import what is not there.
    """
    root = package_folder("aiter", folder)
    # where it is, the newest first
    places = [f"{place}unified_attention.py" for place in reversed(aiter_package.FOLDERS_OF_FILES)]
    files = [place for place in places if (root / place).is_file()]
    if not files:
        raise MissingPeerError(f"{root} has no Triton unified_attention; PyPI's package `aiter` is another one than AMD's")
    gpu = _gpu()
    on_rocm = gpu.startswith("gfx")
    asked = gpu if on_rocm else aiter_sources.ARCHITECTURE
    units = torch.cuda.get_device_properties().multi_processor_count if gpu else aiter_sources.COMPUTE_UNITS
    folders = (*aiter_package.FOLDERS_OF_FILES, *aiter_sources.FOLDERS)
    [module] = _loaded("aiter", root, files[:1], folders, aiter_sources.stubs(asked, units))
    if not on_rocm:
        for name in ("select_2d_config", "select_3d_config"):
            setattr(module, name, _without_waves(getattr(module, name)))
    return SimpleNamespace(version=_version("amd-aiter", root), unified_attention=module.unified_attention)


def load_compiled(folder: Path | None, file: str) -> Any:
    """torch's ops of a compiled library of the package `vllm`, see `load_vllm`.

    Raises:
        MissingPeerError: it is not there, or is not for this GPU and this torch.
    """
    path = package_folder("vllm", folder) / file
    if (gpu := _gpu()) != "sm90":
        raise MissingPeerError(f"{path.name} is left out: it is compiled for sm90, and this is {gpu or 'a CPU'}")
    if not path.is_file():
        raise MissingPeerError(f"{path.name} is left out: {path} is no file")
    try:
        torch.ops.load_library(path)
    except OSError as error:  # of another torch
        raise MissingPeerError(f"{path.name} does not load: {error}") from error
    return getattr(torch.ops, path.name.partition(".")[0])


def _loaded(
    package: str, root: Path, files: Sequence[str], folders: Sequence[str], stubs: Mapping[str, Mapping[str, Any]]
) -> list[ModuleType]:
    """Modules of a package's files.

    Raises:
        MissingPeerError: they do not import.
    """
    try:
        return foreign.load(package, [*files, *(each for each in folders if (root / each).is_dir())], stubs=stubs, folder=root)
    except Exception as error:  # a file that is missing, or another version that asks for more than is answered
        raise MissingPeerError(f"{package} does not import: {type(error).__name__}: {error}") from error


class Kernels(NamedTuple):
    """The modules that were loaded; None: not there.

    Attributes:
        fa3: torch's ops of FlashAttention-3, as vLLM's wheel has them.
        flashmla: torch's ops of FlashMLA, as vLLM's wheel has them.
    """

    vllm: SimpleNamespace | None
    aiter: SimpleNamespace | None
    fa3: Any | None
    flashmla: Any | None

    @property
    def versions(self) -> dict[str, str]:
        there = {"vllm": self.vllm, "aiter": self.aiter}
        return {name: module.version for name, module in there.items() if module is not None}


def load_all(vllm: Path | None, aiter: Path | None, tell: Callable[[str], None]) -> Kernels:
    """Load vLLM's and AITER's kernels, as far as they are there.

    Raises:
        MissingPeerError: as `load_if_there`.
    """
    # vLLM's folder may well lack them: a message says so
    hopper = [load_if_there(lambda _, file=file: load_compiled(vllm, file), None, tell) for file in (FA3_FILE, FLASHMLA_FILE)]
    return Kernels(load_if_there(load_vllm, vllm, tell), load_if_there(load_aiter, aiter, tell), *hopper)


def load_if_there(
    load: Callable[[Path | None], SimpleNamespace], folder: Path | None, tell: Callable[[str], None]
) -> SimpleNamespace | None:
    """A peer's kernels. None, with a message, if they are missing and no folder was named.

    Raises:
        MissingPeerError: a folder was named.
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


def package_folder(name: str, folder: Path | None) -> Path:
    """The folder of a package, which is not imported."""
    if folder is not None:
        if not (folder / name).is_dir():
            raise MissingPeerError(f"--{name}: got {folder}, expected a folder that holds the package `{name}`")
        return folder / name
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPeerError(f"{name} is left out: it is not installed, and no --{name} FOLDER was given")
    return Path(next(iter(spec.submodule_search_locations)))


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
