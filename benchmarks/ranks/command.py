"""`python -m benchmarks ranks`: decode over ranks, checked and timed against one GPU."""

import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks.timed import cases_named, check_options, interruptible

SECONDS = 420
SECONDS_AFTER_A_FAILURE = 10
SECONDS_BETWEEN_LOOKS = 0.5
"""At what ranks have found, which is saved."""

console = Console(highlight=False, width=160)


@click.command()
@click.option("--ranks", "num_ranks", type=click.IntRange(min=1), default=2, show_default=True, help="A GPU each.")
@click.option("--only", multiple=True, metavar="TEXT", help="Cases whose name holds this; all if not given.")
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="Written after each case.")
@click.option(
    "--budget", type=click.FloatRange(min=1), default=SECONDS, show_default=True, help="Seconds until ranks are ended."
)
@click.option("--tiny", is_flag=True, help="A few small steps over gloo, interpreted, on a CPU. No time has any value.")
def ranks(num_ranks: int, only: tuple[str, ...], path: Path | None, budget: float, tiny: bool) -> None:
    """Check and time attention over ranks that share the keys of each request (NCCL, or gloo with --tiny).

    Cases named "step: ..." are whole steps of latent attention: through the backend TRITON_MLA, and by attend_over_ranks alone.
    The first cases of a kind are only checked. Exit 1 if a rank's output is not one GPU's, or a rank fails.
    """
    check_options(budget, path)
    import torch
    from attn_parity.options import write_json

    if not tiny and torch.cuda.device_count() < num_ranks:
        raise click.UsageError(
            f"torch sees {torch.cuda.device_count()} GPUs, and --ranks asks for {num_ranks}; --tiny needs none"
        )
    checks, timed = _cases(num_ranks, only, tiny=tiny)
    names = [case.name for case in (*checks, *timed)]
    machine = "CPU" if tiny else torch.cuda.get_device_name()
    found: list[list[dict]] = [[] for _ in range(num_ranks)]

    def save() -> None:
        if path is not None:
            write_json(path, {"machine": machine, "torch": torch.__version__, "ranks": num_ranks, "cases": found})

    def so_far() -> str:
        return f"{_num_done(found)} cases run, {len(names) - _num_done(found)} not"

    try:
        with interruptible(save, so_far, console):
            failed = _over_processes("cpu" if tiny else "cuda", checks, timed, budget, found, save)
    finally:
        _print(found[0], num_ranks)
    problems = [*_problems(found, names), *failed]
    for problem in problems:
        click.echo(problem, err=True)
    sys.exit(bool(problems))


def _cases(num_ranks: int, only: tuple[str, ...], *, tiny: bool) -> tuple[list, list]:
    """The cases that are only checked, and the cases that are timed, too.

    Raises:
        click.BadParameter: there is none, or ranks cannot share the heads of one.
    """
    from benchmarks.ranks import cases as attention
    from benchmarks.ranks import steps

    checks = [] if tiny else [*attention.CHECKS, *steps.CHECKS]
    timed = [*attention.TINY, *steps.TINY] if tiny else [*attention.TIMED, *steps.TIMED]
    chosen = cases_named([*checks, *timed], only)
    if uneven := [case for case in chosen if case.num_heads % num_ranks]:
        raise click.BadParameter(f"{num_ranks} ranks cannot share {uneven[0].num_heads} heads", param_hint="--ranks")
    return [case for case in chosen if case in checks], [case for case in chosen if case in timed]


def _over_processes(
    device_type: str, checks: list, timed: list, budget: float, found: list[list[dict]], save: Callable[[], None]
) -> list[str]:
    """Run the cases over as many ranks as `found` has lists, and say which rank did not end well.

    Ranks that run beyond the budget are ended, and those that wait for one that failed.

    Args:
        found: filled with what each rank has found of each case, whatever ends this function.
        save: called whenever there is more of it.
    """
    import torch.multiprocessing

    from benchmarks.ranks import rank

    spawn = torch.multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        arguments = (len(found), Path(folder), device_type, checks, timed)
        processes = [spawn.Process(target=rank.main, args=(number, *arguments), daemon=True) for number in range(len(found))]
        look = partial(_look, Path(folder), found, save)
        try:
            for process in processes:
                process.start()
            _wait(processes, budget, look)
            return list(_failures(processes, budget))
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                    process.join()
            look()


