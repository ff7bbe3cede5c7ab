"""Instructions that bring values from one lane to another, or to scalar registers. DPP (`dpp`) does so beside an instruction.

Source: "VOP1" and "VOP3 Instructions" in AMD's Instinct MI300 ISA, in RDNA3 ISA and in CDNA4 ISA (v_permlane16_swap,
v_permlane32_swap); "DS Instructions" in MI300 ISA (ds_permute, ds_bpermute, ds_swizzle).
"""

import re
from collections.abc import Sequence

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel, Literal, Operand, Register
from attn_amdgcn.errors import EmulationFault
from attn_amdgcn.instructions.forms import Step, check_count, check_modifiers, made_vector, own_statements, own_step
from attn_amdgcn.operands import (
    KINDS,
    bits_value,
    number,
    put,
    put_statement,
    reads_bits,
    reads_scalar,
    row_of,
    scalar_result,
    scalar_value,
    unknown,
    vector_row,
    writes_scalar,
)
from attn_amdgcn.pieces import Piece, Row, function_of, piece
from attn_amdgcn.waves import Waves


@own_step("v_readfirstlane_b32")
def readfirstlane(instruction: Instruction, kernel: Kernel) -> Step:
    """The first lane that is on; lane 0 if none is."""
    check_count(instruction, 2)
    check_modifiers(instruction)
    write, read = writes_scalar(instruction.operands[0], KINDS["b32"]), reads_bits(instruction.operands[1], kernel)

    def step(waves: Waves) -> None:
        bits = read(waves)
        if waves.lanes is None or bits.shape[1] == 1:
            write(waves, bits[:, 0])
        else:
            write(waves, bits[np.arange(len(waves)), waves.lanes.argmax(axis=1)])

    return step


def _lane_index(operand: Operand, kernel: Kernel) -> Piece:
    """The index of a lane in [waves, lanes]; bits above the number of a lane are dropped."""
    if isinstance(operand.of, Literal):
        return piece("{}", (slice(None), int(operand.of.number) % kernel.wave_size))
    number, last = scalar_value(operand, KINDS["u32"], kernel), np.uint32(kernel.wave_size - 1)
    return piece("{}(len(waves)), {} & {}", np.arange, number, last)


@own_step("v_readlane_b32")
def readlane(instruction: Instruction, kernel: Kernel) -> Step:
    """One lane, be it on or off."""
    check_count(instruction, 3)
    check_modifiers(instruction)
    target, source, lane = instruction.operands
    write, index = scalar_result(target, KINDS["b32"]), _lane_index(lane, kernel)
    bits = bits_value(source, kernel)
    if not (isinstance(source.of, Register) and vector_row(source.of, kernel) is not None):
        bits = piece("{}({}, waves.shape)", np.broadcast_to, bits)
    return function_of(write(piece("{}[{}]", bits, index)))


@own_step("v_writelane_b32")
def writelane(instruction: Instruction, kernel: Kernel) -> Step:
    """One lane, be it on or off."""
    check_count(instruction, 3)
    check_modifiers(instruction)
    target, source, lane = instruction.operands
    row, value = row_of(instruction, target, 1, kernel), scalar_value(source, KINDS["b32"], kernel)
    return function_of(piece("waves.vector[{}][{}] = {}", row, _lane_index(lane, kernel), value))


@made_vector("v_mbcnt_lo_u32_b32 v_mbcnt_hi_u32_b32", "u32 = b32 u32")
def count_below(instruction: Instruction, kernel: Kernel):
    """The number of ones below the lane itself in a mask of the 32 lower or upper lanes, plus a value."""
    first = 32 * (instruction.name == "v_mbcnt_hi_u32_b32")
    below = np.array([(1 << min(max(lane - first, 0), 32)) - 1 for lane in range(kernel.wave_size)], np.uint32)
    return lambda mask, value: np.bitwise_count(mask & below) + value


@own_step("v_permlane16_b32 v_permlanex16_b32")
def permlane16(instruction: Instruction, kernel: Kernel) -> Step:
    """Each lane reads a lane of its own row, or, with an x, of the other row of its half.

    16 numbers of 4 bits in the second and the third source, which are scalar, name the places in that row. op_sel:[1,0] fetches
    from lanes that are off, too.
    """
    check_count(instruction, 4)
    check_modifiers(instruction, "op_sel")
    if instruction.modifiers.get("op_sel") not in ((1, 0), (1, 1)):
        raise unknown(instruction, "a source that is off is not fetched")
    target, source, *selectors = instruction.operands
    row, read = row_of(instruction, target, 1, kernel), reads_bits(source, kernel)
    reads_low, reads_high = (reads_scalar(operand, KINDS["u32"], kernel) for operand in selectors)
    lane = np.arange(kernel.wave_size)
    first_lane = (lane ^ 16 if instruction.name == "v_permlanex16_b32" else lane) & ~15
    shift, is_high = (lane % 8 * 4).astype(np.uint32), lane % 16 >= 8

    def step(waves: Waves) -> None:
        chosen = np.where(is_high, reads_high(waves)[:, None], reads_low(waves)[:, None]) >> shift & np.uint32(15)
        bits = np.broadcast_to(read(waves), waves.shape)
        put(waves, row, np.take_along_axis(bits, np.broadcast_to(chosen + first_lane, waves.shape), axis=1))

    return step


