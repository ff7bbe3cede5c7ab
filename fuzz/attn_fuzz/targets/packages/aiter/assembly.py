"""AITER's assembly: code objects of the wheel, run on the emulator behind host code of ours, which does what AITER's C++ does.

Which file is chosen, its arguments and its grid are read in csrc/py_itfs_cu, of the wheel of amd-aiter 0.1.7.post2.dev18 and of
AITER's main at e4048607. `ATTN_PARITY_AITER=FOLDER` takes the sources and files of another release, also of a checkout.
"""

import csv
import dataclasses
import functools
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from attn_fuzz import foreign
from attn_fuzz.interpreted.sanitizer import Violation
from attn_fuzz.targets import of_architecture
from attn_fuzz.targets.packages import AITER
from attn_fuzz.targets.packages.aiter.package import root
from attn_fuzz.targets.rng import rng_of_lengths

if TYPE_CHECKING:
    from attn_amdgcn import Schedule

ARCHITECTURES = ("gfx942", "gfx950")
"""Architectures for which AITER has assembly and the emulator knows the instructions."""
LOG2_E = 1.4426950408889634


class NoKernelError(NotImplementedError):
    """AITER's host code finds no file for a call, and raises."""


@dataclass(frozen=True)
class AssemblyLaunch:
    """A launch of AITER's host code.

    Attributes:
        file: the code object, below hsa/ARCHITECTURE/.
        kernel: the symbol of its function.
        grid: numbers of workgroups in x, y and z.
        arguments: of the kernel, by their offsets in the struct that the host code fills. Tensors and numbers.
        in_step: True if its waves run evenly (`attn_amdgcn.prepare`), since the file is wrong in other orders.
    """

    file: str
    kernel: str
    grid: tuple[int, int, int]
    arguments: Mapping[int, "torch.Tensor | float | int | None"]
    in_step: bool = False


def files() -> Path:
    """The folder of the code objects."""
    return root() / "hsa"


def table(architecture: str, name: str) -> Sequence[Mapping[str, str]]:
    """The rows of a table of kernels, such as pa/pa_asm.csv, from which AITER's build makes C++; none without table or AITER.

    The column of files is co_name, as main has it; the wheel's knl_file is renamed.
    """
    try:
        return _table(files() / architecture / name)
    except foreign.MissingSourcesError:
        return ()


@functools.cache
def _table(file: Path) -> Sequence[Mapping[str, str]]:
    if not file.is_file():
        return ()
    with file.open(newline="") as lines:
        return [
            {"co_name" if name == "knl_file" else name: each for name, each in row.items()} for row in csv.DictReader(lines)
        ]


def unavailable(folder: str, architecture: str, device: str) -> str | None:
    """The reason why the files of a folder of hsa/ARCHITECTURE/ cannot run here."""
    if reason := of_architecture.unavailable(device) or AITER.missing(("__init__.py",)):
        return reason
    if not (place := files() / architecture / folder).is_dir():
        return f"{place} is no folder: pip install --no-deps {AITER.requirement}"
    from attn_amdgcn.code_objects import missing as missing_tools

    return missing_tools()


@functools.cache
def listed_hazards() -> Mapping[str, Collection[tuple[int, int]]]:
    """Known hazards (`attn_amdgcn.errors.Hazards`), by ARCHITECTURE/FOLDER/FILE and the first 8 digits of the file's SHA-256.

    hazards.json has runs of them: the first instruction's line, how many lines further the other one is, and how many
    pairs follow one another.
    """
    runs: dict[str, list[list[int]]] = json.loads(Path(__file__).with_name("hazards.json").read_text())
    return {
        name: frozenset((first + i, first + i + further) for first, further, count in each for i in range(count))
        for name, each in runs.items()
    }


def known_hazards(name: str) -> Collection[tuple[int, int]]:
    """The known hazards of the file NAME below hsa/, with the contents that it has here."""
    return listed_hazards().get(f"{name} {sha256((files() / name).read_bytes()).hexdigest()[:8]}", ())


def run(launch: AssemblyLaunch, architecture: str, schedules: "Sequence[Schedule]") -> None:
    """Run a launch on the emulator. Its tensors lie on the CPU.

    Raises:
        Violation: the code did what it must not do, or met a hazard that is not known. What an instruction does not wait for
            counts as done until the end of the launch.
        attn_amdgcn.AmdgcnError: the code has what the emulator does not know.
    """
    from attn_amdgcn import EmulationFault
    from attn_fuzz.emulated import code_objects

    if launch.in_step:
        schedules = [dataclasses.replace(each, waves="together") for each in schedules]
    code = code_objects.ready(files() / architecture / launch.file, launch.kernel, evenly=launch.in_step)
    known = known_hazards(f"{architecture}/{launch.file}")
    hazards: dict[tuple[int, int], EmulationFault] = {}
    try:
        code_objects.run(code, launch.arguments, launch.grid, schedules, hazards)
    except EmulationFault as fault:
        raise Violation(f"{launch.file} for {architecture}: {fault}", "access") from fault
    for lines, fault in hazards.items():
        if lines not in known:
            raise Violation(f"{launch.file} for {architecture}: {fault}", "wait") from fault


def attention(launches: Callable[..., Iterable[AssemblyLaunch]]) -> Callable[..., None]:
    """Attention on an architecture, by its launches: `launches(architecture, q, k, v, kv_cache, layer, batch, out, lse)`.

    A generator copies results after its launches.
    """

    def attend(architecture, q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        rng = rng_of_lengths(batch)
        for launch in launches(architecture, q, k, v, kv_cache, layer, batch, out.view(*q.shape[:2], -1), lse):
            run(launch, architecture, of_architecture.schedules(rng))

    return attend
