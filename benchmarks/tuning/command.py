"""`python -m benchmarks tune`: better launch parameters, for the GPU that is here or from binaries for one that is not."""

import contextlib
import functools
import importlib.metadata
import math
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
from attn_parity.cpus import usable_cpus
from rich.console import Console

if TYPE_CHECKING:
    from benchmarks.tuning.classes import CallClass

BUDGET = 3600.0
COMPUTE_UNITS = 128
"""Of a GPU that is not here: in some cases of each class keys are split, in others not, whatever it has."""
TINY = 2
"""Candidates of each stage beside today's in `--tiny`."""

console = Console(highlight=False, width=160)


@click.command()
@click.option("--arch", metavar="NAME", help="Derive from binaries for an AMD GPU that need not be here, such as gfx942.")
@click.option("--drawn", "number", type=click.IntRange(min=1), default=100, show_default=True, help="Steps that are drawn.")
@click.option("--seed", type=click.IntRange(min=0), required=True, help="Of the draw: not that of the published page.")
@click.option("--only", multiple=True, metavar="TEXT", help="Classes of calls whose name holds this; all if not given.")
@click.option(
    "--budget", type=click.FloatRange(min=0, min_open=True), default=BUDGET, show_default=True, help="Seconds, about."
)
@click.option("--workers", type=click.IntRange(min=1), default=usable_cpus(), help="Processes that compile; a core each.")
@click.option(
    "--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="All that was tried; written after each class."
)
@click.option("--commit", "of_commit", help="Where git does not know it.")
@click.option("--write", is_flag=True, help="Update the architecture's launch table, after each class.")
@click.option("--tiny", is_flag=True, help="Few candidates in cases of some tens of keys, on a CPU. No result has any value.")
def tune(
    arch: str | None,
    number: int,
    seed: int,
    only: tuple[str, ...],
    budget: float,
    workers: int,
    path: Path | None,
    of_commit: str | None,
    write: bool,
    tiny: bool,
) -> None:
    """Search for better launch parameters of the attention kernel, in steps drawn from models and traffic.

    On a GPU, candidates are compiled, checked and timed in the drawn steps of their class, beside today's parameters, which
    stay unless one is faster beyond the spread. With --arch, they are compiled only, and ranked by the facts of their binaries.
    """
    started = time.monotonic()
    import torch

    if tiny and (write or arch):
        raise click.UsageError("--tiny: its results have no value, and are neither written nor of an architecture")
    if math.isnan(budget):
        raise click.BadParameter("nan is no number of seconds", param_hint="--budget")
    if path is not None and not path.absolute().parent.is_dir():
        raise click.BadParameter(f"{path.parent} is no folder", param_hint="--json")
    if not (tiny or arch or torch.cuda.is_available()):
        raise click.UsageError(
            "torch sees no GPU here; --arch NAME derives from binaries, --tiny interprets tiny cases, whose times have no value"
        )
    os.environ.pop("TRITON_INTERPRET", None)
    if tiny:
        os.environ["TRITON_INTERPRET"] = "1"
        from attn_fuzz.interpreted.interpreter import install

        install()
    from attn_contract import ContractError
    from attn_optimized.device import architecture_of, compute_units_of
    from attn_optimized.launch import table as launch_table
    from attn_parity.binaries import shipped_calls
    from attn_parity.options import sigterm_interrupts

    from benchmarks.speed import machine as gpu
    from benchmarks.speed.drawn import draw_cases
    from benchmarks.speed.results import commit
    from benchmarks.speed.results import write as write_json
    from benchmarks.speed.run import DeviceError
    from benchmarks.tuning import classes, results, table
    from benchmarks.tuning import tune as run
    from benchmarks.tuning.compilers import Compilers, compiled
    from benchmarks.tuning.search import entry_of_choice
    from benchmarks.tuning.space import check_derivable

    device = torch.device("cuda" if not (tiny or arch) else "cpu")
    architecture = arch or architecture_of(device, torch.bfloat16)
    units = COMPUTE_UNITS if tiny or arch else compute_units_of(device)
    try:
        if arch:
            check_derivable(arch)
        if write:
            table.check_writable(launch_table.FOLDER)
    except ContractError as error:
        raise click.UsageError(str(error)) from error
    drawn, refused = classes.served(draw_cases(number, seed), architecture, units)
    by_class = classes.cases_by_class(drawn, units)
    if arch:  # entries of all classes, whether a model has such calls or not
        by_class |= {each: classes.stand_ins(each, by_class) for each in classes.CLASSES if each not in by_class}
    named = {each for each in by_class if not only or any(text in each.name for text in only)}
    by_class = {each: cases for each, cases in by_class.items() if cases and each in named}
    if not by_class:
        raise click.BadParameter(
            f"no class of {number} drawn steps has {' or '.join(map(repr, only))} in its name, such as "
            f"{classes.CLASSES[0].name!r}",
            param_hint="--only",
        )

    versions = {"torch": str(torch.__version__), "triton": importlib.metadata.version("triton")}
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    date = time.strftime("%Y-%m-%d")
    machine = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    options = f"{f' --arch {arch}' if arch else ''} --drawn {number} --seed {seed}"
    of_machine = "" if arch else f"measured: {machine}, torch {versions['torch']}, "
    found = results.Tuning(
        of_value=not tiny,
        architecture=architecture,
        machine=machine,
        versions=versions,
        command=command,
        commit=of_commit or commit(),
        source=f"{of_machine}Triton {versions['triton']}, {date}, python -m benchmarks tune{options}",
        refused=refused,
    )
    console.print(f"{architecture}, {machine}, {', '.join(f'{name} {version}' for name, version in versions.items())}")
    for name, why in refused.items():
        console.print(f"left out: {name}: {why}", soft_wrap=True)
    entries: dict[CallClass, launch_table.Entry] = {}

    def save(call_class: "CallClass | None" = None) -> None:
        if path is not None:
            write_json(found, path)
        if call_class is None:
            return
        searched = next(each for each in found.classes if each.name == call_class.name)
        if (entry := entry_of_choice(call_class, searched, found.source)) is not None:
            entries[call_class] = entry
            if write:
                table.write(architecture, entries)

    here = {"budget": budget, "started": started, "save": save, "console": console}
    try:
        if tiny:
            found.architecture = "sm90"  # whose table is the start; an interpreter has none
        # engines' caches are large; on a GPU, what is compiled is what is timed
        cache_bytes = shipped_calls.CACHE_BYTES if arch else 0
        compiler = functools.partial(compiled, architecture=architecture, compute_units=units, cache_bytes=cache_bytes)
        processes = contextlib.nullcontext(run.NothingToCompile()) if tiny else Compilers(compiler, workers)
        with sigterm_interrupts(), processes as compilers:
            if arch:
                run.derive(found, by_class, compilers, **here)
            else:
                found.rates = gpu.rates(device, tiny=tiny)
                most = TINY if tiny else None
                run.measure(found, drawn, by_class, device, compilers, found.rates, most=most, **here)
    except KeyboardInterrupt:
        save()
        console.print(f"interrupted: {len(by_class) - len(found.unfinished)} classes searched, {len(found.unfinished)} not")
        sys.exit(130)
    except DeviceError as error:
        save()
        raise click.ClickException(str(error)) from error
    if found.unfinished:
        console.print(f"no time left for {'; '.join(found.unfinished)}: --budget gives more")
    console.print(f"{len(entries)} of {len(found.classes)} classes have better parameters")
    if write and entries:
        console.print(f"written: {launch_table.FOLDER / f'{architecture}.json'}")
    elif entries:
        console.print("nothing is written without --write")
