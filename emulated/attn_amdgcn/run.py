"""Runs waves until all of them have ended.

Waves that stand at the same block run it together. A branch that not all of them take cuts the group in two, and groups that
stand at the same block become one. The group with the lowest block runs first, so those that have left a loop wait for the
others. Waves of one workgroup meet at barriers.
"""

from collections.abc import Callable, Sequence

import numpy as np
from attn_amdgcn import waits
from attn_amdgcn.errors import MALFORMED, EmulationFault, UnknownInstructionError, malformed
from attn_amdgcn.program import Block, Program
from attn_amdgcn.waves import Waves

MAX_INSTRUCTIONS = 1 << 30
"""The most instructions that the waves of a launch may execute together: about an hour."""


class Runner:
    """Runs groups of waves of one program.

    Attributes:
        program: the program that runs.
        ended: called with each group of waves that has ended.
        executed: the number of waves that have run each block.
        most: the number of instructions that all waves together may run.
    """

    def __init__(
        self, program: Program, ended: Callable[[Waves], None] = lambda waves: None, most: int = MAX_INSTRUCTIONS
    ) -> None:
        self.program, self.ended, self.most = program, ended, most
        self._left = most
        self.executed = [0] * len(program.blocks)

    def run(self, turns: Sequence[Waves]) -> None:
        """Run the waves of some workgroups to their end.

        Args:
            turns: groups of waves. Between barriers the waves of one group end their work before those of the next one begin.

        Raises:
            EmulationFault: a wave did what it must not do.
        """
        standing: list[list[Waves]] = [[waves] for waves in turns]
        watches = turns[0].shared.watches
        while any(standing):
            standing = [self._to_barrier(groups) for groups in standing]
            for watch in watches:
                watch.barrier()

    def _to_barrier(self, groups: list[Waves]) -> list[Waves]:
        """Run groups until each wave has ended or waits at a barrier, and return those that wait."""
        ready: dict[int, Waves] = {}
        done: dict[int, int] = {}  # instructions since the last barrier, of groups that are ready and keep in step
        for waves in groups:
            self._add(ready, waves)
        waiting: list[Waves] = []
        while ready:
            number = min(ready, key=lambda each: (done.get(each, 0), each)) if done else min(ready)
            waves = ready.pop(number)
            block = self.program.blocks[waves.block]
            count = done.pop(number, 0) + len(block.code)
            self._run(block, waves)
            for group in _cut(block, waves):
                if block.is_barrier:
                    for watch in group.shared.watches:
                        watch.reached(block.code[-1], group)
                    waiting.append(group)
                elif block.ends:
                    self.ended(group)
                else:
                    if self.program.evenly:
                        done[group.block] = max(count, done.get(group.block, 0))
                    self._add(ready, group)
        return waiting

    def _add(self, ready: dict[int, Waves], waves: Waves) -> None:
        if waves.block in ready:
            other = ready.pop(waves.block)
            waves = other.joined(waves, waits.merged(other.pending, waves.pending))
        ready[waves.block] = waves

    def _run(self, block: Block, waves: Waves) -> None:
        count, _ = waves.shape
        self.executed[waves.block] += count
        self._left -= count * len(block.code)
        place = 0
        try:
            if self._left < 0:
                if waves.shared.memory.atomic_readers:
                    raise UnknownInstructionError("a launch without an end, unless it waits for another's atomic instruction")
                raise EmulationFault(f"the launch has run {self.most} instructions without an end")
            waves.pending = self.program.after(waves.block, waves.pending, waves.shared.hazards)
            for place, step in block.steps:  # noqa: B007 - the handler needs the place
                step(waves)
        except MALFORMED as error:
            raise malformed(block.code[place], error) from error
        except EmulationFault as fault:
            if not fault.instruction:
                fault.at(block.code[place])
            if fault.workgroup is None and fault.wave is None:
                fault.workgroup, fault.wave = int(waves.workgroup[0]), int(waves.number[0])
            raise


def _cut(block: Block, waves: Waves) -> list[Waves]:
    """The waves after a block, in one group or two, each with the number of its next block."""
    following = waves.block + 1
    if block.target is None or block.condition is None:
        waves.block = following if block.target is None else block.target
        return [waves]
    taken = block.condition(waves)
    count = np.count_nonzero(taken)
    if count in (0, len(taken)):
        waves.block = block.target if count else following
        return [waves]
    groups = []
    for which, number in ((taken, block.target), (~taken, following)):
        group = waves.taken(np.flatnonzero(which))
        group.block = number
        groups.append(group)
    return groups
