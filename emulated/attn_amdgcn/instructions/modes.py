"""The modes that a kernel sets for its floats. Triton's and those of AITER's assembly are known; others are refused.

Both: rounding to nearest even; denormals of float16 and float64 kept. Triton's: denormals of float32 kept; `ieee_mode` (a
signaling NaN is made quiet; gfx12 has no such mode and works so); `dx10_clamp` (clamp makes 0 of a NaN). The assembly's:
denormals of float32 are zeros of their sign, in sources and results, but not in matrix instructions, whose sums no mode
changes; of a signaling NaN and a number the larger and the smaller one are the number; no clamp.
float16, bfloat16 and float8 that overflow become infinities or NaN,
unless the kernel sets FP16_OVFL: then one that overflows becomes the largest number, and an infinity of 16 bits that is made of
an infinity stays one. Triton sets it in each kernel that makes float8 of float32, also where it does so by arithmetic of
integers.

A NaN that an instruction makes is 0xFFC00000, or its like in other widths, and a NaN that it passes on is that of a source,
made quiet. Of which source is left open but where an instruction's own text says so.

Source: ".amdhsa_ directives" in LLVM's User Guide for AMDGPU Backend; "MODE Register" in AMD's Instinct MI300 ISA.
"""

import re
from collections.abc import Callable
from functools import lru_cache, reduce
from typing import Any

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel, Literal, Named
from attn_amdgcn.errors import UnknownInstructionError

KNOWN = {
    "float_round_mode_32": (0,),
    "float_round_mode_16_64": (0,),
    "float_denorm_mode_32": (3, 0),
    "float_denorm_mode_16_64": (3,),
    "ieee_mode": (1, 0),
    "dx10_clamp": (1, 0),
    "fp16_overflow": (0,),
}
"""The values of each mode that the instructions here know; the first is that of a text that does not name the mode."""
TINY = np.finfo(np.float32).tiny


def check(kernel: Kernel) -> None:
    """Refuse a kernel whose floats work in another way than the instructions here."""
    for name, known in KNOWN.items():
        if (value := kernel.settings.get(name, known[0])) not in known:
            ways = " or ".join(map(str, known))
            raise UnknownInstructionError(f".amdhsa_{name} {value}: the instructions here are those of {ways}")
    if kernel.settings.get("dx10_clamp") == 0:
        for instruction in kernel.instructions:
            if "clamp" in instruction.modifiers and _is_float(instruction):
                what = f"line {instruction.line}: `{instruction.text}`"
                raise UnknownInstructionError(f"{what}: clamp where .amdhsa_dx10_clamp is 0 has no meaning here")


def _is_float(instruction: Instruction) -> bool:
    return bool(re.search(r"_b?f\d+", instruction.name))


def flushed(value: np.ndarray) -> np.ndarray:
    """float32 with zeros of the same sign for denormals."""
    return np.where(np.abs(value) < TINY, np.copysign(np.float32(0), value), value)


def flushing(instruction: Instruction, kernel: Kernel, function: Callable, kinds: tuple[tuple[str, ...], ...]) -> Callable:
    """The meaning of an instruction in the mode that the kernel sets for denormals of float32.

    Args:
        kinds: the kinds of the results and of the sources.
    """
    passes_bits = re.search("class|frexp|cndmask", instruction.name)
    if kernel.settings.get("float_denorm_mode_32", 3) or passes_bits or all("f32" not in "".join(side) for side in kinds):
        return function
    return _flushing(function, *kinds)


@lru_cache(maxsize=256)  # instructions of one form run together if they have one function
def _flushing(function: Callable, results: tuple[str, ...], sources: tuple[str, ...]) -> Callable:
    read = [kind.lstrip("*") == "f32" for kind in sources]
    write = [kind == "f32" for kind in results]

    def computed(*values: np.ndarray) -> Any:
        found = function(*[_normal(value) if flushes else value for value, flushes in zip(values, read, strict=True)])
        if len(write) == 1:
            return _normal(found) if write[0] else found
        return tuple(_normal(value) if flushes else value for value, flushes in zip(found, write, strict=True))

    return computed


_ONE, _TWO, _DENORMALS = np.uint32(1), np.uint32(2), np.uint32((1 << 24) - 2)


def _normal(value: np.ndarray) -> np.ndarray:
    """`flushed`, quickly where there is no denormal."""
    magnitude = np.left_shift(value.view(np.uint32), _ONE)
    magnitude -= _TWO
    return flushed(value) if np.minimum.reduce(magnitude, axis=None) < _DENORMALS else value


