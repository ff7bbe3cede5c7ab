"""The basic blocks of a kernel, and which may follow which."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from attn_amdgcn.assembly import Instruction, Kernel
from attn_amdgcn.instructions.control import BRANCHES, ENDS
from attn_amdgcn.operands import label_of

MATRIX = ("v_mfma", "v_smfmac", "v_wmma", "v_swmmac")


@dataclass(frozen=True)
class Flow:
    """A kernel cut behind its branches and before the places that they lead to."""

    kernel: Kernel

    @cached_property
    def begins(self) -> list[int]:
        """The first instruction of each block, and behind them the number of instructions."""
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
        """The instructions of a block."""
        return self.kernel.instructions[self.begins[block] : self.begins[block + 1]]

    def in_loops(self) -> Iterator[int]:
        """The blocks that may run again."""
        for block in range(len(self.after)):
            if block in _reached(block, lambda one: self.after[one]):
                yield block

    @cached_property
    def loops(self) -> list[range]:
        """The instructions of each loop that holds no other: those from a label to a jump back to it."""
        code = self.kernel.instructions
        back = [(self.kernel.labels[label_of(each)], i) for i, each in enumerate(code) if each.name in BRANCHES]
        found = [range(first, last + 1) for first, last in back if first <= last]
        return [one for one in found if not any(_lies_in(other, one) for other in found)]


def hot_loop(kernel: Kernel) -> int | None:
    """The number of instructions of the loop with most matrix instructions, or else of the longest; None without a loop.

    Loops that hold another loop do not count.
    """

    def work(loop: range) -> tuple[int, int]:
        names = [kernel.instructions[i].name for i in loop]
        return sum(name.startswith(MATRIX) for name in names), len(loop)

    return len(max(loops, key=work)) if (loops := Flow(kernel).loops) else None


def _lies_in(inner: range, outer: range) -> bool:
    return inner != outer and outer.start <= inner.start and inner.stop <= outer.stop


def _reached(start: int, follow: Callable[[int], Iterable[int]]) -> set[int]:
    """What follows a start, the start only by a way back."""
    seen: set[int] = set()
    waiting = [*follow(start)]
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            waiting.extend(follow(one))
    return seen
