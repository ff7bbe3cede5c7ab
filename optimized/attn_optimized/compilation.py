"""Compile a launch for a GPU that need not be there, and say what the compiler made of it.

This needs a process without Triton's interpreter: TRITON_INTERPRET must not be set when Triton is imported.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from attn_contract import ContractError
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from attn_optimized.kernel_call import KernelCall
from attn_optimized.kernels.attention import attention_kernel
from attn_optimized.kernels.merge_attn_states import merge_attn_states_kernel
from attn_optimized.kernels.reduce_parts import reduce_parts_kernel
from attn_optimized.kernels.write_kv_cache import write_kv_cache_kernel
from attn_optimized.launch import attention_tiles, reduce_tiles, row_tiles
from attn_optimized.quantization import stored_format

KI = 1024
_NARROW_PRODUCT = re.compile(r"%([a-z_]+?)(?:_\d+)? = arith\.muli .* : (?:tensor<[\dx]*i32|i32)")
# products of no address: a query of its request, and a row of a tile as a query and a head
_SMALL = {"first_query", "tile_query", "head"}
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
    """What Triton's own launcher would compile for a call, and of which source.

    Its tensors may be on meta: a fresh allocation is aligned, and its size is known.

    Raises:
        ContractError: no such architecture, or a kernel that is interpreted in this process.
    """
    target, kernel = gpu_target(architecture), call.kernel
    if not isinstance(kernel, JITFunction):
        raise ContractError("call", "an interpreted kernel", "one of a process without TRITON_INTERPRET")
    backend = make_backend(target)
    # the launcher's own two steps, for a backend that it would take from the GPU at hand
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    options = {"debug": kernel.debug or knobs.runtime.debug, **call.options}
    bound, specialization, options = bind(**call.arguments, **call.constants, **options)
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
        grid=call.grid,
        num_warps=metadata.num_warps,
        warp_size=metadata.target.warp_size,
        facts=_facts(binary, _UNITS[architecture]),
    )


def _facts(binary: Any, unit: ComputeUnit) -> Facts:
    metadata = binary.metadata
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


_TRITON_NAMES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e4m3fnuz: "fp8e4b8",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.uint8: "u8",
}
_FLOATS = (
    "lse",
    "lse_a",
    "lse_b",
    "row_max",
    "row_sum",
    "acc",
    "sinks",
    "alibi_slopes",
    "qq_bias",
    "k_scale",
    "v_scale",
    "output_scale",
)
_INTEGERS = ("query_start_loc", "seq_lens", "block_table", "ranges")
_POINTERS = {
    **dict.fromkeys(_FLOATS, "fp32"),
    **dict.fromkeys(_INTEGERS, "i32"),
    "causal": "i1",
    "slot_mapping": "i64",
    "positions": "i64",
}
# what the attention kernel can be compiled for, beside dtypes and sizes
_VARIANTS: dict[str, dict[str, Any]] = {
    "dense": {"PAGED": False},
    "rules": {"HOLES": True, "INNER": False, "SOFT_CAP": True, "BIAS": True},
    "parts": {"PARTIAL": True},
    "x_packed": {"INTERIOR": "x_packed"},
    "shuffled": {"INTERIOR": "shuffled"},
    "token scales": {"TOKEN_SCALES": True},
    "float8 output": {"OUT_FORMAT": "e4m3fn_bits"},
}


class Configuration(NamedTuple):
    """A kernel and what it is compiled for, every optional tensor given."""

    name: str
    kernel: Any
    elements: dict[str, str]
    """Triton's name of the elements of each pointer that _POINTERS does not know."""
    constants: dict[str, Any]
    options: dict[str, Any]


def configurations(architecture: str) -> Iterator[Configuration]:
    """What models need most: every kernel, every variant once, every cache dtype."""
    bf16 = torch.bfloat16
    for dtype, head_size, max_query_len in [
        (bf16, 128, 1),
        (bf16, 128, 512),
        (torch.float16, 80, 512),
        (bf16, 256, 512),
        (torch.float32, 128, 512),
        (torch.float32, 256, 512),
    ]:
        yield _attention(architecture, "paged", dtype, head_size, max_query_len)
    for variant in _VARIANTS:
        yield _attention(architecture, variant, bf16, 128, 512)
    for cache_dtype in (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.int8):
        for max_query_len in (1, 512):
            yield _attention(architecture, "paged", bf16, 128, max_query_len, cache_dtype)
    yield _attention(architecture, "token scales", bf16, 128, 512, torch.int8)
    yield _write(architecture, torch.int16)
    yield _write(architecture, bf16, rotates=True)
    yield _write(architecture, torch.float32, rotates=True)
    for interior in ("rows", "x_packed", "shuffled"):
        yield _write(architecture, bf16, torch.float8_e4m3fn, interior, rotates=True)
    yield _write(architecture, torch.float16, torch.float8_e4m3fnuz)
    yield _write(architecture, bf16, torch.int8, token_scales=True)
    for kernel, tiles, units in (
        (merge_attn_states_kernel, row_tiles(architecture, head_size=128), {"STRIDE_UNIT": 8}),
        (
            reduce_parts_kernel,
            reduce_tiles(architecture, head_size=128, num_parts=32),
            {"OUT_UNIT": 8, "OUT_FORMAT": "float"},
        ),
    ):
        elements = {"out": "bf16", "out_a": "bf16", "out_b": "bf16"}
        yield Configuration(kernel.fn.__name__, kernel, elements, {**tiles.constants, **units}, tiles.options)


