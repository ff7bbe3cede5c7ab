"""The basic blocks of a kernel, and which block may follow which."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from attn_amdgcn.assembly import Instruction, Kernel
from attn_amdgcn.instructions.control import BRANCHES, ENDS
from attn_amdgcn.operands import label_of

MATRIX = ("v_mfma", "v_smfmac", "v_wmma", "v_swmmac")


@dataclass(frozen=True)
class Flow:
    """A kernel cut after its branches and before the places that they lead to."""

    kernel: Kernel

    @cached_property
    def begins(self) -> list[int]:
        """The first instruction of each block, and after them the number of instructions."""
        code = self.kernel.instructions
        targets = {self.kernel.labels[label_of(each)] for each in code if each.name in BRANCHES}
        return sorted({0, len(code), *targets, *(i + 1 for i, each in enumerate(code) if each.name in (*BRANCHES, *ENDS))})

    @cached_property
    def after(self) -> list[list[int]]:
        """The blocks that may follow each block."""
        code, number = self.kernel.instructions, {place: i for i, place in enumerate(self.begins)}
        found = []
        for end in self.begins[1:]:
            last = code[end - 1]
            falls = end < len(code) and last.name not in (*ENDS, "s_branch")
            jumps = [number[self.kernel.labels[label_of(last)]]] if last.name in BRANCHES else []
            found.append([number[end]] * falls + jumps)
        return found

    def code(self, block: int) -> tuple[Instruction, ...]:
        return self.kernel.instructions[self.begins[block] : self.begins[block + 1]]

    def in_loops(self) -> Iterator[int]:
        """The blocks that may run again."""
        for block in range(len(self.after)):
            if block in _reached(block, lambda one: self.after[one]):
                yield block

    @cached_property
    def _before(self) -> list[list[int]]:
        """The blocks that each block may follow."""
        found: list[list[int]] = [[] for _ in self.after]
        for block, after in enumerate(self.after):
            for one in after:
                found[one].append(block)
        return found

    @cached_property
    def _passed(self) -> list[set[int]]:
        """The blocks that every way from the kernel's beginning to each block passes, itself included."""
        found = [{0}, *(set(range(len(self.after))) for _ in self.after[1:])]
        is_new = True
        while is_new:
            is_new = False
            for block, before in enumerate(self._before):
                if block and before and (passed := set.intersection(*(found[one] for one in before)) | {block}) != found[block]:
                    found[block], is_new = passed, True
        return found

    @cached_property
    def loops(self) -> list[set[int]]:
        """The blocks of each loop that holds no other: those between its first block and a jump back to it.

        Code that few lanes run may lie after a loop, and jump back into the middle of it: this is no loop of its own.
        """
        found = [
            {first, block} | _reached(block, self._before_but(first))
            for block, after in enumerate(self.after)
            for first in self._passed[block].intersection(after)
        ]
        return [one for one in found if not any(other < one for other in found)]

    def _before_but(self, first: int) -> Callable[[int], Iterable[int]]:
        return lambda block: () if block == first else self._before[block]


def hot_loop(kernel: Kernel) -> int | None:
    """The number of instructions of the loop with most matrix instructions, or else of the longest; None without a loop.

    Loops that hold another loop do not count.
    """

    flow = Flow(kernel)
    codes = [[each for block in loop for each in flow.code(block)] for loop in flow.loops]
    work = [(sum(each.name.startswith(MATRIX) for each in code), len(code)) for code in codes]
    return max(work)[1] if work else None


def _reached(start: int, follow: Callable[[int], Iterable[int]]) -> set[int]:
    """The blocks that can follow a start. The start is among them only if a loop leads back to it."""
    seen: set[int] = set()
    waiting = [*follow(start)]
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            waiting.extend(follow(one))
    return seen
