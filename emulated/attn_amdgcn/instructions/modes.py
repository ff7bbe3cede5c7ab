"""The modes that a kernel sets for its floats. One set is known, which Triton sets in every kernel; others are refused.

Known: rounding to nearest even; denormals kept in sources and results; `ieee_mode` (a signaling NaN is made quiet; gfx12 has
no such mode and works so); `dx10_clamp` (clamp makes 0 of a NaN); float16 and float8 that overflow become infinities or NaN.

A NaN that an instruction makes is 0xFFC00000, or its like in other widths, and a NaN that it passes on is that of a source,
made quiet. Of which source is left open but where an instruction's own text says so.

Source: ".amdhsa_ directives" in LLVM's User Guide for AMDGPU Backend; "MODE Register" in AMD's Instinct MI300 ISA.
"""

from attn_amdgcn.assembly import Kernel
from attn_amdgcn.errors import UnknownInstructionError

KNOWN = {
    "float_round_mode_32": 0,
    "float_round_mode_16_64": 0,
    "float_denorm_mode_32": 3,
    "float_denorm_mode_16_64": 3,
    "ieee_mode": 1,
    "dx10_clamp": 1,
    "fp16_overflow": 0,
}


def check(kernel: Kernel) -> None:
    """Refuse a kernel whose floats work in another way than the instructions here."""
    for name, known in KNOWN.items():
        if (value := kernel.settings.get(name, known)) != known:
            raise UnknownInstructionError(f".amdhsa_{name} {value}: the instructions here are those of {known}")
