"""SDWA: a vector instruction that reads bytes or halves of its sources, and writes a byte or a half of its result.

Source: "Sub-Dword Addressing (SDWA)" in AMD's Instinct MI300 ISA. Only gfx9 has it.
"""

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel, Operand
from attn_amdgcn.operands import OperandKind, Write, bits_value, put, unknown, vector_row
from attn_amdgcn.pieces import Piece, piece
from attn_amdgcn.waves import Waves

MODIFIERS = ("dst_sel", "dst_unused", "src0_sel", "src1_sel", "clamp")
_UNUSED = ("UNUSED_PAD", "UNUSED_SEXT", "UNUSED_PRESERVE")
PARTS = {"DWORD": (0, 32), **{f"WORD_{i}": (16 * i, 16) for i in range(2)}, **{f"BYTE_{i}": (8 * i, 8) for i in range(4)}}
"""The first bit and the number of bits of a part."""


def value(instruction: Instruction, operand: Operand, source: int, kind: OperandKind, kernel: Kernel) -> Piece:
    """A part of 32 bits, extended by zeros, or by its sign with `sext`."""
    first, bits = _part(instruction, f"src{source}_sel")
    part = bits_value(operand, kernel)
    if kind.bits == 64:
        raise unknown(instruction, "SDWA of 64 bits")
    if bits < 32 and operand.sext:
        up, down = np.uint32(32 - first - bits), np.int32(32 - bits)
        part = piece("(({} << {}).view({}) >> {}).view({})", part, up, np.int32, down, np.uint32)
    elif bits < 32:
        part = piece("({} >> {} & {})", part, np.uint32(first), np.uint32((1 << bits) - 1))
    return piece("{}.astype({}, copy=False).view({})", part, np.uint32 if kind.bits == 32 else np.uint16, kind.dtype)


def writes_all(instruction: Instruction, kind: OperandKind) -> bool:
    """True if a result of 32 bits fills its register, as it does without SDWA."""
    whole = _part(instruction, "dst_sel") == PARTS["DWORD"] and instruction.modifiers.get("dst_unused", _UNUSED[0]) in _UNUSED
    return whole and kind.bits == 32


def writes(instruction: Instruction, operand: Operand, kind: OperandKind, kernel: Kernel) -> Write:
    """Writes a part of a register. `dst_unused` says what becomes of the other bits: zeros, the sign, or what they were."""
    first, bits = _part(instruction, "dst_sel")
    unused = instruction.modifiers.get("dst_unused", "UNUSED_PAD")
    row = vector_row(operand.of, kernel) if hasattr(operand.of, "bank") else None  # type: ignore[arg-type]
    if row is None or kind.bits == 64 or unused not in _UNUSED:
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
