"""Kernel arguments for a tensor of one-byte elements: a pointer of a type that kernels can convert, and a format."""

import torch
from attn_contract import FLOAT8_DTYPES

from attn_optimized.device import INTERPRETER, interpreter_is_exact

_FORMATS = {torch.float8_e4m3fn: "e4m3fn", torch.float8_e4m3fnuz: "e4m3fnuz", torch.int8: "int8"}


def stored_format(tensor: torch.Tensor, architecture: str) -> tuple[torch.Tensor, str]:
    """A cache or an output as kernels take it, and its FORMAT: see kernels/quantization.py.

    Args:
        tensor: a tensor of float32, float16, bfloat16, float8_e4m3fn, float8_e4m3fnuz or int8.
        architecture: see `device.architecture_of`.
    """
    name = _FORMATS.get(tensor.dtype)
    if name is None:
        return tensor, "float"
    if tensor.dtype in FLOAT8_DTYPES and not _is_converted(tensor.dtype, architecture):
        has_instruction = name == "e4m3fn" and architecture in ("gfx1200", "gfx1201")
        return tensor.view(torch.uint8), f"{name}_byte" if has_instruction else f"{name}_bits"
    return tensor, name


def _is_converted(float8: torch.dtype, architecture: str) -> bool:
    """True if every supported release of Triton converts a float8 type by an instruction of the architecture.

    On other architectures some releases refuse the type, or take more instructions than kernels/quantization.py.
    """
    if float8 == torch.float8_e4m3fnuz:
        return architecture == "gfx942"
    if architecture == INTERPRETER:
        # Triton's own interpreter rounds float8 in its own way
        return interpreter_is_exact()
    return architecture == "gfx950" or (architecture.startswith("sm") and int(architecture.removeprefix("sm")) >= 89)
