"""Compile a launch for a GPU that need not be there, and read facts off the binary.

This needs a process without Triton's interpreter: TRITON_INTERPRET must not be set when Triton is imported.
"""

import re
from dataclasses import dataclass
from typing import Any

import triton
from attn_contract import ContractError
from attn_optimized.kernel_call import KernelCall
from attn_parity.binaries.architectures import ARCHITECTURES
from attn_parity.binaries.facts import Facts, facts_of
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature


@dataclass(frozen=True, kw_only=True)
class Binary:
    """The code object that Triton's launcher would load for a call, with everything that a launch of it needs.

    Args:
        architecture: the architecture of the GPU.
        name: the name of the kernel in the code object.
        code: the code object, of the file type `suffix`.
        arguments: the kernel's arguments in their order, each with Triton's name of its type: the arguments of the call
            that are no constants, then two pointers to scratch memory, null where a kernel needs none.
        attributes: the properties of arguments on which the code relies, by argument: "tt.divisibility" and
            "tt.pointer_range" with their values.
        constants: the values that were compiled in, by name.
        grid: the number of programs in each of up to three dimensions.
        num_warps, warp_size: the waves of a program, and the lanes of a wave.
        facts: see Facts; `facts.lds_bytes` is the dynamic shared memory of the launch.
        assembly: the text from which the code object is made.
        scratch_bytes: what the two pointers to scratch memory must point to, by their names.
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
    assembly: str
    scratch_bytes: dict[str, int]


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
    """The binary that Triton's launcher would compile for a call, and its source: see `compiled_kernel`."""
    launch = call.launch
    return compiled_kernel(launch.kernel, architecture, **call.arguments, **launch.constants, **launch.options)


def compiled_kernel(kernel: Any, architecture: str, /, *arguments: Any, **named: Any) -> tuple[Any, ASTSource]:
    """The binary that Triton's launcher would compile for kernel[grid](*arguments, **named), and its source.

    Tensors may be on the device meta: they count as aligned, as fresh allocations are.

    Args:
        named: further arguments, constants and options of the compiler.

    Raises:
        ContractError: the architecture is unknown, or the kernel is interpreted in this process.
    """
    target = gpu_target(architecture)
    if not isinstance(kernel, JITFunction):
        raise ContractError("call", "an interpreted kernel", "one of a process without TRITON_INTERPRET")
    backend = make_backend(target)
    # the two steps of Triton's launcher, which would take the backend from the GPU of this machine
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    named["debug"] = named.get("debug", kernel.debug) or knobs.runtime.debug
    bound, specialization, options = bind(*arguments, **named)
    parsed, signature, constants, attributes = kernel._pack_args(backend, options, bound, specialization, options)
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options=parsed.__dict__), source


def compile_call(call: KernelCall, architecture: str) -> Binary:
    """Compile exactly the binary that Triton's launcher would compile for a call on a GPU, which need not be there.

    Args:
        call: a call whose tensors may be on the device meta.
        architecture: one of ARCHITECTURES.

    Raises:
        ContractError: the architecture is not in ARCHITECTURES, or the kernel is interpreted in this process.
    """
    if architecture not in ARCHITECTURES:
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
        grid=call.launch.grid,
        num_warps=metadata.num_warps,
        warp_size=metadata.target.warp_size,
        facts=facts_of(binary, architecture),
        assembly=binary.asm.get("amdgcn") or binary.asm["ptx"],
        scratch_bytes={"global_scratch": metadata.global_scratch_size, "profile_scratch": metadata.profile_scratch_size},
    )
