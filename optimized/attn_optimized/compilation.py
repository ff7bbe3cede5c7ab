"""Compile a launch for a GPU that need not be there, and say what the compiler made of it.

This needs a process without Triton's interpreter: TRITON_INTERPRET must not be set when Triton is imported.
"""

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from typing import Any, NamedTuple

import triton
from attn_contract import ContractError
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from attn_optimized.kernel_call import KernelCall

KI = 1024
_NARROW_PRODUCT = re.compile(r"%([a-z_]+?)(?:_\d+)? = arith\.muli .* : (?:tensor<[\dx]*i32|i32)")
# products of no address: a query or a key of its request, a row of a tile as a query and a head, what a head has or has not, a
# dim of its page
_SMALL = {"first_query", "first_key", "key", "tile_query", "head", "sink", "slope", "in_page"}
_AMD_LOAD = re.compile(r"\b(?:global|buffer|flat)_load_(\w+)")
_AMD_WIDTH = re.compile(r"dwordx(\d)|dword|[bui](8|16|32|64|96|128)\b|short|byte")
_PTX_LOAD = re.compile(r"\bld\.global[\w.:]*?(?:\.v(\d))?\.[bfsu](\d+)\b")
_PTX_COPY = re.compile(r"\bcp\.async\.c[ag]\.shared\.global \[[^\]]*\], \[[^\]]*\], (0x[0-9a-f]+)")


class ComputeUnit(NamedTuple):
    """What programs share: a compute unit of CDNA, two of RDNA that work as one, or a multiprocessor.

    Attributes:
        lds_limit: bytes of LDS, or shared memory, that one program may have.
        lds: bytes of all its programs.
        simds: their number.
    """

    lds_limit: int
    lds: int
    simds: int = 4


_UNITS = {
    "gfx90a": ComputeUnit(64 * KI, 64 * KI),
    "gfx942": ComputeUnit(64 * KI, 64 * KI),
    "gfx950": ComputeUnit(160 * KI, 160 * KI),
    "gfx1100": ComputeUnit(64 * KI, 128 * KI),
    "gfx1201": ComputeUnit(64 * KI, 128 * KI),
    "gfx1250": ComputeUnit(320 * KI, 320 * KI),
    "sm90": ComputeUnit(227 * KI, 228 * KI),
}
ARCHITECTURES = tuple(_UNITS)
"""For which facts are known."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What can be read off a binary. None: unknown, or nothing that the architecture has.

    Args:
        vgprs: of a lane, those of the matrix unit (agprs) included; a thread's registers on NVIDIA.
        agprs: of them, CDNA's accumulation registers.
        sgprs: of a wave.
        vgpr_spills: registers of a lane that are kept in memory; on NVIDIA words of a thread's stack.
        sgpr_spills: scalar registers that are kept in vector registers or in memory.
        lds_bytes, lds_limit: shared memory of a program, and how much there may be.
        waves: that a SIMD can hold, as registers and LDS allow.
        matrix_instructions: mfma, wmma, mma or wgmma.
        tf32_instructions: of them, those that round float32 to TF32 or XF32.
        widest_load: bytes of the widest load of a lane from global memory.
        narrow_products: 32-bit products of what may be an address.
        fused_multiply_adds: of float32.
    """

    vgprs: int | None
    agprs: int | None
    sgprs: int | None
    vgpr_spills: int | None
    sgpr_spills: int | None
    lds_bytes: int
    lds_limit: int
    waves: float | None
    matrix_instructions: int
    tf32_instructions: int
    widest_load: int
    narrow_products: int
    fused_multiply_adds: int


@dataclass(frozen=True, kw_only=True)
class Binary:
    """What Triton's launcher would load for a call, and what it takes to launch it.

    Args:
        architecture: of the GPU.
        name: the kernel's, as the code object has it.
        code: the code object, of the file type `suffix`.
        arguments: the kernel's in their order, with Triton's name of the type: those of the call that are no constants, then
            two pointers to scratch memory, null where a kernel needs none.
        attributes: what the code relies on, by argument: "tt.divisibility" and "tt.pointer_range" with their values.
        constants: what was compiled in, by name.
        grid: programs, in up to three dimensions.
        num_warps, warp_size: waves of a program, and lanes of a wave.
        facts: see Facts; `facts.lds_bytes` is the dynamic shared memory of the launch.
    """

    architecture: str
    name: str
    code: bytes
    suffix: str
    arguments: dict[str, str]
    attributes: dict[str, dict[str, int]]
    constants: dict[str, Any]
    grid: tuple[int, ...]
    num_warps: int
    warp_size: int
    facts: Facts


def gpu_target(architecture: str) -> GPUTarget:
    """Triton's name of a GPU: "gfx942" and its like (RDNA's waves have 32 lanes, CDNA's 64), or "sm90" and its like.

    Raises:
        ContractError: it is neither.
    """
    if found := re.fullmatch(r"gfx(1?)[0-9a-f]{3}", architecture):
        return GPUTarget("hip", architecture, 32 if found.group(1) else 64)
    if found := re.fullmatch(r"sm(\d+)", architecture):
        return GPUTarget("cuda", int(found.group(1)), 32)
    raise ContractError("architecture", repr(architecture), "such as gfx90a, gfx942, gfx1201 or sm90")


