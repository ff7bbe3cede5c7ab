"""`python -m benchmarks tune`: better launch parameters, for the GPU that is here or from binaries for one that is not."""

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
    from benchmarks.tuning.results import Search

BUDGET = 3600.0
COMPUTE_UNITS = 128
"""Of a GPU that is not here: in some cases of each class keys are split, in others not, whatever it has."""

console = Console(highlight=False, width=160)


@click.command()
@click.option("--arch", metavar="NAME", help="Derive from binaries for an AMD GPU that need not be here, such as gfx942.")
@click.option("--only", multiple=True, metavar="TEXT", help="Classes of calls whose name holds this; all if not given.")
@click.option(
    "--budget", type=click.FloatRange(min=0, min_open=True), default=BUDGET, show_default=True, help="Seconds, about."
)
@click.option("--workers", type=click.IntRange(min=1), default=usable_cpus(), help="Processes that compile; a core each.")
@click.option(
    "--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="All that was tried; written after each class."
)
@click.option("--write", is_flag=True, help="Update the architecture's launch table, after each class.")
@click.option("--tiny", is_flag=True, help="Few candidates in cases of some tens of keys, on a CPU. No result has any value.")
def tune(
    arch: str | None, only: tuple[str, ...], budget: float, workers: int, path: Path | None, write: bool, tiny: bool
) -> None:
    """Search for better launch parameters of the attention kernel.

    On a GPU, candidates are compiled, checked against the reference and timed beside today's parameters, which stay unless one
    is faster beyond the spread. With --arch, they are compiled only, and ranked by the facts of their binaries.
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
    from attn_optimized.device import INTERPRETER, architecture_of, compute_units_of
    from attn_optimized.launch import table as launch_table
    from attn_parity.binaries import shipped_calls
    from attn_parity.options import sigterm_interrupts

    from benchmarks.speed.results import commit
    from benchmarks.speed.results import write as write_json
    from benchmarks.speed.run import DeviceError
    from benchmarks.tuning import classes, results, table
    from benchmarks.tuning import tune as run
    from benchmarks.tuning.compilers import Compilers, compiled
    from benchmarks.tuning.space import check_derivable

    device = torch.device("cuda" if not (tiny or arch) else "cpu")
    architecture = arch or architecture_of(device, torch.bfloat16)
    chosen = [each for each in classes.CLASSES if not only or any(text in each.name for text in only)]
    if not chosen:
        raise click.BadParameter(
            f"no class has {' or '.join(map(repr, only))} in its name, such as {classes.CLASSES[0].name!r}", param_hint="--only"
        )
    try:
        if arch:
            check_derivable(arch)
        if write:
            table.check_writable(launch_table.FOLDER)
    except ContractError as error:
        raise click.UsageError(str(error)) from error

    versions = {"torch": str(torch.__version__), "triton": importlib.metadata.version("triton")}
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    date = time.strftime("%Y-%m-%d")
    machine = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    of_machine = "" if arch else f"measured: {machine}, torch {versions['torch']}, "
    found = results.Tuning(
        of_value=not tiny,
        architecture=architecture,
        machine=machine,
        versions=versions,
        command=command,
        commit=commit(),
        source=f"{of_machine}Triton {versions['triton']}, {date}, python -m benchmarks tune{f' --arch {arch}' if arch else ''}",
    )
    console.print(f"{architecture}, {machine}, {', '.join(f'{name} {version}' for name, version in versions.items())}")
    entries: dict[CallClass, launch_table.Entry] = {}

    def save(call_class: "CallClass | None" = None, searched: "Search | None" = None) -> None:
        if path is not None:
            write_json(found, path)
        if call_class is None or searched is None or (entry := run.chosen_entry(found, call_class, searched)) is None:
            return
        entries[call_class] = entry
        if write:
            table.write(architecture, entries)

    tuning = functools.partial(run.tune, found, chosen, budget=budget, started=started, save=save, console=console)
    try:
        if architecture == INTERPRETER:
            found.architecture = "sm90"  # whose table is the start; its own has none
            tuning(functools.partial(run.interpreted, architecture="sm90"))
        else:
            units = COMPUTE_UNITS if arch else compute_units_of(device)
            # engines' caches are large; on a GPU, what is compiled is what is timed
            cache_bytes = shipped_calls.CACHE_BYTES if arch else 0
            compiler = functools.partial(compiled, architecture=architecture, compute_units=units, cache_bytes=cache_bytes)
            with sigterm_interrupts(), Compilers(compiler, workers) as compilers:
                search = run.derived if arch else functools.partial(run.measured, device=device)
                tuning(functools.partial(search, compilers=compilers, architecture=architecture))
    except KeyboardInterrupt:
        save()
        console.print(f"interrupted: {len(chosen) - len(found.unfinished)} classes searched, {len(found.unfinished)} not")
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
