"""Loads of scalar memory: the same words for all lanes of a wave.

Source: "Scalar Memory Operations" in AMD's Instinct MI300 ISA and in RDNA4 ISA, and "SMEM Instructions".
"""

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel, Literal, Named, Register
from attn_amdgcn.instructions.forms import Step, check_count, check_modifiers, own_step
from attn_amdgcn.memory import BASE
from attn_amdgcn.operands import KINDS, number, reads_scalar, scalar_index, unknown
from attn_amdgcn.watch import Access
from attn_amdgcn.waves import EXEC, Waves

_WORDS = {"dword": 1, "dwordx2": 2, "dwordx3": 3, "dwordx4": 4, "dwordx8": 8, "dwordx16": 16}
_WORDS |= {f"b{32 * words}": words for words in (1, 2, 3, 4, 8, 16)}
_PARTS = {"u8": np.uint8, "i8": np.int8, "u16": np.uint16, "i16": np.int16}
"""Parts of a word that gfx12 loads; they fill a register with zeros or with their sign."""


@own_step(" ".join(f"s_load_{suffix}" for suffix in (*_WORDS, *_PARTS)))
def load(instruction: Instruction, kernel: Kernel) -> Step:
    """Words, or a part of one, at a base plus an offset in bytes, a literal or a register, plus `offset:`.

    The lowest bits of the address are dropped: 2 of words, and 1 of half a word. With `scale_offset`, which gfx1250 has, the
    register counts elements of the instruction's size (LLVM: hasScaleOffset, and SelectSMRDOffset).
    """
    check_count(instruction, 3)
    check_modifiers(instruction, "offset", "glc", "dlc", "sc0", "nt", "nv", "scope", "th", "scale_offset")
    target, base, offset = instruction.operands
    suffix = instruction.name.removeprefix("s_load_")
    part, words = _PARTS.get(suffix), _WORDS.get(suffix, 1)
    size, aligned = (np.dtype(part).itemsize,) * 2 if part else (4 * words, 4)
    if not isinstance(target.of, Register) or (first := scalar_index(target.of)) is None or first + words > EXEC:
        raise unknown(instruction)
    read_base = reads_scalar(base, KINDS["u64"], kernel)
    if isinstance(offset.of, Named) and offset.of.text != "off":
        raise unknown(instruction)
    signed = KINDS["i32"] if isinstance(offset.of, Literal) else KINDS["u32"]
    read_offset = reads_scalar(offset, signed, kernel)
    further = number(instruction, "offset")
    scales = "scale_offset" in instruction.modifiers
    if scales and (kernel.architecture != "gfx1250" or not isinstance(offset.of, Register) or size & (size - 1)):
        raise unknown(instruction, "scale_offset")
    scale = size if scales else 1

    def step(waves: Waves) -> None:
        place = read_base(waves).view(np.int64) + read_offset(waves).astype(np.int64) * scale + (further - BASE) & -aligned
        place = place if len(place) == len(waves) else place.repeat(len(waves))  # of a base that is a literal
        place = waves.shared.memory.readable(place[:, None], size, None, waves)
        for watch in waves.shared.watches:
            watch.global_read(Access(waves, place, size, None, instruction))
        waves.forget_masks(first, words)
        if part:
            value = waves.shared.memory.load_part(place, size)[:, 0].astype(part)
            waves.scalar[:, first] = value.astype(np.int32).view(np.uint32)
            return
        for i, value in enumerate(waves.shared.memory.load(place, words)):
            waves.scalar[:, first + i] = value[:, 0]

    return step
