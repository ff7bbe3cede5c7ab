"""docs/generated/performance-host.md, from the JSON files in docs/generated/performance-host."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks import PAGES
from benchmarks.host.results import HostRun, Step, read_folder
from benchmarks.speed.page import heading

FOLDER = PAGES / "performance-host"
PAGE = PAGES / "performance-host.md"


def contents(runs: dict[Path, HostRun]) -> dict[Path, str]:
    """What the page holds, by its path."""
    return {PAGE: "\n".join(_page(runs)) + "\n"}


def read() -> dict[Path, HostRun]:
    return read_folder(FOLDER)


def _page(runs: dict[Path, HostRun]) -> Iterator[str]:
    yield from (
        "# What a step costs the host",
        "",
        "`python -m benchmarks page` writes this page from the files in [performance-host](performance-host), which",
        "`python -m benchmarks host --json FILE` makes. An eager step, without CUDA graphs, builds its metadata once. Then",
        "each layer writes this step's keys and values into its cache and attends. Sequences are so short that the GPU waits",
        "for the host. Times are microseconds of one Python thread, the least of 25 rounds of 3 steps in which all take turns.",
        "",
        "Our backends run whole, with all their checks. Of vLLM and AITER only the functions run that launch the Triton",
        "kernels, with arguments that are made once: an engine's own work in a layer comes on top of their times, and so does",
        "their metadata.",
    )
    for run in runs.values():
        yield from heading(run)
        for step in run.steps:
            yield from _table(step, run.layers)


def _table(step: Step, layers: int) -> Iterator[str]:
    yield from (
        f"### {step.name}",
        "",
        f"| us | metadata, a step | cache write, a layer | attention, a layer | the whole step, by its {layers} layers |",
        "|---|--:|--:|--:|--:|",
    )
    for participant, times in step.times.items():
        cells = (times.build, times.write, times.attention, times.layer)
        yield f"| {participant} | {' | '.join('' if us is None else f'{us:.0f}' for us in cells)} |"
    yield ""
    for why in step.refused.values():
        yield f"* Not measured: {why}"
    if step.refused:
        yield ""
