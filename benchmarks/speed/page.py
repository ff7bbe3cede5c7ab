"""docs/generated/performance.md and its pictures, from the JSON files in docs/generated/performance."""

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from attn_fuzz.report.markup import element

from benchmarks import PAGES
from benchmarks.speed import results
from benchmarks.speed.cases import CASES
from benchmarks.speed.machine import Rates
from benchmarks.speed.participants import OURS, PEERS
from benchmarks.speed.reach import standing, time_of
from benchmarks.speed.results import CaseResult, Head, Run
from benchmarks.timed import in_words

FOLDER = PAGES / "performance"
PAGE = PAGES / "performance.md"
REACH = {case.name: case.reach for case in CASES}
BAR, GAP, MARGIN, WIDTH, TICKS = 9, 12, 390, 480, (0.25, 0.5, 0.75, 1.0)
COLOURS = {OURS: "ours", **dict(zip(PEERS, ("vllm", "aiter", "flash", "cudnn"), strict=True))}
STYLE = """
text { font: 12px ui-monospace, monospace; fill: #1c2126 }
.name { text-anchor: end } .tick { text-anchor: middle } .line { stroke: #b0b6bc }
.ours { fill: #2563a8 } .vllm { fill: #d08a1d } .aiter { fill: #b5404a } .flash { fill: #8a949c } .cudnn { fill: #5e8f5a }
@media (prefers-color-scheme: dark) { text { fill: #e4e7ea } .line { stroke: #566069 } .ours { fill: #7db4ee } }
"""


def contents(runs: dict[Path, Run]) -> dict[Path, str]:
    """What the page and each run's picture hold, by path."""
    pictures = {path.with_suffix(".svg"): _picture(run) for path, run in runs.items()}
    return {PAGE: "\n".join(_page(runs)) + "\n", **pictures}


def read() -> dict[Path, Run]:
    return results.read_folder(FOLDER)


def _page(runs: dict[Path, Run]) -> Iterator[str]:
    yield from (
        "# Speed, measured",
        "",
        "`python -m benchmarks page` writes this page from the files in [performance/](performance).",
        "",
    )
    for run in runs.values():
        yield from _summary(run)
    yield from (
        "",
        "## How it was measured",
        "",
        "- The *floor* of a case is a time that no kernel can beat. It is the longer one of two times. The first is the",
        "  bytes of q, of the output and of all keys and values that some query sees, once for each KV head, divided by the",
        "  bandwidth of a copy. The second is the FLOPs of all visible pairs divided by the burst matmul rate. The bandwidth",
        "  and the rate are measured in the same run. Reading alone is faster than copying, so a little more than 100 % of",
        "  the floor's speed is possible.",
        "- Times are medians of CUDA graph replays. The participants take turns. The spread is from the 10th to the 90th",
        "  percentile.",
        "- Each participant's output is compared with float64 on sampled rows before it is timed.",
        "- vLLM and AITER are the Triton kernels of their packages on PyPI. AITER's kernels run with AITER's choices for",
        "  gfx942: their times say nothing about AITER on ROCm.",
        "- SDPA is PyTorch's dense attention. Its keys and values were gathered beforehand, so it pays nothing for paging.",
        "- All cases are bfloat16. Unless a case says otherwise, H/HK is 32/8, D is 128, and blocks of 16 are in random order.",
    )
    for path, run in runs.items():
        yield from _section(path, run)


def _summary(run: Run) -> Iterator[str]:
    """How many cases reach their goals, which do not, and in how many a peer is faster."""
    found = {case.name: standing(REACH.get(case.name), case, run.rates) for case in run.cases}
    reached = [name for name, one in found.items() if one.reached]
    short = {name: one.text for name, one in found.items() if one.reached is False}
    yield f"- **{run.machine}**: {len(reached)} of {len(reached) + len(short)} cases with a goal reach it."
    yield from (f"  - short: {name}: {text}" for name, text in short.items())
    for peer in PEERS:
        times = [
            (ours.ms, theirs.ms) for case in run.cases if (ours := time_of(case, OURS)) and (theirs := time_of(case, peer))
        ]
        if times:
            faster = sum(ours < theirs for ours, theirs in times)
            yield f"  - Our kernels are faster than {peer} in {faster} of {len(times)} cases."


def heading(run: Head) -> Iterator[str]:
    """What was measured, and by which command."""
    yield from ("", f"## {run.machine}", "", f"{in_words(run.versions)}. Commit {run.commit}, `{run.command}`.", "")
    if not run.of_value:
        yield from ("**Sizes are tiny or there was no GPU: no number here has any value.**", "")


def table_of_rates(rates: Rates) -> Iterator[str]:
    yield from (
        "| read | copy, read and written | matmul, burst | matmul, sustained |",
        "|--:|--:|--:|--:|",
        f"| {rates.read / 1e12:.3g} TB/s | {rates.copy / 1e12:.3g} TB/s "
        f"| {rates.matmul_burst / 1e12:.4g} TFLOP/s | {rates.matmul_sustained / 1e12:.4g} TFLOP/s |",
        "",
    )


