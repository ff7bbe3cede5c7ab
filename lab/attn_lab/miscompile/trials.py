"""Draws mutants of kernels, and runs them: on the emulator under two schedules, and by the fuzzer's judge where bits differ."""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from attn_amdgcn import (
    AmdgcnError,
    EmulationFault,
    Memory,
    Program,
    Report,
    Schedule,
    UnknownInstructionError,
    checked,
    prepare,
)
from attn_amdgcn.assembly import Instruction, Kernel, Register
from attn_amdgcn.instructions import step
from attn_fuzz.run.case.trial import try_case
from attn_fuzz.targets import registry
from attn_lab.miscompile import operators, page
from attn_lab.miscompile.subjects import SCHEDULES, Launch, Subject, families, launches_run_by, subjects

FAULTS = (
    ("no wait stands", "wait"),
    ("a race", "race"),
    ("under Schedule", "order"),
    ("without an end", "endless"),
    ("", "memory"),
)
"""A part of a fault's message, and the class under which the fault is counted. The first that fits counts."""


@dataclass(frozen=True)
class Mutant:
    """A changed instruction of a subject."""

    subject: Subject
    kind: str
    place: int
    number: int
    instruction: Instruction

    @property
    def before(self) -> Instruction:
        return self.subject.program.kernel.instructions[self.place]

    @property
    def name(self) -> str:
        return f"{self.subject.architecture}:{self.subject.name}:{self.before.line}:{self.kind}:{self.number}"


class Trial(msgspec.Struct, frozen=True):
    """The result of a mutant.

    Attributes:
        name: architecture, kernel, line of its assembly, kind, and which of the kind's changes there.
        change: in words of the assembly.
        source: the line of the kernel's source.
        by: "memory", "wait", "race", "order", "endless", or a kind of verdict; empty if the mutant survives.
        message: the message of what found it.
        bits: True if a survivor computes other bits than the kernel, which the judge accepts.
        launches: how many ran, the last one included.
    """

    name: str
    change: str
    source: str
    by: str
    message: str
    bits: bool
    launches: int
    seconds: float


def logged_trials(architecture: str, layer: int, layers: int, count: int, seed: int, log: str) -> int:
    """Try mutants of the kernels of a layer's cases, and append what the log lacks to it at once. Returns how many ran.

    Args:
        layer, layers: which of so many families of cases.
        count: the number of mutants.
        seed: the seed of cases and of mutants.
        log: a path, to which other processes append, too.

    Raises:
        AlarmError: a case fails.
    """
    known = {row.name for row in page.logged(Path(log))}
    of_layer = subjects(architecture, families(architecture, seed, layers)[layer])
    missing = [mutant for mutant in drawn(of_layer, count, f"{seed} {layer}") if mutant.name not in known]
    with open(log, "ab", buffering=0) as file:  # a line is one write
        for mutant in missing:
            file.write(msgspec.json.encode(tried(mutant)) + b"\n")
    return len(missing)


def drawn(of: Sequence[Subject], count: int, seed: str) -> list[Mutant]:
    """Mutants of instructions that run. Kinds and kernels take turns."""
    rng = random.Random(seed)
    kinds = rng.sample(list(operators.OPERATORS), len(operators.OPERATORS))
    turns = {
        (kind, subject.name): _mutants(subject, kind, rng)
        for first in range(len(of))
        for i, kind in enumerate(kinds)
        for subject in [of[(first + i) % len(of)]]
    }
    found: list[Mutant] = []
    while turns and len(found) < count:
        for key in list(turns):
            mutant = next(turns[key], None)
            if mutant is None:
                del turns[key]
            else:
                found.append(mutant)
    return found[:count]


def _mutants(subject: Subject, kind: str, rng: random.Random) -> Iterator[Mutant]:
    """In a drawn order, one for each instruction."""
    kernel = subject.program.kernel
    places = [int(place) for place in np.flatnonzero(subject.executed)]
    rng.shuffle(places)
    of_operators = random.Random(rng.random())
    for place in places:
        made = list(operators.OPERATORS[kind](kernel.instructions[place]))
        if not made:
            continue
        number = of_operators.randrange(len(made))
        if _can_be_run(made[number], kernel):
            yield Mutant(subject, kind, place, number, made[number])


def _can_be_run(instruction: Instruction, kernel: Kernel) -> bool:
    """True if the emulator knows it, and all of its registers exist. A compiler's bug that made anything else would be seen."""
    vectors, accumulation = kernel.settings["next_free_vgpr"], kernel.settings.get("accum_offset")
    ends = {"v": accumulation or vectors, "a": vectors - (accumulation or vectors), "s": 102}
    for operand in instruction.operands:
        if isinstance(operand.of, Register) and operand.of.index + operand.of.count > ends.get(operand.of.bank, 1 << 16):
            return False
    try:
        step(instruction, kernel)
    except (AmdgcnError, ValueError, KeyError, OverflowError):
        return False
    return True


def tried(mutant: Mutant) -> Trial:
    """Run a mutant's launches until something finds it."""
    started = time.perf_counter()
    by, message, bits, ran = "", "", False, 0
    program = prepare(operators.mutated(mutant.subject.program.kernel, mutant.place, mutant.instruction))
    for launch in mutant.subject.launches:
        ran += 1
        by, message, other = _launched(mutant.subject, program, launch)
        bits |= other
        if by:
            break
    seconds = round(time.perf_counter() - started, 2)
    change = operators.change(mutant.before, mutant.instruction)
    return Trial(mutant.name, change, mutant.before.source, by, message[:300], bits, ran, seconds)


def _launched(subject: Subject, program: Program, launch: Launch) -> tuple[str, str, bool]:
    """The check that finds a mutant in a launch, its message, and whether the mutant computes other bits."""
    try:
        memory = launch.run(program, SCHEDULES, 20 * launch.instructions + 100_000)
    except EmulationFault as fault:
        return next(kind for text, kind in FAULTS if text in str(fault)), str(fault), False
    except UnknownInstructionError as error:
        return "memory", str(error), False
    if all(np.array_equal(memory.contents(name), after) for name, after in launch.after.items()):
        return "", "", False

    def run(original: Program, *given: Any, **further: Any) -> tuple[Memory, Report]:
        mine = original.kernel.instructions == subject.program.kernel.instructions
        return checked(program if mine else original, *given, **further | {"schedules": (Schedule(),)})

    with launches_run_by(run):
        verdict = try_case(launch.case, registry.load(f"triton@{subject.architecture}"), "cpu")
    return (verdict.kind, verdict.message, True) if not verdict.passed else ("", "", True)
