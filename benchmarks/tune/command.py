"""`python -m benchmarks tune`: better launch parameters, for the GPU that is here or from binaries for one that is not."""

import functools
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
from attn_parity.console import results
from attn_parity.options import Positive, Seed, cpu_workers_option, seconds_option

from benchmarks.measuring.clock import Budget
from benchmarks.measuring.device import saved_at_the_end, use_device
from benchmarks.options import commit_option, json_option, only_option, tiny_option

if TYPE_CHECKING:
    import torch
    from attn_optimized.launch.table import Entry

    from benchmarks.steps.cases import Attention
    from benchmarks.tune.classes import CallClass
    from benchmarks.tune.results import Tuning

COMPUTE_UNITS = 128
"""The number assumed of a GPU that is not here. Whatever it is, some cases of each class split keys, and others do not."""
TABLE_OF_TINY = "sm90"
"""The architecture whose launch table a `--tiny` run begins with: an interpreter has none."""


@click.command("tune")
@click.option(
    "--arch",
    metavar="NAME",
    help="Rank candidates by their binaries, for this AMD architecture, such as gfx942; no GPU is needed.",
)
@click.option("--drawn", "number", type=Positive, default=100, show_default=True, help="Number of steps to draw.")
@click.option("--seed", type=Seed, required=True, help="The seed of the drawn steps: another one than the published page has.")
@only_option("classes of calls")
@seconds_option("--budget", 3600.0, "Stop after about this many seconds.")
@cpu_workers_option
@json_option("after each class: all candidates and times")
@commit_option
@click.option("--write", is_flag=True, help="Update the architecture's launch table, after each class.")
@tiny_option("Few candidates in cases of some tens of keys, on a CPU")
def command(
    arch: str | None,
    number: int,
    seed: int,
    only: tuple[str, ...],
    budget: float,
    workers: int,
    json_file: Path | None,
    commit: str | None,
    write: bool,
    tiny: bool,
) -> None:
    """Search for better launch parameters of the attention kernel, in steps drawn from models and traffic.

    On a GPU, candidates are compiled, checked and timed in the drawn steps of their class, beside today's parameters, which
    stay unless one is faster beyond the spread. With --arch, they are compiled only, and ranked by the facts of their binaries.
    """
    whole = Budget(time.monotonic(), budget)
    if tiny and (write or arch):
        raise click.UsageError("--tiny: its results have no value, and are neither written nor of an architecture")
    os.environ.pop("TRITON_INTERPRET", None)
    gpu = _gpu(arch, tiny=tiny)
    from attn_optimized.launch import table as launch_table

    _check_table(gpu, write=write)
    by_class, refused = _cases(number, seed, only, gpu, of_all_classes=arch is not None)
    run = _begun(gpu, refused, f"{f' --arch {arch}' if arch else ''} --drawn {number} --seed {seed}", commit, tiny=tiny)
    saved = _Saved(run, json_file, gpu.architecture if write else None)

    def so_far() -> str:
        return f"{len(by_class) - len(run.unfinished)} classes searched, {len(run.unfinished)} not"

    with saved_at_the_end(saved, so_far):
        _search(run, gpu, by_class, workers, whole, saved, tiny=tiny)
    if run.unfinished:
        results.print(f"no time left for {'; '.join(run.unfinished)}: --budget gives more")
    results.print(f"{len(saved.entries)} of {len(run.classes)} classes have better parameters")
    if write and saved.entries:
        results.print(f"written: {launch_table.FOLDER / f'{gpu.architecture}.json'}")
    elif saved.entries:
        results.print("nothing is written without --write")


class _Gpu(NamedTuple):
    """The GPU for which parameters are searched. `is_here`: `device` is this GPU, or the CPU that interprets in its place."""

    device: "torch.device"
    architecture: str
    compute_units: int
    is_here: bool


def _gpu(arch: str | None, *, tiny: bool) -> _Gpu:
    import torch

    if arch:
        return _Gpu(torch.device("cpu"), arch, COMPUTE_UNITS, is_here=False)
    device = use_device(tiny=tiny, tiny_on_cpu=True, instead="--arch NAME derives from binaries, ")
    from attn_optimized.device import architecture_of, compute_units_of

    units = COMPUTE_UNITS if tiny else compute_units_of(device)
    return _Gpu(device, architecture_of(device, torch.bfloat16), units, is_here=True)


