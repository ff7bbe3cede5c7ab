"""DPP: the first source of a vector instruction comes from another lane of the same row or half.

A lane reads nothing when its source lies outside, and when its source is off, unless `fi` fetches from lanes that are off. Then
the lane keeps its result, or, with `bound_ctrl`, reads 0.

Source: "Data Parallel Processing (DPP)" in AMD's Instinct MI300 ISA and RDNA3 ISA; "DPP Modifiers" in LLVM's Syntax of AMDGPU
Instruction Modifiers.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel
from attn_amdgcn.operands import Read, number, unknown
from attn_amdgcn.waves import Waves

ROW = 16
CONTROLS = (
    "quad_perm",
    "row_mirror",
    "row_half_mirror",
    "row_shl",
    "row_shr",
    "row_ror",
    "row_bcast",
    "row_newbcast",
    "row_share",
    "row_xmask",
    "wave_shl",
    "wave_shr",
    "wave_rol",
    "wave_ror",
)
MODIFIERS = (*CONTROLS, "row_mask", "bank_mask", "bound_ctrl", "fi")


def sources(instruction: Instruction, wave_size: int) -> tuple[np.ndarray, np.ndarray]:
    """For each lane the lane whose value it reads, and whether there is such a lane. A shift left reads a higher lane."""
    name, value = _control(instruction)
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
    if name in ("row_share", "row_newbcast"):
        return row + value, inside
    if name == "row_xmask":
        return row + (place ^ value), inside
    if name == "row_bcast" and value == 15:  # the last lane of a row goes to all lanes of the next row
        return np.maximum(row - 1, 0), lane >= ROW
    if name == "row_bcast" and value == 31:  # lane 31 goes to the upper half
        return np.full(wave_size, 31), lane >= 32
    if name in ("wave_shl", "wave_rol") and value == 1:
        return (lane + 1) % wave_size, inside if name == "wave_rol" else lane + 1 < wave_size
    if name in ("wave_shr", "wave_ror") and value == 1:
        return (lane - 1) % wave_size, inside if name == "wave_ror" else lane >= 1
    raise unknown(instruction, f"{name}:{value}")


def _control(instruction: Instruction) -> tuple[str, Any]:
    found: list[tuple[str, Any]] = [(name, instruction.modifiers[name]) for name in CONTROLS if name in instruction.modifiers]
    if len(found) != 1:
        raise unknown(instruction, f"{len(found)} controls of DPP, and 1 is expected")
    return found[0]


def reads(instruction: Instruction, read: Read, kernel: Kernel) -> Read:
    """Reads the bits of other lanes. A lane that reads nothing has 0, and `writes_lanes` says whether it gets a result."""
    lane, _ = sources(instruction, kernel.wave_size)
    valid = _valid(instruction, kernel)

    def moved(waves: Waves) -> np.ndarray:
        bits = np.broadcast_to(read(waves), waves.shape).take(lane, axis=1)
        on = valid(waves)
        if on is not None:
            bits *= on
        return bits

    return moved


def _valid(instruction: Instruction, kernel: Kernel) -> Callable[[Waves], np.ndarray | None]:
    """The lanes that read something; None if all do."""
    lane, inside = sources(instruction, kernel.wave_size)
    everywhere = None if inside.all() else inside[None]
    if instruction.modifiers.get("fi", 0) == 1:
        return lambda waves: everywhere
    return lambda waves: everywhere if waves.lanes is None else inside & waves.lanes.take(lane, axis=1)


def writes_lanes(instruction: Instruction, kernel: Kernel) -> Callable[[Waves], np.ndarray] | None:
    """The lanes, of those that are on, that get a result: by `row_mask`, `bank_mask`, and, without `bound_ctrl`, by their
    source.

    None if all of them do.
    """
    lane = np.arange(kernel.wave_size)
    rows, banks = (number(instruction, name, 0xF) for name in ("row_mask", "bank_mask"))
    chosen = (rows >> lane // ROW & 1).astype(bool) & (banks >> lane % ROW // 4 & 1).astype(bool)
    before_gfx11 = kernel.architecture.startswith(("gfx9", "gfx10"))  # there bound_ctrl:0 stands for the bit 1
    bounded = instruction.modifiers.get("bound_ctrl", 0) == 1 or (before_gfx11 and "bound_ctrl" in instruction.modifiers)
    if bounded and chosen.all():
        return None
    valid = (lambda waves: None) if bounded else _valid(instruction, kernel)

    def lanes(waves: Waves) -> np.ndarray:
        on, has_source = np.broadcast_to(chosen, waves.shape), valid(waves)
        if has_source is not None:
            on = on & has_source
        return on if waves.lanes is None else on & waves.lanes

    return lanes
