"""`python -m benchmarks host`: what a step costs the host, by backend, beside vLLM's and AITER's functions."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from benchmarks.options import aiter_option, commit_option, only_option, vllm_option
from benchmarks.timed import cases_named, head_of_run, interruptible, use_device

if TYPE_CHECKING:
    from benchmarks.host.results import Step, Times
    from benchmarks.host.steps import Parts

ROUNDS, CALLS = 25, 3
"""A time is of a few steps, since a device queues only a limited number of launches before the host waits."""
console = Console(highlight=False, width=140)


@click.command()
@click.option(
    "--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="Write the results into this file after each case."
)
@only_option
@vllm_option
@aiter_option
@commit_option
@click.option("--tiny", is_flag=True, help="Two layers of tiny cases, on a CPU too. No result has any value.")
def host(
    path: Path | None, only: tuple[str, ...], vllm: Path | None, aiter: Path | None, commit: str | None, tiny: bool
) -> None:
    """Measure the host's time of eager steps of 32 layers: metadata once, then a cache write and attention in each layer.

    Our backends run whole, with their checks. Of vLLM and AITER only the functions run that launch the kernels, with arguments
    that are made once.
    """
    from attn_parity.files import check_writable

    check_writable(path)
    device = use_device(tiny=tiny)
    from benchmarks.host.results import SCHEMA, HostRun, Step
    from benchmarks.host.steps import CASES, LAYERS, TINY, participants
    from benchmarks.speed import peers, results

    chosen = cases_named(TINY if tiny else CASES, only)
    try:
        kernels = peers.load_all(vllm, aiter, console.print)
    except peers.MissingPeerError as error:
        raise click.ClickException(str(error)) from error
    head = head_of_run(device, kernels.versions, commit, console, tiny=tiny)
    run = HostRun(schema=SCHEMA, **head, layers=2 if tiny else LAYERS)

    def save() -> None:
        if path is not None:
            results.write(run, path)

    with interruptible(save, lambda: f"{len(run.steps)} of {len(chosen)} cases measured", console):
        for case in chosen:
            joined = dict(participants(case, run.layers, device, kernels))
            refused = {name: parts for name, parts in joined.items() if isinstance(parts, str)}
            times = measured({name: parts for name, parts in joined.items() if not isinstance(parts, str)}, run.layers)
            run.steps.append(Step(name=case.name, times=times, refused=refused))
            _tell(run.steps[-1], run.layers)
            save()


def measured(joined: Mapping[str, "Parts"], num_layers: int) -> dict[str, "Times"]:
    """The least times of ROUNDS in which all participants take turns: a machine that others use is slow at times."""
    from benchmarks.host.results import Times
    from benchmarks.speed.clock import host_us

    least: dict[str, dict[str, float]] = {name: {} for name in joined}
    runs = {name: _runs(parts, num_layers) for name, parts in joined.items()}
    for _ in range(ROUNDS):
        for name, of_parts in runs.items():
            for part, (run, units) in of_parts.items():
                us = host_us(run, batches=1, calls=CALLS) / units
                least[name][part] = min(us, least[name].get(part, us))
    return {name: Times(**times) for name, times in least.items()}


def _runs(parts: "Parts", num_layers: int) -> dict[str, tuple[Callable[[], object], int]]:
    """For each field of Times the function to time, and the number of steps or layers that one call of it makes."""
    build, write, attend = parts
    metadata = None if build is None else build()
    layers = range(num_layers)
    runs: dict[str, tuple[Callable[[], object], int]] = {
        "attention": (lambda: [attend(layer, metadata) for layer in layers], num_layers),
        "layer": (lambda: parts.step(num_layers), num_layers),
    }
    if build is not None:
        runs["build"] = build, 1
    if write is not None:
        runs["write"] = lambda: [write(layer) for layer in layers], num_layers
    return runs


def _tell(step: "Step", num_layers: int) -> None:
    for why in step.refused.values():
        console.print(f"{step.name}: {why}", markup=False)
    columns = ("metadata, a step", "write, a layer", "attention, a layer", "all, a layer")
    table = Table(f"{step.name}, {num_layers} layers: us", *columns, box=None)
    for participant, times in step.times.items():
        cells = (times.build, times.write, times.attention, times.layer)
        table.add_row(participant, *("" if us is None else f"{us:.1f}" for us in cells))
    console.print(table)
