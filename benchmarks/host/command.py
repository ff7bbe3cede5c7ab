"""`python -m benchmarks host`: what a step costs the host, by backend, beside vLLM's and AITER's functions."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click
from attn_parity.console import notes, plain_table, results

from benchmarks import options
from benchmarks.measuring.device import saved_at_the_end, use_device

if TYPE_CHECKING:
    from benchmarks.host.parts import Parts
    from benchmarks.host.results import HostStep, Times

ROUNDS, CALLS = 25, 3
"""A time is of a few steps, since a device queues only a limited number of launches before the host waits."""


@click.command("host")
@options.json_option("after each case")
@options.only_option("cases")
@options.vllm_option
@options.aiter_option
@options.commit_option
@options.tiny_option("Two layers of tiny cases, on a CPU too")
def command(
    json_file: Path | None, only: tuple[str, ...], vllm: Path | None, aiter: Path | None, commit: str | None, tiny: bool
) -> None:
    """Measure the host's time of eager steps of 32 layers: metadata once, then a cache write and attention in each layer.

    Our backends run whole, with their checks. Of vLLM and AITER only the functions run that launch the kernels, with arguments
    that are made once.
    """
    device = use_device(tiny=tiny)
    from benchmarks.host.parts import CASES, LAYERS, TINY, joining
    from benchmarks.host.results import HostRun, HostStep
    from benchmarks.participants.loading import load_all

    chosen = options.cases_named(TINY if tiny else CASES, only)
    kernels = load_all(vllm, aiter, notes.print)
    run = HostRun.begun(device, kernels.versions, commit, tiny=tiny, layers=2 if tiny else LAYERS)
    with saved_at_the_end(lambda: run.write(json_file), lambda: f"{len(run.steps)} of {len(chosen)} cases measured"):
        for case in chosen:
            joined = dict(joining(case, run.layers, device, kernels))
            refused = {name: parts for name, parts in joined.items() if isinstance(parts, str)}
            times = measured({name: parts for name, parts in joined.items() if not isinstance(parts, str)}, run.layers)
            run.steps.append(HostStep(name=case.name, times=times, refused=refused))
            _tell(run.steps[-1], run.layers)
            run.write(json_file)


def measured(joined: Mapping[str, "Parts"], num_layers: int) -> dict[str, "Times"]:
    """The least times of ROUNDS in which all participants take turns: a machine that others use is slow at times."""
    from benchmarks.host.results import Times
    from benchmarks.measuring.clock import host_us

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


def _tell(step: "HostStep", num_layers: int) -> None:
    for why in step.refused.values():
        results.print(f"{step.name}: {why}")
    columns = ("metadata, a step", "write, a layer", "attention, a layer", "all, a layer")
    table = plain_table(f"{step.name}, {num_layers} layers: us", *columns, right=columns)
    for participant, times in step.times.items():
        cells = (times.build, times.write, times.attention, times.layer)
        table.add_row(participant, *("" if us is None else f"{us:.1f}" for us in cells))
    results.print(table)
