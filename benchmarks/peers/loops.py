"""The hot loop of a kernel in AMD's assembly, and the bounds that follow from the costs of its instructions."""

import re
from typing import NamedTuple

from benchmarks.peers.rates import HBM_BYTES, L1_BYTES, LDS_BYTES, SIMDS, Cost, cost_of

_LABEL = re.compile(r"^(\.LBB\w+):")
_BRANCH = re.compile(r"^\s+s_c?branch\w*\s+(\.LBB\w+)")
_INSTRUCTION = re.compile(r"^\s+([a-z]\w+)(?:\s|$)")


_MATRIX = re.compile(r"v_(?:s?mfma|s?wmma)")
_LOAD = re.compile(r"(?:global|buffer)_load_")
_WAIT = re.compile(r"s_waitcnt .*?vmcnt\((\d+)\)|s_wait_loadcnt(?:_dscnt)? (0x[0-9a-f]+|\d+)")


def hot_loop(assembly: str) -> Cost | None:
    """The cost of one turn of the hot loop: of the loops that multiply most, the one with the fewest other instructions.

    A kernel has one loop over tiles of keys without a mask, in which long requests spend their time, and one over tiles with a
    mask. A kernel with tiles of two sizes has both loops for each size; those for the larger tiles multiply more. None: there
    is no such loop.

    Raises:
        UnknownRateError: it has an instruction without a published rate.
    """
    found = [sum(map(cost_of, loop), Cost()) for loop in innermost_loops(assembly) if any(map(_MATRIX.match, loop))]
    most = max((cost.matrix_cycles for cost in found), default=0)
    return min((cost for cost in found if cost.matrix_cycles == most), key=lambda cost: cost.instructions, default=None)


def innermost_loops(assembly: str) -> list[list[str]]:
    """The mnemonics of each loop that has no loop in it: from a label to the last branch back to it."""
    return [[line.split()[0] for line in loop] for loop in _innermost_loops(assembly)]


def _innermost_loops(assembly: str) -> list[list[str]]:
    """The instructions of these loops, as the assembly writes them."""
    lines = assembly.splitlines()
    labels = {found[1]: i for i, line in enumerate(lines) if (found := _LABEL.match(line))}
    spans: dict[str, int] = {}
    for i, line in enumerate(lines):
        if (found := _BRANCH.match(line)) and labels.get(found[1], i) < i:
            spans[found[1]] = i
    whole = [(labels[label], end) for label, end in spans.items()]
    inner = [(a, b) for a, b in whole if not any(a < c and d < b for c, d in whole)]
    return [[line.strip() for line in lines[a : b + 1] if _INSTRUCTION.match(line)] for a, b in sorted(inner)]


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


def pipeline_of(assembly: str) -> Pipeline | None:
    """The pipeline of the shortest loop that has most matrix instructions; None: no loop has any beside a load."""
    loops = [loop for loop in _innermost_loops(assembly) if any(map(_MATRIX.match, loop)) and any(map(_LOAD.match, loop))]
    counts = [sum(_MATRIX.match(line) is not None for line in loop) for loop in loops]
    if not loops:
        return None
    loop = min((loop for loop, count in zip(loops, counts, strict=True) if count == max(counts)), key=len)
    return Pipeline(
        ahead=_ahead(loop) / max(counts),
        barriers=sum(line.split()[0] in ("s_barrier", "s_barrier_wait") for line in loop),
        lds_writes=sum(line.startswith(("ds_write", "ds_store")) for line in loop),
    )


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
