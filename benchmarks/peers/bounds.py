"""What AMD's published rates let the hot loops of launches reach, in drawn cases."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import groupby
from statistics import median

import torch
from attn_binaries.facts import facts_of
from attn_lab.pages import table
from attn_optimized.launch import table as launch_table

from benchmarks.assembly.loops import bounds_of, cycles_of, hot_loop
from benchmarks.assembly.rates import RATED, Cost
from benchmarks.peers.kind import Kind
from benchmarks.peers.launches import Launch, compiled
from benchmarks.peers.results import Results, Row
from benchmarks.steps.calls import Call
from benchmarks.steps.drawn import draw_cases

NUM_CASES, SEED = 40, 20261210
"""The number and the seed of the drawn cases whose bounds are on the page."""
_PREFACE = """
## What AMD's published rates let them reach

With {versions}, in {number} cases that are drawn with seed {seed} as those of `speed --drawn` are: nobody chose them. Steps of
other seeds chose {chosen} of the {entries} entries in the launch table of gfx942, by the same arithmetic. **No AMD GPU has run
any of it.** The instructions in a turn of the hot loop are counted, and each keeps a unit of the GPU busy for as long as AMD
publishes (`benchmarks/assembly/rates.py`). What follows is the most that the loop can reach, if memory answers at once and
nothing waits but a wave for its own matrix instructions. No kernel reaches its bound. *Per matrix*: instructions in a turn over
its matrix instructions. *Matrix bound*: the share of the time in which the matrix unit can compute. *HBM bound*: the share of
HBM's bandwidth that the loads can ask for; what the L2 cache has is not asked of HBM.

Medians over the cases in which all participants have a loop. Of several launches, the last one counts.

"""


def _of_launch(architecture: str, launch: Launch) -> tuple[dict[str, float], str]:
    binary, _ = compiled(architecture, launch)
    loop, waves = hot_loop(binary.asm["amdgcn"]), facts_of(binary, architecture).waves or 0
    found = {"num_warps": binary.metadata.num_warps, "waves": waves}
    return (found | loop.cost._asdict(), "") if loop and loop.matrix else (found, "no loop with matrix instructions")


def _finished(rows: list[Row], call: Call, out: torch.Tensor) -> list[Row]:
    """Without the reductions of parts, which have no matrix instruction."""
    return [row for row in rows if row.facts.get("matrix")] or rows[:1]


def _cells(facts: Mapping[str, float]) -> list[str]:
    if not (facts.get("matrix") and facts["waves"]):
        return [""] * len(BOUNDS.columns)
    turn, waves = _turn(facts), facts["waves"]
    bounds = bounds_of(turn, waves)
    cycles = (f"{each:.0f}" for each in cycles_of(turn).values())
    shares = (f"{bounds.matrix:.0%}", f"{bounds.bandwidth:.0%}", bounds.by)
    return [f"{facts['num_warps']:g}", f"{waves:g}", f"{turn.instructions / turn.matrix:.1f}", *cycles, *shares]


def _turn(facts: Mapping[str, float]) -> Cost:
    return Cost._make(map(facts.__getitem__, Cost._fields))


def _section(results: Results) -> list[str]:
    """A table with a row for each class of steps and participant."""
    sources = [entry.source for entry in launch_table.entries(RATED[0])]
    chosen = sum("benchmarks tune" in source and "--seed" in source for source in sources)
    text = _PREFACE.format(versions=results.versions, number=NUM_CASES, seed=SEED, chosen=chosen, entries=len(sources))
    columns = ("steps", "whose", "cases", "per matrix", "matrix bound", "HBM bound", "less than HBM gives")
    return [*text.splitlines(), "", *table(columns, _of_classes(results), columns[2:])]


def _of_classes(results: Results) -> Iterator[list[object]]:
    everybody = {row.whose for row in results.rows}
    loops: dict[tuple[str, str], list[Mapping[str, float]]] = defaultdict(list)
    for _, rows in groupby(results.rows, key=lambda row: (row.architecture, row.case)):
        of_case = {row.whose: row for row in rows if row.facts.get("matrix") and row.facts["waves"]}
        if set(of_case) == everybody:
            for whose, row in of_case.items():
                loops[row.case.partition(":")[0].partition(" ")[2], whose].append(row.facts)
    for (traffic, whose), found in loops.items():
        bounds = [bounds_of(_turn(facts), facts["waves"]) for facts in found]
        matrix, bandwidth = median(one.matrix for one in bounds), median(one.bandwidth for one in bounds)
        per_matrix = median(facts["instructions"] / facts["matrix"] for facts in found)
        below = sum(one.bandwidth < 1 for one in bounds)
        yield [traffic, whose, len(found), f"{per_matrix:.1f}", f"{matrix:.0%}", f"{bandwidth:.0%}", below]


BOUNDS = Kind(
    facts=("num_warps", "waves", *Cost._fields),
    columns=("warps", "waves", "per matrix", "matrix", "vector", "LDS", "L1", "matrix bound", "HBM bound", "by"),
    cells=_cells,
    of_launch=_of_launch,
    cases={case.name: case for case in draw_cases(NUM_CASES, SEED)},
    architectures=RATED,
    section=_section,
    finished=_finished,
)