def compile_for(architecture: str, configuration: Configuration) -> dict[str, int]:
    """Compile, all pointers and strides multiples of 16 bytes, and count in the code what matters.

    Returns:
        shared_bytes, narrow_products (32-bit ones of what may be an address), matrix_instructions,
        wide_loads and fused_multiply_adds; for AMD also vgpr_count, agpr_count, sgpr_count, vgpr_spill_count, sgpr_spill_count.
    """
    _, kernel, elements, constants, options = configuration
    signature, divisible = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = "*" + {**_POINTERS, **elements}[name.removesuffix("_ptr")]
            divisible[(index,)] = [["tt.divisibility", 16]]
        elif name in ("scale", "cap"):
            signature[name] = "fp32"
        else:
            signature[name] = "i32"
    source = ASTSource(kernel, signature, constexprs=constants, attrs=divisible)
    compiled = triton.compile(source, target=gpu_target(architecture), options=options)
    facts = {
        "shared_bytes": compiled.metadata.shared,
        "narrow_products": sum(name not in _SMALL for name in _NARROW_PRODUCT.findall(compiled.asm["ttir"])),
    }
    if "amdgcn" in compiled.asm:
        text = compiled.asm["amdgcn"]
        for name in ("vgpr_count", "agpr_count", "sgpr_count", "vgpr_spill_count", "sgpr_spill_count"):
            if found := re.search(rf"\.{name}:\s*(\d+)", text):
                facts[name] = int(found.group(1))
        facts["matrix_instructions"] = len(re.findall(r"\bv_(?:mfma|wmma)_", text))
        facts["wide_loads"] = len(re.findall(r"\b(?:global|buffer)_load_(?:dwordx4|b128)\b", text))
        facts["fused_multiply_adds"] = len(re.findall(r"\bv_(?:pk_|dual_)?fmac?_f32", text))
    else:
        text = compiled.asm["ptx"]
        facts["matrix_instructions"] = len(re.findall(r"\b(?:wgmma\.mma_async|mma)\.", text))
        facts["fused_multiply_adds"] = len(re.findall(r"\bfma\.\w+\.f32", text))
        facts["wide_loads"] = len(re.findall(r"\.v4\.b32|cp\.async\.c[ag]\.shared\.global [^;]*0x10", text))
    return facts


def _attention(
    architecture: str,
    variant: str,
    dtype: torch.dtype,
    head_size: int,
    max_query_len: int,
    cache_dtype: torch.dtype | None = None,
) -> Configuration:
    tiles = attention_tiles(
        architecture,
        itemsize=dtype.itemsize,
        head_size=head_size,
        group=4,
        max_query_len=max_query_len,
        phase="decode" if max_query_len == 1 else "prefill",
        quantized=cache_dtype is not None,
    )
    stored, kv_format = stored_format(torch.empty(0, dtype=cache_dtype or dtype), architecture)
    constants = {
        "Q_UNIT": 16 // dtype.itemsize,
        "KV_UNIT": 16 // stored.itemsize,
        "PAGED": True,
        "BLOCK_SIZE": 16,
        "INTERIOR": "rows",
        "X": 16 // stored.itemsize,
        "KV_FORMAT": kv_format,
        "OUT_FORMAT": "float",
        "SIGN": 1,
        "TOKEN_SCALES": False,
        "HOLES": False,
        "INNER": True,
        "SOFT_CAP": False,
        "BIAS": False,
        "PARTIAL": False,
        **tiles.constants,
        **_VARIANTS.get(variant, {}),
    }
    row, cached = _TRITON_NAMES[dtype], _TRITON_NAMES[stored.dtype]
    elements = {"q": row, "out": row, "k": cached, "v": cached}
    if constants["OUT_FORMAT"] != "float":
        elements["out"] = "u8"
    cache = f" {kv_format}" if cache_dtype else ""
    name = f"attention_kernel {variant} {_TRITON_NAMES[dtype]}{cache} D{head_size} M{tiles.block_m}"
    return Configuration(name, attention_kernel, elements, constants, tiles.options)


def _write(
    architecture: str,
    dtype: torch.dtype,
    cache_dtype: torch.dtype | None = None,
    interior: str = "rows",
    rotates: bool = False,
    token_scales: bool = False,
) -> Configuration:
    stored, stored_as = stored_format(torch.empty(0, dtype=cache_dtype or dtype), architecture)
    tiles = row_tiles(architecture, head_size=128)
    constants = {
        "ROW_UNIT": 16 // dtype.itemsize,
        "KV_UNIT": 16 // stored.itemsize,
        "INTERIOR": interior,
        "X": 16 // stored.itemsize,
        "FORMAT": stored_as,
        "TOKEN_SCALES": token_scales,
        "ROTATES": rotates,
        **tiles.constants,
    }
    options = {**tiles.options, "enable_fp_fusion": False}
    row = _TRITON_NAMES[dtype]
    elements = {"q": row, "k": row, "v": row, "kv_cache": _TRITON_NAMES[stored.dtype], "cos_sin_cache": "fp32"}
    options_given = f"{' rotary' if rotates else ''}{' token scales' if token_scales else ''}"
    name = f"write_kv_cache_kernel {row} {stored_as} {interior}{options_given}"
    return Configuration(name, write_kv_cache_kernel, elements, constants, options)


def main(architecture: str) -> None:
    """Print {name: facts} of all configurations."""
    facts = {config.name: compile_for(architecture, config) for config in configurations(architecture)}
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
