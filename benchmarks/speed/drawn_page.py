"""The page of runs on drawn shapes, and its pictures, from the JSON files of these runs."""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

from attn_fuzz.report.markup import element

from benchmarks import PAGES
from benchmarks.speed import results
from benchmarks.speed.page import COLOURS, STYLE, heading
from benchmarks.speed.participants import AITER, OURS, PEERS, VLLM
from benchmarks.speed.reach import time_of
from benchmarks.speed.results import CaseResult, Run
from benchmarks.speed.traffic import TRAFFIC

FOLDER = PAGES / "performance-drawn"
PAGE = PAGES / "performance-drawn.md"
WORST = 10
LAUNCH_MS = 0.01
"""Of a call whose floor is below this, a launch is a large part: such calls are counted apart."""
PACKED = ("X_PACKED", "SHUFFLED")
"""Layouts whose keys are no rows of dims. Only kernels for AMD's GPUs ask for them."""
WIDTH, HEIGHT, LEFT, TOP = 620, 300, 60, 40
_CURVES = """.curve { fill: none; stroke-width: 2 } .ours.curve { stroke: #2563a8 } .vllm.curve { stroke: #d08a1d }
.aiter.curve { stroke: #b5404a } .flash.curve { stroke: #8a949c } .cudnn.curve { stroke: #5e8f5a }
@media (prefers-color-scheme: dark) { .ours.curve { stroke: #7db4ee } }
"""


def contents(runs: dict[Path, Run]) -> dict[Path, str]:
    """What the page and each run's picture hold, by path."""
    pictures = {path.with_suffix(".svg"): _picture(run) for path, run in runs.items()}
    return {PAGE: "\n".join(_page(runs)) + "\n", **pictures}


def read() -> dict[Path, Run]:
    return results.read_folder(FOLDER, drawn=True)


def share(case: CaseResult, name: str = OURS) -> float | None:
    """The floor's time over a participant's."""
    time = time_of(case, name)
    return None if time is None else case.floor_ms / time.ms


def slower_than_a_peer(case: CaseResult) -> float | None:
    """How many times as fast the best paged peer is, where it is faster by more than the spread of both."""
    ours = time_of(case, OURS)
    if ours is None:
        return None
    faster = [time for peer in (VLLM, AITER) if (time := time_of(case, peer)) is not None and time.p90 < ours.p10]
    return max((ours.ms / time.ms for time in faster), default=None)


def _page(runs: dict[Path, Run]) -> Iterator[str]:
    yield from (
        "# Speed on drawn shapes",
        "",
        "`python -m benchmarks page` writes this page from the files in [performance-drawn](performance-drawn). Layers are of",
        "the models in `benchmarks/speed/models.toml`, and steps are drawn by `benchmarks/speed/traffic.py`. Nobody chose a",
        "shape: the command of a run has its seed. [performance.md](performance.md) says how times and floors are measured.",
        "",
        f"A call whose floor is below {1e3 * LAUNCH_MS:g} us is counted as *small*: its launch takes as long as its work.",
        f"{' and '.join(PACKED)} are layouts of kernels for AMD's GPUs. Larger calls over one of them are counted once more",
        "as *packed*, and all other larger calls as *in rows*.",
    )
    for path, run in runs.items():
        yield from _section(path, run)


def _section(path: Path, run: Run) -> Iterator[str]:
    yield from heading(run)
    yield from _classes(run)
    yield from ("", f"![cumulative share of the floor's speed](performance-drawn/{path.stem}.svg)", "")
    yield from _worst(run)
    others = [
        f"* {case.name}, {name}: {result.verdict}: {(result.why or '').replace('|', '/')}"
        for case in run.cases
        for name, result in case.results.items()
        if result.verdict in ("wrong", "failed")
    ]
    if others:
        yield from ("", "Not timed:", "", *others)
    if run.unmeasured:
        yield from ("", f"No time was left for {len(run.unmeasured)} of {len(run.unmeasured) + len(run.cases)} cases.")