def compiled(call: KernelCall, architecture: str) -> tuple[Any, ASTSource]:
    """What Triton's own launcher would compile for a call, and of which source: see `compiled_kernel`."""
    form = call.form
    return compiled_kernel(form.kernel, architecture, **call.arguments, **form.constants, **form.options)


def compiled_kernel(kernel: Any, architecture: str, /, *arguments: Any, **named: Any) -> tuple[Any, ASTSource]:
    """What Triton's own launcher would compile for kernel[grid](*arguments, **named), and of which source.

    Tensors may be on meta: a fresh allocation is aligned, and its size is known.

    Args:
        named: arguments, constants and the compiler's options.

    Raises:
        ContractError: no such architecture, or a kernel that is interpreted in this process.
    """
    target = gpu_target(architecture)
    if not isinstance(kernel, JITFunction):
        raise ContractError("call", "an interpreted kernel", "one of a process without TRITON_INTERPRET")
    backend = make_backend(target)
    # the launcher's own two steps, for a backend that it would take from the GPU at hand
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    named["debug"] = named.get("debug", kernel.debug) or knobs.runtime.debug
    bound, specialization, options = bind(*arguments, **named)
    parsed, signature, constants, attributes = kernel._pack_args(backend, options, bound, specialization, options)
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options=parsed.__dict__), source


def compile_call(call: KernelCall, architecture: str) -> Binary:
    """Compile exactly what Triton's launcher would compile for a call on a GPU, which need not be there.

    Args:
        call: its tensors may be on meta.
        architecture: one of ARCHITECTURES.

    Raises:
        ContractError: another architecture, or a kernel that is interpreted in this process.
    """
    if architecture not in _UNITS:
        raise ContractError("architecture", repr(architecture), f"one of {', '.join(ARCHITECTURES)}")
    binary, source = compiled(call, architecture)
    names, metadata = list(source.signature), binary.metadata
    suffix = "hsaco" if "hsaco" in binary.asm else "cubin"
    return Binary(
        architecture=architecture,
        name=metadata.name,
        code=binary.asm[suffix],
        suffix=suffix,
        arguments={name: kind for name, kind in source.signature.items() if kind != "constexpr"}
        | {"global_scratch": "*i8", "profile_scratch": "*i8"},
        attributes={names[index]: dict(pairs) for (index,), pairs in source.attrs.items() if pairs},
        constants={names[index]: value for (index,), value in source.constants.items()},
        grid=call.form.grid,
        num_warps=metadata.num_warps,
        warp_size=metadata.target.warp_size,
        facts=facts_of(binary, architecture),
    )


def facts_of(binary: Any, architecture: str) -> Facts:
    """Read off what `compiled` gave for one of ARCHITECTURES."""
    metadata, unit = binary.metadata, _UNITS[architecture]
    if "hsaco" in binary.asm:
        text = binary.asm["amdgcn"]
        by_registers, registers = _number(r"; Occupancy: (\d+)", text), _amd_registers(text)
        instructions = re.findall(r"\bv_s?w?mf?mac?_\w+", text)
        rounding = [name for name in instructions if "xf32" in name]
        widest = max((_amd_width(suffix) for suffix in _AMD_LOAD.findall(text)), default=0)
        fused = len(re.findall(r"\bv_(?:pk_|dual_)?fmac?_f32", text))
    else:
        text, registers = binary.asm["ptx"], _nvidia_registers(binary.asm["cubin"])
        # 64 Ki registers of a multiprocessor are 512 of each lane of its four schedulers, given out by eights
        vgprs = registers["vgprs"]
        by_registers = min(16, 512 // (-(-vgprs // 8) * 8)) if vgprs else None
        instructions = re.findall(r"\b(?:wgmma\.mma_async|mma\.sync)\.\S+", text)
        rounding = [name for name in instructions if ".tf32" in name]
        widths = [int(size) // 8 * int(count or 1) for count, size in _PTX_LOAD.findall(text)]
        widest = max([*widths, *(int(size, 16) for size in _PTX_COPY.findall(text))], default=0)
        fused = len(re.findall(r"\bfma\.\w+\.f32", text))
    return Facts(
        **registers,
        lds_bytes=metadata.shared,
        lds_limit=unit.lds_limit,
        waves=_waves(by_registers, metadata.shared, metadata.num_warps, unit),
        matrix_instructions=len(instructions),
        tf32_instructions=len(rounding),
        widest_load=widest,
        narrow_products=sum(name not in _SMALL for name in _NARROW_PRODUCT.findall(binary.asm["ttir"])),
        fused_multiply_adds=fused,
    )


def _waves(by_registers: int | None, lds_bytes: int, num_warps: int, unit: ComputeUnit) -> float | None:
    """Of a SIMD: no more than registers are there for, and than belong to the programs that share the LDS."""
    if by_registers is None or not lds_bytes:
        return by_registers
    return min(by_registers, unit.lds // lds_bytes * num_warps / unit.simds)


def _amd_registers(text: str) -> dict[str, int | None]:
    names = {name: f"{name[:-1]}_count" for name in ("vgprs", "agprs", "sgprs", "vgpr_spills", "sgpr_spills")}
    return {name: _number(rf"\.{field}:\s*(\d+)", text) for name, field in names.items()}


def _nvidia_registers(cubin: bytes) -> dict[str, int | None]:
    """As Triton's cuobjdump says; nothing where it is not there."""
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
    """Bytes of a lane that a load of this name brings."""
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
