"""Tensor loads into LDS and stores from LDS: gfx1250's tensor data mover.

One instruction of a wave moves a tile of a tensor of up to 5 dimensions, whatever EXEC is. Scalar registers describe the tile:
2 groups of 4 and 8 words, or 4 groups for more than 2 dimensions and for rows that are chosen one by one (a gather). Dimension
0 is dense. The tile's elements lie in LDS one after the other, dimension 0 first, and a load may leave some words free after
every 2 ** n words. An element beyond the tensor's dimensions is 0 in LDS after a load, and is not stored. A dimension whose
tile is 0 is not there. Rows of a gather have unsigned numbers, and one beyond the tensor is beyond it as another element is.

A barrier in LDS, iterations and workgroups of a cluster are refused. A store ignores what a load leaves free.

Source: AMD's descriptions of the descriptor in Triton's lowering (createTDMDescriptor, fillTDMDescriptor and
fillTDMDescriptorForGatherScatter of TDMUtility.cpp), and its bit fields in ck_tile (TDM_GROUP0 to TDM_GROUP3) of
composable_kernel, which agree; LLVM's "AMDGPU DMA Operations" for the counter.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel, Operand, Register
from attn_amdgcn.instructions import lds
from attn_amdgcn.instructions.formats import DataFormat, loaded
from attn_amdgcn.instructions.forms import Step, check_modifiers, own_step
from attn_amdgcn.instructions.global_memory import store_at, values_at
from attn_amdgcn.memory import BASE
from attn_amdgcn.operands import scalar_index, unknown
from attn_amdgcn.watch import Access
from attn_amdgcn.waves import Waves

GROUPS = (4, 8, 4, 4)
"""Words of a descriptor's groups."""
_GATHER, _WIDE_INDICES = 1 << 31, 1 << 30
_PADDING = 1 << 20


class Tile(NamedTuple):
    """The elements that one instruction moves.

    Attributes:
        size: bytes of an element.
        place: [waves, elements] int64, of each element in global memory, an address less BASE.
        lds: [waves, elements] int64, its byte in the workgroup's LDS.
        moves: [waves, elements] bool, whether the tile of the wave has the element.
        inside: [waves, elements] bool, of these, whether the tensor has it.
    """

    size: int
    place: np.ndarray
    lds: np.ndarray
    moves: np.ndarray
    inside: np.ndarray


@own_step("tensor_load_to_lds")
def load(instruction: Instruction, kernel: Kernel) -> Step:
    columns = _columns(instruction, kernel)

    def step(waves: Waves) -> None:
        tile = _tile(waves, columns, instruction, pads=True)
        if not tile.moves.any():
            return
        form = DataFormat(tile.size)
        values = np.where(tile.inside, values_at(waves, tile.place, form, instruction, tile.inside), np.uint32(0))
        lds.writes_lanes(waves, lds.place_of(waves, tile.lds, tile.size, tile.moves), values, form, instruction, tile.moves)

    return step


@own_step("tensor_store_from_lds")
def store(instruction: Instruction, kernel: Kernel) -> Step:
    columns = _columns(instruction, kernel)

    def step(waves: Waves) -> None:
        tile = _tile(waves, columns, instruction, pads=False)
        if not tile.inside.any():
            return
        form = DataFormat(tile.size)
        source = lds.place_of(waves, np.where(tile.inside, tile.lds, 0), tile.size, None)
        for watch in waves.shared.watches:
            watch.lds_read(Access(waves, source, tile.size, tile.inside, instruction))
        store_at(waves, tile.place, loaded(waves.shared.lds_storage, source, form), form, instruction, tile.inside)

    return step


def _columns(instruction: Instruction, kernel: Kernel) -> list[slice]:
    """The columns of a wave's scalar registers with the descriptor's groups."""
    if kernel.architecture != "gfx1250":
        raise unknown(instruction, f"a tensor data mover on {kernel.architecture}")
    check_modifiers(instruction, "th", "scope", "nv")
    operands = instruction.operands
    if len(operands) not in (2, 4):
        raise unknown(instruction, f"{len(operands)} groups, and 2 or 4 are expected")
    return [_group(instruction, operand, words) for operand, words in zip(operands, GROUPS, strict=False)]


def _group(instruction: Instruction, operand: Operand, words: int) -> slice:
    register = operand.of
    first = scalar_index(register) if isinstance(register, Register) and register.count == words else None
    if first is None:
        raise unknown(instruction, f"a group of {words} scalar registers is expected")
    return slice(first, first + words)