def _wait(processes: list[BaseProcess], budget: float, look: Callable[[], None]) -> None:
    """Until ranks have ended, the budget is over, or one has failed and the others have had time to notice it."""
    deadline = time.monotonic() + budget
    running = {process.sentinel for process in processes}
    while running and (left := deadline - time.monotonic()) > 0:
        running.difference_update(wait(running, min(left, SECONDS_BETWEEN_LOOKS)))
        look()
        if any(process.exitcode for process in processes):
            deadline = min(deadline, time.monotonic() + SECONDS_AFTER_A_FAILURE)
    for process in processes:
        if process.sentinel not in running:  # the sentinel comes before the exit code
            process.join(SECONDS_AFTER_A_FAILURE)


def _look(folder: Path, found: list[list[dict]], save: Callable[[], None]) -> None:
    """Take over what ranks have written since. A line may not be at its end yet, or never if its rank was killed."""
    paths = [folder / f"{number}.jsonl" for number in range(len(found))]
    written = [path.read_text().rpartition("\n")[0].splitlines() if path.exists() else [] for path in paths]
    if any(len(lines) > len(known) for lines, known in zip(written, found, strict=True)):
        found[:] = [[json.loads(line) for line in lines] for lines in written]
        save()


def _failures(processes: list[BaseProcess], budget: float) -> Iterator[str]:
    """Which ranks did not end well, and how they ended. Those that still run are about to be ended."""
    codes = [process.exitcode for process in processes]
    for number, code in enumerate(codes):
        if code is None and any(codes):
            yield f"rank {number}: ended {SECONDS_AFTER_A_FAILURE} seconds after another had failed"
        elif code is None:
            yield f"rank {number}: ended after {budget:g} seconds; --budget gives more"
        elif code < 0:
            yield f"rank {number}: ended by signal {-code} ({signal.strsignal(-code)})"
        elif code:
            yield f"rank {number}: exit code {code}"


def _problems(found: list[list[dict]], names: list[str]) -> Iterator[str]:
    """A sentence for each fault in the ranks' results."""
    yield from (line["problem"] for lines in found for line in lines if line["problem"])
    if missing := names[_num_done(found) :]:
        yield f"not run by all ranks: {', '.join(missing)}"
    wrong = {line["name"] for lines in found for line in lines if any(not error <= 1 for error in line["error"].values())}
    if wrong:
        yield f"wrong: {', '.join(sorted(wrong))}"


def _num_done(found: list[list[dict]]) -> int:
    """Cases that every rank has run."""
    return min(map(len, found))


def _print(lines: list[dict], num_ranks: int) -> None:
    from attn_parity.console import results

    table = Table("case", "cache", f"one GPU, or {num_ranks} ranks by", "error of its bound", *_TIMES)
    for line in lines:
        for number, (way, error) in enumerate(line["error"].items()):
            head = ("", "") if number else (line["name"], f"{line['cache_gigabytes']:.2f} GB")
            table.add_row(*head, way, f"{error:.2f}", *(_time(line[times], way) for times in _TIMES.values()))
        table.add_section()
    results.print(table)


_TIMES = {"eager, ms": "eager", "graph, ms": "graph", "building its metadata, ms": "build"}


def _time(of_ways: dict[str, float], way: str) -> str:
    """Milliseconds, and how many times as fast as one GPU that is."""
    from benchmarks.ranks.rank import ONE

    if way not in of_ways:
        return ""
    ms, alone = of_ways[way], of_ways.get(ONE)
    return f"{ms:.3f} ({alone / ms:.2f}x)" if alone is not None and way != ONE else f"{ms:.3f}"
