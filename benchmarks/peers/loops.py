"""The hot loop of a kernel in AMD's assembly, and the bounds that follow from what its instructions take."""

import re
from typing import NamedTuple

from benchmarks.peers.rates import HBM_BYTES, L1_BYTES, LDS_BYTES, SIMDS, Cost, cost_of

_LABEL = re.compile(r"^(\.LBB\w+):")
_BRANCH = re.compile(r"^\s+s_c?branch\w*\s+(\.LBB\w+)")
_INSTRUCTION = re.compile(r"^\s+([a-z]\w+)(?:\s|$)")


def hot_loop(assembly: str) -> Cost | None:
    """The cost of one turn of the hot loop: of the loops that multiply most, the one with the fewest other instructions.

    A kernel has loops over tiles of keys that need no mask and over those that do. In the first one long requests spend their
    time. One with tiles of two sizes has these loops for each, and those of the larger tile multiply more. None: there is no
    such loop.

    Raises:
        UnknownRateError: it has an instruction without a published rate.
    """
    found = [sum(map(cost_of, loop), Cost()) for loop in innermost_loops(assembly) if any("mfma" in name for name in loop)]
    most = max((cost.matrix_cycles for cost in found), default=0)
    return min((cost for cost in found if cost.matrix_cycles == most), key=lambda cost: cost.instructions, default=None)


def innermost_loops(assembly: str) -> list[list[str]]:
    """The mnemonics of each loop that has no loop in it: from a label to the last branch back to it."""
    lines = assembly.splitlines()
    labels = {found[1]: i for i, line in enumerate(lines) if (found := _LABEL.match(line))}
    spans: dict[str, int] = {}
    for i, line in enumerate(lines):
        if (found := _BRANCH.match(line)) and labels.get(found[1], i) < i:
            spans[found[1]] = i
    whole = [(labels[label], end) for label, end in spans.items()]
    inner = [(a, b) for a, b in whole if not any(a < c and d < b for c, d in whole)]
    return [[found[1] for line in lines[a : b + 1] if (found := _INSTRUCTION.match(line))] for a, b in sorted(inner)]


class Bounds(NamedTuple):
    """Shares between 0 and 1, and what bounds them.

    Attributes:
        matrix: of the matrix units' time in which they can compute.
        bandwidth: of HBM's bandwidth that loads can ask for; above 1, more than it gives.
        by: the unit that takes longest, or `one after the other`: the waves of a SIMD are too few to hide one unit's behind
            another's.
        cycles: of a SIMD, that a turn of one wave takes at least.
    """

    matrix: float
    bandwidth: float
    by: str
    cycles: float


def cycles_of(turn: Cost) -> dict[str, float]:
    """How many cycles of a SIMD a turn of one wave keeps each unit busy. Four SIMDs share the LDS and the L1 cache."""
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
        waves: of a SIMD.
    """
    cycles = cycles_of(turn) | {"one after the other": (turn.matrix_cycles + turn.vector_cycles) / waves}
    by = max(cycles, key=lambda name: cycles[name])
    return Bounds(turn.matrix_cycles / cycles[by], turn.loaded_bytes * SIMDS / cycles[by] / HBM_BYTES, by, cycles[by])
