"""`python -m benchmarks host`: what a step costs the host, by backend, beside vLLM's and AITER's functions."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks.timed import cases_named, head_of_run, use_device

if TYPE_CHECKING:
    from benchmarks.host.steps import Parts

SCHEMA = "attn-parity.host-time/1"
BATCHES, CALLS = 9, 3
"""A batch is a few steps, since a device takes only so many launches before the host waits."""
PARTS = ("build", "write", "attention", "layer")
console = Console(highlight=False, width=140)


@click.command()
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="Written at the end.")
@click.option("--only", multiple=True, metavar="TEXT", help="Cases whose name holds this; all if not given.")
@click.option("--vllm", type=click.Path(path_type=Path), help="A folder that holds the package `vllm`.")
@click.option("--aiter", type=click.Path(path_type=Path), help="A folder that holds AMD's package `aiter`.")
@click.option("--commit", help="Where git does not know it.")
@click.option("--tiny", is_flag=True, help="Two layers of tiny cases, on a CPU too. No result has any value.")
def host(
    path: Path | None, only: tuple[str, ...], vllm: Path | None, aiter: Path | None, commit: str | None, tiny: bool
) -> None:
    """Measure the host's time of eager steps of 32 layers: metadata once, then a cache write and attention in each layer.

    Our backends run whole, with their checks. Of vLLM and AITER only the functions run that launch the kernels, with arguments
    that are made once.
    """
    from attn_parity.options import check_writable, write_json

    check_writable(path)
    device = use_device(tiny=tiny)
    from benchmarks.host.steps import CASES, LAYERS, TINY, Peers, participants
    from benchmarks.speed import peers

    chosen = cases_named(TINY if tiny else CASES, only)
    loaders = ((peers.load_vllm_with_writes, vllm), (peers.load_vllm_latent, vllm), (peers.load_aiter, aiter))
    try:
        kernels = Peers(*(peers.load_if_there(load, folder, console.print) for load, folder in loaders))
    except peers.MissingPeerError as error:
        raise click.ClickException(str(error)) from error
    there = {"vllm": kernels.vllm, "aiter": kernels.aiter}
    versions = {name: module.version for name, module in there.items() if module is not None}
    found: dict[str, Any] = {"schema": SCHEMA, **head_of_run(device, versions, commit, console, tiny=tiny), "steps": {}}
    num_layers = 2 if tiny else LAYERS
    for case in chosen:
        joined = dict(participants(case, num_layers, device, kernels))
        found["steps"][case.name] = {
            name: {"refused": parts} if isinstance(parts, str) else times_of(parts, num_layers)
            for name, parts in joined.items()
        }
        _tell(case.name, found["steps"][case.name], num_layers)
    if path is not None:
        write_json(path, found)


def times_of(parts: "Parts", num_layers: int) -> dict[str, float]:
    """Microseconds: `build` of a step; `write` and `attention` of a layer; `layer`: the whole step's, by its layers."""
    from benchmarks.speed.clock import host_us

    def each(run: Callable[[int], Any]) -> float:
        def layers() -> None:
            for layer in range(num_layers):
                run(layer)

        return host_us(layers, batches=BATCHES, calls=CALLS) / num_layers

    found, metadata = {}, None
    if parts.build is not None:
        metadata = parts.build()
        found["build"] = host_us(parts.build, batches=BATCHES, calls=CALLS)
    if parts.write is not None:
        found["write"] = each(parts.write)
    found["attention"] = each(lambda layer: parts.attend(layer, metadata))
    found["layer"] = host_us(lambda: parts.step(num_layers), batches=BATCHES, calls=CALLS) / num_layers
    return found


def _tell(name: str, step: dict[str, dict[str, Any]], num_layers: int) -> None:
    columns = ("metadata, a step", "write, a layer", "attention, a layer", "all, a layer")
    table = Table(f"{name}, {num_layers} layers: us", *columns, box=None)
    for participant, times in step.items():
        if "refused" in times:
            console.print(f"{name}: {times['refused']}", markup=False)
        else:
            table.add_row(participant, *(f"{times[part]:.1f}" if part in times else "" for part in PARTS))
    console.print(table)
