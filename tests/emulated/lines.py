"""Runs a few lines of assembly on registers that a test gives."""

from collections.abc import Mapping, Sequence

import numpy as np
from attn_amdgcn import lds_loads
from attn_amdgcn.assembly import Kernel, code_of
from attn_amdgcn.errors import Hazards
from attn_amdgcn.global_races import GlobalRaces
from attn_amdgcn.lds_loads import LdsLoads
from attn_amdgcn.lds_races import LdsRaces
from attn_amdgcn.memory import Memory
from attn_amdgcn.program import prepare
from attn_amdgcn.run import Runner
from attn_amdgcn.watch import Watch
from attn_amdgcn.waves import EXEC, SCALARS, VCC, Shared, Waves

JUNK = 0xDEADBEEF


def ran(
    text: str,
    architecture: str = "gfx942",
    *,
    v: Mapping[int, object] = {},
    s: Mapping[int, int] = {},
    vcc: int = 0,
    exec: int = -1,
    scc: bool = False,
    buffers: Mapping[str, np.ndarray] = {},
    lds_bytes: int = 1024,
    scratch_bytes: int = 64,
    num_waves: int = 1,
    races: bool = False,
    watches: Sequence[Watch] = (),
    modes: Mapping[str, int] = {},
    hazards: Hazards | None = None,
    evenly: bool = False,
) -> Waves:
    """The waves of one workgroup after some lines.

    Args:
        text: lines of assembly; a line that ends the kernel is appended.
        architecture: gfx9 has 64 lanes and 64 accumulation registers, others 32 lanes.
        v: vector registers: uint32 values of the lanes (or of [waves, lanes]), or a float32, or an int for all lanes.
        s: scalar registers.
        vcc, exec: masks.
        scc: the condition code.
        buffers: uint8 bytes of buffers. Where they lie says `waves.shared.memory.buffers[name].address`; the address of the
            first one is in s[100:101].
        races: True if to look for races.
        watches: what looks on beside.
        hazards: where faults of that kind are recorded.
        evenly: as of `prepare`.
        modes: settings of the kernel, such as float_denorm_mode_32.
    """
    lanes = 64 if architecture.startswith("gfx9") else 32
    instructions, labels = code_of(text + "\ns_endpgm\n")
    settings = {"next_free_vgpr": 256, "accum_offset": 192} if lanes == 64 else {"next_free_vgpr": 256}
    settings |= modes
    kernel = Kernel(
        "lines", architecture, tuple(instructions), labels, (), 0, lanes, lanes * num_waves, 0, scratch_bytes, settings
    )
    memory = Memory(dict(buffers))
    search = (LdsRaces(1, num_waves, lds_bytes), GlobalRaces(memory)) if races else ()
    loads = (LdsLoads(1, num_waves, lds_bytes),) if lds_loads.are_in(kernel) else ()
    waves = Waves(
        np.full((256, num_waves, lanes), JUNK, np.uint32),
        np.full((num_waves, SCALARS), JUNK, np.uint32),
        workgroup=np.zeros(num_waves, np.int64),
        number=np.arange(num_waves),
        slot=np.zeros(num_waves, np.int64),
        scratch=np.full((scratch_bytes // 4, num_waves, lanes), JUNK, np.uint32),
        shared=Shared(
            memory,
            np.full((1, lds_bytes // 4), JUNK, np.uint32),
            lds_bytes,
            scratch_bytes,
            (*loads, *search, *watches),
            hazards,
        ),
    )
    for number, values in v.items():
        array = np.asarray(values)
        waves.vector[number] = array.view(np.uint32) if array.dtype.itemsize == 4 else array.astype(np.int64).astype(np.uint32)
    for number, value in s.items():
        waves.scalar[:, number] = value & 0xFFFFFFFF
    if buffers:
        waves.scalar64[:, 50] = next(iter(memory.buffers.values())).address
    all_lanes = (1 << lanes) - 1
    waves.scalar64[:, VCC // 2], waves.scalar64[:, EXEC // 2] = vcc & all_lanes, exec & all_lanes
    waves.scc[:] = scc
    waves.switch()
    ended = []
    program = prepare(kernel, evenly=evenly)
    with np.errstate(all="ignore"):
        Runner(program, ended.append).run([waves])
    (waves,) = ended
    return waves
