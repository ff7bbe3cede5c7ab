"""How many known bugs an exhaustive run finds: `python -m benchmarks.exhausting`.

Each mutant of the zoo is put back, and all calls of a scope are run on its target until one fails. A mutant that is not found
agrees with the reference in every call of the scope: its trigger lies outside, or no output shows it.
"""

import json
import tempfile
import time
from pathlib import Path

import click
from attn_fuzz.errors import ExecutorError, InputError
from attn_fuzz.exhaustive import run
from attn_fuzz.exhaustive.run import Plan, Result
from attn_fuzz.exhaustive.scope import SCOPES
from attn_fuzz.targets import registry
from attn_fuzz.zoo import mutants
from attn_fuzz.zoo.mutants import KnownBug
from rich.console import Console

results = Console(highlight=False, width=200)


@click.command()
@click.option("--scope", "name", type=click.Choice(list(SCOPES)), default="rules", show_default=True)
@click.option("--only", multiple=True, help="Names of mutants; all if not given.")
@click.option("--patches", default="", help="Only mutants with a patch in a module whose name begins so.")
@click.option("--sanitize/--no-sanitize", default=False, show_default=True, help="Check every memory access.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--log", type=click.Path(dir_okay=False, path_type=Path), help="Add a line of JSON for each mutant.")
def main(name: str, only: tuple[str, ...], patches: str, sanitize: bool, workers: int, log: Path | None) -> None:
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


if __name__ == "__main__":
    main()
