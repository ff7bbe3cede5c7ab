"""What the kernels of this process run on."""

import torch
from attn_contract import UnsupportedError
from triton import knobs
from triton.runtime.interpreter import InterpreterBuilder

INTERPRETER = "interpreter"

# Triton decides when a kernel is decorated, which is when this package is imported.
_INTERPRETED = knobs.runtime.interpret


def has_dependent_launches(architecture: str) -> bool:
    """Whether a kernel can begin on an architecture while the kernel before it ends: see kernels/dependent_launch.py."""
    return architecture.startswith("sm") and int(architecture.removeprefix("sm")) >= 90


def has_bfloat16_conversion(architecture: str) -> bool:
    """Whether an architecture converts float32 to bfloat16 in one instruction: see kernels/bfloat16.py.

    The interpreter runs what GPUs without the instruction do, so that tests on a CPU see it.
    """
    return architecture.startswith("sm") or architecture in ("gfx950", "gfx1250")


def architecture_of(device: torch.device, dtype: torch.dtype) -> str:
    """Name of what runs a kernel on tensors of a device: "interpreter", or a GPU's architecture, such as "sm90" or "gfx942".

    Raises:
        UnsupportedError: the tensors are not where these kernels can run, or are bfloat16 in Triton's own interpreter.
    """
    if _INTERPRETED:
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
        return properties.gcnArchName.split(":")[0]
    return f"sm{properties.major}{properties.minor}"


def interpreter_is_exact() -> bool:
    """Whether Triton's interpreter has been taught bfloat16 and float8, which it computes wrongly as it comes."""
    return getattr(InterpreterBuilder, "exact_bfloat16", False)


def compute_units_of(device: torch.device) -> int:
    """Multiprocessors or compute units of a GPU; 1 of what interprets."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
