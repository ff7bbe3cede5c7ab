"""Kernels to mutate: those that a few drawn cases launch, with these launches as they were."""

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from attn_amdgcn import Memory, PermittedBytes, Program, Report, Schedule, checked
from attn_fuzz.cases.case import Case
from attn_fuzz.cases.features import features
from attn_fuzz.emulated import emulation
from attn_fuzz.run import shard
from attn_fuzz.run.case.trial import try_case
from attn_fuzz.run.shard import FuzzPlan, dense
from attn_fuzz.targets import registry
from attn_lab.miscompile.page import MAX_INSTRUCTIONS, MAX_WAVE_INSTRUCTIONS

NUM_DRAWN = 200
"""Cases from which some are chosen."""
MAX_LAUNCHES = 12
"""The most launches of a kernel that are kept."""
SCHEDULES = (Schedule(races=True), Schedule("descending", "descending", seed=1))


@dataclass(frozen=True)
class Launch:
    """A launch: its case, what the emulator was given, and what it left.

    Attributes:
        buffers, after: bytes by the names of buffers, before the launch and after it.
        instructions: the number of wave instructions that ran.
        permitted: as of `attn_amdgcn.checked`.
    """

    case: Case
    grid: tuple[int, int, int]
    arguments: Sequence[Any]
    buffers: Mapping[str, np.ndarray]
    after: Mapping[str, np.ndarray]
    lds_bytes: int
    instructions: int
    permitted: PermittedBytes | None = None

    def run(self, program: Program, schedules: Sequence[Schedule], most: int) -> Memory:
        given = (program, self.grid, self.arguments, self.buffers)
        return checked(*given, lds_bytes=self.lds_bytes, schedules=schedules, permitted=self.permitted, most=most)[0]


@dataclass
class Subject:
    """A kernel on an architecture.

    Attributes:
        name: the name of the function, with a number that tells its variants apart.
        executed: [instructions] bool, those that some launch runs.
    """

    architecture: str
    name: str
    program: Program
    executed: np.ndarray
    launches: list[Launch] = field(default_factory=list)


class AlarmError(Exception):
    """A case of an unchanged kernel fails: a false alarm, or a bug."""


def subjects(architecture: str, cases: Sequence[Case]) -> list[Subject]:
    """The kernels of some cases. Each launch runs under SCHEDULES, and each case is judged.

    Raises:
        AlarmError: a case fails.
    """
    name = f"triton@{architecture}"
    target = registry.load(name)
    found: dict[str, Subject] = {}
    for case in cases:

        def run(program: Program, *given: Any, case: Case = case, **further: Any) -> tuple[Memory, Report]:
            memory, done = checked(program, *given, **further | {"schedules": SCHEDULES})
            _keep(found, architecture, program, case, given, further, memory, done)
            return memory, done

        with launches_run_by(run):
            verdict = try_case(case, target, "cpu")
        if not verdict.passed:
            raise AlarmError(f"{name}: {verdict.kind}: {verdict.message}: {case}")
    return [subject for subject in found.values() if subject.launches]


@contextmanager
def launches_run_by(run: Callable[..., tuple[Memory, Report]]) -> Iterator[None]:
    """Inside, a function takes the place of `attn_amdgcn.checked` in launches of targets."""
    with mock.patch.object(emulation, "checked", run):
        yield


def families(architecture: str, seed: int, count: int) -> list[list[Case]]:
    """Cases with work and with random numbers. Those of a family follow one another and share a layer, so they share kernels.

    Lengths differ, so that some cases end where a tile or a block does, and others next to that place. Targets draw many
    numbers that are 0 or alike, and these hide what an instruction does with them.

    Args:
        seed: the seed of the cases.
        count: the number of families. Next comes the one whose features are rarest among those chosen.
    """
    name = f"triton@{architecture}"
    drawn = shard.drawn(FuzzPlan(target=name, device="cpu", examples=NUM_DRAWN, seed=seed, folder=Path()))
    groups = [list(group) for _, group in groupby((dense(case) for case in drawn if case.has_work), _layer)]
    found = [(family, {feature for case in family for feature in features(case)}) for family in groups]
    seen: Counter[str] = Counter()
    picked: list[list[Case]] = []
    while found and len(picked) < count:
        best = max(range(len(found)), key=lambda i: sum(2.0 ** -seen[feature] for feature in found[i][1]))
        family, of_family = found.pop(best)
        seen.update(of_family)
        picked.append(family)
    return picked


def _layer(case: Case) -> tuple[object, ...]:
    """A key that cases of one layer share, and cases of two layers hardly ever do."""
    return (case.attn_type, case.dtype, case.num_kv_heads, case.group_size, case.head_size, case.scale, case.logits_soft_cap)


def _keep(
    found: dict[str, Subject],
    architecture: str,
    program: Program,
    case: Case,
    given: Sequence[Any],
    further: Mapping[str, Any],
    memory: Memory,
    done: Report,
) -> None:
    kernel = program.kernel
    text = "\n".join(instruction.text for instruction in kernel.instructions)
    name = f"{kernel.name}-{zlib.crc32(text.encode()):08x}"
    subject = found.setdefault(name, Subject(architecture, name, program, np.zeros(len(kernel.instructions), bool)))
    if (
        len(subject.launches) == MAX_LAUNCHES
        or done.wave_instructions > MAX_WAVE_INSTRUCTIONS
        or len(kernel.instructions) > MAX_INSTRUCTIONS
    ):
        return
    grid, arguments, buffers = given
    before = {name: data.copy() for name, data in buffers.items()}
    after = {name: memory.contents(name).copy() for name in buffers}
    subject.launches.append(
        Launch(case, grid, arguments, before, after, further["lds_bytes"], done.wave_instructions, further["permitted"])
    )
    subject.executed |= done.executed > 0
