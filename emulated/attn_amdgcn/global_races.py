"""Looks for races in global memory: two waves touch one byte, nothing orders them, and one of them writes.

Nothing orders two workgroups of a launch: a byte that one writes may neither be read nor be written by another, whatever the
value. The fuzzer checks Triton's interpreted programs by the same rule. Waves of one workgroup are ordered by the barriers
between them. Between two barriers, waves of one workgroup may write one value into a byte, as those do that hold copies of it.
Whether a store has ended at a barrier does not matter, because waves of a workgroup share a cache.

The order in which the waves happened to run does not matter. Atomic instructions on one byte do not race with each other, and
with loads and stores they do. Whether they order workgroups is not known: a workgroup that got a value from one may go on with
what others wrote before theirs. If such a workgroup seems to race with another one, that is no fault, and the launch ends
there.

This takes 8 bytes for a byte that is read or atomically updated, 12 for one that is written, and 8 for each access of a wave.
"""

import numpy as np
from attn_amdgcn.assembly import Instruction
from attn_amdgcn.errors import EmulationFault, UnknownInstructionError, described
from attn_amdgcn.memory import Memory
from attn_amdgcn.watch import Access, Watch

WAVES = 32
"""The most waves of a workgroup: 1024 lanes, 32 for each wave."""
_NO_WAVE = -WAVES
"""The wave of event 0, which is in no workgroup."""


class Events:
    """The accesses of a launch by waves, each with a number; 0 stands for no access.

    Attributes:
        count: the number of events, event 0 included.
        since: the number of the first one since the last barrier.
    """

    def __init__(self) -> None:
        self.count, self.since = 1, 1
        self._waves, self._lines = np.full(1024, _NO_WAVE, np.int32), np.zeros(1024, np.int32)
        self._instructions: dict[int, Instruction] = {}

    def add(self, access: Access) -> np.ndarray:
        """[waves] int32: an event for each wave."""
        begin, end = self.count, self.count + len(access.waves)
        while end > len(self._waves):
            self._waves, self._lines = (np.concatenate([one, np.zeros_like(one)]) for one in (self._waves, self._lines))
        self._waves[begin:end] = access.waves.workgroup * WAVES + access.waves.number
        self._lines[begin:end] = access.instruction.line
        self._instructions[access.instruction.line] = access.instruction
        self.count = end
        return np.arange(begin, end, dtype=np.int32)

    def waves(self, events: np.ndarray) -> np.ndarray:
        """The wave of each event: the number of its workgroup times WAVES, plus its own in the workgroup."""
        return self._waves.take(events)

    def instruction(self, event: int) -> Instruction:
        return self._instructions[int(self._lines[event])]

    def unordered(self, earlier: np.ndarray, waves: np.ndarray) -> np.ndarray:
        """True if nothing orders an earlier event and what a wave does now. A wave is ordered with itself."""
        before = self.waves(earlier)
        return (earlier != 0) & (before != waves) & ((_groups(before) != _groups(waves)) | (earlier >= self.since))


class Last:
    """Two of the events that have read each byte, or that have written it: enough to miss no race.

    If several workgroups have touched a byte, the two events are of different workgroups. Else, if several waves of its
    workgroup have touched it since the last barrier, the two events are of different waves.
    """

    def __init__(self, memory: Memory, events: Events) -> None:
        self._one, self._another = (memory.zeros_of(len(memory.bytes), np.int32) for _ in range(2))
        self._events = events

    def unordered(self, index: np.ndarray, waves: np.ndarray) -> np.ndarray:
        """For each byte the event that nothing orders with what a wave does now; 0 if there is none."""
        found = np.zeros(len(index), np.int32)
        for events in (self._another, self._one):
            earlier = events.take(index)
            if earlier.any():
                np.copyto(found, earlier, where=self._events.unordered(earlier, waves))
        return found

    def note(self, index: np.ndarray, events: np.ndarray, waves: np.ndarray) -> None:
        """Bytes are touched now. One byte may be there several times."""
        since = self._events.since
        one = self._one.take(index)
        theirs = self._events.waves(one)
        follows = (one == 0) | ((_groups(theirs) == _groups(waves)) & (one < since))
        if follows.any():
            self._one[index[follows]] = events[follows]
            theirs = self._events.waves(self._one.take(index))
        others = theirs != waves
        if not others.any():
            return
        index, events, waves, theirs = index[others], events[others], waves[others], theirs[others]
        another = self._another.take(index)
        is_near = _groups(theirs) == _groups(waves)
        has_far = (another != 0) & (_groups(self._events.waves(another)) != _groups(theirs))
        near = is_near & ~has_far
        self._another[index[near]] = events[near]
        far = ~is_near & ~has_far
        self._another[index[far]] = events[far]  # after the near ones: it stays where both come


