"""The hot loop of a kernel in AMD's assembly, and the bounds that follow from the costs of its instructions."""

import math
import re
from typing import NamedTuple

from benchmarks.assembly.rates import HBM_BYTES, L1_BYTES, LDS_BYTES, SIMDS, Cost, cost_of

_LABEL = re.compile(r"^(\.LBB\w+):")
_BRANCH = re.compile(r"^\s+s_c?branch\w*\s+(\.LBB\w+)")
_INSTRUCTION = re.compile(r"^\s+([a-z]\w+)(?:\s|$)")
_MATRIX = re.compile(r"v_(?:s?mfma|s?wmma)\w*?_(\d+)x(\d+)x(\d+)(?:_(\d+)b)?")
_MULTIPLY_ADD = re.compile(r"v_(?:pk_|dual_)?fmac?_f32")
_LOAD = re.compile(r"(?:global|buffer)_load_")
_WAIT = re.compile(r"s_waitcnt .*?vmcnt\((\d+)\)|s_wait_loadcnt(?:_dscnt)? (0x[0-9a-f]+|\d+)")


class Pipeline(NamedTuple):
    """The distance by which the hot loop loads ahead of its computation.

    Attributes:
        ahead: of a turn's matrix instructions, those that are issued between a load of global memory and the wait for it, the
            mean over the bytes that are loaded: about 0 where each load is waited for at once, 1 where it is for the next turn.
        barriers, lds_writes: their numbers in an iteration.
    """

    ahead: float
    barriers: int
    lds_writes: int


class HotLoop(NamedTuple):
    """The loop in which long requests spend their time.

    Attributes:
        instructions: those of a turn, as the assembly writes them.
        matrix: the number of matrix instructions among them.
    """

    instructions: list[str]
    matrix: int

    @property
    def cost(self) -> Cost:
        """
        Raises:
            UnknownRateError: it has an instruction without a published rate.
        """
        return sum((cost_of(line.split()[0]) for line in self.instructions), Cost())

    @property
    def pipeline(self) -> Pipeline | None:
        """None: it has no matrix instruction, or no load beside them."""
        if not self.matrix or not any(map(_LOAD.match, self.instructions)):
            return None
        return Pipeline(
            ahead=_ahead(self.instructions) / self.matrix,
            barriers=sum(line.split()[0] in ("s_barrier", "s_barrier_wait") for line in self.instructions),
            lds_writes=sum(line.startswith(("ds_write", "ds_store")) for line in self.instructions),
        )


def hot_loop(assembly: str) -> HotLoop | None:
    """The hot loop: of the loops that multiply most, the one with the fewest instructions. None: no loop multiplies.

    A kernel has one loop over tiles of keys without a mask, in which long requests spend their time, and one over tiles with a
    mask. A kernel with tiles of two sizes has both loops for each size; those for the larger tiles multiply more. Products are
    counted of matrix instructions; of others only where a kernel has no matrix instruction.
    """
    has_matrix = _MATRIX.search(assembly) is not None

    def products(line: str) -> int:
        if found := _MATRIX.match(line):
            return math.prod(int(size or 1) for size in found.groups())
        return int(not has_matrix and _MULTIPLY_ADD.match(line) is not None)

    loops = [(sum(map(products, loop)), loop) for loop in innermost_loops(assembly)]
    most = max((count for count, _ in loops), default=0)
    if not most:
        return None
    instructions = min((loop for count, loop in loops if count == most), key=len)
    return HotLoop(instructions, sum(_MATRIX.match(line) is not None for line in instructions))


def innermost_loops(assembly: str) -> list[list[str]]:
    """The instructions of each loop that has no loop in it: from a label to the last branch back to it."""
    lines = assembly.splitlines()
    labels = {found[1]: i for i, line in enumerate(lines) if (found := _LABEL.match(line))}
    spans: dict[str, int] = {}
    for i, line in enumerate(lines):
        if (found := _BRANCH.match(line)) and labels.get(found[1], i) < i:
            spans[found[1]] = i
    whole = [(labels[label], end) for label, end in spans.items()]
    inner = [(a, b) for a, b in whole if not any(a < c and d < b for c, d in whole)]
    return [[line.strip() for line in lines[a : b + 1] if _INSTRUCTION.match(line)] for a, b in sorted(inner)]


def _ahead(loop: list[str]) -> float:
    """The matrix instructions between a load and its wait, the mean over the bytes of a turn's loads. Loads end in order."""
    waiting: list[tuple[int, int, int]] = []  # of each load: its bytes, the matrix instructions before it, its turn
    multiplied, ahead, loaded = 0, 0, 0
    for turn in range(3):
        for line in loop:
            if _MATRIX.match(line):
                multiplied += 1
            elif _LOAD.match(line):
                waiting.append((cost_of(line.split()[0]).loaded_bytes, multiplied, turn))
            elif found := _WAIT.match(line):
                left = int(found[1]) if found[1] else int(found[2], 0)
                done, waiting = waiting[: max(0, len(waiting) - left)], waiting[max(0, len(waiting) - left) :]
                for size, before, since in done:
                    if since == 1:
                        ahead, loaded = ahead + size * (multiplied - before), loaded + size
    return ahead / loaded if loaded else 0.0


class Bounds(NamedTuple):
    """Shares of peak rates between 0 and 1, and the unit that limits them.

    Attributes:
        matrix: the share of the matrix units' time in which they can compute.
        bandwidth: the share of HBM's bandwidth that loads can ask for; above 1, it is more than HBM has.
        by: the unit that takes longest, or `one after the other`: the waves of a SIMD are too few to hide one unit's behind
            another's.
        cycles: the least cycles of a SIMD for an iteration of one wave.
    """

    matrix: float
    bandwidth: float
    by: str
    cycles: float


def cycles_of(turn: Cost) -> dict[str, float]:
    """The cycles of a SIMD for which an iteration of one wave keeps each unit busy. Four SIMDs share the LDS and the L1
    cache."""
    return {
        "matrix": turn.matrix_cycles,
        "vector": turn.vector_cycles,
        "LDS": turn.lds_bytes * SIMDS / LDS_BYTES,
        "L1": turn.l1_bytes * SIMDS / L1_BYTES,
    }


def bounds_of(turn: Cost, waves: float) -> Bounds:
    """Lower bounds on the cycles of a turn of the loop, and the shares of peak rates that follow.

    A wave computes logits, then weights, then sums of values: its matrix instructions and the vector instructions between them
    follow one another. So a SIMD with w waves takes at least a w-th of their sum for each turn, and at least what a unit takes.

    Args:
        waves: the waves of a SIMD.
    """
    cycles = cycles_of(turn) | {"one after the other": (turn.matrix_cycles + turn.vector_cycles) / waves}
    by = max(cycles, key=lambda name: cycles[name])
    return Bounds(turn.matrix_cycles / cycles[by], turn.loaded_bytes * SIMDS / cycles[by] / HBM_BYTES, by, cycles[by])
