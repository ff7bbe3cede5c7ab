"""`python -m benchmarks ranks`: decode over ranks, checked and timed against one GPU."""

import json
import sys
import tempfile
import time
from multiprocessing.connection import wait
from pathlib import Path

import click
from rich.table import Table

SECONDS = 420
SECONDS_AFTER_A_FAILURE = 10


@click.command()
@click.option("--ranks", "num_ranks", type=click.IntRange(min=1), default=2, show_default=True, help="A GPU each.")
@click.option("--only", multiple=True, metavar="TEXT", help="Cases whose name holds this; all if not given.")
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="Write the results here.")
@click.option(
    "--budget", type=click.FloatRange(min=1), default=SECONDS, show_default=True, help="Seconds until ranks are ended."
)
@click.option("--tiny", is_flag=True, help="A few small steps over gloo, interpreted, on a CPU. No time has any value.")
def ranks(num_ranks: int, only: tuple[str, ...], path: Path | None, budget: float, tiny: bool) -> None:
    """Check and time attention over ranks that share the keys of each request (NCCL, or gloo with --tiny).

    Cases named "step: ..." are whole steps of latent attention: through the backend TRITON_MLA, and by attend_over_ranks alone.
    The first cases of a kind are only checked. Exit 1 if a rank's output is not one GPU's, or a rank fails.
    """
    import torch

    from benchmarks.ranks import cases as attention
    from benchmarks.ranks import steps

    if not tiny and torch.cuda.device_count() < num_ranks:
        raise click.UsageError(
            f"torch sees {torch.cuda.device_count()} GPUs, and --ranks asks for {num_ranks}; --tiny needs none"
        )
    checks = [] if tiny else [*attention.CHECKS, *steps.CHECKS]
    timed = [*attention.TINY, *steps.TINY] if tiny else [*attention.TIMED, *steps.TIMED]
    checks, timed = (
        [case for case in cases if not only or any(text in case.name for text in only)] for cases in (checks, timed)
    )
    if not checks and not timed:
        raise click.BadParameter(f"no case has {' or '.join(map(repr, only))} in its name", param_hint="--only")
    if uneven := [case for case in (*checks, *timed) if case.num_heads % num_ranks]:
        raise click.BadParameter(f"{num_ranks} ranks cannot share {uneven[0].num_heads} heads", param_hint="--ranks")
    found = _over_processes(num_ranks, "cpu" if tiny else "cuda", checks, timed, budget)
    of_rank_0, problems = found[0], [line["problem"] for lines in found for line in lines if line["problem"]]
    _print(of_rank_0, num_ranks)
    missing = [case.name for case in (*checks, *timed)][len(of_rank_0) :]
    wrong = [line["name"] for lines in found for line in lines if any(not error <= 1 for error in line["error"].values())]
    if path is not None:
        machine = "CPU" if tiny else torch.cuda.get_device_name()
        path.write_text(
            json.dumps({"machine": machine, "torch": torch.__version__, "ranks": num_ranks, "cases": found}, indent=1)
        )
    for problem in problems:
        click.echo(problem, err=True)
    if missing:
        click.echo(f"not run: {', '.join(missing)}", err=True)
    if wrong:
        click.echo(f"wrong: {', '.join(sorted(set(wrong)))}", err=True)
    sys.exit(bool(problems or missing or wrong))


def _over_processes(num_ranks: int, device_type: str, checks: list, timed: list, budget: float) -> list[list[dict]]:
    """The lines that each rank wrote. Ranks that run beyond the budget are ended, and those that wait for one that failed."""
    import torch.multiprocessing

    from benchmarks.ranks import rank

    spawn = torch.multiprocessing.get_context("spawn")
    deadline = time.monotonic() + budget
    with tempfile.TemporaryDirectory() as folder:
        arguments = (num_ranks, Path(folder), device_type, checks, timed)
        processes = [spawn.Process(target=rank.main, args=(number, *arguments), daemon=True) for number in range(num_ranks)]
        for process in processes:
            process.start()
        running = {process.sentinel for process in processes}
        while running and (left := deadline - time.monotonic()) > 0:
            running.difference_update(wait(running, left))
            if any(process.exitcode for process in processes):
                deadline = min(deadline, time.monotonic() + SECONDS_AFTER_A_FAILURE)
        for process in processes:
            process.kill()
            process.join()
        paths = [Path(folder, f"{number}.jsonl") for number in range(num_ranks)]
        return [[json.loads(line) for line in path.read_text().splitlines()] if path.exists() else [] for path in paths]


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