def _tile(waves: Waves, columns: Sequence[slice], instruction: Instruction, *, pads: bool) -> Tile:
    """
    Raises:
        UnknownInstructionError: a descriptor has what is not known here.
    """
    first, second, *rest = (waves.scalar[:, each].astype(np.int64).T[..., None] for each in columns)  # [words, waves, 1]
    gathers = bool((first[0] & _GATHER).any())
    _check(first, second, instruction, has_rows=bool(rest), gathers=gathers)
    size = 1 << int(second[0, 0, 0] >> 16 & 3)
    shape, tile, strides = _dimensions(second, [] if gathers else rest)
    if gathers:
        tile[1] = np.minimum(second[4] & 0xFFFF, 8 if first[0, 0, 0] & _WIDE_INDICES else 16)
    extents = [tile[0], *(np.maximum(each, 1) for each in tile[1:])]
    if gathers:
        extents[1] = tile[1]
    count = np.prod(extents, axis=0)  # [waves, 1]
    number = np.arange(int(count.max()))[None]
    moves = (number < count) & (first[0] & 1 == 1)
    inside, element, left = moves, np.zeros_like(number), number
    for i, extent in enumerate(extents):
        left, coordinate = np.divmod(left, np.maximum(extent, 1))
        if gathers and i == 1:
            coordinate = _rows(first, rest, coordinate)
        inside = inside & ((coordinate < shape[i]) | (extent == 1) & (tile[i] == 0))
        element = element + coordinate * strides[i]
    address = first[2] | (first[3] & 0x1FFFFFF) << 32
    offset = number * size
    if pads:
        interval, amount = 8 << (second[0] >> 22 & 7), 4 * ((second[0] >> 25 & 127) + 1)
        offset = offset + np.where(second[0] & _PADDING != 0, offset // interval * amount, 0)
    return Tile(size, address - BASE + element * size, first[1] + offset, moves, inside)


def _check(first: np.ndarray, second: np.ndarray, instruction: Instruction, *, has_rows: bool, gathers: bool) -> None:
    flags = first[0] & (_GATHER | _WIDE_INDICES)
    known = {
        "a descriptor that is not of type 2": (first[3] >> 30 & 3) == 2,
        "a count above 1, or bits of a descriptor that are not known": (first[0] & ~(_GATHER | _WIDE_INDICES) & ~1) == 0,
        "workgroups of a cluster": (second[0] & 0xFFFF) == 0,
        "a barrier, or iterations": (second[0] >> 18 & 3) == 0,
        "waves with elements of unlike sizes": (second[0] >> 16 & 3) == (second[0, 0] >> 16 & 3),
        "waves of which some gather": flags == flags[0],
        "a third dimension without its group": np.asarray(has_rows or gathers) | (second[4] >> 16 == 0),
        "rows without their indices": np.asarray(has_rows or not gathers),
    }
    for what, holds in known.items():
        if not np.all(holds):
            raise unknown(instruction, what)


def _dimensions(second: np.ndarray, rest: Sequence[np.ndarray]) -> tuple[list, list, list]:
    """The tensor's and the tile's extents and the strides, dimension 0 first, each [waves, 1]."""
    shape = [_joined(second[1] >> 16, second[2]), _joined(second[2] >> 16, second[3])]
    tile = [second[3] >> 16, second[4] & 0xFFFF]
    strides = [np.ones_like(second[0]), second[5] | (second[6] & 0xFFFF) << 32]
    if rest:
        third, fourth = rest
        shape += [third[0], third[1], _joined(fourth[1] >> 16, fourth[2])]
        tile += [second[4] >> 16, third[3] >> 16, fourth[2] >> 16]
        strides += [second[6] >> 16 | second[7] << 16, third[2] | (third[3] & 0xFFFF) << 32]
        strides += [fourth[0] | (fourth[1] & 0xFFFF) << 32]
    return shape, tile, strides


def _joined(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """A number of 32 bits of whose upper half another word has the lower bits."""
    return low | (high & 0xFFFF) << 16


def _rows(first: np.ndarray, rest: Sequence[np.ndarray], position: np.ndarray) -> np.ndarray:
    """[waves, elements]: the row in the tensor of each element of a gather."""
    words = np.concatenate([each[:, :, 0] for each in rest]).T  # [waves, 8]
    if first[0, 0, 0] & _WIDE_INDICES:
        indices = words
    else:
        indices = np.stack([words & 0xFFFF, words >> 16], axis=-1).reshape(len(words), -1)
    return np.take_along_axis(indices, np.broadcast_to(position % indices.shape[1], (len(words), position.shape[1])), axis=1)
