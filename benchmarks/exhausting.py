"""Exhaustive runs, measured: `python -m benchmarks.exhausting zoo` and `python -m benchmarks.exhausting cost`.

`zoo` puts each mutant of the zoo back, and runs all calls of a scope on its target until one fails. A mutant that is not found
agrees with the reference in every call of the scope: its trigger lies outside, or no output shows it.

`cost` prints what a call costs, in milliseconds of this process's CPU time, by kind of work.
"""

import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import click
import torch
from attn_fuzz.cases import tensors
from attn_fuzz.cases.case import Case
from attn_fuzz.errors import ExecutorError, InputError
from attn_fuzz.exhaustive import judging, run
from attn_fuzz.exhaustive.run import Plan, Result
from attn_fuzz.exhaustive.scope import SCOPES, Scope
from attn_fuzz.interpreted import interpreter
from attn_fuzz.run.attempt import Attempt
from attn_fuzz.run.checks import CHECKS
from attn_fuzz.run.executor import use_interpreter
from attn_fuzz.targets import registry
from attn_fuzz.targets.target import Target
from attn_fuzz.zoo import mutants
from attn_fuzz.zoo.mutants import KnownBug
from rich.console import Console

results = Console(highlight=False, width=200)


@click.group()
def main() -> None:
    """Exhaustive runs, measured."""


@main.command()
@click.option("--scope", "name", type=click.Choice(list(SCOPES)), default="rules", show_default=True)
@click.option("--only", multiple=True, help="Names of mutants; all if not given.")
@click.option("--patches", default="", help="Only mutants with a patch in a module whose name begins so.")
@click.option("--sanitize/--no-sanitize", default=False, show_default=True, help="Check every memory access.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--log", type=click.Path(dir_okay=False, path_type=Path), help="Add a line of JSON for each mutant.")
def zoo(name: str, only: tuple[str, ...], patches: str, sanitize: bool, workers: int, log: Path | None) -> None:
    """Put each mutant back, run a scope until a call fails, and print what was found."""
    found = 0
    chosen = [mutant for mutant in mutants.load_all() if (not only or mutant.name in only) and _is_in(mutant, patches)]
    for mutant in chosen:
        started = time.monotonic()
        words, failed = _tried(mutant, name, sanitize, workers)
        seconds = time.monotonic() - started
        found += failed
        results.print(f"{mutant.name}: {'found' if failed else 'not found'}, {words}; {seconds:.0f} s", soft_wrap=True)
        if log is not None:
            line = {"mutant": mutant.name, "scope": name, "found": failed, "words": words, "seconds": seconds}
            with log.open("a") as file:
                file.write(json.dumps(line) + "\n")
    results.print(f"scope {name}: {found} of {len(chosen)} mutants found")


def _is_in(mutant: KnownBug, module: str) -> bool:
    return not mutant.needs_gpu and any(patch.place.startswith(module) for patch in mutant.patches)


def _tried(mutant: KnownBug, name: str, sanitize: bool, workers: int) -> tuple[str, bool]:
    """What became of a mutant in words, and whether a call failed."""
    ended: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(
            target=mutant.target,
            device="cpu",
            scope=name,
            workers=workers,
            folder=Path(folder),
            sanitize=sanitize,
            mutant=mutant,
        )
        try:
            target = registry.usable(mutant.target, "cpu")
            run.run(plan, run.numbered(SCOPES[name], mutant.target, target, "cpu", []), ended.append)
        except (InputError, ExecutorError) as error:
            return f"it cannot be run: {error}", False
    calls = f"{sum(result.calls for result in ended):,} calls in {len(ended):,} launches"
    failures = [result.failed for result in ended if result.failed is not None]
    if not failures:
        return f"{calls} agree; trigger: {mutant.trigger}", False
    case, verdict = failures[0].case, failures[0].verdict
    lengths = ", ".join(f"{request.query_len}/{request.seq_len}" for request in case.requests)
    return f"after {calls}: {verdict.kind}, rules {sorted(case.rules)}, queries/keys {lengths}", True


@main.command()
@click.option("--target", default="triton", show_default=True)
@click.option("--scope", "name", type=click.Choice(list(SCOPES)), default="ci", show_default=True)
@click.option("--every", type=click.IntRange(min=1), default=20, show_default=True, help="Measure every so many launches.")
def cost(target: str, name: str, every: int) -> None:
    """Run some launches of a scope on the CPU, in this process, and print milliseconds of CPU time per call."""
    use_interpreter("cpu")
    torch.set_num_threads(1)
    interpreter.install()
    own = registry.usable(target, "cpu")
    _spend(next(run.numbered(SCOPES[name], target, own, "cpu", []))[1].case, own, defaultdict(float))  # imports
    for part in SCOPES[name].parts:
        calls, spent = 0, defaultdict[str, float](float)
        alone = Scope(name=part.what, what="", parts=(part,))
        for number, launch in run.numbered(alone, target, own, "cpu", []):
            if number % every == 0:
                calls += launch.num_calls
                _spend(launch.case, own, spent)
        each = ", ".join(f"{kind} {1000 * seconds / max(calls, 1):.2f}" for kind, seconds in spent.items())
        results.print(
            f"{part.what}, {calls} calls, {1000 * sum(spent.values()) / max(calls, 1):.2f} ms of CPU per call: {each}"
        )


def _spend(case: Case, target: Target, spent: dict[str, float]) -> None:
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
    spent["judge"] += time.process_time() - checked


if __name__ == "__main__":
    main()
