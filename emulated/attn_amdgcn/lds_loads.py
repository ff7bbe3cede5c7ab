"""Loads from global memory straight into LDS: nobody may touch their bytes before they have come.

Such a load writes no register, and vmcnt counts it. Its data lie in LDS once its wave has waited for it. The other waves of the
workgroup know that behind the next barrier. Here a load writes LDS at once. To touch one of its bytes too early is a fault: by
its own wave before the wait, by another wave before the barrier.

Source: "Memory Buffer Load to LDS" and "Data Dependency Resolution" in AMD's CDNA4 ISA.
"""

from collections.abc import Callable

import numpy as np
from attn_amdgcn import waits
from attn_amdgcn.assembly import Instruction, Kernel
from attn_amdgcn.errors import Fault, described
from attn_amdgcn.watch import Access, Watch
from attn_amdgcn.waves import Waves

Step = Callable[[Waves], None]


def are_in(kernel: Kernel) -> bool:
    """Whether a kernel loads into LDS."""
    return any(map(waits.loads_into_lds, kernel.instructions))


def seen(instruction: Instruction, step: Step, kernel: Kernel) -> Step:
    """A step at which watches see what vmcnt counts, and waits for it."""
    if "vm" in waits.counters_of(instruction, kernel):

        def counted(waves: Waves) -> None:
            for watch in waves.shared.watches:
                watch.began(waves)
            step(waves)

        return counted
    most = min((most for counters, most in waits.awaited(instruction) if "vm" in counters), default=None)
    if most is None:
        return step

    def waiting(waves: Waves) -> None:
        for watch in waves.shared.watches:
            watch.waited(waves, most)
        step(waves)

    return waiting


class LdsLoads(Watch):
    """Which bytes of LDS the waves of some workgroups may not touch yet.

    Args:
        workgroups: how many share the LDS array.
        num_waves: of a workgroup.
        row_bytes: of each workgroup's row in the LDS array.
    """

    def __init__(self, workgroups: int, num_waves: int, row_bytes: int) -> None:
        self._begun, self._come, self._known = np.zeros((3, workgroups, num_waves), np.int64)
        """Instructions of vector memory of each wave: begun, come, and come at the last barrier."""
        self._row_bytes = row_bytes
        self._loader = np.zeros(workgroups * row_bytes, np.int64)  # of each byte, the wave that loads it,
        self._turn = np.zeros(workgroups * row_bytes, np.int64)  # the number of the load among those that the wave has begun,
        self._line = np.zeros(workgroups * row_bytes, np.int64)  # and its line
        self._loads: dict[int, Instruction] = {}

    def began(self, waves: Waves) -> None:
        self._begun[waves.slot, waves.number] += 1
        self.waited(waves, waits.FULL_VM_GFX9)  # only gfx9 loads into LDS so

    def waited(self, waves: Waves, most: int) -> None:
        where = waves.slot, waves.number
        self._come[where] = np.maximum(self._come[where], self._begun[where] - most)

    def barrier(self) -> None:
        self._known[:] = self._come

    def lds_read(self, access: Access) -> None:
        """
        Raises:
            Fault: a load has not brought the bytes, or the wave cannot know that it has.
        """
        self._check(access, "reads")

    def lds_written(self, access: Access, values: np.ndarray) -> None:
        """
        Raises:
            Fault: the bytes are written, and a load has not brought them, or the wave cannot know that it has.
        """
        if not waits.loads_into_lds(access.instruction):
            self._check(access, "writes")
            return
        places, waves = access.bytes(), access.waves
        self._loader[places] = access.of_lanes(waves.number)[:, None]
        self._turn[places] = access.of_lanes(self._begun[waves.slot, waves.number])[:, None]
        self._line[places] = access.instruction.line
        self._loads[access.instruction.line] = access.instruction

    def _check(self, access: Access, does: str) -> None:
        places = access.bytes()
        turn = self._turn.take(places)
        if not turn.any():
            return
        slot, number = (access.of_lanes(values)[:, None] for values in (access.waves.slot, access.waves.number))
        loader = self._loader.take(places)
        is_own = loader == number
        early = turn > np.where(is_own, self._come[slot, loader], self._known[slot, loader])
        if not early.any():
            return
        lane, byte = (int(each) for each in np.argwhere(early)[0])
        place = int(places[lane, byte])
        wave, lane_of_wave = access.position(lane)
        load = described(self._loads[int(self._line[place])])
        lacks = "no wait stands before its use" if is_own[lane, byte] else "no wait and barrier stand before its use"
        waves, by = access.waves, int(loader[lane, byte])
        what = f"it {does} byte {place % self._row_bytes} of LDS, which wave {by} loads by {load}, and {lacks}"
        raise Fault(what, wave=int(waves.number[wave]), workgroup=int(waves.workgroup[wave]), lane=lane_of_wave)
