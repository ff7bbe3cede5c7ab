"""A Ray cluster as the place where workers run. Each plan is a task of Ray, and a task calls `attn_fuzz.run.processes.node`.

A task asks for one CPU, for a share of a GPU, and for the resources that the caller names. If its node dies, the runner hands
its plan to another task.
"""

import contextlib
import logging
import math
import pickle
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from attn_fuzz.errors import ExecutorError, InputError
from attn_fuzz.run import provenance
from attn_fuzz.run.processes import node
from attn_fuzz.run.processes.node import SeenTarget
from attn_fuzz.run.processes.workers import END_SECONDS, Message
from attn_fuzz.run.shard import FuzzPlan
from ray._private import services, worker
from ray.exceptions import (
    AuthenticationError,
    NodeDiedError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
    TaskUnschedulableError,
)

ANSWER_SECONDS = 5.0
START_SECONDS = 300.0
"""A cluster that starts machines when they are needed takes minutes."""
PATIENCE_SECONDS = 10.0
CHECK_SECONDS = 5.0
HEAD_SECONDS = 25.0
LIVES = 4
"""Nodes die by themselves, so a plan is given up later than on one machine."""
TASKS_OF_A_GPU = 8
LABEL = 0.001
"""The share that a task takes of a resource asked for by name: it is small, so that CPUs and GPUs limit the tasks."""


class FleetError(InputError):
    """A cluster that does not answer, or has no node for a run."""


@contextlib.contextmanager
def connected(address: str, folder: Path | None) -> Iterator[None]:
    """Connect this process to a cluster.

    Args:
        address: "auto", which is the cluster that this machine is a node of, or HOST:PORT.
        folder: a folder whose copy is the working directory of each task.

    Raises:
        FleetError: the cluster does not answer, or is of another version of Ray or Python.
    """
    _check_answers(address)
    worker._worker_logs_enabled = False  # of a node that dies, Ray prints logs on stdout; `log_to_driver` is only about tasks
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    environment = {"working_dir": str(folder)} if folder is not None else None
    try:
        ray.init(address=address, runtime_env=environment, log_to_driver=False, logging_level=logging.CRITICAL)
    except (RayError, ConnectionError, RuntimeError, ValueError) as error:
        raise FleetError(f"--ray {address}: {error}") from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    try:
        yield
    finally:
        ray.shutdown()
        worker._worker_logs_enabled = True


def _check_answers(address: str) -> None:
    """Ray itself would wait for minutes."""
    at, of = (_found_by_ray(), ", which is auto here") if address == "auto" else (address, "")
    host, _, port = at.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise FleetError(f"--ray: got {at!r}, expected auto or HOST:PORT")
    try:
        _connect(at)
    except (OSError, OverflowError, UnicodeError) as error:
        raise FleetError(f"--ray: nothing answers at {at}{of}: {error}") from error


def _found_by_ray() -> str:
    """The address that Ray would take for "auto". It may be that of a cluster that has ended."""
    try:
        return services.canonicalize_bootstrap_address_or_die("auto")
    except (ConnectionError, ValueError) as error:  # Ray's words name options of its own
        what_helps = "start a node by `ray start`, or give HOST:PORT"
        raise FleetError(f"--ray auto: this machine is a node of no Ray cluster: {what_helps}") from error


def _connect(address: str) -> None:
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), ANSWER_SECONDS).close()


def nodes_with(needs: Sequence[str]) -> list[Mapping[str, float]]:
    """The resources of each living node that has all of some.

    Raises:
        FleetError: no node has them.
    """
    found = [one["Resources"] for one in ray.nodes() if one["Alive"] and "CPU" in one["Resources"]]
    fit = [resources for resources in found if all(name in resources for name in needs)]
    if not fit:
        known = sorted({name for resources in found for name in resources if not name.startswith("node:")})
        words = f"no node of the cluster has {' and '.join(['CPU', *needs])}"
        raise FleetError(f"--ray: {words}; its nodes have {', '.join(known) or 'none'}")
    return fit


