"""HIP programs of others without an AMD GPU: their host code runs on this machine, and each of its launches on the emulator.

clang compiles a source twice: its host code for this machine, and its kernels to assembly for a GPU. The host code gets a
runtime of ours, `hip_runtime.c`, which hands each launch to Python. So grids and arguments are those of the host code itself.
What both passes make is kept (`attn_fuzz.emulated.build_cache`), by the source, the headers, the options and the compiler.

    ROCM_PATH             the folder of ROCm, 6.3 or newer; default: /opt/rocm. Only its include/, share/hip/version and
                          amdgcn/bitcode/ are needed
    HIP_DEVICE_LIB_PATH   the folder of ROCm's device libraries, where they lie elsewhere
    ATTN_PARITY_CLANG     clang; default: that of ROCm, else clang-20, clang-19 or clang
"""

import ctypes
import dataclasses
import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from attn_amdgcn import Kernel, Program, Schedule, load, prepare
from attn_amdgcn.assembly import Argument
from attn_fuzz.emulated import permitted
from attn_fuzz.emulated.build_cache import cached, digest_of
from attn_fuzz.emulated.compiler import CompilerError
from attn_fuzz.emulated.emulation import inputs_at, run
from attn_fuzz.errors import LimitError

RUNTIME = Path(__file__).with_name("hip_runtime.c")
_DEBIAN_LIBRARIES = Path("/usr/lib/x86_64-linux-gnu/amdgcn/bitcode")
_CLANGS = ("clang-20", "clang-19", "clang")
_MAX_ERROR = 2000


@dataclass(frozen=True)
class Source:
    """A HIP source that is to be compiled.

    Args:
        text: the text of the file.
        folders: folders of headers.
        options: the options of both passes, such as definitions.
    """

    text: str
    folders: tuple[Path, ...] = ()
    options: tuple[str, ...] = ()


