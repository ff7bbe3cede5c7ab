"""Looks for races in LDS: between two barriers a wave writes a byte that another wave of its workgroup reads or writes.

The order in which the waves happened to run does not matter. Waves that write the same value into a byte race with its readers
among the other waves, but not with each other: so do waves that hold copies of one value.

A barrier orders only what a wave has waited for. An access that is under way at a barrier is ordered by the first barrier
after its wait: until then it races as if the barriers between were not there.
"""

from collections.abc import Iterator

import numpy as np
from attn_amdgcn.assembly import Instruction
from attn_amdgcn.errors import EmulationFault, described
from attn_amdgcn.watch import Access, Watch
from attn_amdgcn.waves import Waves


class LdsRaces(Watch):
    """The accesses of some workgroups to each byte of LDS since the last barrier.

    Args:
        workgroups: the number of workgroups that share the LDS array.
        num_waves: the number of waves of a workgroup, at most 32.
        row_bytes: the bytes of each workgroup's row in the LDS array.
    """

    def __init__(self, workgroups: int, num_waves: int, row_bytes: int) -> None:
        self._row_bytes = row_bytes
        self._readers, self._writers = np.zeros((2, workgroups * row_bytes), np.uint32)  # a bit for each wave
        self._read_by, self._written_by = np.zeros(
            (2, num_waves, workgroups * row_bytes), np.int32
        )  # the line of the instruction
        self._bytes = np.zeros(workgroups * row_bytes, np.uint8)  # what `_writers` wrote
        self._instructions: dict[int, Instruction] = {}
        self._under_way: list[tuple[np.ndarray, np.ndarray, list[int]]] = []  # slots and numbers of waves, and their lines
        self._late: set[int] = set()  # lines of accesses that were under way at the last barrier

    def reached(self, barrier: Instruction, waves: Waves) -> None:
        if lines := [each.line for each in waves.pending if each.lds]:
            self._under_way.append((waves.slot, waves.number, lines))

    def barrier(self) -> None:
        for done, by in ((self._readers, self._read_by), (self._writers, self._written_by)):
            kept = [self._kept(done, by[number], slot, number, lines) for slot, number, lines in self._waves_under_way()]
            done[:] = 0
            for places, bit in kept:
                done[places] |= bit
        self._late = {line for _, _, lines in self._under_way for line in lines}
        self._under_way.clear()

    def _waves_under_way(self) -> Iterator[tuple[int, int, list[int]]]:
        for slots, numbers, lines in self._under_way:
            for slot, number in zip(slots.tolist(), numbers.tolist(), strict=True):
                yield slot, number, lines

    def _kept(
        self, done: np.ndarray, lines_of: np.ndarray, slot: int, number: int, lines: list[int]
    ) -> tuple[np.ndarray, np.uint32]:
        """The bytes that a wave has accessed by some lines, and the wave's bit."""
        bit, first = np.uint32(1 << number), slot * self._row_bytes
        places = first + np.flatnonzero(done[first : first + self._row_bytes] & bit)
        return places[np.isin(lines_of[places], lines)], bit

    def lds_read(self, access: Access) -> None:
        """
        Raises:
            EmulationFault: another wave has written one of the bytes since the last barrier.
        """
        waves, place, size, lanes, instruction = access
        self._instructions[instruction.line] = instruction
        for number, where in _by_wave(waves):
            index = _byte_indices(place[where], size, None if lanes is None else lanes[where])
            bit = np.uint32(1 << number)
            writers = self._writers.take(index)
            if (others := (writers != 0) & (writers & bit == 0)).any():
                self._fault(access, where, index, others, writers, "reads", "wrote", self._written_by)
            self._readers[index] |= bit
            self._read_by[number, index] = instruction.line

    def lds_written(self, access: Access, values: np.ndarray) -> None:
        """
        Raises:
            EmulationFault: another wave has read one of the bytes, or has written something else into it, since the last
                barrier.
        """
        waves, place, size, lanes, instruction = access
        self._instructions[instruction.line] = instruction
        data = np.stack([np.broadcast_to(value, place.shape) for value in values], axis=-1)
        data = np.ascontiguousarray(data).view(np.uint8)[..., :size]
        for number, where in _by_wave(waves):
            on = None if lanes is None else lanes[where]
            index = _byte_indices(place[where], size, on)
            wave_data = data[where].reshape(-1) if on is None else data[where][on].reshape(-1)
            bit = np.uint32(1 << number)
            readers, writers = self._readers.take(index) & ~bit, self._writers.take(index)
            same = (writers != 0) & (self._bytes.take(index) == wave_data)
            if (others := (readers != 0) & ~same).any():
                self._fault(access, where, index, others, readers, "writes", "read", self._read_by)
            if (others := (writers & ~bit != 0) & ~same).any():
                self._fault(access, where, index, others, writers & ~bit, "writes", "wrote", self._written_by)
            self._bytes[index] = wave_data
            self._writers[index] |= bit
            self._written_by[number, index] = instruction.line

    def _fault(
        self,
        access: Access,
        where: np.ndarray,
        index: np.ndarray,
        others: np.ndarray,
        masks: np.ndarray,
        does: str,
        did: str,
        lines: np.ndarray,
    ) -> None:
        for other in range(len(lines)):
            with_other = others & (masks >> np.uint32(other) & np.uint32(1) != 0)
            for line in np.unique(lines[other, index[with_other]]).tolist():
                byte = int(index[(with_other & (lines[other, index] == line)).argmax()])
                before, waves = self._instructions[line], access.waves
                wave = int(where[np.flatnonzero(waves.slot[where] == byte // self._row_bytes)[0]])
                lacks = "with no wait before the barrier between" if line in self._late else "with no barrier between"
                of_other = f"which wave {other} {did} by {described(before)}"
                what = f"a race: it {does} byte {byte % self._row_bytes} of LDS, {of_other}, {lacks}"
                fault = EmulationFault(what, wave=int(waves.number[wave]), workgroup=int(waves.workgroup[wave]))
                if waves.shared.hazards is None:
                    raise fault
                waves.shared.hazards.setdefault((line, access.instruction.line), fault.at(access.instruction))


def _by_wave(waves: Waves) -> list[tuple[int, np.ndarray]]:
    """The positions of the waves that have each number in their workgroups."""
    return [(int(number), np.flatnonzero(waves.number == number)) for number in np.unique(waves.number)]


def _byte_indices(place: np.ndarray, size: int, lanes: np.ndarray | None) -> np.ndarray:
    chosen = place.reshape(-1) if lanes is None else place[lanes]
    return (chosen[:, None] + np.arange(size)).reshape(-1)
