"""The kinds of facts about launches: their cases, the facts that are kept, and those that the page shows."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from statistics import median
from typing import NamedTuple

from attn_amdgcn.counts import CLASSES, COUNTED
from attn_lab.pages import table
from attn_parity.binaries.facts import Facts

from benchmarks.peers.loops import bounds_of, cycles_of
from benchmarks.peers.rates import RATED, Cost
from benchmarks.peers.results import Results, Row
from benchmarks.speed.cases import CASES, Attention
from benchmarks.speed.drawn import draw_cases

_GPT_OSS = {"num_heads": 64, "num_kv_heads": 8, "head_size": 64, "sinks": True}
SMALL = (
    Attention(name="decode, 4 x 1k", query_lens=(1,) * 4, seq_lens=(1024,) * 4),
    Attention(name="decode, fp8 cache, 4 x 1k", query_lens=(1,) * 4, seq_lens=(1024,) * 4, float8_cache=True),
    Attention(name="decode, H64/HK8/D64 + sinks, 4 x 1k", query_lens=(1,) * 4, seq_lens=(1024,) * 4, **_GPT_OSS),
    Attention(name="prefill, 1 x 512", query_lens=(512,), seq_lens=(512,)),
    Attention(name="prefill, window 128, 1 x 512", query_lens=(512,), seq_lens=(512,), window=128),
    Attention(name="extend, 2 x 128 new on 512", query_lens=(128,) * 2, seq_lens=(640,) * 2),
)
"""The emulator runs each in seconds."""
ON_THE_PAGE = (
    "decode, 64 x 8k",
    "decode, 1 x 128k",
    "decode, fp8 cache, 64 x 8k",
    "decode, H64/HK8/D64 + sinks, 64 x 8k",
    "prefill, 4 x 4k",
    "prefill, window 1k, 2 x 8k",
    "prefill, soft cap 50, H16/HK8 D256, 2 x 4k",
    "encoder (Whisper), 16 x 1500, H20 D64, no cache",
)
"""Cases of `speed` whose binaries are on the page."""
NUMBER, SEED = 40, 20261210
"""The number and the seed of the drawn cases whose bounds are on the page."""


class Kind(NamedTuple):
    """A kind of facts.

    Attributes:
        facts: that a file keeps.
        columns: columns of facts, in a table of rows.
        cells: the cells of a row that has facts, for these columns.
        cases: by name.
        architectures: the architectures of the page.
        on_the_page: names of the page's cases; empty: of all.
    """

    facts: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Callable[[Mapping[str, float]], Sequence[str]]
    cases: dict[str, Attention]
    architectures: tuple[str, ...]
    on_the_page: tuple[str, ...] = ()


def _of_binary(facts: Mapping[str, float]) -> list[str]:
    def shown(*names: str) -> str:
        return "/".join(f"{facts[name]:g}" for name in names if name in facts)

    registers = (shown("vgprs"), shown("agprs"), shown("sgprs"), shown("vgpr_spills", "sgpr_spills"))
    others = (shown("waves"), shown("matrix_instructions"), shown("widest_load"))
    return [shown("num_warps"), *registers, f"{facts['lds_bytes'] / 1024:.3g}", *others]


_SHOWN_CLASSES = ("matrix", "vector", "global memory", "scratch memory", "LDS")


def _of_run(facts: Mapping[str, float]) -> list[str]:
    def ratio(part: str, whole: str) -> str:
        return f"{facts[part] / facts[whole]:.2f}" if facts[whole] else ""

    known = facts["LDS accesses with known phases"] / facts["LDS accesses"] if facts["LDS accesses"] else None
    return [
        f"{facts['programs']:g} x {facts['num_warps']:g}",
        _short(sum(facts[name] for name in CLASSES)),
        *(_short(facts[name]) for name in _SHOWN_CLASSES),
        _short(sum(facts[name] for name in CLASSES if name not in _SHOWN_CLASSES)),
        ratio("multiply-adds", "needed") if facts["multiply-adds"] else "",
        _short(facts["lines of 128"]),
        ratio("lines of 128", "least lines of 128"),
        ratio("LDS conflicts", "LDS phases"),
        "" if known is None else f"{known:.0%}",
    ]


def _of_hot_loop(facts: Mapping[str, float]) -> list[str]:
    turn, waves = _turn(facts), facts["waves"]
    bounds = bounds_of(turn, waves)
    cycles = (f"{each:.0f}" for each in cycles_of(turn).values())
    shares = (f"{bounds.matrix:.0%}", f"{bounds.bandwidth:.0%}", bounds.by)
    return [f"{facts['num_warps']:g}", f"{waves:g}", f"{turn.instructions / turn.matrix:.1f}", *cycles, *shares]


def _turn(facts: Mapping[str, float]) -> Cost:
    return Cost(*(facts[name] for name in Cost._fields))


def drawn(number: int, seed: int) -> dict[str, Attention]:
    return {case.name: case for case in draw_cases(number, seed)}


KINDS = {
    "binaries": Kind(
        facts=("num_warps", *(field.name for field in dataclasses.fields(Facts) if field.name != "lds_limit")),
        columns=("warps", "VGPRs", "AGPRs", "SGPRs", "spills", "LDS", "waves", "matrix", "load"),
        cells=_of_binary,
        cases={case.name: case for case in CASES if isinstance(case, Attention)},
        architectures=("gfx942", "gfx1201", "sm90"),
        on_the_page=ON_THE_PAGE,
    ),
    "counts": Kind(
        facts=("programs", "num_warps", "needed", *COUNTED),
        columns=(
            *("programs", "instructions", "matrix", "vector", "global", "scratch", "LDS", "others"),
            *("padding", "lines", "over least", "conflicts", "known"),
        ),
        cells=_of_run,
        cases={case.name: case for case in SMALL},
        architectures=("gfx942", "gfx1201"),
    ),
    "bounds": Kind(
        facts=("num_warps", "waves", *Cost._fields),
        columns=("warps", "waves", "per matrix", "matrix", "vector", "LDS", "L1", "matrix bound", "HBM bound", "by"),
        cells=_of_hot_loop,
        cases=drawn(NUMBER, SEED),
        architectures=RATED,
    ),
}


def cells(kind: Kind, row: Row) -> list[str]:
    """A row of a table with the columns `case`, `whose`, `kernel` and those of its kind."""
    has_facts = all(name in row.facts for name in Cost._fields) and row.facts["waves"] if kind is KINDS["bounds"] else row.facts
    why = row.why
    if "waves" in row.facts and not row.facts["waves"]:
        why = "wants more LDS or registers than there are"
    kernel = ": ".join(filter(None, (row.kernel.removesuffix("_kernel"), why)))
    return [row.case, row.whose, kernel, *(kind.cells(row.facts) if has_facts else [""] * len(kind.columns))]


PREFACE = """\
# Others' kernels beside ours, without a GPU

