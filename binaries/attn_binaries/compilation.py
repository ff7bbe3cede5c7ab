"""Compile a launch for a GPU that need not be there, and read facts off the binary.

This needs a process without Triton's interpreter: TRITON_INTERPRET must not be set when Triton is imported.
"""

from dataclasses import dataclass
from typing import Any

from attn_binaries.architectures import ARCHITECTURES
from attn_binaries.facts import Facts, facts_of
from attn_contract import ContractError
from attn_fuzz.emulated.compilation import compiled_kernel
from attn_optimized.kernel_call import KernelCall
from triton.compiler import ASTSource

SCRATCH = ("global_scratch", "profile_scratch")
"""Pointers to scratch memory: the last arguments of every kernel."""


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
        scratch_bytes: the sizes of the scratch memory after the two pointers to it, by their names.
        hot_loop: as `attn_amdgcn.hot_loop`; None for NVIDIA, and of code that `attn_amdgcn` cannot read.
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
    hot_loop: int | None


def compiled(call: KernelCall, architecture: str) -> tuple[Any, ASTSource]:
    """The binary that Triton's launcher would compile for a call, and its source: see `compiled_kernel`."""
    launch = call.launch
    return compiled_kernel(launch.kernel, architecture, **call.arguments, **launch.constants, **launch.options)


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
        arguments={
            **{name: kind for name, kind in source.signature.items() if kind != "constexpr"},
            **dict.fromkeys(SCRATCH, "*i8"),
        },
        attributes={names[index]: dict(pairs) for (index,), pairs in source.attrs.items() if pairs},
        constants={names[index]: value for (index,), value in source.constants.items()},
        grid=call.launch.grid,
        num_warps=metadata.num_warps,
        warp_size=metadata.target.warp_size,
        facts=facts_of(binary, architecture),
        assembly=binary.asm.get("amdgcn") or binary.asm["ptx"],
        # before Triton 3.8 AMD's backend has no global scratch and no figure of it, and NVIDIA's says None for 0
        scratch_bytes={name: getattr(metadata, f"{name}_size", None) or 0 for name in SCRATCH},
        hot_loop=_hot_loop(binary.asm["amdgcn"]) if suffix == "hsaco" else None,
    )


def _hot_loop(assembly: str) -> int | None:
    from attn_amdgcn import AmdgcnError, hot_loop, load  # needs the extra `emulated`

    try:
        return hot_loop(load(assembly))
    except AmdgcnError:
        return None
