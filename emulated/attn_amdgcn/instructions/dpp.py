"""DPP: the first source of a vector instruction comes from another lane of the same row or half.

Source: "Data Parallel Processing (DPP)" in AMD's Instinct MI300 ISA, section 3.9, and RDNA3 ISA, section 7.8.
"""

from collections.abc import Callable

import numpy as np
from attn_amdgcn.assembly import Instruction
from attn_amdgcn.operands import Read, unknown
from attn_amdgcn.waves import Waves

ROW = 16
SHIFTS = ("row_shl", "row_shr", "row_ror", "row_share", "row_xmask", "wave_shl", "wave_rol", "wave_shr", "wave_ror")
MODIFIERS = ("quad_perm", "row_mirror", "row_half_mirror", "row_bcast", *SHIFTS, "row_mask", "bank_mask", "bound_ctrl", "fi")


def sources(instruction: Instruction, wave_size: int) -> tuple[np.ndarray, np.ndarray]:
    """For each lane the lane whose value it reads, and whether there is such a lane."""
    (name, value) = _control(instruction)
    lane = np.arange(wave_size)
    row, place = lane // ROW * ROW, lane % ROW
    inside = np.ones(wave_size, bool)
    if name == "quad_perm":
        return lane // 4 * 4 + np.array(value)[lane % 4], inside
    if name == "row_mirror":
        return row + ROW - 1 - place, inside
    if name == "row_half_mirror":
        return lane // 8 * 8 + 7 - lane % 8, inside
    if name == "row_shl":
        return row + (place + value) % ROW, place + value < ROW
    if name == "row_shr":
        return row + (place - value) % ROW, place >= value
    if name == "row_ror":
        return row + (place - value) % ROW, inside
    if name == "row_share":
        return row + value, inside
    if name == "row_xmask":
        return row + (place ^ value), inside
    if name == "row_bcast" and value == 15:  # the last lane of a row goes to all lanes of the next row
        return np.maximum(row - 1, 0), lane >= ROW
    if name == "row_bcast" and value == 31:  # lane 31 goes to the upper half
        return np.full(wave_size, 31), lane >= 32
    raise unknown(instruction, f"{name}:{value}")


def _control(instruction: Instruction) -> tuple[str, object]:
    names = ("quad_perm", "row_mirror", "row_half_mirror", "row_bcast", *SHIFTS)
    found = [(name, instruction.modifiers[name]) for name in names if name in instruction.modifiers]
    if len(found) != 1:
        raise unknown(instruction, f"{len(found)} controls of DPP, and 1 is expected")
    return found[0]


def reads(instruction: Instruction, read: Read) -> Read:
    """Reads the bits of other lanes. Where there is none, or it is off, the value is 0, and `writes_lanes` says what happens."""

    def moved(waves: Waves) -> np.ndarray:
        lane, inside = sources(instruction, waves.shape[1])
        bits = np.broadcast_to(read(waves), waves.shape)
        return np.where(_valid(instruction, waves, lane, inside), bits[:, lane], np.uint32(0))

    return moved


def _valid(instruction: Instruction, waves: Waves, lane: np.ndarray, inside: np.ndarray) -> np.ndarray:
    if "fi" in instruction.modifiers or waves.lanes is None:
        return inside
    return inside & waves.lanes[:, lane]


def writes_lanes(instruction: Instruction, wave_size: int) -> Callable[[Waves], np.ndarray]:
    """Which lanes of those that are on get a result: by `row_mask`, `bank_mask`, and, without `bound_ctrl`, by their source."""
    lane, inside = sources(instruction, wave_size)
    rows, banks = instruction.modifiers.get("row_mask", 0xF), instruction.modifiers.get("bank_mask", 0xF)
    number = np.arange(wave_size)
    chosen = (int(rows) >> number // ROW & 1).astype(bool) & (int(banks) >> number % ROW // 4 & 1).astype(bool)
    bounded = bool(instruction.modifiers.get("bound_ctrl", 0))

    def lanes(waves: Waves) -> np.ndarray:
        on = np.broadcast_to(chosen, waves.shape)
        if not bounded:
            on = on & _valid(instruction, waves, lane, inside)
        return on if waves.lanes is None else on & waves.lanes

    return lanes
