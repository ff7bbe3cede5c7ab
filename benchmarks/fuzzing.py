"""Examples per second of a fuzzing worker, where its time goes, and what more workers bring: `python -m benchmarks.fuzzing`.

On a GPU each table is measured twice: kernels are compiled in the first pass, and found in Triton's cache in the second.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import torch
from attn_fuzz.cases.case import Case
from attn_fuzz.run import runner, shard
from attn_fuzz.run.executor import Executor
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.targets import registry
from attn_fuzz.verdict.verdict import Verdict
from attn_parity.cpus import usable_cpus
from attn_parity.options import plain_table
from rich.console import Console
from rich.table import Table

results = Console(highlight=False, width=120)
FIGURES = ("examples/s", "ms: target", "judge", "build", "Hypothesis", "processes")


class _Undone(Executor):
    """An executor that agrees with everything at once: what is left is Hypothesis."""

    def run(self, case: Case, *, exactly: bool | None = None) -> Verdict:
        return Verdict(kind="agree")


@click.command()
@click.option("--examples", type=click.IntRange(min=1), default=300, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True)
@click.option("--target", "names", multiple=True, default=("triton", "reference-fp32"), show_default=True)
@click.option("--workers", type=click.IntRange(min=1), help="At most so many; as many as cores if not given.")
def main(examples: int, seed: int, names: tuple[str, ...], workers: int | None) -> None:
    """Fuzz each target with one worker and print milliseconds per example; then the first one with more."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    passes = ("compiling", "compiled") if device == "cuda" else ("interpreted",)
    with tempfile.TemporaryDirectory() as folder:
        plans = [FuzzPlan(target=name, device=device, examples=examples, seed=seed, folder=Path(folder)) for name in names]
        for kernels in passes:
            results.print(_one_worker(plans, kernels))
        for kernels in passes:
            results.print(_more_workers(plans[0], workers or usable_cpus(), kernels))


def _one_worker(plans: list[FuzzPlan], kernels: str) -> Table:
    table = plain_table("target", "kernels", *FIGURES, right=FIGURES)
    for plan in plans:
        for sanitize in (True, False) if registry.load(plan.target).can_be_sanitized(plan.device) else (False,):
            chosen = msgspec.structs.replace(plan, sanitize=sanitize)
            started = time.perf_counter()
            shard.fuzz(chosen, _Undone(plan.target, plan.device, 1.0, plan.folder / "none"))
            drawing = time.perf_counter() - started
            with shard.start_executor(chosen) as executor:
                executor.start()
                started = time.perf_counter()
                progress = shard.fuzz(chosen, executor)
                seconds = time.perf_counter() - started
            inside = [progress.spent[name] for name in ("target", "judge", "build")]
            parts = [*inside, drawing, max(0.0, seconds - sum(inside) - drawing)]
            row = [f"{1000 * part / progress.examples:.1f}" for part in parts]
            name = f"{plan.target}, sanitized" if sanitize else plan.target
            table.add_row(name, kernels, f"{progress.examples / seconds:.1f}", *row)
    return table


def _more_workers(plan: FuzzPlan, most: int, kernels: str) -> Table:
    table = plain_table("workers", "kernels", "examples/s", "of each", right=("workers", "examples/s", "of each"))
    for workers in _doubled(most):
        # as many examples for each worker, and none that another number of workers has run
        more = msgspec.structs.replace(plan, examples=plan.examples * workers, seed=plan.seed + workers)
        started = time.perf_counter()
        outcome = runner.run(runner.shards(more), workers, stop_at_failure=True)
        rate = sum(progress.examples for progress in outcome.progress) / (time.perf_counter() - started)
        table.add_row(str(workers), kernels, f"{rate:.1f}", f"{rate / workers:.1f}")
    return table


def _doubled(most: int) -> Iterator[int]:
    count = 1
    while count < most:
        yield count
        count *= 2
    yield most


if __name__ == "__main__":
    main()
