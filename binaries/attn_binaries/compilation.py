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


@dataclass(frozen=True, kw_only=True)
class Binary:
    """The code that Triton's launcher would load for a call.

    Args:
        name: the name of the kernel in the code.
        num_warps: the waves of a program.
        assembly: the text from which the code object is made.
        hot_loop: as `attn_amdgcn.hot_loop`; None for NVIDIA, and of code that `attn_amdgcn` cannot read.
    """

    name: str
    num_warps: int
    facts: Facts
    assembly: str
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
    binary, _ = compiled(call, architecture)
    return Binary(
        name=binary.metadata.name,
        num_warps=binary.metadata.num_warps,
        facts=facts_of(binary, architecture),
        assembly=binary.asm.get("amdgcn") or binary.asm["ptx"],
        hot_loop=_hot_loop(binary.asm["amdgcn"]) if "amdgcn" in binary.asm else None,
    )


def _hot_loop(assembly: str) -> int | None:
    from attn_amdgcn import AmdgcnError, hot_loop, load  # needs the extra `emulated`

    try:
        return hot_loop(load(assembly))
    except AmdgcnError:
        return None
