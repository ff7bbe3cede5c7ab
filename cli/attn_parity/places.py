"""Where `attn-parity fuzz` runs its shards: on this machine, or on a Ray cluster."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from attn_fuzz.run import ledger, workers
from attn_fuzz.targets import registry
from attn_fuzz.targets.target import Support
from attn_parity.console import notes
from attn_parity.options import default_workers, device_name, use_device


@dataclass(frozen=True)
class Place:
    """A place for a run of one target.

    Args:
        device: "cpu" or "cuda".
        device_name: for people.
        support: of the target, there.
        workers: how many shards run at once.
        words: the number of workers, for people.
        run: of the runner: starts workers there.
        fixed: returns the names of the target's findings whose stored cases no longer fail there. It takes the seconds that
            a case may take.
    """

    device: str
    device_name: str
    support: Support
    workers: int
    words: str
    run: Callable[..., contextlib.AbstractContextManager[Any]]
    fixed: Callable[[float], list[str]]


def here(target: str, device: str, number: int | None) -> Place:
    """This machine.

    Args:
        target: its name.
        device: "auto", "cpu" or "cuda".
        number: of workers, if asked for.

    Raises:
        UnknownTargetError: the target cannot run here.
    """
    device = use_device(device)
    support = registry.usable(target, device).support(device)
    number = number or default_workers(device)

    def fixed(limit: float) -> list[str]:
        return [finding.name for finding in ledger.fixed(target, device, limit)]

    return Place(device, device_name(device), support, number, f"{number} workers", workers.here, fixed)


@contextlib.contextmanager
def on_ray(
    address: str, needs: Sequence[str], folder: Path | None, target: str, device: str, number: int | None
) -> Iterator[Place]:
    """A Ray cluster, to which this process is connected until the block ends.

    Args:
        address: "auto" or HOST:PORT.
        needs: resources that a node must have.
        folder: what nodes get a copy of, for the target's module.
        target, device, number: as `here`.

    Raises:
        InputError: the cluster does not answer, has no node for the run, or the target cannot run there.
    """
    from attn_fuzz.run import fleet  # of the extra `ray`

    if folder is not None:
        sys.path.append(str(folder.resolve()))
    registry.load(target)
    with fleet.connected(address, folder):
        cluster = fleet.cluster(target, device, needs, number)
        nodes = f"{cluster.nodes} node{'s' * (cluster.nodes > 1)} of Ray"
        seen = cluster.look(lambda: notes.print(f"waiting until one of {nodes} has loaded the target"))
        number = number or cluster.room
        words = f"{number} workers on {nodes}"
        run = partial(cluster.place, device_name=seen.device_name)
        yield Place(cluster.device, seen.device_name, seen.support, number, words, run, cluster.fixed)
