"""`attn-parity zoo`: put known bugs back, one at a time, and look for them."""

import tempfile
from pathlib import Path
from typing import Any

import click
import msgspec
from attn_fuzz import engine, runner, targets
from attn_fuzz.cli.options import (
    Positive,
    Seed,
    check_writable,
    default_workers,
    device_name,
    device_option,
    json_option,
    limit_option,
    plain_table,
    progress_bar,
    results,
    use_device,
    workers_option,
    write_json,
)
from attn_fuzz.engine import Plan, Progress
from attn_fuzz.executor import ExecutorError
from attn_fuzz.zoo import mutants
from attn_fuzz.zoo.mutants import Mutant, MutantError

SCHEMA = "attn-parity.zoo/1"
EXAMPLES = 500


@click.command("zoo")
@click.option("--only", multiple=True, metavar="NAME", help="Just this mutant; may be given more than once.")
@click.option("--dir", "folder", type=click.Path(file_okay=False, path_type=Path), help="Mutants of your own, *.toml.")
@click.option("--examples", type=Positive, default=EXAMPLES, show_default=True, help="Per mutant at most.")
@click.option("--seed", type=Seed, default=0, show_default=True)
@workers_option
@limit_option
@device_option
@json_option
def command(
    only: tuple[str, ...],
    folder: Path | None,
    examples: int,
    seed: int,
    workers: int | None,
    limit: float,
    device: str,
    json_file: Path | None,
) -> int:
    """Put real bugs back, one at a time, and see whether the fuzzer finds each; exit 1 when one survives."""
    device = use_device(device)
    check_writable(json_file)
    residents = _chosen(mutants.load_all(folder) if folder else mutants.load_all(), only)
    for mutant in residents:
        targets.usable(mutant.target, device)
    with tempfile.TemporaryDirectory() as scratch, progress_bar(len(residents)) as show_bar:
        plans = [
            Plan(target=m.target, device=device, examples=examples, seed=seed, folder=Path(scratch), limit=limit, mutant=m)
            for m in residents
        ]
        done = [engine.Progress() for _ in plans]

        def show(index: int, progress: engine.Progress) -> None:
            done[index] = progress
            show_bar(sum(p.failure is not None for p in done), sum(p.examples + p.shrinking for p in done))

        outcome = runner.run(plans, workers or default_workers(device), stop_at_failure=False, report=show)
    if outcome.error:
        raise ExecutorError(outcome.error)
    table = plain_table(
        "mutant", "origin", "found", "examples", "seconds", "by", "smallest case", right=("examples", "seconds")
    )
    rows = [_row(mutant, progress) for mutant, progress in zip(residents, outcome.progress, strict=True)]
    for row in rows:
        found = "found" if row["found"] else "SURVIVED"
        size = _size(row["case"]) if row["case"] else ""
        table.add_row(row["name"], row["origin"], found, str(row["examples"]), f"{row['seconds']:.1f}", row["by"] or "", size)
    results.print(table)
    if json_file:
        write_json(json_file, {"schema": SCHEMA, "seed": seed, "device": device_name(device), "mutants": rows})
    return 130 if outcome.interrupted else int(not all(row["found"] for row in rows))


def _chosen(residents: list[Mutant], only: tuple[str, ...]) -> list[Mutant]:
    names = [mutant.name for mutant in residents]
    if unknown := sorted(set(only) - set(names)):
        raise MutantError(f"--only: got {', '.join(unknown)}, expected some of {', '.join(names)}")
    return [mutant for mutant in residents if not only or mutant.name in only]


def _size(case: dict[str, Any]) -> str:
    requests = case.get("requests", [])
    queries, keys = (sum(request[name] for request in requests) for name in ("query_len", "seq_len"))
    counts = {"request": len(requests), "query row": queries, "key": keys}
    return ", ".join(f"{count} {name}{'s' * (count != 1)}" for name, count in counts.items())


def _row(mutant: Mutant, progress: Progress) -> dict[str, Any]:
    failure = progress.failure
    return {
        "name": mutant.name,
        "origin": mutant.origin,
        "class": mutant.kind,
        "found": failure is not None,
        "examples": failure.found_after if failure else progress.examples,
        "seconds": round(failure.found_seconds if failure else progress.seconds, 3),
        "by": failure.verdict.kind if failure else None,
        "minimal": failure.minimal if failure else None,
        "case": msgspec.to_builtins(failure.case) if failure else None,
    }
