"""The modes that a kernel sets for its floats. One set is known, which Triton sets in every kernel; others are refused.

Known: rounding to nearest even; denormals kept in sources and results; `ieee_mode` (a signaling NaN is made quiet; gfx12 has
no such mode and works so); `dx10_clamp` (clamp makes 0 of a NaN); float16 and float8 that overflow become infinities or NaN,
unless the kernel sets FP16_OVFL: then a float16 that overflows becomes the largest number, and an infinity that is made of an
infinity stays one. Triton sets it in each kernel that makes float8 of float32, also where it does so by arithmetic of integers.

A NaN that an instruction makes is 0xFFC00000, or its like in other widths, and a NaN that it passes on is that of a source,
made quiet. Of which source is left open but where an instruction's own text says so.

Source: ".amdhsa_ directives" in LLVM's User Guide for AMDGPU Backend; "MODE Register" in AMD's Instinct MI300 ISA.
"""

import re
from collections.abc import Callable
from functools import reduce

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel, Literal, Named
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


FP16_OVFL = "hwreg(HW_REG_MODE, 23, 1)"
_OVERFLOWING = (
    *("v_cvt_f16_f32", "v_add_f16", "v_sub_f16", "v_subrev_f16", "v_mul_f16", "v_fma_f16"),
    *("v_fma_mixlo_f16", "v_fma_mixhi_f16"),
)
"""Those whose results are known to obey FP16_OVFL here. Of other narrow results, such as packed ones and float8, none is."""
_TYPE = re.compile(r"[biu]\d+|b?f\d+|fp8")


def check_overflow(instruction: Instruction, kernel: Kernel) -> None:
    """Refuse an instruction that sets FP16_OVFL, unless it sets it for all of the kernel's narrow floats, and all are known."""
    place = kernel.instructions.index(instruction)
    before, after = kernel.instructions[:place], kernel.instructions[place + 1 :]
    early = [each for each in before if _is_narrow(each) or _passes(each, place, kernel)]
    unknown = [each for each in after if _is_narrow(each) and each.name not in _OVERFLOWING]
    if instruction.operands[1].of != Literal(1) or early or unknown:
        why = f": `{(early + unknown)[0].text}` beside it" if early + unknown else ""
        raise UnknownInstructionError(f"line {instruction.line}: `{instruction.text}`{why}")


def _passes(instruction: Instruction, place: int, kernel: Kernel) -> bool:
    """Whether a branch may lead past a place. A kernel whose arguments are preloaded begins with a branch to its body."""
    if instruction.name == "s_branch":
        target = instruction.operands[0].of
        return not isinstance(target, Named) or kernel.labels.get(target.text, place + 1) > place
    return instruction.name.startswith("s_cbranch")


def _is_narrow(instruction: Instruction) -> bool:
    """Whether the result is a float16 or a float8. A mnemonic names its result's type first."""
    types = [word for word in instruction.name.split("_") if _TYPE.fullmatch(word)]
    return types[:1] in (["f16"], ["fp8"], ["bf8"])


def overflowing(instruction: Instruction, kernel: Kernel, function: Callable) -> Callable:
    """The meaning of an instruction in the mode that the kernel sets for results that overflow."""
    if instruction.name not in _OVERFLOWING or not any(_sets_overflow(each) for each in kernel.instructions):
        return function

    def clamped(*sources: np.ndarray) -> np.ndarray:
        found = function(*sources)
        finite = reduce(np.logical_and, map(np.isfinite, sources))
        return np.where(np.isinf(found) & finite, np.copysign(np.float16(65504), found), found)

    return clamped


def _sets_overflow(instruction: Instruction) -> bool:
    return instruction.name == "s_setreg_imm32_b32" and instruction.operands[0].of == Named(FP16_OVFL)
