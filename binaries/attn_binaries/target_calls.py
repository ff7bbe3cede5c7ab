"""The launches that a target's drawn calls make, recorded without running them, to be compiled for an architecture."""

import contextlib
import inspect
import pickle
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from attn_fuzz.cases.case import Case
from attn_fuzz.cases.tensors import Step
from attn_fuzz.emulated.jobs import Job, Pointer
from attn_fuzz.errors import InputError
from attn_fuzz.run import shard
from attn_fuzz.run.case.attempt import Attempt
from attn_fuzz.run.case.exceptions import described
from attn_fuzz.run.processes.executor import Executor
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.targets.target import Target
from attn_fuzz.verdict.verdict import Verdict

RECORD = "attn_binaries.target_calls:record"
MOST_NAMED = 6
"""The number of constants and options that name a launch."""


class Recorded(NamedTuple):
    """A launch: what is compiled for it, its programs, and which of the arguments are constants."""

    job: Job
    grid: tuple[int, ...]
    constants: frozenset[str]


class Recording(NamedTuple):
    """The launches of one architecture by name, how many calls were drawn, and how many raised, by what they raised."""

    launches: dict[str, Recorded]
    drawn: int
    raised: Counter[str]


def record(case: Case, target: Target, device: str, *, file: Path) -> Verdict:
    """The trial of an Executor that appends the launches of a case to a file. No kernel runs.

    The cache counts as one that 32 bits do not address, as caches of serving engines are.
    """
    from attn_fuzz.emulated.launches import Launches, values_of

    found: list[Recorded] = []
    caches: set[int] = set()

    def note(step: Step) -> None:
        if step.raw is not None:
            caches.add(step.raw.untyped_storage().data_ptr())

    def launch(self: Launches, kernel: Any, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> None:
        values = values_of(kernel, arguments, named)
        programs: Sequence[int] = grid(values) if callable(grid) else grid  # pyright: ignore[reportAssignmentType]
        if warmup or 0 in programs:
            return
        job = self.job(kernel, values, named, lambda tensor: tensor.untyped_storage().data_ptr() in caches)
        parameters = inspect.signature(kernel.fn).parameters
        constants = frozenset(name for name, each in parameters.items() if "constexpr" in str(each.annotation))
        found.append(Recorded(job, tuple(programs), constants))

    with mock.patch.object(Launches, "_launch", launch):
        attempt = Attempt(case, target, device, prepare=note)
    with file.open("ab") as end:
        pickle.dump((found, "" if attempt.error is None else described(attempt.error)), end)
    return Verdict(kind="agree")


def recorded(target: str, architecture: str, seed: int, examples: int, case_seconds: float, folder: Path) -> Recording:
    """Draw calls of a target compiled for an architecture, and record their launches.

    Args:
        folder: for files of the recording.

    Raises:
        InputError: none of the calls launched a kernel.
    """
    name, file = f"{target}@{architecture}", folder / f"{architecture}.launches"
    plan = FuzzPlan(target=name, device="cpu", examples=examples, seed=seed, folder=folder)
    cases = [case for case in shard.drawn(plan) if case.has_work]
    with Executor(name, "cpu", case_seconds, folder / "case.json", trial=RECORD) as executor:
        for case in cases:
            executor.run(case, file=file)
    launches, raised = [], Counter[str]()
    for found, error in _read(file):
        launches += found
        raised += Counter([error] if error else [])
    if not launches:
        why = f": {next(iter(raised))}" if raised else ""
        raise InputError(f"{target}: none of {len(cases)} drawn calls launched a kernel for {architecture}{why}")
    return Recording(_named(launches), len(cases), raised)


def _read(file: Path) -> Iterator[tuple[list[Recorded], str]]:
    with contextlib.suppress(EOFError, FileNotFoundError), file.open("rb") as begin:
        while True:
            yield pickle.load(begin)


def _named(launches: Sequence[Recorded]) -> dict[str, Recorded]:
    """One launch of each specialization, named by its kernel and by what tells it from other launches of this kernel."""
    found: dict[Any, Recorded] = {}
    for each in launches:
        key = (
            each.job.module,
            each.job.kernel,
            *sorted((n, _class(v, n in each.constants)) for n, v in each.job.arguments.items()),
        )
        found.setdefault(key, each)
    named: dict[str, Recorded] = {}
    for each in found.values():
        alike = [other.job.arguments for other in found.values() if other.job.kernel == each.job.kernel]
        words = [f"{name}={value}" for name, value in _distinguishing(each, alike).items()]
        name = " ".join([each.job.kernel, *words[:MOST_NAMED]])
        if name in named:
            name = f"{name} #{sum(other.startswith(name) for other in named) + 1}"
        named[name] = each
    return named


def _class(value: Any, is_constant: bool) -> str:
    """A key of an argument for the compiler: of a number that is no constant, whether it is 1, or a multiple of 16."""
    if isinstance(value, Pointer):
        return f"{value.dtype} {value.is_aligned} {value.bytes < 1 << 31}"
    if isinstance(value, int) and not isinstance(value, bool) and not is_constant:
        return "1" if value == 1 else f"int {value % 16 == 0} {value.bit_length() > 31}"
    return "float" if isinstance(value, float) and not is_constant else repr(value)


def _distinguishing(each: Recorded, alike: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The constants and options that not all launches of a kernel have alike, and then the types of pointers."""

    def shown(value: Any, name: str) -> Any:
        if isinstance(value, Pointer):
            return str(value.dtype).removeprefix("torch.")
        return getattr(value, "__name__", value) if name in each.constants or name.startswith("num_") else None

    found = {}
    for name, value in each.job.arguments.items():
        own = shown(value, name)
        if own is not None and len({str(shown(other.get(name), name)) for other in alike}) > 1:
            found[name] = own
    return dict(sorted(found.items(), key=lambda one: isinstance(each.job.arguments[one[0]], Pointer)))


def all_of(architecture: str, launches: bytes) -> dict[str, Any]:
    """The launches of a recording as what `compile_call` takes, in a process without the interpreter."""
    from attn_fuzz.emulated import jobs
    from attn_fuzz.emulated.compilation import kernel_of
    from attn_optimized.kernel_call import KernelCall, Launch

    jobs.architecture.set(architecture)
    calls = {}
    for name, (job, grid, _) in pickle.loads(launches)[architecture].items():
        calls[name] = KernelCall(Launch(kernel_of(job), grid, {}, job.arguments, {}), {})
    return calls
