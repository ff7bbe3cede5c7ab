"""Run saved launches on the emulator, on small cases, and write what they read and wrote into folders.

The code is that of the saved files. This process makes the cases, plans their launches and judges what comes out: its kernels
must be interpreted.
"""

import contextlib
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from attn_amdgcn import AssemblyError, LaunchError, Memory, Program, UnknownInstructionError, inexact
from attn_amdgcn.launch import ARGUMENTS
from attn_binaries import run_folder
from attn_binaries.execution import SCHEDULES, cases_of, error_of, launches_of, target_of
from attn_binaries.rows import Execution
from attn_binaries.run_folder import GUARD_BYTES, Argument, Buffer, EmulatedLaunch, Tensor
from attn_binaries.saved import SavedFileError, SavedLaunch, read
from attn_binaries.saved_checks import check_attributes, check_plan, checked_program
from attn_binaries.shipped_calls import CALLS
from attn_fuzz.emulated.emulation import Inputs, inputs_of, run
from attn_fuzz.run.case.trial import try_case
from attn_optimized.kernel_call import KernelCall


class Emulated(NamedTuple):
    """The result of a launch on one case.

    Attributes:
        execution: the execution of the whole call.
        launch: the launch as written; None if it did not come to its end.
    """

    name: str
    case: str
    execution: Execution
    launch: EmulatedLaunch | None


class OutOfTimeError(Exception):
    """A case took longer than allowed, which says nothing about the launch."""


def emulate_saved(
    file: Path, folder: Path, architecture: str, call: str, names: tuple[str, ...], case_seconds: float
) -> list[Emulated]:
    """Run the launches of a call, and write a folder for each launch that is asked for and each case.

    Args:
        file: launches.json. It must have all launches of the call, because a launch may read what an earlier one wrote.
        folder: the folder in which folders are written.
        names: the names of the launches that are asked for. Where a call runs one launch several times, the first time is
            written.
        case_seconds: seconds that a case may take.

    Raises:
        SavedFileError: a file is missing or damaged, the emulator does not know its code, or the launch is planned here for
            other code than was saved.
        OutOfTimeError: a case took longer.
    """
    written: dict[str, EmulatedLaunch] = {}
    kind = ""
    not_the_launch: list[Exception] = []
    """Errors that ended a launch and are no fault of it. The judge would take them for errors that the kernel raised."""

    def end(*_: object) -> None:
        not_the_launch.append(OutOfTimeError(f"{architecture} {call}, {kind}: no end in {case_seconds:g} s (--case-seconds)"))
        raise not_the_launch[-1]

    def run_saved(name: str, small: KernelCall, like: KernelCall) -> None:
        if 0 in small.launch.grid:
            return
        launch, program = programs[name]
        try:
            if name in names and name not in written:
                written[name] = _run_and_write(launch, program, small, kind, folder)
            else:
                _run(launch, program, small)
        except (AssemblyError, LaunchError, UnknownInstructionError) as error:
            not_the_launch.append(SavedFileError(f"{file.parent / launch.assembly}: {error}"))
            raise

    (shipped,) = (one for one in CALLS if one.name == call)
    of_call = launches_of(shipped, architecture, run_saved)
    programs = dict(_programs(file, architecture, call, of_call.launches))
    found = []
    for case in cases_of(of_call):
        kind = case.values.kind
        written.clear()
        for name in names:
            shutil.rmtree(folder / run_folder.folder_name(programs[name][0].file, kind), ignore_errors=True)
        with _alarm(case_seconds, end):
            verdict = try_case(case, target_of(of_call), "cpu")
        if not_the_launch:
            raise not_the_launch[0]
        execution = Execution(verdict.kind, error_of(of_call, verdict), verdict.message)
        found.extend(Emulated(name, kind, execution, written.get(name)) for name in names)
    return found


