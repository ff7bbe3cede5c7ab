"""The device that the kernels of this process run on."""

import functools
import re

import torch
import triton
from attn_contract import UnsupportedError
from triton import knobs
from triton.runtime.interpreter import InterpreterBuilder

INTERPRETER = "interpreter"

# Triton decides when a kernel is decorated, which is when this package is imported.
INTERPRETED = knobs.runtime.interpret

_FIRST_TRITON = {"gfx1250": (3, 7)}
"""The first release of Triton that assembles these kernels, for architectures where the oldest supported one does not.

Triton 3.6 assembles only kernels of few arguments: for others LLVM says "amdgpu_user_sgpr_count smaller than implied".
"""


@functools.cache
def missing_compiler(architecture: str) -> str | None:
    """The reason why this Triton does not serve an architecture; None if it does."""
    release = tuple(int(number) for number in re.findall(r"\d+", triton.__version__)[:2])
    if release >= (first := _FIRST_TRITON.get(architecture, release)):
        return None
    can = ".".join(map(str, first))
    return f"Triton {triton.__version__} cannot assemble kernels of many arguments for {architecture}; {can} and newer can"


def has_dependent_launches(architecture: str) -> bool:
    """True if a kernel can begin on an architecture while the kernel before it ends: see kernels/dependent_launch.py."""
    return architecture.startswith("sm") and int(architecture.removeprefix("sm")) >= 90


def has_bfloat16_conversion(architecture: str) -> bool:
    """True if an architecture converts float32 to bfloat16 in one instruction: see kernels/bfloat16.py.

    It is False for the interpreter, so that tests on a CPU run the arithmetic of GPUs without the instruction.
    """
    return architecture.startswith("sm") or architecture in ("gfx950", "gfx1250")


def architecture_of(device: torch.device, dtype: torch.dtype) -> str:
    """The name of the architecture that runs kernels on a device: "interpreter", or a GPU's, such as "sm90" or "gfx942".

    Raises:
        UnsupportedError: these kernels cannot run on the device, or this Triton does not serve the GPU, or the tensors are
            bfloat16 and Triton's interpreter is as Triton has it.
    """
    if INTERPRETED:
        if dtype == torch.bfloat16 and not interpreter_is_exact():
            raise UnsupportedError(
                "attn_optimized",
                "bfloat16 under Triton's interpreter",
                "it computes with the bit patterns",
                "float32 or float16, or call attn_fuzz.interpreted.interpreter.install() first",
            )
        return INTERPRETER
    if device.type != "cuda":
        raise UnsupportedError(
            "attn_optimized",
            f"a tensor on {device.type}",
            "its Triton kernels are compiled for GPUs",
            "attn_reference, or Triton's interpreter: set TRITON_INTERPRET=1 before attn_optimized is imported",
        )
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        architecture = properties.gcnArchName.split(":")[0]
        if missing := missing_compiler(architecture):
            raise UnsupportedError("attn_optimized", architecture, missing)
        return architecture
    return f"sm{properties.major}{properties.minor}"


def interpreter_is_exact() -> bool:
    """True if this process has corrected Triton's interpreter, which computes bfloat16 and float8 wrongly by itself."""
    return getattr(InterpreterBuilder, "exact_bfloat16", False)


def compute_units_of(device: torch.device) -> int:
    """The number of multiprocessors or compute units of a GPU; 1 for the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
