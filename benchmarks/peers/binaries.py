"""What the compilers make of launches: registers, spills, LDS, waves, matrix instructions."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping

from attn_binaries.facts import Facts, facts_of
from attn_lab.pages import table

from benchmarks.peers.kind import Kind
from benchmarks.peers.launches import Launch, compiled
from benchmarks.peers.results import Results
from benchmarks.steps.cases import CASES, Attention

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
_PREFACE = """\
## What the compilers make of them

With {versions}, in cases of [performance.md](performance.md). Of each launch, in their order: VGPRs, then spilled VGPRs if any
(+), then waves of a SIMD. On AMD, AITER asks for some number of waves, which are then the most that it has. Nothing was run.
[binaries.csv](peers/binaries.csv) has scalar registers, LDS, matrix instructions and loads, too.
"""


def _of_launch(architecture: str, launch: Launch) -> tuple[dict[str, float], str]:
    binary, _ = compiled(architecture, launch)
    facts = facts_of(binary, architecture)
    wanted, there = facts.lds_bytes, facts.lds_limit
    known = {name: fact for name, fact in dataclasses.asdict(facts).items() if fact is not None and name != "lds_limit"}
    why = f"{wanted / 1024:.3g} KiB of LDS, of {there / 1024:.3g}" if wanted > there else ""
    return {"num_warps": binary.metadata.num_warps, **known}, why


def _cells(facts: Mapping[str, float]) -> list[str]:
    def shown(*names: str) -> str:
        return "/".join(f"{facts[name]:g}" for name in names if name in facts)

    registers = (shown("vgprs"), shown("agprs"), shown("sgprs"), shown("vgpr_spills", "sgpr_spills"))
    others = (shown("waves"), shown("matrix_instructions"), shown("widest_load"))
    return [shown("num_warps"), *registers, f"{facts['lds_bytes'] / 1024:.3g}", *others]


def _section(results: Results) -> list[str]:
    """A line for each case and participant, and a column for each architecture."""
    architectures = list(dict.fromkeys(row.architecture for row in results.rows))
    launches: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in results.rows:
        spills = f"+{row.facts['vgpr_spills']:g}" if row.facts.get("vgpr_spills") else ""
        words = f"{row.facts['vgprs']:g}{spills}, {row.facts['waves']:g}" if row.facts.get("waves") else row.why
        launches[row.case, row.whose][row.architecture].append(words)
    cells = ([*place, *("; ".join(of[name]) for name in architectures)] for place, of in launches.items())
    lines = table(("case", "whose", *architectures), cells, architectures)
    return [*_PREFACE.format(versions=results.versions).splitlines(), "", *lines]


BINARIES = Kind(
    facts=("num_warps", *(field.name for field in dataclasses.fields(Facts) if field.name != "lds_limit")),
    columns=("warps", "VGPRs", "AGPRs", "SGPRs", "spills", "LDS", "waves", "matrix", "load"),
    cells=_cells,
    of_launch=_of_launch,
    cases={case.name: case for case in CASES if isinstance(case, Attention)},
    architectures=("gfx942", "gfx1201", "sm90"),
    section=_section,
    on_the_page=ON_THE_PAGE,
    is_amds=False,
)
