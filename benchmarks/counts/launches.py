"""Runs a participant's launches for a case on the emulator, and counts: in a process without Triton's interpreter."""

from pathlib import Path
from typing import Any

import torch
from attn_amdgcn import Accesses, load, prepare
from attn_amdgcn.counts import totals
from attn_contract import UnsupportedError
from attn_fuzz.emulated.compilation import compiled_kernel, launchable
from attn_fuzz.emulated.compiler import Ready
from attn_fuzz.emulated.emulation import run_ready

from benchmarks.binaries.launches import Launch, launches_of
from benchmarks.counts.cases import CASES
from benchmarks.counts.results import Row
from benchmarks.speed.calls import FLOAT8, FLOAT8_OF, Call, attention_call
from benchmarks.speed.check import LIMIT, expected_rows, relative_error, sampled_rows

CPU, SEED = torch.device("cpu"), 1


def counted_case(architecture: str, name: str, whose: str, folder: Path | None) -> tuple[Row, ...]:
    """The counts of a participant's launches in a case, in their order; none of what it refuses.

    Args:
        folder: a peer's, see `benchmarks.speed.peers`.
    """
    case = next(case for case in CASES if case.name == name)
    call = attention_call(case, CPU, SEED, FLOAT8_OF.get(architecture, FLOAT8))
    try:
        launches = launches_of(call, architecture, whose, folder)
    except UnsupportedError:
        return ()
    needed = round(case.flops / 2)
    rows = [_row(Row(architecture, name, whose, needed=needed), launch) for launch in launches.all]
    return tuple(row._replace(why=_wrong(call, launches.out)) for row in rows)


def _row(row: Row, launch: Launch) -> Row:
    """Run a launch, and count."""
    binary, source = compiled_kernel(launch.kernel, row.architecture, *launch.arguments, **launch.named)
    compiled = launchable(binary, source)
    program = prepare(load(compiled.text))
    arguments: dict[str, Any] = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False)) | launch.named
    grid = tuple(launch.grid(arguments) if callable(launch.grid) else launch.grid)
    accesses = Accesses(row.architecture)
    report = run_ready(Ready(program, compiled), arguments, grid, watches=(accesses,))
    x, y, z, *_ = (*grid, 1, 1)
    return row._replace(
        kernel=launch.kernel.fn.__name__,
        programs=x * y * z,
        num_warps=int(binary.metadata.num_warps),
        counts=totals(program, report, accesses),
    )


def _wrong(call: Call, out: torch.Tensor) -> str:
    """What is wrong with an output, in words; empty if nothing is."""
    rows = sampled_rows(call)
    error = relative_error(out[rows], expected_rows(call, rows))
    return "" if error <= LIMIT else f"wrong: relative error {error:.2g}"