def _check_table(gpu: _Gpu, *, write: bool) -> None:
    from attn_optimized.launch import table as launch_table
    from attn_parity.files import check_writable

    from benchmarks.tune.space import check_derivable

    if not gpu.is_here:
        check_derivable(gpu.architecture)
    if write:
        check_writable(launch_table.FOLDER / f"{gpu.architecture}.json", "--write")


def _cases(
    number: int, seed: int, only: tuple[str, ...], gpu: _Gpu, *, of_all_classes: bool
) -> tuple[dict["CallClass", list["Attention"]], dict[str, str]]:
    """The calls, by class, of drawn steps that our kernels serve, and by name why other steps are refused.

    Args:
        of_all_classes: True if a class that no model has gets cases, too.
    """
    from benchmarks.steps.drawn import draw_cases
    from benchmarks.tune import classes

    drawn, refused = classes.served(draw_cases(number, seed), gpu.architecture, gpu.compute_units)
    found = classes.cases_by_class(drawn, gpu.compute_units)
    if of_all_classes:
        found |= {each: classes.stand_ins(each, found, gpu.compute_units) for each in classes.CLASSES if each not in found}
    by_class = {each: cases for each, cases in found.items() if cases and (not only or any(text in each.name for text in only))}
    if not by_class:
        raise click.BadParameter(
            f"no class of {number} drawn steps has {' or '.join(map(repr, only))} in its name, such as "
            f"{classes.CLASSES[0].name!r}",
            param_hint="--only",
        )
    return by_class, refused


def _begun(gpu: _Gpu, refused: dict[str, str], options: str, commit: str | None, *, tiny: bool) -> "Tuning":
    from benchmarks.tune.results import Tuning

    architecture = TABLE_OF_TINY if tiny else gpu.architecture
    run = Tuning.begun(
        gpu.device, {}, commit, tiny=tiny, derived=not gpu.is_here, architecture=architecture, source="", refused=refused
    )
    of_machine = f"measured: {run.machine}, torch {run.versions['torch']}, " if gpu.is_here else ""
    of_triton = f"Triton {run.versions['triton']}, {time.strftime('%Y-%m-%d')}"
    run.source = f"{of_machine}{of_triton}, python -m benchmarks tune{options}"
    for name, why in refused.items():
        results.print(f"left out: {name}: {why}")
    return run


class _Saved:
    """Writes the results of a run so far, and the choice for a class into the launch table.

    Args:
        path: the path of the JSON file; None: nothing is written.
        table: the architecture whose launch table is updated; None: no table is.
    """

    def __init__(self, run: "Tuning", path: Path | None, table: str | None) -> None:
        self._run, self._path, self._table = run, path, table
        self.entries: dict[CallClass, Entry] = {}

    def __call__(self, call_class: "CallClass | None" = None) -> None:
        """
        Args:
            call_class: the class whose search has ended; None: no class.
        """
        from benchmarks.tune import table
        from benchmarks.tune.search import entry_of_choice

        self._run.write(self._path)
        if call_class is None:
            return
        searched = next(each for each in self._run.classes if each.name == call_class.name)
        if (entry := entry_of_choice(call_class, searched, self._run.source)) is not None:
            self.entries[call_class] = entry
            if self._table is not None:
                table.write(self._table, self.entries)


def _search(
    run: "Tuning",
    gpu: _Gpu,
    by_class: dict["CallClass", list["Attention"]],
    workers: int,
    budget: Budget,
    save: _Saved,
    *,
    tiny: bool,
) -> None:
    """Search on the GPU that is here, or by the binaries for one that is not."""
    from attn_binaries import shipped_calls

    from benchmarks.tune.compilers import compiled, in_parallel
    from benchmarks.tune.facts import WorstFacts
    from benchmarks.tune.run import derive, measure

    # engines' caches are large; on a GPU the compiled calls are the timed ones
    cache_bytes = 0 if gpu.is_here else shipped_calls.CACHE_BYTES
    compiler = functools.partial(
        compiled, architecture=gpu.architecture, compute_units=gpu.compute_units, cache_bytes=cache_bytes
    )
    # interpreted kernels are not compiled
    compile_all = (lambda jobs, *_: {job: WorstFacts() for job in jobs}) if tiny else in_parallel(compiler, workers)
    if gpu.is_here:
        measure(run, by_class, gpu.device, compile_all, budget=budget, save=save, is_tiny=tiny)
    else:
        derive(run, by_class, compile_all, budget=budget, save=save)
