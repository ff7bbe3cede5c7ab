"""`attn-parity fuzz`: the main job."""

import re
import secrets
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import msgspec
from attn_fuzz import engine, report, runner, targets
from attn_fuzz.cli.options import (
    Duration,
    Positive,
    Seed,
    check_writable,
    default_workers,
    device_name,
    device_option,
    json_option,
    limit_option,
    progress_bar,
    results,
    use_device,
    workers_option,
    write_json,
)
from attn_fuzz.engine import Failure, Plan
from attn_fuzz.executor import ExecutorError

SCHEMA = "attn-parity.fuzz/1"
PROFILES = {"ci": 300, "nightly": 20_000, "soak": 1_000_000}
_PROFILES = ", ".join(f"{name} {examples}" for name, examples in PROFILES.items())


@click.command("fuzz")
@click.option("--target", "target_name", default="triton", show_default=True, help="What to check; see `targets`.")
@click.option("--profile", type=click.Choice(list(PROFILES)), default="ci", show_default=True, help=f"Examples: {_PROFILES}.")
@click.option("--examples", type=Positive, help="Cases to draw, instead of the profile's number.")
@click.option("--minutes", type=Duration, help="Stop drawing after so long.")
@click.option("--seed", type=Seed, help="Draws the same cases again; chosen and printed if not given.")
@workers_option
@limit_option
@device_option
@json_option
@click.option(
    "--report",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("attn-parity-runs"),
    show_default=True,
    help="Folder for failing cases.",
)
def command(
    target_name: str,
    profile: str,
    examples: int | None,
    minutes: float | None,
    seed: int | None,
    workers: int | None,
    limit: float,
    device: str,
    json_file: Path | None,
    folder: Path,
) -> int:
    """Draw cases, run them on a target, judge them. The main job."""
    device = use_device(device)
    target = targets.usable(target_name, device)
    check_writable(json_file)
    folder.mkdir(parents=True, exist_ok=True)
    seed = secrets.randbelow(1 << 31) if seed is None else seed
    plan = Plan(
        target=target_name,
        device=device,
        examples=examples or PROFILES[profile],
        seed=seed,
        folder=folder,
        limit=limit,
        until=time.time() + 60 * minutes if minutes else None,
    )
    plans = runner.shards(plan)
    workers = workers or default_workers(device)
    results.print(f"target {target.name} on {device_name(device)}, {plan.examples} examples, {workers} workers, --seed {seed}")
    started = time.monotonic()
    with progress_bar(plan.examples) as show_bar:
        done = [engine.Progress() for _ in plans]

        def show(index: int, progress: engine.Progress) -> None:
            done[index] = progress
            show_bar(sum(p.examples for p in done), sum(p.shrinking for p in done))

        outcome = runner.run(plans, workers, stop_at_failure=True, report=show)
    seconds = time.monotonic() - started
    failures = _distinct(outcome.progress)
    name = re.sub(r"[^\w.+-]+", "-", target.name)[:80]
    written = [
        report.write(failure.case, failure.verdict, folder, f"{name}-{seed}" + (f"-{i + 1}" if i else ""))
        for i, failure in enumerate(failures)
    ]
    for i, (failure, (case_path, script_path)) in enumerate(zip(failures, written, strict=True)):
        if i:
            results.print("another shard failed too, perhaps for the same reason:")
        results.print(report.summary(failure.case, failure.verdict))
        size = "smallest case" if failure.minimal else "failing case, not yet the smallest"
        results.print(f"{size}: {case_path}   script: {script_path}", soft_wrap=True)
        results.print(f"again: attn-parity replay {case_path}", soft_wrap=True)
    total = sum(p.examples for p in outcome.progress)
    refused = sum(p.refused for p in outcome.progress)
    ratio = max((p.ratio for p in outcome.progress), default=0.0)
    events = sum((Counter(p.events) for p in outcome.progress), Counter[str]())
    paths = "".join(f", {count} {name}" for name, count in sorted(events.items()))
    results.print(
        f"{total} examples in {seconds:.1f} s ({total / seconds:.1f}/s), "
        + _verdict(total, refused, ratio, failures, outcome)
        + paths
    )
    if json_file:
        spent = {name: sum(p.spent.get(name, 0.0) for p in outcome.progress) for name in ("build", "target", "judge")}
        write_json(
            json_file,
            {
                "schema": SCHEMA,
                "target": target.name,
                "device": device_name(device),
                "seed": seed,
                "workers": workers,
                "planned": plan.examples,
                "examples": total,
                "refused": refused,
                "events": dict(sorted(events.items())),
                "seconds": round(seconds, 3),
                "spent": {name: round(value, 3) for name, value in spent.items()},
                "max_ratio": ratio,
                "interrupted": outcome.interrupted,
                "error": outcome.error,
                "failures": [_as_json(failure, *paths) for failure, paths in zip(failures, written, strict=True)],
            },
        )
    if outcome.error:
        raise ExecutorError(outcome.error)
    if failures:
        return 1
    return 130 if outcome.interrupted else 0


def _distinct(progress: list[engine.Progress]) -> list[Failure]:
    """Each failing case once, those that were made small first, then in the order of their shards."""
    failures = {p.failure.case: p.failure for p in progress if p.failure is not None}
    return sorted(failures.values(), key=lambda failure: not failure.minimal)


def _verdict(total: int, refused: int, ratio: float, failures: list[Failure], outcome: runner.Outcome) -> str:
    interrupted = "interrupted: " if outcome.interrupted else ""
    if failures:
        return f"{interrupted}{len(failures)} failing"
    if not total:
        return f"{interrupted}nothing was checked"
    agree = "no failure so far" if outcome.interrupted or outcome.error else "all agree"
    return f"{interrupted}{agree}{f', {refused} refused' if refused else ''}, largest error {ratio:.2f} of its bound"


def _as_json(failure: Failure, case_path: Path, script_path: Path) -> dict[str, Any]:
    return {
        "kind": failure.verdict.kind,
        "message": failure.verdict.message,
        "found_after": failure.found_after,
        "minimal": failure.minimal,
        "case": msgspec.to_builtins(failure.case),
        "case_file": str(case_path),
        "script": str(script_path),
    }
