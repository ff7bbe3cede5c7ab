"""Loads from global memory straight into LDS: their bytes must not be touched before they have come.

Such a load writes no register. On gfx9 vmcnt counts it, on gfx1250 asynccnt, and tensorcnt if it loads a tile. Its data lie in
LDS once its wave has waited for it. The other waves of the workgroup know this after the next barrier. Here a load writes LDS
at once. To touch one of its bytes too early is a fault: by its own wave before the wait, by another wave before the barrier.

Source: "Memory Buffer Load to LDS" and "Data Dependency Resolution" in AMD's CDNA4 ISA.
"""

from collections.abc import Callable

import numpy as np
from attn_amdgcn import waits
from attn_amdgcn.assembly import Instruction, Kernel
from attn_amdgcn.errors import EmulationFault, described
from attn_amdgcn.watch import Access, Watch
from attn_amdgcn.waves import Waves

Step = Callable[[Waves], None]
COUNTERS = ("vm", "async", "tensor")
"""The counters that count loads into LDS, by their names in `waits`."""


def are_in(kernel: Kernel) -> bool:
    """True if a kernel loads into LDS."""
    return any(map(waits.loads_into_lds, kernel.instructions))


def seen(instruction: Instruction, step: Step, kernel: Kernel) -> Step:
    """A step at which watches see what the counters of such loads count, and waits for it."""
    for counter in waits.counters_of(instruction, kernel):
        if counter in COUNTERS:

            def counted(waves: Waves, counter: str = counter, step: Step = step) -> None:
                for watch in waves.shared.watches:
                    watch.began(waves, counter)
                step(waves)

            return counted
    awaited = [(each, most) for counters, most in waits.awaited(instruction) for each in counters if each in COUNTERS]
    if not awaited:
        return step

    def waiting(waves: Waves) -> None:
        for watch in waves.shared.watches:
            for counter, most in awaited:
                watch.waited(waves, counter, most)
        step(waves)

    return waiting


class LdsLoads(Watch):
    """The bytes of LDS that the waves of some workgroups must not touch yet.

    Args:
        workgroups: the number of workgroups that share the LDS array.
        num_waves: the number of waves of a workgroup.
        row_bytes: the bytes of each workgroup's row in the LDS array.
    """

    def __init__(self, workgroups: int, num_waves: int, row_bytes: int) -> None:
        self._begun, self._come, self._known = np.zeros((3, len(COUNTERS), workgroups, num_waves), np.int64)
        """The instructions of each wave and counter: begun, ended, and ended at the last barrier."""
        self._row_bytes = row_bytes
        self._loader = np.zeros(workgroups * row_bytes, np.int64)  # of each byte, the wave that loads it,
        self._turn = np.zeros(workgroups * row_bytes, np.int64)  # the number of the load among those that the wave has begun,
        self._line = np.zeros(workgroups * row_bytes, np.int64)  # its line,
        self._counter = np.zeros(workgroups * row_bytes, np.int8)  # and its counter
        self._loads: dict[int, Instruction] = {}

    def began(self, waves: Waves, counter: str) -> None:
        self._begun[COUNTERS.index(counter), waves.slot, waves.number] += 1
        if counter == "vm":  # only gfx9 loads into LDS so
            self.waited(waves, counter, waits.FULL_VM_GFX9)

    def waited(self, waves: Waves, counter: str, most: int) -> None:
        where = COUNTERS.index(counter), waves.slot, waves.number
        self._come[where] = np.maximum(self._come[where], self._begun[where] - most)

    def barrier(self) -> None:
        self._known[:] = self._come

    def lds_read(self, access: Access) -> None:
        """
        Raises:
            EmulationFault: a load has not brought the bytes, or the wave cannot know that it has.
        """
        self._check(access, "reads")

    def lds_written(self, access: Access, values: np.ndarray) -> None:
        """
        Raises:
            EmulationFault: the bytes are written, and a load has not brought them, or the wave cannot know that it has.
        """
        if not waits.loads_into_lds(access.instruction):
            self._check(access, "writes")
            return
        places, waves = access.bytes(), access.waves
        self._loader[places] = access.of_lanes(waves.number)[:, None]
        counter = _counter(access.instruction)
        self._turn[places] = access.of_lanes(self._begun[counter, waves.slot, waves.number])[:, None]
        self._counter[places] = counter
        self._line[places] = access.instruction.line
        self._loads[access.instruction.line] = access.instruction

    def _check(self, access: Access, does: str) -> None:
        places = access.bytes()
        turn = self._turn.take(places)
        if not turn.any():
            return
        slot, number = (access.of_lanes(values)[:, None] for values in (access.waves.slot, access.waves.number))
        loader, counter = self._loader.take(places), self._counter.take(places)
        is_own = loader == number
        early = turn > np.where(is_own, self._come[counter, slot, loader], self._known[counter, slot, loader])
        if not early.any():
            return
        hazards = access.waves.shared.hazards
        for line in np.unique(self._line.take(places)[early]).tolist():
            fault = self._early(access, places, early & (self._line.take(places) == line), is_own, does)
            if hazards is None:
                raise fault
            hazards.setdefault((line, access.instruction.line), fault.at(access.instruction))

    def _early(self, access: Access, places: np.ndarray, early: np.ndarray, is_own: np.ndarray, does: str) -> EmulationFault:
        lane, byte = (int(each) for each in np.argwhere(early)[0])
        place = int(places[lane, byte])
        wave, lane_of_wave = access.position(lane)
        load = described(self._loads[int(self._line[place])])
        lacks = "no wait stands before its use" if is_own[lane, byte] else "no wait and barrier stand before its use"
        waves, by = access.waves, int(self._loader[place])
        what = f"it {does} byte {place % self._row_bytes} of LDS, which wave {by} loads by {load}, and {lacks}"
        return EmulationFault(what, wave=int(waves.number[wave]), workgroup=int(waves.workgroup[wave]), lane=lane_of_wave)


def _counter(load: Instruction) -> int:
    """The number in COUNTERS of the counter that a load into LDS raises."""
    kinds = {"tensor_": "tensor", "global_load_async": "async"}
    return COUNTERS.index(next((counter for name, counter in kinds.items() if load.name.startswith(name)), "vm"))
