"""The launches that each participant would make for a case, and their facts: in a process without Triton's interpreter.

Our launches are known before they run. A peer's wrapper is called, and its launches are kept instead of run.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from attn_amdgcn import Accesses, load, prepare
from attn_amdgcn.counts import totals
from attn_contract import UnsupportedError
from attn_fuzz.emulated.compilation import compiled_kernel, launchable
from attn_fuzz.emulated.compiler import Ready
from attn_fuzz.emulated.emulation import run_ready
from attn_optimized.kernel_call import KernelCall
from attn_parity.binaries.architectures import ARCHITECTURES
from attn_parity.binaries.facts import facts_of
from triton import JITFunction

from benchmarks.peers.loops import hot_loop
from benchmarks.peers.results import Row
from benchmarks.speed.calls import FLOAT8, FLOAT8_OF, Call, attention_call
from benchmarks.speed.cases import Attention
from benchmarks.speed.check import LIMIT, expected_rows, relative_error, sampled_rows
from benchmarks.speed.launches import launches
from benchmarks.speed.participants import AITER, OURS, VLLM, aiter_triton, vllm_triton
from benchmarks.speed.peers import load_aiter, load_vllm

CPU, META, SEED = torch.device("cpu"), torch.device("meta"), 1
_PEERS = {VLLM: (load_vllm, vllm_triton), AITER: (load_aiter, aiter_triton)}


class Launch(NamedTuple):
    """kernel[grid](*arguments, **named), which has not happened.

    Attributes:
        grid: programs, or a function of the arguments that returns them, as Triton allows.
    """

    kernel: JITFunction
    grid: Any
    arguments: tuple[Any, ...]
    named: dict[str, Any]


class Launches(NamedTuple):
    """A participant's launches for a call, in order, and the rows [T, H, D] that they write."""

    all: list[Launch]
    out: torch.Tensor


def launches_of(call: Call, architecture: str, whose: str, folder: Path | None) -> Launches:
    """A participant's launches for a call on an architecture.

    Raises:
        UnsupportedError: it cannot express the call.
    """
    return ours(call, architecture) if whose == OURS else theirs(call, whose, _loaded(whose, folder, architecture))


def ours(call: Call, architecture: str) -> Launches:
    """This project's launches: the attention kernel, and the kernels that follow it."""
    out, units = torch.empty_like(call.q), ARCHITECTURES[architecture].compute_units
    return Launches([_launch(each) for each in launches(call, out=out, architecture=architecture, compute_units=units)], out)


def _launch(call: KernelCall) -> Launch:
    of = call.launch
    return Launch(of.kernel, of.grid, (), call.arguments | of.constants | of.options)


def theirs(call: Call, whose: str, module: SimpleNamespace) -> Launches:
    """The launches of a peer's wrapper, with all arguments.

    Raises:
        UnsupportedError: it cannot express the case.
    """
    prepared = _PEERS[whose][1](module, call)
    with _recorded() as found:
        returned = prepared.run()
    return Launches(found, prepared.output(returned))


@functools.lru_cache
def _loaded(whose: str, folder: Path | None, architecture: str) -> SimpleNamespace:
    return _PEERS[whose][0](folder, architecture)


@contextmanager
def _recorded() -> Iterator[list[Launch]]:
    """While it lasts, launches of Triton's kernels are kept, and none happens."""
    kept: list[Launch] = []

    def keep(kernel: JITFunction, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> None:
        kept.append(Launch(kernel, grid, arguments, named))

    run = JITFunction.run
    JITFunction.run = keep
    try:
        yield kept
    finally:
        JITFunction.run = run


def rows_of(kind: str, cases: dict[str, Attention], architecture: str, name: str, whose: str, folder: Path | None) -> list[Row]:
    """The rows of a participant's launches in a case, in their order; none if it refuses the case.

    Args:
        kind: a key of FACTS.
        folder: a peer's, see `benchmarks.speed.peers`.
    """
    device = CPU if kind == "counts" else META
    call = attention_call(cases[name], device, SEED, FLOAT8_OF.get(architecture, FLOAT8))
    try:
        found = launches_of(call, architecture, whose, folder)
    except UnsupportedError:
        return []
    rows = [_row(FACTS[kind], Row(architecture, name, whose, launch.kernel.fn.__name__), launch) for launch in found.all]
    if kind == "counts":
        needed = {"needed": round(call.case.flops / 2)}
        return [row._replace(facts=row.facts | needed, why=row.why or _wrong(call, found.out)) for row in rows]
    if kind == "bounds":  # the reductions of parts have no matrix instruction
        return [row for row in rows if row.facts.get("matrix")] or rows[:1]
    return rows


def _row(facts: Callable[[str, Launch], tuple[dict[str, float], str]], row: Row, launch: Launch) -> Row:
    try:
        found, why = facts(row.architecture, launch)
    except Exception as error:  # any error of a compiler is a result
        return row.without(f"{type(error).__name__}: {error}")
    return row._replace(facts=found, why=why)


def _of_binary(architecture: str, launch: Launch) -> tuple[dict[str, float], str]:
    binary, _ = _compiled(architecture, launch)
    facts = facts_of(binary, architecture)
    wanted, there = facts.lds_bytes, facts.lds_limit
    known = {name: fact for name, fact in dataclasses.asdict(facts).items() if fact is not None and name != "lds_limit"}
    why = f"{wanted / 1024:.3g} KiB of LDS, of {there / 1024:.3g}" if wanted > there else ""
    return {"num_warps": binary.metadata.num_warps, **known}, why


def _of_hot_loop(architecture: str, launch: Launch) -> tuple[dict[str, float], str]:
    binary, _ = _compiled(architecture, launch)
    turn, waves = hot_loop(binary.asm["amdgcn"]), facts_of(binary, architecture).waves or 0
    found = {"num_warps": binary.metadata.num_warps, "waves": waves}
    return (found, "no loop with matrix instructions") if turn is None else (found | turn._asdict(), "")


def _of_run(architecture: str, launch: Launch) -> tuple[dict[str, float], str]:
    """Run a launch on the emulator, and count."""
    binary, source = _compiled(architecture, launch)
    compiled = launchable(binary, source)
    program = prepare(load(compiled.text))
    arguments: dict[str, Any] = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False)) | launch.named
    grid = tuple(launch.grid(arguments) if callable(launch.grid) else launch.grid)
    accesses = Accesses(architecture)
    report = run_ready(Ready(program, compiled), arguments, grid, watches=(accesses,))
    x, y, z, *_ = (*grid, 1, 1)
    return {"programs": x * y * z, "num_warps": int(binary.metadata.num_warps), **totals(program, report, accesses)}, ""


def _compiled(architecture: str, launch: Launch) -> Any:
    return compiled_kernel(launch.kernel, architecture, *launch.arguments, **launch.named)


def _wrong(call: Call, out: torch.Tensor) -> str:
    """The fault in an output, in words; empty if there is none."""
    rows = sampled_rows(call)
    error = relative_error(out[rows], expected_rows(call, rows))
    return "" if error <= LIMIT else f"wrong: relative error {error:.2g}"


FACTS = {"binaries": _of_binary, "bounds": _of_hot_loop, "counts": _of_run}
"""For each kind of run, the function that gives the facts of a launch and the faults in it."""