FP16_OVFL = (Named("hwreg(HW_REG_MODE, 23, 1)"), Named("hwreg(HW_REG_WAVE_MODE, 23, 1)"))
"""Fields of MODE, by their names before gfx12 and from there on ("MODE Register" in AMD's RDNA4 ISA)."""
_OVERFLOWING = (
    *("v_cvt_f16_f32", "v_add_f16", "v_sub_f16", "v_subrev_f16", "v_mul_f16", "v_fma_f16"),
    *("v_fma_mixlo_f16", "v_fma_mixhi_f16", "v_pk_add_f16", "v_pk_mul_f16", "v_pk_fma_f16"),
)
"""Instructions of 16 bits whose results are known to obey FP16_OVFL. Others, such as reciprocals, are not known to."""
_PACKING = {
    "v_cvt_pk_bf16_f32": np.uint32(0x7F7F0000).view(np.float32),
    **dict.fromkeys(("v_cvt_pk_f16_f32", "v_cvt_pkrtz_f16_f32", "v_cvt_pk_rtz_f16_f32"), np.float32(65504)),
}
"""Instructions that round two float32 and obey it, too, with the largest number of their results."""
_TO_FLOAT8 = re.compile(r"v_cvt_(scalef32_)?pk8?_(fp8|bf8)_f32")
"""Instructions of 8 bits, whose meanings are in `float8`."""
_WITHIN = re.compile(r"v_(pk_)?(max|min|med)\w*|\w+_(fp8|bf8)")
"""Instructions that cannot overflow: their result is one of their sources, or an exact number of float8."""
_TYPE = re.compile(r"[biu]\d+|b?f\d+|fp8")


def check_overflow(instruction: Instruction, kernel: Kernel) -> None:
    """Refuse an instruction that sets FP16_OVFL, unless it sets it for all of the kernel's narrow floats, and all are known."""
    place = kernel.instructions.index(instruction)
    before, after = kernel.instructions[:place], kernel.instructions[place + 1 :]
    early = [each for each in before if _is_narrow(each) or _passes(each, place, kernel)]
    unknown = [each for each in after if _is_narrow(each) and not _obeys(each)]
    if instruction.operands[1].of != Literal(1) or early or unknown:
        why = f": `{(early + unknown)[0].text}` beside it" if early + unknown else ""
        raise UnknownInstructionError(f"line {instruction.line}: `{instruction.text}`{why}")


def _passes(instruction: Instruction, place: int, kernel: Kernel) -> bool:
    """True if a branch may lead past a place. A kernel whose arguments are preloaded begins with a branch to its body."""
    if instruction.name == "s_branch":
        target = instruction.operands[0].of
        return not isinstance(target, Named) or kernel.labels.get(target.text, place + 1) > place
    return instruction.name.startswith("s_cbranch")


def _obeys(instruction: Instruction) -> bool:
    return instruction.name in (*_OVERFLOWING, *_PACKING) or _TO_FLOAT8.fullmatch(instruction.name) is not None


def _is_narrow(instruction: Instruction) -> bool:
    """True if the result is a float of 16 or 8 bits that may overflow. A mnemonic names its result's type first."""
    if _WITHIN.fullmatch(instruction.name):
        return False
    types = [word for word in instruction.name.split("_") if _TYPE.fullmatch(word)]
    return types[:1] in (["f16"], ["bf16"], ["fp8"], ["bf8"])


def overflowing(instruction: Instruction, kernel: Kernel, function: Callable) -> Callable:
    """The meaning of an instruction in the mode that the kernel sets for results that overflow."""
    if instruction.name not in (*_OVERFLOWING, *_PACKING) or not sets_overflow(kernel):
        return function
    if largest := _PACKING.get(instruction.name):
        return lambda *sources: function(*(_within(largest, source) for source in sources))

    def clamped(*sources: np.ndarray) -> np.ndarray:
        found = function(*sources)
        finite = reduce(np.logical_and, map(np.isfinite, sources))
        return np.where(np.isinf(found) & finite, np.copysign(np.float16(65504), found), found)

    return clamped


def _within(largest: np.float32, source: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(source), np.clip(source, -largest, largest), source)


def sets_overflow(kernel: Kernel) -> bool:
    """True if the kernel sets FP16_OVFL, which it then does for all of its narrow floats (`check_overflow`)."""
    return any(_sets_overflow(each) for each in kernel.instructions)


def _sets_overflow(instruction: Instruction) -> bool:
    return instruction.name == "s_setreg_imm32_b32" and instruction.operands[0].of in FP16_OVFL
