"""Exhaustive runs, measured: `python -m benchmarks.exhausting cost` prints what a call costs, in milliseconds of this process's
CPU time, by kind of work."""

import time
from collections import defaultdict

import click
import torch
from attn_fuzz.cases import tensors
from attn_fuzz.cases.case import Case
from attn_fuzz.exact import interpreter as exact_interpreter
from attn_fuzz.exhaustive import judging, run
from attn_fuzz.exhaustive.scope import SCOPES, Scope
from attn_fuzz.interpreted import interpreter
from attn_fuzz.run.attempt import Attempt
from attn_fuzz.run.checks import CHECKS
from attn_fuzz.run.executor import use_interpreter
from attn_fuzz.run.trial import followed
from attn_fuzz.targets import registry
from attn_fuzz.targets.target import Target
from attn_fuzz.verdict.verdict import Verdict
from rich.console import Console

results = Console(highlight=False, width=200)


@click.group()
def main() -> None:
    """Exhaustive runs, measured."""


@main.command()
@click.option("--target", default="triton", show_default=True)
@click.option("--scope", "name", type=click.Choice(list(SCOPES)), default="ci", show_default=True)
@click.option("--every", type=click.IntRange(min=1), default=20, show_default=True, help="Measure every so many launches.")
@click.option("--exact", "exactly", is_flag=True, help="Follow each launch in exact mode, too.")
def cost(target: str, name: str, every: int, exactly: bool) -> None:
    """Run some launches of a scope on the CPU, in this process, and print milliseconds of CPU time per call."""
    use_interpreter("cpu")
    torch.set_num_threads(1)
    interpreter.install()
    if exactly:
        exact_interpreter.install()
    own = registry.usable(target, "cpu")
    _spend(next(run.numbered(SCOPES[name], target, own, "cpu", []))[1].case, own, defaultdict(float), exactly)  # imports
    for part in SCOPES[name].parts:
        calls, spent = 0, defaultdict[str, float](float)
        alone = Scope(name=part.what, what="", parts=(part,))
        for number, launch in run.numbered(alone, target, own, "cpu", []):
            if number % every == 0:
                calls += launch.num_calls
                _spend(launch.case, own, spent, exactly)
        each = ", ".join(f"{kind} {1000 * seconds / max(calls, 1):.2f}" for kind, seconds in spent.items())
        results.print(
            f"{part.what}, {calls} calls, {1000 * sum(spent.values()) / max(calls, 1):.2f} ms of CPU per call: {each}"
        )


def _spend(case: Case, target: Target, spent: dict[str, float], exactly: bool) -> None:
    """Add the CPU seconds of each kind of work on a launch."""
    started = time.process_time()
    tensors.build(case)
    built = time.process_time()
    attempt = Attempt(case, target, "cpu")
    ran = time.process_time()
    for _, check in CHECKS:
        check(attempt)
    checked = time.process_time()
    judging.judge_together(case, attempt.step, target.rounding("cpu"))
    spent["build"] += built - started
    spent["target"] += ran - built - (built - started)
    spent["checks of memory"] += checked - ran
    judged = time.process_time()
    spent["judge"] += judged - checked
    if exactly:
        verdict = followed(case, target, "cpu", Verdict(kind="agree", seconds={"judge": 0.0}))
        assert verdict.kind == "agree", verdict.message
        spent["exact mode"] += time.process_time() - judged


if __name__ == "__main__":
    main()