@own_step("v_permlane16_swap_b32 v_permlane32_swap_b32")
def permlane_swap(instruction: Instruction, kernel: Kernel) -> Step:
    """The odd rows of 16 lanes (the upper half) of the first register, and the even rows (the lower half) of the second, change
    places. What becomes of lanes that are off is not defined here: a fault."""
    check_count(instruction, 2)
    check_modifiers(instruction)
    width = 16 if instruction.name == "v_permlane16_swap_b32" else 32
    first, second = (row_of(instruction, operand, 1, kernel) for operand in instruction.operands)
    if first == second or kernel.wave_size < 2 * width:
        raise unknown(instruction)

    def step(waves: Waves) -> None:
        if waves.lanes is not None:
            raise EmulationFault(f"{instruction.name} while a lane is off", wave=int(waves.number[~waves.lanes.all(axis=1)][0]))
        rows = waves.shape[0], -1, 2, width
        odd, even = waves.vector[first].reshape(rows)[:, :, 1], waves.vector[second].reshape(rows)[:, :, 0]
        kept = odd.copy()
        odd[:], even[:] = even, kept

    return step


def _offset(instruction: Instruction) -> np.ndarray:
    check_modifiers(instruction, "offset")
    return np.array([[number(instruction, "offset")]], np.uint32)


def _lane_of(address: np.ndarray, offset: np.ndarray, waves: Waves) -> np.ndarray:
    """The lane that an address in bytes names, a word for each lane, modulo the wave."""
    return (address + offset >> np.uint32(2)) & np.uint32(waves.shape[1] - 1)


@own_statements("ds_bpermute_b32")
def bpermute(instruction: Instruction, kernel: Kernel) -> Sequence[Piece]:
    """Each lane reads from the lane that its address names; a lane that is off gives 0. LDS is not touched."""
    check_count(instruction, 3)
    target, address, data = instruction.operands
    result = piece("waves.vector[{}]", Row(row_of(instruction, target, 1, kernel)))
    bits, place = bits_value(data, kernel), bits_value(address, kernel)
    value = piece("{}(waves, {}, {}, {})", _fetched, bits, place, _offset(instruction))
    return piece("on = waves.lanes"), put_statement(result, value)


def _fetched(waves: Waves, bits: np.ndarray, address: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """[..., waves, lanes]: the bits of the lanes that addresses name."""
    if bits.shape[-2:] != waves.shape:
        bits = np.broadcast_to(bits, np.broadcast_shapes(bits.shape, waves.shape))
    if waves.lanes is not None:
        bits = bits * waves.lanes
    first = np.arange(0, bits.size, bits.shape[-1]).reshape(*bits.shape[:-1], 1)
    return bits.take(first + _lane_of(address, offset, waves))


@own_step("ds_permute_b32")
def permute(instruction: Instruction, kernel: Kernel) -> Step:
    """Each lane that is on gives to the lane that its address names.

    A lane to which no lane gives gets 0, and one to which several give gets the value of the last of them.
    """
    check_count(instruction, 3)
    target, address, data = instruction.operands
    row, read_address, read = row_of(instruction, target, 1, kernel), reads_bits(address, kernel), reads_bits(data, kernel)
    offset = _offset(instruction)

    def step(waves: Waves) -> None:
        bits = np.broadcast_to(read(waves), waves.shape)
        lane = np.broadcast_to(_lane_of(read_address(waves), offset, waves), waves.shape)
        given = np.zeros(waves.shape, np.uint32)
        wave, giver = np.indices(waves.shape) if waves.lanes is None else np.nonzero(waves.lanes)
        given[wave, lane[wave, giver]] = bits[wave, giver]
        put(waves, row, given)

    return step


@own_step("ds_swizzle_b32")
def swizzle(instruction: Instruction, kernel: Kernel) -> Step:
    """Each lane reads from a lane of the same 32 that `offset` names; a lane that is off gives 0.

    Bit 15 of the offset set: the lane in a quad, 2 bits for each. Else 5 bits each of an and, an or and an exclusive or.
    """
    check_count(instruction, 2)
    check_modifiers(instruction, "offset")
    pattern, lane = _pattern(instruction), np.arange(kernel.wave_size)
    if pattern & 0xFF00 == 0x8000:
        lane = lane & ~3 | pattern >> 2 * (lane & 3) & 3
    elif pattern < 0x8000:
        lane = lane & ~31 | (lane & pattern & 31 | pattern >> 5 & 31) ^ pattern >> 10 & 31
    else:
        raise unknown(instruction, "a rotation or an FFT")
    row, read = row_of(instruction, instruction.operands[0], 1, kernel), reads_bits(instruction.operands[1], kernel)

    def step(waves: Waves) -> None:
        bits = np.broadcast_to(read(waves), waves.shape)
        if waves.lanes is not None:
            bits = bits * waves.lanes
        put(waves, row, bits.take(lane, axis=1))

    return step


def _pattern(instruction: Instruction) -> int:
    """The 16 bits of ds_swizzle's offset, which LLVM writes as a number or as one of its macros."""
    offset = instruction.modifiers.get("offset", 0)
    if isinstance(offset, int):
        return offset
    found = re.fullmatch(r'swizzle\((\w+),(?:"?([01pi]{5})"?|([\d,]+))\)', str(offset))
    if found is None:
        raise unknown(instruction)
    name, bits, numbers = found[1], found[2], [int(number) for number in (found[3] or "").split(",") if number]
    if name == "QUAD_PERM" and len(numbers) == 4:
        return 0x8000 | sum(number << 2 * i for i, number in enumerate(numbers))
    if name == "BITMASK_PERM" and bits:
        masks = ((c in "pi", c == "1", c == "i") for c in bits)  # the and, the or, the exclusive or
        return sum(bit << 5 * k + 4 - i for i, each in enumerate(masks) for k, bit in enumerate(each))
    if name == "BROADCAST" and len(numbers) == 2:
        return 32 - numbers[0] | numbers[1] << 5
    if name == "SWAP" and len(numbers) == 1:
        return 31 | numbers[0] << 10
    if name == "REVERSE" and len(numbers) == 1:
        return 31 | numbers[0] - 1 << 10
    raise unknown(instruction)
