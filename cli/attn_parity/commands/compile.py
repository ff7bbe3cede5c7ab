"""`attn-parity compile`: compile every kernel that ships, for GPUs that need not be here, and show what the compilers make."""

import pickle
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

import click
from attn_binaries import rows
from attn_binaries.build import Outcome
from attn_binaries.rows import Row
from attn_fuzz.errors import InputError
from attn_fuzz.run.processes.executor import use_interpreter
from attn_parity.console import notes, results
from attn_parity.files import check_writable, write_json
from attn_parity.launches import (
    architectures_option,
    built,
    chosen_architectures,
    chosen_calls,
    compile_seconds_option,
    only_option,
    print_tables,
)
from attn_parity.options import Positive, Seed, cpu_workers_option, json_option, record_of
from attn_parity.versions import version

EXAMPLES = 30


class Compile(TypedDict):
    """The result of `attn-parity compile`: launches, faults of binaries, and the launches that do not compile."""

    schema: Literal["attn-parity.compile/1"]
    triton: str
    binaries: Sequence[Row]
    over: Sequence[str]
    errors: Sequence[str]


@dataclass(frozen=True)
class Options:
    target: str | None
    architectures: str | None
    only: str
    compile_seconds: float
    examples: int
    seed: int
    workers: int
    json_file: Path | None


@click.command("compile")
@click.argument("target", required=False)
@architectures_option
@only_option
@compile_seconds_option
@click.option(
    "--examples", type=Positive, default=EXAMPLES, show_default=True, help="With TARGET: the number of calls to draw."
)
@click.option("--seed", type=Seed, default=0, show_default=True, help="With TARGET: the seed of the drawn calls.")
@cpu_workers_option
@json_option
@record_of(Options)
def command(options: Options) -> int:
    """Compile every kernel that ships, or that drawn calls of a TARGET launch: registers, spills, LDS, matrix instructions.

    Exit 1 when one does not compile, or its binary cannot be right; else 2 when one has no code after --compile-seconds.
    """
    check_writable(options.json_file)
    if options.target is not None:
        return _of_target(options.target, options)
    calls = chosen_calls(options.architectures, only=options.only)
    return _report_outcome(built(calls, options.workers, options.compile_seconds), options.json_file)


def _of_target(target: str, options: Options) -> int:
    """Compile what drawn calls of a target launch. Launches with the same code are one row."""
    from attn_binaries import target_calls
    from attn_fuzz.targets import registry

    use_interpreter("cpu")
    given = options.architectures
    chosen = [name for name in chosen_architectures(given) if given or name.startswith("gfx")]
    launches = {}
    with tempfile.TemporaryDirectory() as scratch:
        for architecture in chosen:
            loaded = registry.load(f"{target}@{architecture}")  # whether it runs here does not matter
            if loaded.modules is None:
                raise InputError(f"{target}: its code is not Triton's: only kernels of Triton are compiled here")
            recording = target_calls.recorded(
                target, architecture, options.seed, options.examples, options.compile_seconds, Path(scratch)
            )
            count = len(recording.launches)
            results.print(f"{architecture}: {recording.drawn} drawn calls of {loaded.name} launch {count} specializations")
            for error, times in recording.raised.most_common(3):
                notes.print(f"{times} of these calls raised {error}")
            launches[architecture] = {name: each for name, each in recording.launches.items() if options.only in name}
    if not any(launches.values()):
        raise click.UsageError(f"--only: no launch has {options.only!r} in its name")
    others = ("attn_binaries.target_calls", pickle.dumps(launches))
    outcome = built(launches, options.workers, options.compile_seconds, others)
    return _report_outcome(outcome, options.json_file, merges=True)


def _report_outcome(outcome: Outcome, json_file: Path | None, *, merges: bool = False) -> int:
    """Print what was compiled, write it, and return the exit code."""
    compiled, errors = rows.rows_of(outcome), rows.errors_of(outcome)
    compiled = rows.merged(compiled) if merges else compiled
    over = [f"{row.architecture} {row.call}: {fault}" for row in compiled for fault in row.facts.faults]
    print_tables(compiled)
    for line in (*over, *errors):
        results.print(line)
    triton, begun = version("triton") or "", "interrupted; so far: " if outcome.interrupted else ""
    results.print(f"{begun}{len(compiled)} compiled with Triton {triton}, {len(over)} wrong, {rows.uncompiled(outcome)}")
    if json_file:
        schema = "attn-parity.compile/1"
        write_json(json_file, Compile(schema=schema, triton=triton, binaries=compiled, over=over, errors=errors))
    return 130 if outcome.interrupted else rows.exit_code(over, outcome)