@dataclass
class Nodes:
    """The nodes of the cluster. Each one that is lost is told once.

    Args:
        lost: called with the name of a node, for people.
        names: the names of the nodes that were there since the run began, by Ray's ID.
        told: IDs of those that were told.
    """

    lost: Callable[[str], None]
    names: dict[str, str] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)

    def look(self) -> None:
        """Ask the cluster, which knows seconds after a death."""
        for one in ray.nodes():
            if one["Alive"]:
                self.names[one["NodeID"]] = f"{one['NodeManagerHostname']} ({one['NodeManagerAddress']})"
            else:
                self._tell(one["NodeID"])

    def hear(self, words: str) -> None:
        """Take note of Ray's words about a lost task, which have the node's ID, and come at once."""
        for one in self.names:
            if one in words:
                self._tell(one)

    def _tell(self, lost: str) -> None:
        if lost in self.names and lost not in self.told:
            self.told.add(lost)
            self.lost(self.names[lost])


@dataclass(frozen=True)
class Cluster:
    """Tasks of a cluster.

    Args:
        device: "cpu" or "cuda".
        nodes: the number of nodes that tasks can run on.
        room: the number of tasks that can run at once, on the nodes that are there now.
        task: Ray's form of `attn_fuzz.run.processes.node.task`, with the resources that it asks for.
    """

    device: str
    nodes: int
    room: int
    task: Any

    def look(self, target: str, waits: Callable[[], None]) -> SeenTarget:
        """A target as a node sees it.

        Args:
            target: its name.
            waits: called once, if no node has answered in PATIENCE_SECONDS.

        Raises:
            InputError: the target cannot run there, or the node's sources or packages differ from those of this machine.
        """
        said = self.start(target, node.look, target, self.device)
        if not ray.wait([said], timeout=PATIENCE_SECONDS)[0]:
            waits()
        if not ray.wait([said], timeout=START_SECONDS - PATIENCE_SECONDS)[0]:
            why = "its nodes are busy, or refuse this machine (RAY_AUTH_MODE)"
            raise FleetError(f"--ray: the cluster has run no task for {START_SECONDS:g} s: {why}")
        try:
            return _next(said)
        except EOFError:
            raise FleetError("--ray: the node that looked at the target died") from None

    def fixed(self, target: str, case_seconds: float) -> list[str]:
        """The names of a target's findings that no longer fail on a node; none if the node that was asked cannot say."""
        try:
            return _next(self.start(target, node.fixed, target, self.device, case_seconds))
        except (InputError, ExecutorError, EOFError, OSError):  # the run has ended, and its report is still due
            return []

    @contextlib.contextmanager
    def place(self, plans: Sequence[FuzzPlan], *, device_name: str, lost: Callable[[str], None]) -> Iterator["Tasks"]:
        """Workers for the runner. When the block ends, their tasks have ended.

        Args:
            lost: called with the name of a node that is lost, for people.
        """
        nodes = Nodes(lost)
        nodes.look()
        head = ray.get_runtime_context().gcs_address
        tasks = Tasks(lambda plan: self.start(plan.target, node.run, plan, device_name), head, nodes)
        try:
            yield tasks
        finally:
            tasks.end()

    def start(self, target: str, function: Callable[..., Iterator[Any]], *arguments: object) -> ray.ObjectRefGenerator:
        """Call a generator function of `attn_fuzz.run.processes.node` in a task that is about a target."""
        return self.task.remote(provenance.identity(target), target, pickle.dumps((function, arguments)))


def cluster(device: str, needs: Sequence[str], workers: int | None) -> Cluster:
    """The part of the connected cluster that a run can use.

    Args:
        device: "auto", "cpu" or "cuda". auto: GPUs, if the nodes have some.
        needs: resources that a node must have.
        workers: the number of tasks that the run will start at once. Few tasks take larger shares of GPUs than many.

    Raises:
        FleetError: no node has what is asked for.
    """
    if device == "auto":
        device = "cuda" if any("GPU" in resources for resources in nodes_with(needs)) else "cpu"
    nodes = nodes_with([*needs, *["GPU"] * (device == "cuda")])
    gpus = sum(resources.get("GPU", 0) for resources in nodes)
    if device == "cuda":
        of_a_gpu = min(TASKS_OF_A_GPU, math.ceil(workers / gpus) if workers else TASKS_OF_A_GPU)
        share = 10_000 // of_a_gpu / 10_000  # in Ray's smallest amounts
        room = sum(min(int(each["CPU"]), int(each["GPU"]) * of_a_gpu) for each in nodes)
    else:
        share, room = 0, sum(int(each["CPU"]) for each in nodes)
    return Cluster(device, len(nodes), room, _task(num_gpus=share, resources=dict.fromkeys(needs, LABEL)))