def _programs(
    file: Path, architecture: str, call: str, launches: Mapping[str, KernelCall]
) -> Iterator[tuple[str, tuple[SavedLaunch, Program]]]:
    """The names of launches, each with what was saved of it, compared with what is planned here."""
    saved = read(file)
    for name, like in launches.items():
        if (architecture, name) not in saved:
            raise SavedFileError(f"{file}: {architecture} {name} is missing, and {call} launches it, too")
        launch = saved[architecture, name]
        program = checked_program(file.parent, launch)
        check_plan(launch, like)
        yield name, (launch, program)


@contextlib.contextmanager
def _alarm(seconds: float, end: Callable[..., None]) -> Iterator[None]:
    """Call a function after a number of seconds, and each second from then on, until the block ends."""
    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _run(launch: SavedLaunch, program: Program, small: KernelCall) -> tuple[Inputs, Memory, tuple[str, ...]]:
    """Run a saved launch on the tensors of a small one: what it was given, memory afterwards, and `inexact` instructions."""
    inputs = inputs_of(small.arguments, small.launch.grid, [argument.name for argument in launch.arguments])
    check_attributes(launch, inputs)
    memory, report = run(program, inputs, lds_bytes=launch.dynamic_lds_bytes, schedules=SCHEDULES)
    return inputs, memory, inexact(program, report)


def _run_and_write(launch: SavedLaunch, program: Program, small: KernelCall, case: str, folder: Path) -> EmulatedLaunch:
    """`_run` a launch, and write the memory that it read and wrote into the launch's folder."""
    names = [argument.name for argument in launch.arguments]
    before = run_folder.guarded(inputs_of(small.arguments, small.launch.grid, names).buffers)
    inputs, memory, open_roundings = _run(launch, program, small)
    assert launch.kernarg is not None
    described = EmulatedLaunch(
        architecture=launch.architecture,
        call=launch.call,
        case=case,
        code=launch.file,
        sha256=launch.sha256.file,
        kernel=launch.name,
        grid=inputs.grid,
        threads_per_block=launch.threads_per_block,
        dynamic_lds_bytes=launch.dynamic_lds_bytes,
        kernarg_bytes=launch.kernarg.bytes,
        arguments=_arguments(launch, inputs, memory.contents(ARGUMENTS)),
        buffers=tuple(Buffer(name, len(data), run_folder.digest(data)) for name, data in before.items()),
        tensors=_tensors(names, inputs, small),
        inexact=open_roundings,
    )
    run_folder.write(folder / described.folder, described, before, run_folder.guarded(inputs.buffers))
    return described


def _arguments(launch: SavedLaunch, inputs: Inputs, data: np.ndarray) -> tuple[Argument, ...]:
    """The arguments as they lay in memory. Addresses of the emulator are replaced by zeros."""
    assert launch.kernarg is not None
    places = launch.kernarg.arguments
    given = [*inputs.arguments, *[0] * (len(places) - len(inputs.arguments))]
    found = []
    for place, value in zip(places, given, strict=True):
        bits = data[place.offset : place.offset + place.size].tobytes().hex()
        argument = Argument(place.name, place.offset, place.size, place.kind, bits)
        if isinstance(value, tuple):
            pointer = {"bytes": "00" * place.size, "buffer": value[0], "byte": GUARD_BYTES + value[1]}
            argument = msgspec.structs.replace(argument, **pointer)
        found.append(argument)
    return tuple(found)


def _tensors(names: list[str], inputs: Inputs, small: KernelCall) -> tuple[Tensor, ...]:
    found = []
    for name, value in zip(names, inputs.arguments, strict=True):
        tensor = small.tensors.get(name)
        if tensor is not None and isinstance(value, tuple):
            dtype = str(tensor.dtype).removeprefix("torch.")
            found.append(Tensor(name, value[0], GUARD_BYTES + value[1], dtype, tuple(tensor.shape), tensor.stride()))
    return tuple(found)