def _section(path: Path, run: Run) -> Iterator[str]:
    yield from heading(run)
    yield from table_of_rates(run.rates)
    yield from (
        f"![share of the floor's speed, by case and participant](performance/{path.stem}.svg)",
        "",
        "In brackets: for our time, the share of the floor's speed; for a peer's time, how many times as long as ours it is.",
        "",
        f"| case | floor, ms | ours, ms | spread | {' | '.join(PEERS)} | goal |",
        "|---|--:|--:|--:|" + "--:|" * len(PEERS) + "---|",
    )
    for case in run.cases:
        yield _row(case, run)
    yield from notes(run)
    if run.host_us:
        yield from (
            "",
            "### Python per call",
            "",
            "Microseconds of the host for one eager call with 4 requests of 16 keys. The host does not wait for the device.",
            "",
            "| " + " | ".join(run.host_us) + " |",
            "|" + "--:|" * len(run.host_us),
            "| " + " | ".join(f"{us:.0f}" for us in run.host_us.values()) + " |",
        )


def _row(case: CaseResult, run: Run) -> str:
    cells = [case.name, f"{case.floor_ms:.3g}", *cells_of_ours(case), *(cell_of_peer(case, peer) for peer in PEERS)]
    reached, text = standing(REACH.get(case.name), case, run.rates)
    word = {True: "reached", False: "short", None: ""}[reached]
    return f"| {' | '.join(cells)} | {': '.join(part for part in (word, text) if part)} |"


def cells_of_ours(case: CaseResult) -> tuple[str, str]:
    """Our time, with its share of the floor's speed, and its spread."""
    ours = time_of(case, OURS)
    if ours is None:
        return _cell(case, OURS), ""
    return f"{ours.ms:.3g} ({case.floor_ms / ours.ms:.0%})", f"{ours.p10:.3g}-{ours.p90:.3g}"


def cell_of_peer(case: CaseResult, peer: str) -> str:
    """A peer's time, and how many times as long as ours it is."""
    ours, theirs = time_of(case, OURS), time_of(case, peer)
    return _cell(case, peer) if theirs is None or ours is None else f"{theirs.ms:.3g} ({theirs.ms / ours.ms:.2f})"


def _cell(case: CaseResult, name: str) -> str:
    """Of a participant whose time, or ours, is missing."""
    if (time := time_of(case, name)) is not None:
        return f"{time.ms:.3g}"
    result = case.results.get(name)
    return "" if result is None or result.verdict == "refused" else result.verdict


def notes(run: Run) -> Iterator[str]:
    """What a table has no column for, below it."""
    if found := list(_notes(run)):
        yield from ("", *found)


def _notes(run: Run) -> Iterator[str]:
    for case in run.cases:
        for name, result in case.results.items():
            if result.verdict in ("wrong", "failed"):
                yield f"* {case.name}, {name}: {result.verdict}: {(result.why or '').replace('|', '/')}"
            elif result.time is not None and name not in (OURS, *PEERS) and (ours := time_of(case, OURS)) is not None:
                yield f"* {case.name}, {name}: {result.time.ms:.3g} ms, {result.time.ms / ours.ms:.2f} times as long as ours"
    if run.unmeasured:
        yield f"* Not measured, for lack of time: {', '.join(run.unmeasured)}."


def _picture(run: Run) -> str:
    """Bars of the floor's time over the participant's, a group per case."""
    marks = [element("style", STYLE)]
    for i, name in enumerate(COLOURS):
        marks.append(element("rect", x=MARGIN + i * 110 - 90, y=4, width=10, height=10, class_=COLOURS[name]))
        marks.append(element("text", name, x=MARGIN + i * 110 - 76, y=13))
    y = top = 34
    bars = []
    for case in run.cases:
        shares = {name: case.floor_ms / time.ms for name in COLOURS if (time := time_of(case, name)) is not None}
        height = BAR * max(1, len(shares))
        bars.append(element("text", case.name, x=MARGIN - 8, y=y + height // 2 + 4, class_="name"))
        for i, (name, share) in enumerate(shares.items()):
            title = element("title", f"{name}: {share:.0%}")
            width = round(WIDTH * min(share, 1.1))
            bars.append(element("rect", title, x=MARGIN, y=y + i * BAR, width=width, height=BAR - 1, class_=COLOURS[name]))
        y += height + GAP
    for tick in TICKS:
        x = round(MARGIN + WIDTH * tick)
        marks.append(element("text", f"{tick:.0%}", x=x, y=top - 6, class_="tick"))
        marks.append(element("line", x1=x, y1=top - 2, x2=x, y2=y, class_="line"))
    size = (MARGIN + round(1.1 * WIDTH) + 10, y + 4)
    drawing = element("svg", *marks, *bars, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {size[0]} {size[1]}")
    return ElementTree.tostring(drawing, encoding="unicode") + "\n"