def _classes(run: Run) -> Iterator[str]:
    yield from (
        "| class | cases | median share of the floor | tenth percentile | least | a paged peer is faster | by at most | "
        + " | ".join(f"{peer}, times as long" for peer in PEERS)
        + " |",
        "|---|" + "--:|" * (6 + len(PEERS)),
    )
    large = [case for case in run.cases if case.floor_ms >= LAUNCH_MS]
    classes = {traffic: [case for case in large if case.traffic == traffic] for traffic in TRAFFIC}
    classes |= {"in rows": [case for case in large if not _is_packed(case)], "packed": list(filter(_is_packed, large))}
    classes |= {"small": [case for case in run.cases if case.floor_ms < LAUNCH_MS], "all": run.cases}
    for name, cases in classes.items():
        shares = sorted(found for case in cases if (found := share(case)) is not None)
        if not shares:
            continue
        slower = [times for case in cases if (times := slower_than_a_peer(case)) is not None]
        least = f"{max(slower):.2f}x" if slower else ""
        figures = (statistics.median(shares), shares[len(shares) // 10], shares[0])
        cells = [f"{figure:.0%}" for figure in figures] + [str(len(slower)), least] + [_ratio(cases, peer) for peer in PEERS]
        yield f"| {name} | {len(shares)} | {' | '.join(cells)} |"


def _is_packed(case: CaseResult) -> bool:
    return any(f", {layout} " in case.name for layout in PACKED)


def _ratio(cases: Sequence[CaseResult], peer: str) -> str:
    """The median of a peer's time over ours, and of how many cases."""
    ratios = [
        theirs.ms / ours.ms for case in cases if (ours := time_of(case, OURS)) and (theirs := time_of(case, peer)) is not None
    ]
    return f"{statistics.median(ratios):.2f} ({len(ratios)})" if ratios else ""


def _worst(run: Run) -> Iterator[str]:
    timed = [(found, case) for case in run.cases if case.floor_ms >= LAUNCH_MS and (found := share(case)) is not None]
    yield from (f"### The {WORST} furthest from the floor", "", "| case | ours | " + " | ".join(PEERS) + " |")
    yield "|---|--:|" + "--:|" * len(PEERS)
    for found, case in sorted(timed, key=lambda pair: pair[0])[:WORST]:
        theirs = [f"{peers:.0%}" if (peers := share(case, peer)) is not None else "" for peer in PEERS]
        yield f"| {case.name} | {found:.0%} | {' | '.join(theirs)} |"
    behind = sorted(((times, case) for case in run.cases if (times := slower_than_a_peer(case))), key=lambda pair: -pair[0])
    if behind:
        yield from ("", "### Where a paged peer is faster", "")
        yield from (f"* {case.name}: {times:.2f}x" for times, case in behind)


def _picture(run: Run) -> str:
    """For each participant, the share of its cases (upwards) that reach at most a share of the floor's speed (rightwards)."""
    marks = [element("title", "Cumulative share of the floor's speed, by participant"), element("style", STYLE + _CURVES)]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x, y = _at(tick, tick)
        marks.append(element("line", x1=x, y1=TOP, x2=x, y2=TOP + HEIGHT, class_="line"))
        marks.append(element("text", f"{tick:.0%}", x=x, y=TOP + HEIGHT + 16, class_="tick"))
        marks.append(element("text", f"{tick:.0%}", x=LEFT - 8, y=y + 4, class_="name"))
    for i, (name, colour) in enumerate(COLOURS.items()):
        shares = sorted(min(found, 1.1) for case in run.cases if (found := share(case, name)) is not None)
        marks.append(element("rect", x=LEFT + 125 * i, y=8, width=10, height=10, class_=colour))
        marks.append(element("text", f"{name} ({len(shares)})", x=LEFT + 125 * i + 14, y=17))
        points = [_at(found, (n + 1) / len(shares)) for n, found in enumerate(shares)]
        drawn = " ".join(f"{x},{y}" for x, y in points)
        marks.append(element("polyline", points=drawn, class_=f"{colour} curve"))
    size = f"0 0 {LEFT + round(1.1 * WIDTH) + 10} {TOP + HEIGHT + 24}"
    drawing = element("svg", *marks, xmlns="http://www.w3.org/2000/svg", viewBox=size, role="img")
    return ElementTree.tostring(drawing, encoding="unicode") + "\n"


def _at(right: float, up: float) -> tuple[int, int]:
    return LEFT + round(WIDTH * right), TOP + round(HEIGHT * (1 - up))