class GlobalRaces(Watch):
    """The last accesses of a launch to each byte of global memory."""

    def __init__(self, memory: Memory) -> None:
        self._memory, self._events = memory, Events()
        self._readers, self._writers, self._updaters = (Last(memory, self._events) for _ in range(3))
        self._storing = memory.zeros_of(len(memory.bytes), np.int32)  # the event that a store left last at each byte

    def barrier(self) -> None:
        self._events.since = self._events.count

    def global_read(self, access: Access) -> None:
        """
        Raises:
            EmulationFault: another workgroup has written one of the bytes, or another wave has since the last barrier.
        """
        index, events, waves = self._noted(access)
        self._check(access, index, self._writers.unordered(index, waves), "reads", "wrote")
        self._check(access, index, self._updaters.unordered(index, waves), "reads", "updated")
        self._readers.note(index, events, waves)

    def global_written(self, access: Access, values: np.ndarray) -> None:
        """
        Raises:
            EmulationFault: another workgroup has touched one of the bytes; or, since the last barrier, another wave has read
                it, or has written something else into it.
        """
        index, events, waves = self._noted(access)
        data = access.data(values).reshape(-1)
        writers = self._writers.unordered(index, waves)
        copies = (_groups(self._events.waves(writers)) == _groups(waves)) & (self._memory.bytes.take(index) == data)
        self._check(access, index, np.where(copies, 0, writers), "writes", "wrote")
        self._check(access, index, self._readers.unordered(index, waves), "writes", "read")
        self._check(access, index, self._updaters.unordered(index, waves), "writes", "updated")
        self._storing[index] = events
        if (self._storing.take(index) != events).any():
            self._check(access, index, _clashes(index, events, waves, data), "writes", "wrote")
        self._writers.note(index, events, waves)

    def global_updated(self, access: Access, values: np.ndarray) -> None:
        """
        Raises:
            EmulationFault: another workgroup has loaded or stored one of the bytes, or another wave has since the last barrier.
        """
        index, events, waves = self._noted(access)
        self._check(access, index, self._writers.unordered(index, waves), "updates", "wrote")
        self._check(access, index, self._readers.unordered(index, waves), "updates", "read")
        self._updaters.note(index, events, waves)

    def _noted(self, access: Access) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The place, the event and the wave of each byte that an access touches."""
        events = np.repeat(access.of_lanes(self._events.add(access)), access.size)
        return access.bytes().reshape(-1), events, self._events.waves(events)

    def _check(self, access: Access, index: np.ndarray, earlier: np.ndarray, does: str, did: str) -> None:
        if not earlier.any():
            return
        at = int((earlier != 0).argmax())
        position, lane = access.position(at // access.size)
        workgroup, wave = divmod(int(self._events.waves(earlier[at : at + 1])[0]), WAVES)
        buffer, byte = self._memory.named(int(index[at]))
        number, group = int(access.waves.number[position]), int(access.waves.workgroup[position])
        is_near = workgroup == group
        if not is_near and group in self._memory.atomic_readers:
            raise UnknownInstructionError("a race of workgroups, unless an atomic instruction orders them")
        order = "with no barrier between" if is_near else "and nothing orders workgroups"
        what = (
            f"a race: it {does} byte {byte} of {buffer.name}, which wave {wave} of workgroup {workgroup} {did} by "
            f"{described(self._events.instruction(int(earlier[at])))}, {order}"
        )
        raise EmulationFault(what, wave=number, workgroup=group, lane=lane)


def _groups(waves: np.ndarray) -> np.ndarray:
    return waves // WAVES


def _clashes(index: np.ndarray, events: np.ndarray, waves: np.ndarray, data: np.ndarray) -> np.ndarray:
    """For each byte of one store the event of another wave of the same store that clashes with it; 0 if there is none.

    Waves of one workgroup clash if they write different values. Of lanes of one wave the hardware chooses.
    """
    order = np.lexsort((waves, index))
    before, after = order[:-1], order[1:]
    copies = (_groups(waves[before]) == _groups(waves[after])) & (data[before] == data[after])
    clash = (index[before] == index[after]) & (waves[before] != waves[after]) & ~copies
    found = np.zeros(len(index), np.int32)
    found[after[clash]] = events[before[clash]]
    return found
