"""SDWA: a vector instruction that reads bytes or halves of its sources, and writes a byte or a half of its result.

Source: "Sub-Dword Addressing (SDWA)" in AMD's Instinct MI300 ISA. gfx9 alone has it.
"""

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel, Operand
from attn_amdgcn.operands import Kind, Read, Write, put, reads_bits, unknown, vector_row
from attn_amdgcn.waves import Waves

MODIFIERS = ("dst_sel", "dst_unused", "src0_sel", "src1_sel", "clamp")
PARTS = {"DWORD": (0, 32), **{f"WORD_{i}": (16 * i, 16) for i in range(2)}, **{f"BYTE_{i}": (8 * i, 8) for i in range(4)}}
"""The first bit and the number of bits of a part."""


def reads(instruction: Instruction, operand: Operand, source: int, kind: Kind, kernel: Kernel) -> Read:
    """Reads a part of 32 bits, extended by zeros, or by its sign with `sext`."""
    first, bits = _part(instruction, f"src{source}_sel")
    read = reads_bits(operand, kernel)
    if kind.bits == 64:
        raise unknown(instruction, "SDWA of 64 bits")
    unsigned = np.uint32 if kind.bits == 32 else np.uint16
    up, down, mask = 32 - first - bits, 32 - bits, np.uint32((1 << bits) - 1)

    def part(waves: Waves) -> np.ndarray:
        value = read(waves)
        if bits < 32 and operand.sext:
            value = ((value << np.uint32(up)).view(np.int32) >> np.int32(down)).view(np.uint32)
        elif bits < 32:
            value = value >> np.uint32(first) & mask
        return value.astype(unsigned, copy=False).view(kind.dtype)

    return part


def writes(instruction: Instruction, operand: Operand, kind: Kind, kernel: Kernel) -> Write:
    """Writes a part of a register. `dst_unused` says what becomes of the other bits: zeros, the sign, or what they were."""
    first, bits = _part(instruction, "dst_sel")
    unused = instruction.modifiers.get("dst_unused", "UNUSED_PAD")
    row = vector_row(operand.of, kernel) if hasattr(operand.of, "bank") else None  # type: ignore[arg-type]
    if row is None or kind.bits == 64 or unused not in ("UNUSED_PAD", "UNUSED_SEXT", "UNUSED_PRESERVE"):
        raise unknown(instruction)
    mask = np.uint32(((1 << bits) - 1) << first)

    def write(waves: Waves, value: np.ndarray, lanes: np.ndarray | None = None) -> None:
        raw = value.view(np.uint32) if value.dtype.itemsize == 4 else value.view(np.uint16).astype(np.uint32)
        if unused == "UNUSED_SEXT":
            moved = ((raw << np.uint32(32 - bits)).view(np.int32) >> np.int32(32 - bits - first)).view(np.uint32)
        else:
            moved = raw << np.uint32(first) & mask
        put(waves, row, waves.vector[row] & ~mask | moved if unused == "UNUSED_PRESERVE" else moved, lanes)

    return write


def _part(instruction: Instruction, name: str) -> tuple[int, int]:
    part = instruction.modifiers.get(name, "DWORD")
    if part not in PARTS:
        raise unknown(instruction, f"{name}:{part}")
    return PARTS[str(part)]
