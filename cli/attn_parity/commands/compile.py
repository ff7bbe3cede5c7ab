"""`attn-parity compile`: compile every kernel that ships, for GPUs that need not be here, and show what the compilers make."""

import dataclasses
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from attn_fuzz.errors import InputError
from attn_fuzz.run.executor import use_interpreter
from attn_parity.binaries.architectures import ARCHITECTURES
from attn_parity.binaries.build import COMPILE_SECONDS, SHIPPED, Launches, Outcome, build
from attn_parity.console import notes, results
from attn_parity.options import (
    Positive,
    Seed,
    check_writable,
    cpu_workers_option,
    json_option,
    progress_bar,
    seconds_option,
    write_json,
)
from attn_parity.versions import version

if TYPE_CHECKING:
    from attn_optimized.kernel_call import KernelCall

    Calls = dict[str, dict[str, KernelCall]]
    """The launches by architecture and then by name."""

SCHEMA = "attn-parity.compile/1"
EXAMPLES = 30

architectures_option = click.option(
    "--arch", "architectures", metavar="A,B,...", help="Architectures to compile for; default: all."
)
only_option = click.option("--only", default="", metavar="TEXT", help="Compile only launches whose name contains TEXT.")
compile_seconds_option = seconds_option("--compile-seconds", COMPILE_SECONDS, "Seconds that a launch may take to compile.")


@click.command("compile")
@click.argument("target", required=False)
@architectures_option
@only_option
@compile_seconds_option
@click.option(
    "--save",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write code objects into this folder, with a description of how to launch them.",
)
@click.option(
    "--examples", type=Positive, default=EXAMPLES, show_default=True, help="With TARGET: the number of calls to draw."
)
@click.option("--seed", type=Seed, default=0, show_default=True, help="With TARGET: the seed of the drawn calls.")
@cpu_workers_option
@json_option
def command(
    target: str | None,
    architectures: str | None,
    only: str,
    compile_seconds: float,
    save: Path | None,
    examples: int,
    seed: int,
    workers: int,
    json_file: Path | None,
) -> int:
    """Compile every kernel that ships, or that drawn calls of a TARGET launch: registers, spills, LDS, matrix instructions.

    Exit 1 when one does not compile, or its binary cannot be right; else 2 when one has no code after --compile-seconds.
    """
    check_writable(json_file)
    if target is not None:
        if save is not None:
            raise click.UsageError("--save takes no TARGET: it saves only the launches that ship")
        return _of_target(target, architectures, only, compile_seconds, examples, seed, workers, json_file)
    calls = chosen_calls(architectures, only=only)
    if save is not None:
        save.mkdir(parents=True, exist_ok=True)
        check_writable(save / "launches.json", "--save")
    outcome = built(calls, workers, compile_seconds)
    if save is not None:
        from attn_parity.binaries.saving import save_binaries

        written = save_binaries(save, outcome.binaries, calls)
        notes.print(f"{written} code objects in {save}, described by launches.json")
    return _told(outcome, json_file)


def _of_target(
    target: str,
    architectures: str | None,
    only: str,
    compile_seconds: float,
    examples: int,
    seed: int,
    workers: int,
    json_file: Path | None,
) -> int:
    """Compile what drawn calls of a target launch. Launches with the same code are one row."""
    from attn_fuzz.targets import registry
    from attn_parity.binaries import target_calls

    use_interpreter("cpu")
    chosen = [name for name in chosen_architectures(architectures) if architectures or name.startswith("gfx")]
    launches = {}
    with tempfile.TemporaryDirectory() as scratch:
        for architecture in chosen:
            loaded = registry.load(f"{target}@{architecture}")  # what interprets it is not asked for
            if loaded.modules is None:
                raise InputError(f"{target}: its code is not Triton's: only kernels of Triton are compiled here")
            recording = target_calls.recorded(target, architecture, seed, examples, compile_seconds, Path(scratch))
            count = len(recording.launches)
            results.print(f"{architecture}: {recording.drawn} drawn calls of {loaded.name} launch {count} specializations")
            for error, times in recording.raised.most_common(3):
                notes.print(f"{times} of these calls raised {error}", soft_wrap=True)
            launches[architecture] = {name: each for name, each in recording.launches.items() if only in name}
    if not any(launches.values()):
        raise click.UsageError(f"--only: no launch is named so: {only}")
    others = ("attn_parity.binaries.target_calls", pickle.dumps(launches))
    return _told(built(launches, workers, compile_seconds, others), json_file, merges=True)


def _told(outcome: Outcome, json_file: Path | None, *, merges: bool = False) -> int:
    """Print what was compiled, write it, and return the exit code."""
    from attn_parity.binaries import rows

    compiled, errors = rows.rows_of(outcome), rows.errors_of(outcome)
    compiled = rows.merged(compiled) if merges else compiled
    over = [f"{row.architecture} {row.call}: {fault}" for row in compiled for fault in row.facts.faults]
    rows.print_tables(compiled)
    for line in (*over, *errors):
        results.print(line, soft_wrap=True)
    triton, begun = version("triton") or "", "interrupted; so far: " if outcome.interrupted else ""
    results.print(f"{begun}{len(compiled)} compiled with Triton {triton}, {len(over)} wrong, {rows.uncompiled(outcome)}")
    if json_file:
        found = {"binaries": [dataclasses.asdict(row) for row in compiled], "over": over, "errors": list(errors)}
        write_json(json_file, {"schema": SCHEMA, "triton": triton, **found})
    return 130 if outcome.interrupted else rows.exit_code(over, outcome)


def chosen_architectures(given: str | None) -> tuple[str, ...]:
    """The architectures of A,B,...; if none is given, all whose facts are known and that this Triton serves."""
    from attn_optimized.device import missing_compiler

    served = tuple(name for name in ARCHITECTURES if not missing_compiler(name))
    chosen = tuple(dict.fromkeys(given.split(","))) if given else served
    if unknown := [name for name in chosen if name not in ARCHITECTURES]:
        raise click.UsageError(f"--arch: got {', '.join(unknown)}, expected some of {', '.join(ARCHITECTURES)}")
    if missing := next(filter(None, map(missing_compiler, chosen)), None):
        raise click.UsageError(f"--arch: {missing}")
    return chosen


def chosen_calls(architectures: str | None, *, only: str = "", main: bool = False) -> "Calls":
    """The launches that ship and whose names hold a text, by architecture and name."""
    names = chosen_architectures(architectures)
    if any(name.startswith("gfx") for name in names):
        import attn_amdgcn  # noqa: F401  # needs the extra `emulated`
    from attn_parity.binaries.shipped_calls import chosen  # imports Triton

    calls = {name: chosen(name, only=only, main=main) for name in names}
    if not any(calls.values()):
        raise click.UsageError(f"--only: no launch is named so: {only}")
    return calls


def built(
    calls: "Mapping[str, Mapping[str, Any]]", workers: int, compile_seconds: float, launches: Launches = SHIPPED
) -> Outcome:
    """Compile launches behind a progress bar.

    Args:
        launches: tells the compiling processes where to find the launches.
    """
    jobs = [(architecture, name) for architecture, some in calls.items() for name in some]
    with progress_bar(len(jobs)) as show_bar:
        at_once = min(workers, len(jobs))
        return build(jobs, at_once, lambda done: show_bar(done, 0), launches, compile_seconds)
