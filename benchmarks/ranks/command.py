"""`python -m benchmarks ranks`: decode over ranks, checked and timed against one GPU."""

import json
import tempfile
import time
from collections.abc import Sequence
from multiprocessing import active_children
from pathlib import Path
from typing import TYPE_CHECKING

import click
from attn_parity.console import notes, plain_table, results
from attn_parity.options import seconds_option

from benchmarks.measuring.clock import Budget
from benchmarks.measuring.device import use_device
from benchmarks.options import cases_named, commit_option, json_option, only_option, tiny_option

if TYPE_CHECKING:
    from torch.multiprocessing.spawn import ProcessContext

    from benchmarks.ranks.results import RanksCase


@click.command("ranks")
@click.option(
    "--ranks", "num_ranks", type=click.IntRange(min=1), default=2, show_default=True, help="Number of ranks, with one GPU each."
)
@only_option("cases")
@json_option("at the end")
@commit_option
@seconds_option("--budget", 420.0, "Stop the ranks after this many seconds.")
@tiny_option("A few small steps over gloo, interpreted, on a CPU")
def command(
    num_ranks: int, only: tuple[str, ...], json_file: Path | None, commit: str | None, budget: float, tiny: bool
) -> int:
    """Check and time attention over ranks that share the keys of each request (NCCL, or gloo with --tiny).

    Cases named "step: ..." are whole steps of latent attention: through the backend TRITON_MLA, and by attend_over_ranks alone.
    The first cases of a kind are only checked. Exit 1 if a rank's output is not one GPU's, or a rank fails.
    """
    device = use_device(tiny=tiny, gpus=num_ranks, tiny_on_cpu=True)
    checks, timed = _cases(num_ranks, only, tiny=tiny)
    from benchmarks.ranks.results import RanksCase, RanksRun

    run = RanksRun.begun(device, {}, commit, tiny=tiny, ranks=num_ranks)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "found.jsonl")
        file.touch()
        problem = _over_processes(num_ranks, Path(folder), file, device.type, checks, timed, budget)
        # a rank that was killed may have written half of its last line
        run.cases = [RanksCase(**json.loads(line)) for line in file.read_text().rpartition("\n")[0].splitlines()]
    _print(run.cases, num_ranks)
    run.write(json_file)
    if wrong := [case.name for case in run.cases if any(error > 1 for error in case.error.values())]:
        notes.print(f"wrong: {', '.join(wrong)}")
    if problem:
        left = [case.name for case in (*checks, *timed)][len(run.cases) :]
        notes.print(f"{problem}; not run by all ranks: {', '.join(left)}")
    return 130 if problem == INTERRUPTED else int(bool(wrong or problem))


def _cases(num_ranks: int, only: tuple[str, ...], *, tiny: bool) -> tuple[list, list]:
    """The cases that are only checked, and the cases that are timed, too.

    Raises:
        click.BadParameter: there is none, or ranks cannot share the heads of one.
    """
    from benchmarks.ranks.cases import CHECKS, TIMED, TINY

    checks, timed = ((), TINY) if tiny else (CHECKS, TIMED)
    chosen = cases_named([*checks, *timed], only)
    if uneven := [case for case in chosen if case.num_heads % num_ranks]:
        raise click.BadParameter(f"{num_ranks} ranks cannot share {uneven[0].num_heads} heads", param_hint="--ranks")
    return [case for case in chosen if case in checks], [case for case in chosen if case in timed]


INTERRUPTED = "interrupted"


def _over_processes(
    num_ranks: int, folder: Path, file: Path, device_type: str, checks: list, timed: list, budget: float
) -> str:
    """Run the cases over ranks. A rank that fails ends the others, and so does the end of the budget.

    Args:
        folder: in which ranks meet.
        file: to which rank 0 adds a line for each case.

    Returns:
        Why not all cases ran; empty if they did.
    """
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

    from benchmarks.ranks import rank

    arguments = (num_ranks, folder, file, device_type, checks, timed)
    context = spawn(rank.main, arguments, nprocs=num_ranks, join=False, daemon=True)
    assert context is not None
    try:
        return "" if _ended(context, budget) else f"ended after {budget:g} seconds; --budget gives more"
    except KeyboardInterrupt:
        return INTERRUPTED
    except (ProcessRaisedException, ProcessExitedException) as error:
        return str(error).strip()
    finally:
        for process in active_children():
            process.kill()
            process.join()


def _ended(context: "ProcessContext", seconds: float) -> bool:
    """True if all ranks end in time."""
    budget = Budget(time.monotonic(), seconds)
    while not context.join(max(0.0, budget.left)):
        if budget.left <= 0:
            return False
    return True


def _print(found: Sequence["RanksCase"], num_ranks: int) -> None:
    numbers = ("error of its bound", *_TIMES)
    table = plain_table("case", "cache", f"one GPU, or {num_ranks} ranks by", *numbers, right=numbers)
    for case in found:
        for number, (way, error) in enumerate(case.error.items()):
            head = ("", "") if number else (case.name, f"{case.cache_gigabytes:.2f} GB")
            table.add_row(*head, way, f"{error:.2f}", *(_time(getattr(case, times), way) for times in _TIMES.values()))
    results.print(table)


_TIMES = {"eager, ms": "eager", "graph, ms": "graph", "building its metadata, ms": "build"}


def _time(of_ways: dict[str, float], way: str) -> str:
    """Milliseconds, and how many times as fast as one GPU that is."""
    from benchmarks.ranks.results import ONE

    if way not in of_ways:
        return ""
    ms, alone = of_ways[way], of_ways.get(ONE)
    return f"{ms:.3f} ({alone / ms:.2f}x)" if alone is not None and way != ONE else f"{ms:.3f}"