class _Launch(NamedTuple):
    """A launch that the host code made: the bytes of each argument, by the kernel's own order."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: list[bytes]
    lds_bytes: int


@dataclass(frozen=True)
class Binary:
    """A source, compiled for this machine and for a GPU.

    Attributes:
        programs: by the names of kernels.
    """

    host: ctypes.CDLL
    programs: Mapping[str, Program]
    architecture: str
    keeps: list[Any] = field(default_factory=list, repr=False)

    def call(
        self,
        function: str,
        *arguments: Any,
        tensors: Mapping[str, torch.Tensor],
        schedules: Callable[[], Sequence[Schedule]] = lambda: (Schedule(),),
    ) -> None:
        """Call a function of the host code, and then run what it has launched, one launch after the other.

        Args:
            arguments: arguments of ctypes.
            tensors: to which the arguments point, by the names that messages have for them. The code may touch their storages.
            schedules: draws the orders of waves and workgroups in which a launch runs.

        Raises:
            Violation: the code did what it must not do.
            attn_amdgcn.AmdgcnError: the code holds what the emulator does not know.
        """
        launches: list[_Launch] = []
        launched = _LAUNCHED(functools.partial(self._record, launches))
        self.host.attn_parity_set_launched(launched)
        getattr(self.host, function)(*arguments)
        for launch in launches:
            self._run(launch, tensors, schedules())

    def _record(self, launches: list[_Launch], name: bytes, grid: Any, block: Any, arguments: Any, lds_bytes: int) -> None:
        own = _own_arguments(self.programs[name.decode()].kernel)
        values = [ctypes.string_at(arguments[i], argument.size) for i, argument in enumerate(own)]
        launches.append(_Launch(name.decode(), tuple(grid[:3]), tuple(block[:3]), values, lds_bytes))

    def _run(self, launch: _Launch, tensors: Mapping[str, torch.Tensor], schedules: Sequence[Schedule]) -> None:
        program = self.programs[launch.kernel]
        if launch.block != (program.kernel.threads, 1, 1):
            # the emulator takes the size of a workgroup from the kernel, which HIP takes from the launch
            raise LimitError(
                f"a workgroup of {launch.block} lanes, where the kernel has {program.kernel.threads}",
                "an emulator that takes the size of a workgroup from the launch",
            )
        if 0 in launch.grid:
            return
        spans = [(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()) for tensor in tensors.values()]
        words, numbers = _words(program.kernel, launch.arguments, spans)
        hidden = [each for each in program.kernel.arguments if each.kind.startswith("hidden_")]
        kernel = dataclasses.replace(program.kernel, arguments=(*words, *hidden))
        with permitted.launch(_shown(launch.kernel), self.architecture, {}):
            inputs = inputs_at(tensors, launch.grid, numbers, [word.kind == "global_buffer" for word in words])
            run(dataclasses.replace(program, kernel=kernel), inputs, lds_bytes=launch.lds_bytes, schedules=schedules)


_LAUNCHED = ctypes.CFUNCTYPE(
    None,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.POINTER(ctypes.c_uint),
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_size_t,
)


def _own_arguments(kernel: Kernel) -> list[Argument]:
    return [argument for argument in kernel.arguments if not argument.kind.startswith("hidden_")]


def _words(kernel: Kernel, values: Sequence[bytes], spans: Sequence[tuple[int, int]]) -> tuple[list[Argument], list[int]]:
    """A launch's arguments, each of at most 8 bytes, and their numbers. The code object does not say where a struct has
    pointers: each aligned word of it that lies in a tensor is one.

    Args:
        spans: the first byte and the number of bytes of each tensor's storage on this machine.
    """
    words, numbers = [], []
    for argument, value in zip(_own_arguments(kernel), values, strict=True):
        for byte in range(0, argument.size, 8):
            number, kind = int.from_bytes(value[byte : byte + 8], "little"), argument.kind
            if argument.size > 8 and any(begin <= number < begin + size for begin, size in spans):
                kind = "global_buffer"
            words.append(Argument(argument.offset + byte, min(8, argument.size - byte), kind, argument.name))
            numbers.append(number)
    return words, numbers


def _shown(kernel: str) -> str:
    """The name of a kernel in C++ without its namespaces and arguments: what follows the first number of its mangled name."""
    found = re.match(r"_Z(\d+)", kernel)
    return kernel[found.end() : found.end() + int(found[1])] if found else kernel


def missing(architecture: str, headers: Sequence[str] = ("hip/hip_runtime.h",)) -> str | None:
    """The part that is missing here to compile HIP for an architecture, in words; None if nothing is missing.

    Args:
        headers: that are needed of ROCm's include folder.
    """
    if (clang := _clang()) is None:
        return f"it needs clang: ATTN_PARITY_CLANG, or one of {', '.join(_CLANGS)}"
    if absent := next((header for header in headers if not (rocm() / "include" / header).is_file()), None):
        return f"{rocm() / 'include'} has no {absent}: ROCM_PATH names the folder of ROCm, 6.3 or newer"
    if _libraries() is None:
        return f"{rocm()} has no amdgcn/bitcode/ocml.bc: HIP_DEVICE_LIB_PATH names the folder of ROCm's device libraries"
    return _unknown(clang, architecture)


@functools.cache
def _unknown(clang: str, architecture: str) -> str | None:
    command = [clang, "-x", "hip", f"--offload-arch={architecture}", "--cuda-device-only", "-nogpulib", "-nogpuinc", "-S"]
    failed = subprocess.run([*command, os.devnull, "-o", os.devnull], capture_output=True, text=True, check=False)
    return f"{clang} does not compile for {architecture}: {failed.stderr.strip()[:200]}" if failed.returncode else None


def rocm() -> Path:
    return Path(os.environ.get("ROCM_PATH") or "/opt/rocm")


def _clang() -> str | None:
    if named := os.environ.get("ATTN_PARITY_CLANG"):
        return shutil.which(named)
    of_rocm = rocm() / "llvm" / "bin" / "clang"
    return str(of_rocm) if of_rocm.is_file() else next(filter(None, map(shutil.which, _CLANGS)), None)


def _libraries() -> Path | None:
    named = os.environ.get("HIP_DEVICE_LIB_PATH")
    folders = [Path(named)] if named else [rocm() / "amdgcn" / "bitcode", _DEBIAN_LIBRARIES]
    return next((folder for folder in folders if (folder / "ocml.bc").is_file()), None)


@functools.lru_cache(maxsize=64)
def compiled(source: Source, architecture: str) -> Binary:
    """Compile a source for this machine and for a GPU, or take what was compiled before.

    Raises:
        CompilerError: the compiler refused it.
        attn_amdgcn.AmdgcnError: the code holds what the emulator does not know.
    """
    clang = _clang()
    assert clang is not None
    command = [clang, "-x", "hip", f"--offload-arch={architecture}", f"--rocm-path={rocm()}", *source.options]
    command += [f"-I{folder}" for folder in source.folders]
    folder = cached("hip", _parts(source, command), functools.partial(_compile, source, command, architecture))
    text = (folder / "kernels.s").read_text()
    programs = {name: prepare(load(text, name)) for name in re.findall(r"^\s*\.amdhsa_kernel (\S+)$", text, re.MULTILINE)}
    return Binary(ctypes.CDLL(str(folder / "host.so"), os.RTLD_LAZY), programs, architecture)


def _compile(source: Source, command: Sequence[str], architecture: str, made: Path) -> None:
    """Write `kernels.s` and `host.so` into an empty folder."""
    (made / "source.hip").write_text(source.text)
    with tempfile.TemporaryDirectory() as beside:
        libraries = f"--rocm-device-lib-path={_libraries_for(architecture, Path(beside))}"
        host, kernels = made / "host.o", ["-O3", "-mcode-object-version=5", "-S", "-o", made / "kernels.s"]
        _run_clang([*command, libraries, "--cuda-device-only", *kernels, made / "source.hip"])
        # without a CUID the host code names its binary __hip_fatbin_
        _run_clang([*command, "--cuda-host-only", "-fuse-cuid=none", "-O1", "-fPIC", "-c", "-o", host, made / "source.hip"])
        _run_clang([command[0], "-shared", "-fPIC", "-O1", "-w", host, "-x", "c", RUNTIME, "-lstdc++", "-o", made / "host.so"])


def _run_clang(command: Sequence[object]) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompilerError(f"{command[0]} ends with {done.returncode}: {done.stderr.strip()[:_MAX_ERROR]}")


def _libraries_for(architecture: str, beside: Path) -> Path:
    """The folder of device libraries, with a file for gfx942, which those before ROCm 5.7 lack: that of gfx940 is taken.

    Of the libraries' code nothing but the number of the architecture differs.
    """
    libraries = _libraries()
    assert libraries is not None
    number = f"oclc_isa_version_{architecture.removeprefix('gfx')}.bc"
    if (libraries / number).is_file() or architecture != "gfx942":
        return libraries
    folder = beside / "libraries"
    folder.mkdir()
    for file in libraries.glob("*.bc"):
        (folder / file.name).symlink_to(file)
    (folder / number).symlink_to(libraries / "oclc_isa_version_940.bc")
    return folder


def _parts(source: Source, command: Sequence[str]) -> list[str]:
    parts = [source.text, *command, _version(command[0]), RUNTIME.read_text(), str(_libraries())]
    return parts + [_digest_of(folder) for folder in (*source.folders, rocm() / "include" / "hip")]


@functools.cache
def _version(clang: str) -> str:
    return subprocess.run([clang, "--version"], capture_output=True, text=True, check=True).stdout


_digest_of = functools.cache(digest_of)
