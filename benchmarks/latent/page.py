"""docs/generated/performance-latent.md, from the JSON files in docs/generated/performance-latent."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks import PAGES
from benchmarks.latent.run import SCHEMA
from benchmarks.speed import results
from benchmarks.speed.machine import Rates
from benchmarks.speed.page import cell_of_peer, cells_of_ours, heading, notes, table_of_rates
from benchmarks.speed.participants import OURS, SDPA, VLLM
from benchmarks.speed.reach import time_of
from benchmarks.speed.results import CaseResult, Run

FOLDER = PAGES / "performance-latent"
PAGE = PAGES / "performance-latent.md"
PEERS = (VLLM, *SDPA)


def contents(runs: dict[Path, Run]) -> dict[Path, str]:
    """What the page holds, by its path."""
    return {PAGE: "\n".join(_page(runs)) + "\n"}


def read() -> dict[Path, Run]:
    return results.read_folder(FOLDER, SCHEMA)


def _page(runs: dict[Path, Run]) -> Iterator[str]:
    yield from (
        "# Speed of latent attention (MLA)",
        "",
        "`python -m benchmarks page` writes this page from the files in [performance-latent](performance-latent), which",
        "`python -m benchmarks latent --json FILE` makes. The cases are the decodes and the extend over a latent cache of",
        "`benchmarks/latent/cases.py`: N is the number of query heads, sizes are DeepSeek-V3's (512 + 64) and elements are",
        "bfloat16, unless a case says otherwise. vLLM's kernel is one for decodes: each query token is a row of its own to it,",
        "those of the extend, too. PyTorch's dense attention (SDPA) joins where K and V are expanded, with V padded to the",
        "width of K for flash attention. [performance.md](performance.md) says how floors are made and outputs checked.",
    )
    for run in runs.values():
        yield from _section(run)


def _section(run: Run) -> Iterator[str]:
    yield from heading(run)
    yield from table_of_rates(run.rates)
    yield from (
        "In brackets: for our time, the share of the floor's speed; for a peer's time, how many times as long as ours it is.",
        "",
        "| case | floor, ms | ours, ms | of the sustained matmul rate | spread | " + ", ms | ".join(PEERS) + ", ms |",
        "|---|--:|--:|--:|--:|" + "--:|" * len(PEERS),
    )
    for case in run.cases:
        ours, spread = cells_of_ours(case)
        theirs = (cell_of_peer(case, peer) for peer in PEERS)
        cells = (case.name, f"{case.floor_ms:.3g}", ours, _matmul_share(case, run.rates), spread, *theirs)
        yield f"| {' | '.join(cells)} |"
    yield from notes(run)


def _matmul_share(case: CaseResult, rates: Rates) -> str:
    ours = time_of(case, OURS)
    return "" if ours is None else f"{case.flops / (ours.ms / 1e3) / rates.matmul_sustained:.0%}"
