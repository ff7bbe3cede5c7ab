"""Runs a launch under several schedules. What it writes must not depend on them.

A schedule says in which order waves and workgroups run, and draws what lies in registers, LDS and scratch before they are
written. A result that changes with it was computed from registers or memory that were not written, or not written yet by
another wave.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from attn_amdgcn.errors import EmulationFault, Hazards, LaunchError, UnknownInstructionError
from attn_amdgcn.launch import Argument, Report, Schedule, launch
from attn_amdgcn.memory import Memory, PermittedBytes
from attn_amdgcn.program import Program
from attn_amdgcn.run import MAX_INSTRUCTIONS
from attn_amdgcn.stores import StoreLog
from attn_amdgcn.watch import Watch

SCHEDULES = (
    Schedule(races=True),
    Schedule("ascending", "descending", seed=1),
    Schedule("descending", "ascending", seed=2),
    Schedule("drawn", "drawn", seed=3),
)
"""The first one looks for races, too, and gives the result."""


def checked(
    program: Program,
    grid: tuple[int, int, int],
    arguments: Sequence[Argument],
    buffers: Mapping[str, np.ndarray],
    *,
    lds_bytes: int = 0,
    schedules: Sequence[Schedule] = SCHEDULES,
    watches: Sequence[Watch] = (),
    permitted: PermittedBytes | None = None,
    most: int = MAX_INSTRUCTIONS,
    hazards: Hazards | None = None,
) -> tuple[Memory, Report]:
    """Run a grid of workgroups once for each schedule. Arguments and the result are those of `attn_amdgcn.launch`.

    `watches` look on under the first schedule.

    Raises:
        LaunchError: the arguments do not fit the kernel, or there is no schedule.
        EmulationFault: a wave did what it must not do, or a buffer holds something else under another schedule: the fault names
            the first store that wrote something else.
        UnknownInstructionError: a fault may be none, because atomic instructions may order the workgroups.
    """
    if not schedules:
        raise LaunchError("schedules: none, and at least one is expected")
    first, *others = schedules
    launched = partial(launch, program, grid, arguments, buffers, lds_bytes=lds_bytes, permitted=permitted, hazards=hazards)
    memory, report = launched(schedule=first, watches=watches, most=most)
    for schedule in others:
        again, _ = launched(schedule=schedule, most=most)
        for name in buffers:
            if (difference := memory.first_difference(again, name)) is not None:
                if memory.atomic_readers or again.atomic_readers:
                    raise UnknownInstructionError("a result that changes with the order of a launch's atomic instructions")
                byte, one, other = difference
                what = f"byte {byte} of {name} is {one} under {first}, and {other} under {schedule}"
                raise _diagnosed(what, launched, (first, schedule))
    return memory, report


def _diagnosed(what: str, launched: Callable[..., object], schedules: tuple[Schedule, Schedule]) -> EmulationFault:
    """The fault, with the first store whose data differ between two schedules."""
    logs = (StoreLog(), StoreLog())
    for schedule, log in zip(schedules, logs, strict=True):
        quiet = replace(schedule, races=False)
        launched(schedule=quiet, watches=(log,))
    found = logs[0].first_difference(logs[1])
    if found is None:
        return EmulationFault(f"{what}; every store of a wave wrote the same, so stores to one byte came in another order")
    workgroup, wave, lane, instruction = found
    return EmulationFault(what, workgroup=workgroup, wave=wave, lane=lane).at(instruction)