Written by `python -m benchmarks peers --write`. Each participant's own host code plans its launches, and its kernels are
compiled for exactly what that code passes. The files in [peers/](peers) keep a line for each launch.

## What the compilers make of them

With {binaries}, in cases of [performance.md](performance.md). Of each launch, in their order: VGPRs, then spilled VGPRs if any
(+), then waves of a SIMD. On AMD, AITER asks for some number of waves, which are then the most that it has. Nothing was run.
[binaries.csv](peers/binaries.csv) has scalar registers, LDS, matrix instructions and loads, too.
"""
OF_COUNTS = """
## What they execute

With {counts}. [The emulator](../reference/emulator.md) runs the launches of small cases, and the outputs were compared with
attention in float64. **These are counts and no times.** Small cases are split into parts more eagerly than large ones, so
programs and reductions weigh more. *Padding* is multiply-adds of matrix instructions over those of visible pairs of a query and
a key; *lines* are those of 128 bytes that vector instructions touch in global memory, *over least* over the fewest that each
instruction's bytes could fill; *conflicts* are passes of LDS beyond the first one, for each phase; *known* is the share of
accesses to LDS whose phases AMD documents.
"""
OF_BOUNDS = """
## What AMD's published rates let them reach

With {bounds}, in {number} cases that are drawn with seed {seed} as those of `speed --drawn` are: nobody chose them. Steps of
another seed chose 21 of the 97 entries in the launch table of gfx942, by the same arithmetic. **No AMD GPU has run any of it.**
The instructions in a turn of the hot loop are counted, and each keeps a unit of the GPU busy for as long as AMD publishes
(`benchmarks/peers/rates.py`). What follows is the most that the loop can reach, if memory answers at once and nothing waits but
a wave for its own matrix instructions. No kernel reaches its bound. *Per matrix*: instructions in a turn over its matrix
instructions. *Matrix bound*: the share of the time in which the matrix unit can compute. *HBM bound*: the share of HBM's
bandwidth that the loads can ask for; what the L2 cache has is not asked of HBM.

Medians over the cases in which all participants have a loop. Of several launches, the last one counts.

"""


def page(found: Mapping[str, Results]) -> str:
    """The page of all kinds."""
    versions = {name: results.versions for name, results in found.items()}
    lines = [*PREFACE.format(**versions).splitlines(), "", *_binaries(found["binaries"])]
    lines += OF_COUNTS.format(**versions).splitlines() + _counts(found["counts"])
    lines += [*OF_BOUNDS.format(**versions, number=NUMBER, seed=SEED).splitlines(), "", *_medians(found["bounds"])]
    return "\n".join(lines) + "\n"


def _binaries(results: Results) -> list[str]:
    """A line for each case and participant, and a column for each architecture."""
    architectures = list(dict.fromkeys(row.architecture for row in results.rows))
    launches: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in results.rows:
        spills = f"+{row.facts['vgpr_spills']:g}" if row.facts.get("vgpr_spills") else ""
        words = f"{row.facts['vgprs']:g}{spills}, {row.facts['waves']:g}" if row.facts.get("waves") else row.why
        launches[row.case, row.whose][row.architecture].append(words)
    cells = ([*place, *("; ".join(of[name]) for name in architectures)] for place, of in launches.items())
    return table(("case", "whose", *architectures), cells, architectures)


def _counts(results: Results) -> list[str]:
    """A table for each architecture."""
    kind, lines = KINDS["counts"], []
    for architecture, rows in groupby(results.rows, key=lambda row: row.architecture):
        columns = ("case", "whose", "kernel", *kind.columns)
        lines += ["", f"### {architecture}", "", *table(columns, (cells(kind, row) for row in rows), kind.columns)]
    return lines


def _medians(results: Results) -> list[str]:
    """A table with a row for each class of steps and participant."""
    columns = ("steps", "whose", "cases", "per matrix", "matrix bound", "HBM bound", "less than HBM gives")
    return table(columns, _of_classes(results), columns[2:])


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


def _short(number: float) -> str:
    """Three digits, in thousands or millions."""
    for unit, name in ((10**6, "M"), (1000, "k")):
        if number >= unit:
            return f"{number / unit:#.3g}".rstrip(".") + name
    return f"{number:g}"
