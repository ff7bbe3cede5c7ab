"""The machines that run the shards of `attn-parity fuzz`: this one, or a Ray cluster."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from attn_fuzz import current_folder
from attn_fuzz.run import fixed_findings
from attn_fuzz.run.processes import workers
from attn_fuzz.targets import registry
from attn_fuzz.targets.support import Support
from attn_fuzz.text import how_many
from attn_parity.commands.fuzz.options import Options
from attn_parity.console import notes
from attn_parity.device import default_workers, device_name, use_device


@dataclass(frozen=True)
class Machines:
    """Runs the shards of some targets.

    Args:
        device: "cpu" or "cuda".
        device_name: the device's name for messages.
        supports: the support of each target on these machines, and of each target in each mode that its run goes through.
        workers: the number of shards that run at once.
        nodes: the number of nodes of Ray; None: this machine.
        run: passed to the runner: it starts workers on these machines.
        fixed: returns the names of a target's findings whose stored cases no longer fail there. It takes the target and the
            seconds that a case may take.
    """

    device: str
    device_name: str
    supports: Mapping[str, Support]
    workers: int
    nodes: int | None
    run: Callable[..., contextlib.AbstractContextManager[Any]]
    fixed: Callable[[str, float], list[str]]

    def of_shards(self, count: int) -> "Machines":
        """The machines for a number of shards: more workers than that would have nothing to do."""
        return replace(self, workers=min(self.workers, count))

    @property
    def words(self) -> str:
        """The number of workers, in words."""
        busy = how_many(self.workers, "worker")
        if self.nodes is None:
            return busy
        some = f"{self.workers} of " * (self.workers < self.nodes)
        return f"{busy} on {some}{how_many(self.nodes, 'node')} of Ray"


@contextlib.contextmanager
def chosen(options: Options) -> Iterator[Machines]:
    """The machines that --ray, --needs, --working-dir, --device and --workers name.

    Raises:
        click.UsageError: --needs or --working-dir is given without --ray.
        InputError: the cluster does not answer, has no node for the run, or a target cannot run there.
    """
    if options.address is not None:
        with _on_ray(options.address, options) as machines:
            yield machines
    elif options.resources or options.working_dir:
        raise click.UsageError("--needs and --working-dir are about nodes: they need --ray")
    else:
        yield _here(options)


def _here(options: Options) -> Machines:
    device = use_device(options.device)
    for target in options.names:
        registry.usable(target, device)
    names = [name for target in options.names for name in registry.with_modes(target, device)]
    supports = {name: registry.load(name).support(device) for name in names}
    number = options.workers or default_workers(device)

    def fixed(target: str, case_seconds: float) -> list[str]:
        return [finding.name for finding in fixed_findings.find(target, device, case_seconds)]

    return Machines(device, device_name(device), supports, number, None, workers.here, fixed)


@contextlib.contextmanager
def _on_ray(address: str, options: Options) -> Iterator[Machines]:
    """A Ray cluster, to which this process is connected until the block ends."""
    from attn_fuzz.run.processes import fleet  # of the extra `ray`

    with current_folder.replaced_by(str((options.working_dir or Path()).resolve())):
        for target in options.names:
            registry.load(target)
    with fleet.connected(address, options.working_dir):
        cluster = fleet.cluster(options.device, options.resources, options.workers)
        waiting = f"waiting until one of {how_many(cluster.nodes, 'node')} of Ray has loaded the target"
        seen = {target: cluster.look(target, lambda: notes.print(waiting)) for target in options.names}
        number = options.workers or cluster.room
        name = next(iter(seen.values())).device_name
        supports = {name: support for one in seen.values() for name, support in one.supports.items()}
        run = partial(cluster.place, device_name=name, lost=_say_that_it_is_lost)
        yield Machines(cluster.device, name, supports, number, cluster.nodes, run, cluster.fixed)


def _say_that_it_is_lost(node: str) -> None:
    notes.print(f"node {node} of Ray is lost: what it ran runs again on another")
