"""A Ray cluster's node, for `attn_fuzz.run.processes.fleet`: a process of Ray has a worker process of its machine run a plan.

The worker process and its executor are those of a run on one machine. They stay for the next plan: starting them takes seconds.
"""

import atexit
import functools
import os
import pickle
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from attn_fuzz.errors import InputError
from attn_fuzz.run import fixed_findings, provenance
from attn_fuzz.run.processes.workers import WAKE_SECONDS, Message, Worker, Workers
from attn_fuzz.run.shard import FuzzPlan, Progress
from attn_fuzz.targets import registry
from attn_fuzz.targets.support import Support

TELL_SECONDS = 0.5
"""The interval at which progress without a failure is handed on."""
_VISIBLE_GPUS = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


class SeenTarget(NamedTuple):
    """A target as a node sees it: the name of the node's device, and what the target supports there, alone and in each of the
    modes that a run goes through."""

    device_name: str
    supports: Mapping[str, Support]


def task(identity: Mapping[str, str], target: str, call: bytes) -> Iterator[Any]:
    """Call a generator function of this module.

    Args:
        identity: the identity of the machine that started the run.
        target: the target of the run.
        call: the function and its arguments, pickled. They are not looked at on a node of another identity.

    Raises:
        InputError: this node has another identity.
    """
    here = provenance.identity(target)
    for name in sorted(identity.keys() | here.keys()):
        if here.get(name) != identity.get(name):
            found, expected = (which.get(name, "none") for which in (here, identity))
            raise InputError(f"node {socket.gethostname()}: {name}: got {found}, expected {expected} as on this machine")
    function, arguments = pickle.loads(call)
    yield from function(*arguments)


def look(target: str, device: str) -> Iterator[SeenTarget]:
    """Say what the target is here.

    Raises:
        TargetError: the target cannot run here.
    """
    registry.usable(target, device)
    names = registry.with_modes(target, device)
    yield SeenTarget(_device_name(device), {name: registry.load(name).support(device) for name in names})


def fixed(target: str, device: str, case_seconds: float) -> Iterator[list[str]]:
    """Say which of the target's findings no longer fail here, by name."""
    yield [finding.name for finding in fixed_findings.find(target, device, case_seconds)]


def run(plan: FuzzPlan, device_name: str) -> Iterator[Message]:
    """Run a plan, and hand on what the worker says.

    Raises:
        InputError: this node has another device.
        EOFError, OSError: the worker has died.
    """
    if (here := _device_name(plan.device)) != device_name:
        raise InputError(f"node {socket.gethostname()}: device: got {here}, expected {device_name} as on the first node")
    plan = msgspec.structs.replace(plan, folder=_folder())
    workers = _workers(plan.device, tuple(os.environ.get(name) for name in _VISIBLE_GPUS))
    worker = workers.started[-1] if workers.started else workers.start()
    has_ended = False
    try:
        worker.run(plan)
        for message in _thinned(_messages(workers, worker)):
            has_ended = not isinstance(message, Progress)
            yield message
    finally:
        if not has_ended:  # it has died, or the run needs this plan no longer
            workers.end()
            workers.started.clear()
        worker.forget_case(plan)


def _messages(workers: Workers, worker: Worker) -> Iterator[Message]:
    message: Message = Progress()
    while isinstance(message, Progress):
        if workers.ready([worker], WAKE_SECONDS):  # Ray interrupts a cancelled task between two calls
            message = worker.receive()
            yield message
            if isinstance(message, Progress) and message.failure is not None:
                worker.acknowledge()


def _thinned(messages: Iterator[Message]) -> Iterator[Message]:
    """Without Progress that is soon followed by more Progress. What has found a failure is handed on at once."""
    held, told = None, -TELL_SECONDS
    for message in messages:
        if isinstance(message, Progress) and message.failure is None and time.monotonic() < told + TELL_SECONDS:
            held = message
            continue
        if held is not None and not isinstance(message, Progress):
            yield held
        held, told = None, time.monotonic()
        yield message


@functools.cache
def _workers(device: str, visible_gpus: tuple[str | None, ...]) -> Workers:
    """The workers that this process of Ray keeps: one, or none yet. A worker sees the GPUs that it was started with."""
    workers = Workers(device)
    atexit.register(workers.end)
    return workers


def _folder() -> Path:
    """The folder of cases in flight. A case stays there if this process is killed."""
    return Path(tempfile.gettempdir(), f"attn-parity-{os.getuid()}")


@functools.cache
def _device_name(device: str) -> str:
    if device == "cpu":
        return "CPU"
    import torch

    return torch.cuda.get_device_name()
