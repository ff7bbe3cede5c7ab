"""The page of bounds, made of the CSV file beside it and nothing else."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby
from statistics import median

from benchmarks.bounds.command import NUMBER, SEED
from benchmarks.bounds.loops import Bounds, bounds_of, cycles_of
from benchmarks.bounds.results import Results, Row
from benchmarks.side_by_side import page_text

PREFACE = f"""\
# What AMD's published rates let the kernels reach

Written by `python -m benchmarks bounds --page FILE` on a machine without a GPU, with {{versions}}.
The CSV file beside this page keeps what was read off the binaries, and `--check` says whether the page is what it says. The
{NUMBER} cases are drawn with seed {SEED} as those of [performance-drawn.md](performance-drawn.md) are: nobody chose them. Steps
of another seed chose 21 of the 97 entries in the launch table of gfx942, by the same arithmetic.

**This is arithmetic: no AMD GPU has run any of it.** The instructions in a turn of the hot loop are counted, and each keeps a
unit of the GPU busy for as long as AMD publishes (`benchmarks/bounds/rates.py`). What follows is the most that the loop can
reach, if memory answers at once and nothing waits but a wave for its own matrix instructions. No kernel reaches its bound.

| column | is |
|---|---|
| waves | of a SIMD, as registers and LDS allow |
| per matrix | instructions in a turn of the loop over its matrix instructions |
| matrix, vector, LDS, L1 | cycles of a SIMD, of which the four share the LDS and the L1 cache, for a turn of a wave |
| matrix bound | the share of the time in which the matrix unit can compute |
| HBM bound | the share of HBM's bandwidth that the loads can ask for. What the L2 cache has is not asked of HBM |
| by | what takes longest; *one after the other*: too few waves hide vector behind matrix instructions |
"""
NUMBERS = ("warps", "waves", "per matrix", "matrix", "vector", "LDS", "L1", "matrix bound", "HBM bound")
COLUMNS = ("case", "whose", "kernel", *NUMBERS, "by")


def cells(row: Row) -> tuple[str, ...]:
    """In the order of COLUMNS."""
    turn = row.turn
    why = "wants more LDS or registers than there are" if turn is not None and not row.waves else row.why
    kernel = ": ".join(filter(None, (row.kernel.removesuffix("_kernel"), why)))
    if turn is None or not row.waves:
        return (row.case, row.whose, kernel, *[""] * len(NUMBERS), "")
    bounds = bounds_of(turn, row.waves)
    return (
        row.case,
        row.whose,
        kernel,
        str(row.num_warps),
        f"{row.waves:g}",
        f"{turn.instructions / turn.matrix:.1f}",
        *(f"{cycles:.0f}" for cycles in cycles_of(turn).values()),
        f"{bounds.matrix:.0%}",
        f"{bounds.bandwidth:.0%}",
        bounds.by,
    )


def text(results: Results) -> str:
    """The page, whole."""
    return page_text(PREFACE + "\n".join(["", *_by_class(results), ""]), results, cells, COLUMNS, NUMBERS)


def _by_class(results: Results) -> Iterator[str]:
    """Medians of each class of steps and participant, over the cases in which all participants have a loop."""
    everybody = {row.whose for row in results.rows}
    bounds: dict[str, dict[str, list[Bounds]]] = defaultdict(lambda: defaultdict(list))
    per_matrix: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _, rows in groupby(results.rows, key=lambda row: (row.architecture, row.case)):
        loops = {row.whose: row for row in rows if row.turn is not None and row.waves}
        if set(loops) != everybody:
            continue
        for whose, row in loops.items():
            assert row.turn is not None
            traffic = row.case.partition(":")[0].partition(" ")[2]
            bounds[traffic][whose].append(bounds_of(row.turn, row.waves))
            per_matrix[traffic, whose].append(row.turn.instructions / row.turn.matrix)
    yield from (
        "Medians over the cases in which all participants have a loop. Of several launches, the last one counts.",
        "",
        "| steps | whose | cases | per matrix | matrix bound | HBM bound | less than HBM gives |",
        "|---|---|--:|--:|--:|--:|--:|",
    )
    for traffic, by_whose in bounds.items():
        for whose, found in by_whose.items():
            matrix, bandwidth = (median(each) for each in ([one.matrix for one in found], [one.bandwidth for one in found]))
            below = sum(one.bandwidth < 1 for one in found)
            few = median(per_matrix[traffic, whose])
            yield f"| {traffic} | {whose} | {len(found)} | {few:.1f} | {matrix:.0%} | {bandwidth:.0%} | {below} |"
