"""Loads from global memory into LDS.

Lane i of a wave loads to M0 + the instruction's `offset` + i times the distance of lanes. It is 4 bytes for one word, and 16
bytes for three or four words, so a load of three skips the fourth. `offset` is added to the address in global memory, too. Of
M0, global instructions read bits 17:2, and buffer instructions bits 17:0, on gfx942 bits 15:0. A lane that is off loads
nothing. A lane beyond the workgroup's LDS writes nothing on hardware; here it is a fault, unless M0 is 0x7fffffff. This number
Triton gives to waves that are to load nothing.

gfx1250's load takes the byte of LDS from a register of the lane. `offset` is added to both addresses. A lane whose register has
0x7fffffff loads nothing, and reads no global memory.

Source: "Memory Buffer Load to LDS" and, among "Flat Memory Instructions", "Addressing" in AMD's CDNA4 ISA. For global loads it
has the distances of one and of four words; that of three is taken from buffer loads.
0x7fffffff is seen in code that Triton 3.9 makes of `buffer_load_to_shared`, where a tile has fewer elements than the waves have
lanes; lanes that a mask leaves out: Triton's pull request 9761. llvm.amdgcn.global.load.async.to.lds in LLVM's "AMDGPU DMA
Operations".
"""

from collections.abc import Callable

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel
from attn_amdgcn.instructions import lds
from attn_amdgcn.instructions.formats import LOADS, DataFormat
from attn_amdgcn.instructions.forms import Step, check_count, check_modifiers, own_step
from attn_amdgcn.instructions.global_memory import CACHE, places_of, values_at
from attn_amdgcn.operands import number, row_of, unknown
from attn_amdgcn.waves import M0, Waves

SIZES = {"gfx942": ("dword",), "gfx950": ("dword", "dwordx3", "dwordx4")}
"""The sizes that each architecture loads into LDS, in addition to bytes and halves of words."""
BITS_OF_M0 = {"gfx942": 0xFFFF, "gfx950": 0x3FFFF}
"""The bits of M0 that a buffer instruction reads."""


@own_step(" ".join(f"global_load_lds_{size}" for size in SIZES["gfx950"]))
def global_load_lds(instruction: Instruction, kernel: Kernel) -> Step:
    check_count(instruction, 2)
    check_modifiers(instruction, "offset", *CACHE)
    form = LOADS[instruction.name.removeprefix("global_load_lds_")]
    address, base = instruction.operands
    places = places_of(instruction, address, base, form, kernel)
    write = writes(instruction, form, 0x3FFFC, kernel)
    return lambda waves: write(waves, values_at(waves, places(waves), form, instruction, waves.lanes))


def writes(instruction: Instruction, form: DataFormat, bits_of_m0: int, kernel: Kernel) -> Callable[[Waves, np.ndarray], None]:
    """Writes what a load brings into LDS."""
    name = instruction.name.rpartition("_")[2]
    if name not in SIZES.get(kernel.architecture, ()):
        raise unknown(instruction, f"a load into LDS on {kernel.architecture}")
    distance = 4 if form.size == 4 else 16
    of_lane = np.arange(kernel.wave_size) * distance + number(instruction, "offset")

    def write(waves: Waves, values: np.ndarray) -> None:
        address = (waves.scalar[:, M0] & np.uint32(bits_of_m0)).astype(np.int64)[:, None] + of_lane
        nowhere = waves.scalar[:, M0] == lds.NOWHERE
        lanes = lds.lanes_but(nowhere[:, None], waves) if nowhere.any() else waves.lanes
        lds.writes_lanes(waves, lds.place_of(waves, address, form.size, lanes), values, form, instruction, lanes)

    return write


@own_step(" ".join(f"global_load_async_to_lds_{size}" for size in ("b8", "b32", "b64", "b128")))
def global_load_async(instruction: Instruction, kernel: Kernel) -> Step:
    check_count(instruction, 3)
    check_modifiers(instruction, "offset", "scale_offset", *CACHE)
    if kernel.architecture != "gfx1250":
        raise unknown(instruction, f"a load into LDS on {kernel.architecture}")
    form = LOADS[instruction.name.rpartition("_")[2].replace("b8", "u8")]
    into, address, base = instruction.operands
    places, row = places_of(instruction, address, base, form, kernel), row_of(instruction, into, 1, kernel)
    offset = np.int64(number(instruction, "offset"))

    def step(waves: Waves) -> None:
        nowhere = waves.vector[row] == lds.NOWHERE
        lanes = lds.lanes_but(nowhere, waves) if nowhere.any() else waves.lanes
        values = values_at(waves, places(waves), form, instruction, lanes)
        place = lds.place_of(waves, waves.vector[row] + offset, form.size, lanes)
        lds.writes_lanes(waves, place, values, form, instruction, lanes)

    return step