def _task(**resources: Any) -> Any:
    def attn_parity(*arguments: Any) -> Iterator[Any]:
        """Ray sends a nested function as it is, so this one runs on a node that has another attn-parity, or none."""
        from attn_fuzz.run.processes import node

        yield from node.task(*arguments)

    # the runner counts deaths of workers; and a process of Ray stays for the next task, with a GPU too
    return ray.remote(num_cpus=1, max_retries=0, max_calls=0, **resources)(attn_parity)


@dataclass(eq=False)
class Task:
    """A worker of the runner: it has a task of Ray run a plan, and then another one the next plan.

    Args:
        start: starts a task.
        nodes: the nodes of the cluster.
        said: the messages of the task, past and future.
        lost: why no task says anything any more, or None.
    """

    start: Callable[[FuzzPlan], ray.ObjectRefGenerator]
    nodes: Nodes
    said: ray.ObjectRefGenerator | None = None
    lost: str | None = None

    def run(self, plan: FuzzPlan) -> None:
        self.said = self.start(plan)

    def receive(self) -> Message:
        if self.lost is not None:
            return self.lost
        assert self.said is not None
        try:
            return _next(self.said)
        except (InputError, ExecutorError) as error:
            return str(error)
        except EOFError as error:
            if isinstance(error.__cause__, NodeDiedError):
                self.nodes.hear(str(error.__cause__))
            raise

    def acknowledge(self) -> None:
        """The node's own process has acknowledged the case already."""


@dataclass
class Tasks:
    """Starts tasks and waits for them.

    Args:
        start_task: starts one for a plan.
        head: the address of the cluster's head.
        nodes: the nodes of the cluster.
    """

    start_task: Callable[[FuzzPlan], ray.ObjectRefGenerator]
    head: str
    nodes: Nodes
    lives: int = LIVES
    started: list[Task] = field(default_factory=list)
    _answered: float = field(default_factory=time.monotonic)

    def start(self) -> Task:
        self.started.append(Task(self.start_task, self.nodes))
        return self.started[-1]

    def ready(self, busy: Sequence[Task], seconds: float) -> list[Task]:
        if self._head_is_lost():
            for task in busy:
                task.lost = f"the head of the Ray cluster, {self.head}, answers no more"
            return list(busy)
        of = {task.said: task for task in busy}
        if not of or not ray.wait(list(of), num_returns=1, timeout=seconds)[0]:
            return []
        return [of[said] for said in ray.wait(list(of), num_returns=len(of), timeout=0)[0]]

    def _head_is_lost(self) -> bool:
        """True if the head has answered nothing for HEAD_SECONDS. Ray would end this process after 60 s, without a report."""
        if time.monotonic() >= self._answered + CHECK_SECONDS:
            with contextlib.suppress(OSError):
                _connect(self.head)
                self._answered = time.monotonic()
                self.nodes.look()
        return time.monotonic() > self._answered + HEAD_SECONDS

    def end(self) -> None:
        """Cancel all tasks, and wait until they have ended their processes."""
        said = [task.said for task in self.started if task.said is not None]
        for one in said:
            ray.cancel(one)
        if said:
            ray.wait([one.completed() for one in said], num_returns=len(said), timeout=END_SECONDS)


def _next(said: ray.ObjectRefGenerator) -> Any:
    """The next thing that a task says.

    Raises:
        EOFError, OSError: the process of the task has died, or its node, or a process that it has started.
        InputError: the task cannot run there.
        ExecutorError: the fuzzer itself is at fault.
    """
    try:
        return ray.get(next(said))
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, InputError | ExecutorError | EOFError | OSError):
            raise cause from None
        if isinstance(cause, ImportError):
            raise FleetError(f"--ray: on a node, {cause}: install attn-parity there as it is on this machine") from None
        raise ExecutorError(f"the fuzzer itself failed\n{error}") from None
    except (AuthenticationError, RuntimeEnvSetupError, TaskUnschedulableError) as error:
        raise FleetError(f"--ray: {error}") from None
    except (RayError, StopIteration) as error:
        raise EOFError from error
