"""Facts read off a binary: registers, spills, shared memory, waves, and some kinds of instructions."""

import linecache
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attn_binaries.architectures import ARCHITECTURES, Architecture

_NARROW_PRODUCT = re.compile(r"= arith\.muli .* : (?:tensor<[\dx]*i32|i32).* loc\((#loc\d*)\)$", re.MULTILINE)
_LOCATION = re.compile(r"^(#loc\d*) = loc\((.*)\)$", re.MULTILINE)
_LINE_OF_FILE = re.compile(r'"([^"]+)":(\d+):\d+')
_EXCUSE = "# int32: "
"""The mark of a line of a kernel whose product of 32 bits cannot overflow; the reason follows."""
_AMD_LOAD = re.compile(r"\b(?:global|buffer|flat)_load_(\w+)")
_AMD_WIDTH = re.compile(r"dwordx(\d)|dword|[bui](8|16|32|64|96|128)\b|short|byte")
_PTX_LOAD = re.compile(r"\bld\.global[\w.:]*?(?:\.v(\d))?\.[bfsu](\d+)\b")
_PTX_COPY = re.compile(r"\bcp\.async\.c[ag]\.shared\.global \[[^\]]*\], \[[^\]]*\], (0x[0-9a-f]+)")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts read off a binary. A fact is None if it is unknown, or if the architecture has no such thing.

    Args:
        vgprs: registers of a lane, including agprs; on NVIDIA the registers of a thread.
        agprs: the accumulation registers among them, which CDNA has.
        sgprs: scalar registers of a wave.
        vgpr_spills: registers of a lane that are kept in memory; on NVIDIA the words of a thread's stack.
        sgpr_spills: scalar registers that are kept in vector registers or in memory.
        sgpr_spills_in_loops: instructions of loops that move such registers.
        lost_addresses: accesses whose address the compiler lost (`attn_amdgcn.origins`); registers that it writes while
            lanes are off, and stores into LDS that a barrier does not wait for (`attn_optimized.miscompiled`).
        lds_bytes, lds_limit: bytes of shared memory of a program, and the most that a program may have.
        waves: the number of waves that a SIMD can hold, by their registers and LDS.
        matrix_instructions: the number of mfma, wmma, mma or wgmma instructions.
        tf32_instructions: the matrix instructions that round float32 to TF32 or XF32.
        widest_load: bytes of a lane's widest load from global memory.
        narrow_products: the number of 32-bit products that may be a part of an address.
        fused_multiply_adds: the number of fused multiply-adds of float32.
    """

    vgprs: int | None
    agprs: int | None
    sgprs: int | None
    vgpr_spills: int | None
    sgpr_spills: int | None
    sgpr_spills_in_loops: int | None
    lost_addresses: int
    lds_bytes: int
    lds_limit: int
    waves: float | None
    matrix_instructions: int
    tf32_instructions: int
    widest_load: int
    narrow_products: int
    fused_multiply_adds: int

    @property
    def faults(self) -> list[str]:
        """A sentence for each reason why a binary, of whatever kernel, cannot be right or cannot be launched."""
        wrong = []
        if self.lost_addresses:
            wrong.append(f"lost_addresses is {self.lost_addresses}, none allowed: the compiler made wrong code")
        if self.lds_bytes > self.lds_limit:
            wrong.append(f"lds_bytes is {self.lds_bytes}, at most {self.lds_limit} there")
        return wrong


def facts_of(binary: Any, architecture: str) -> Facts:
    """Read the facts off a binary that `compiled` made for one of ARCHITECTURES."""
    metadata, unit = binary.metadata, ARCHITECTURES[architecture]
    if "hsaco" in binary.asm:
        text = binary.asm["amdgcn"]
        by_registers, registers = _number(r"; Occupancy: (\d+)", text), _amd_registers(text)
        in_loops, lost = _amd_spills(text) if registers["sgpr_spills"] or registers["vgpr_spills"] else (0, 0)
        instructions = re.findall(r"\bv_s?w?mf?mac?_\w+", text)
        rounding = [name for name in instructions if "xf32" in name]
        widest = max((_amd_width(suffix) for suffix in _AMD_LOAD.findall(text)), default=0)
        fused = len(re.findall(r"\bv_(?:pk_|dual_)?fmac?_f32", text))
    else:
        text, registers, in_loops, lost = binary.asm["ptx"], _nvidia_registers(binary.asm["cubin"]), None, 0
        # the 64 Ki registers of a multiprocessor are 512 per lane of its four schedulers, and are given out by eights
        vgprs = registers["vgprs"]
        by_registers = min(16, 512 // (-(-vgprs // 8) * 8)) if vgprs else None
        instructions = re.findall(r"\b(?:wgmma\.mma_async|mma\.sync)\.\S+", text)
        rounding = [name for name in instructions if ".tf32" in name]
        widths = [int(size) // 8 * int(count or 1) for count, size in _PTX_LOAD.findall(text)]
        widest = max([*widths, *(int(size, 16) for size in _PTX_COPY.findall(text))], default=0)
        fused = len(re.findall(r"\bfma\.\w+\.f32", text))
    return Facts(
        **registers,
        sgpr_spills_in_loops=in_loops,
        lost_addresses=lost,
        lds_bytes=metadata.shared,
        lds_limit=unit.lds_limit,
        waves=_waves(by_registers, metadata.shared, metadata.num_warps, unit),
        matrix_instructions=len(instructions),
        tf32_instructions=len(rounding),
        widest_load=widest,
        narrow_products=_narrow_products(binary.asm["ttir"], _folder_of(binary)),
        fused_multiply_adds=fused,
    )


def _narrow_products(ttir: str, folder: Path) -> int:
    """The number of 32-bit products, without products whose line in the source says why they cannot overflow: `# int32: why`.

    Args:
        folder: the folder of the kernel's source. A binary in Triton's cache may name a copy of the source in another folder.
    """
    locations = dict(_LOCATION.findall(ttir))
    return sum(_EXCUSE not in _source_line(location, locations, folder) for location in _NARROW_PRODUCT.findall(ttir))


def _source_line(location: str, locations: dict[str, str], folder: Path) -> str:
    """The file and line of a location. A location may be named, `"name"(#loc1)`, or inlined, `callsite(#loc1 at #loc2)`."""
    text = locations.get(location, "")
    if found := _LINE_OF_FILE.fullmatch(text):
        beside = folder / Path(found[1]).name
        return linecache.getline(str(beside) if beside.is_file() else found[1], int(found[2]))
    inner = re.search(r"#loc\d*", text)
    return _source_line(inner[0], locations, folder) if inner else ""


def _folder_of(binary: Any) -> Path:
    return Path(binary.src.fn.fn.__code__.co_filename).parent


def _waves(by_registers: int | None, lds_bytes: int, num_warps: int, unit: Architecture) -> float | None:
    """The waves of a SIMD: limited by the registers, and by the number of programs that fit into the LDS."""
    if by_registers is None or not lds_bytes:
        return by_registers
    return min(by_registers, unit.lds // lds_bytes * num_warps / unit.simds)


def _amd_registers(text: str) -> dict[str, int | None]:
    names = {name: f"{name[:-1]}_count" for name in ("vgprs", "agprs", "sgprs", "vgpr_spills", "sgpr_spills")}
    return {name: _number(rf"\.{field}:\s*(\d+)", text) for name, field in names.items()}


def _amd_spills(text: str) -> tuple[int, int]:
    """The moves of spilled scalar registers in loops; and what the compiler made wrong, as `Facts.lost_addresses` counts it."""
    from attn_amdgcn import lane_moves_in_loops, load, lost_addresses  # needs the extra `emulated`
    from attn_optimized.miscompiled import early_writes, unwaited_stores

    kernel = load(text)
    wrong = (*lost_addresses(kernel, text), *early_writes(text), *unwaited_stores(text))
    return lane_moves_in_loops(kernel), len(wrong)


def _nvidia_registers(cubin: bytes) -> dict[str, int | None]:
    """Registers and stack by Triton's cuobjdump; no fact if cuobjdump is missing."""
    from triton import knobs

    text = ""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kernel.cubin")
        with open(path, "wb") as file:
            file.write(cubin)
        try:
            command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", path]
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except (OSError, RuntimeError, subprocess.CalledProcessError):
            pass
    stack, local = _number(r"\bSTACK:(\d+)", text), _number(r"\bLOCAL:(\d+)", text)
    return {
        "vgprs": _number(r"\bREG:(\d+)", text),
        "agprs": None,
        "sgprs": None,
        "vgpr_spills": None if stack is None or local is None else (stack + local) // 4,
        "sgpr_spills": None,
    }


def _amd_width(suffix: str) -> int:
    """Bytes that a load instruction of this name brings to a lane."""
    found = _AMD_WIDTH.search(suffix)
    if found is None:
        return 0
    if found[1]:
        return 4 * int(found[1])
    if found[2]:
        return int(found[2]) // 8
    return {"dword": 4, "short": 2, "byte": 1}[found[0]]


def _number(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text)
    return int(found[1]) if found else None
