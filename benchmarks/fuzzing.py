"""Examples per second of one fuzzing worker, and where its time goes: `python -m benchmarks.fuzzing`."""

import tempfile
import time
from pathlib import Path

import click
import torch
from attn_fuzz import engine
from attn_fuzz.case import Case
from attn_fuzz.check import Verdict
from attn_fuzz.engine import Plan
from attn_fuzz.executor import Executor
from rich.console import Console
from rich.table import Table


class _Undone(Executor):
    """An executor that agrees with everything at once: what is left is Hypothesis."""

    def run(self, case: Case) -> Verdict:
        return Verdict(kind="agree")


@click.command()
@click.option("--examples", type=click.IntRange(min=1), default=300, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True)
@click.option("--target", "targets", multiple=True, default=("triton", "reference-fp32"), show_default=True)
def main(examples: int, seed: int, targets: tuple[str, ...]) -> None:
    """Fuzz each target with one worker and print milliseconds per example."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("target", "examples/s", "ms: target", "judge", "build", "Hypothesis", "processes"):
        table.add_column(column, justify="left" if column == "target" else "right")
    with tempfile.TemporaryDirectory() as folder:
        for target in targets:
            plan = Plan(target=target, device=device, examples=examples, seed=seed, folder=Path(folder))
            started = time.perf_counter()
            engine.fuzz(plan, _Undone(target, device, 1.0, Path(folder, "none")))
            drawing = time.perf_counter() - started
            with engine.start_executor(plan) as executor:
                executor.start()
                started = time.perf_counter()
                progress = engine.fuzz(plan, executor)
                seconds = time.perf_counter() - started
            inside = [progress.spent[name] for name in ("target", "judge", "build")]
            parts = [*inside, drawing, max(0.0, seconds - sum(inside) - drawing)]
            row = [f"{1000 * part / progress.examples:.1f}" for part in parts]
            table.add_row(target, f"{progress.examples / seconds:.1f}", *row)
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
