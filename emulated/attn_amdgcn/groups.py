"""Instructions of a block that are of one form and do not need each other's results: they run as one.

numpy takes as long for the registers of a few waves as for those of one. So a step that serves eight instructions takes little
longer than a step of one of them. They need not stand side by side: an instruction moves to the others of its form if it may
change places with all that stand between (`dependences`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from attn_amdgcn import instructions, waits
from attn_amdgcn.assembly import Instruction, Kernel, Literal, Named, Operand, Register
from attn_amdgcn.dependences import Effects, effects
from attn_amdgcn.errors import EmulationFault
from attn_amdgcn.instructions.control import nothing
from attn_amdgcn.instructions.forms import GROUPED, Step, dual_statements
from attn_amdgcn.pieces import Piece, function_of, function_of_several
from attn_amdgcn.waves import Waves

MAX_WAVES = 16
"""The most waves for groups: with more, numpy takes longer than Python, and copying registers takes longer than more steps."""
MAX_INSTRUCTIONS = 32
MAX_BETWEEN = 50
"""The most runs that an instruction may change places with."""
Placed = tuple[int, Step]
"""The step of an instruction, and its place in a block."""


def steps_of(code: Sequence[Instruction], kernel: Kernel) -> tuple[Placed, ...]:
    """The steps of a block without the instructions that change no value.

    Raises:
        UnknownInstructionError: an instruction has no meaning here.
    """
    matters = instructions.scc_matters(code)

    def alone(place: int) -> Step:
        return instructions.step(code[place], kernel, scc_matters=matters[place])

    done: list[Placed] = []
    for run in _runs(code, kernel):
        group = _together(code, run.places, kernel) if run.form and len(run.places) >= _least(code[run.places[0]]) else None
        done.extend([(place, alone(place)) for place in run.places] if group is None else [(run.places[0], group)])
    return tuple([(place, step) for place, step in done if step is not nothing])


def _together(code: Sequence[Instruction], run: Sequence[int], kernel: Kernel) -> Step | None:
    """One step of a run of instructions; None if they have no common meaning.

    Each instruction runs by itself if lanes are off, or if a watch observes it.
    """
    statements = [_statements(code[place], kernel) for place in run]
    group = function_of_several(statements)
    if group is None:
        return None
    is_seen = bool(waits.counters_of(code[run[0]], kernel))
    singles: list[Step] = []

    def step(waves: Waves) -> None:
        if waves.lanes is None and len(waves) <= MAX_WAVES and not (is_seen and waves.shared.watches):
            try:
                group(waves)
                return
            except EmulationFault:  # nothing was written: each by itself says what is wrong
                pass
        if not singles:
            singles.extend([function_of(*each) for each in statements])
        for place, single in zip(run, singles, strict=True):
            try:
                single(waves)
            except EmulationFault as fault:
                if not fault.instruction:
                    fault.at(code[place])
                raise

    return step


def _least(instruction: Instruction) -> int:
    """The least number of instructions that gain by running together."""
    return 2 if instruction.second else GROUPED[instruction.name].least


def _statements(instruction: Instruction, kernel: Kernel) -> Sequence[Piece]:
    return dual_statements(instruction, kernel) if instruction.second else GROUPED[instruction.name].make(instruction, kernel)


def _form(instruction: Instruction) -> tuple[object, ...]:
    """The common form of instructions that may run together; empty for an instruction that runs alone."""
    if instruction.second:
        return *_form(replace(instruction, second=None)), *_form(instruction.second)
    if not (instruction.name in GROUPED or instruction.name.startswith("v_dual_")) or instruction.encoding.endswith("dpp"):
        return ()
    modifiers = tuple((name, value) for name, value in instruction.modifiers.items() if not name.startswith("offset"))
    return instruction.name, instruction.encoding, modifiers, tuple(map(_form_of_operand, instruction.operands))


def _form_of_operand(operand: Operand) -> tuple[object, ...]:
    match operand.of:
        case Register(bank=bank, index=index, count=count, half=half):  # one scalar register is read faster than several
            return bank, index * (bank == "s"), count, half, operand.neg, operand.abs
        case Named(text=text):
            return (text,)
        case Literal():
            return operand.neg, operand.abs


@dataclass
class _Run:
    """Instructions of one form none of which needs what another one writes.

    Attributes:
        form: empty if the instruction runs alone.
        places: in the block.
        effects: the effects of all instructions.
    """

    form: tuple[object, ...]
    places: list[int]
    effects: Effects


def _runs(code: Sequence[Instruction], kernel: Kernel) -> list[_Run]:
    """The instructions of a block that change a value. One joins a run before it if it may change places with all between."""
    runs: list[_Run] = []
    for place, instruction in enumerate(code):
        form, own = _form(instruction), effects(instruction, kernel)
        if not form and instructions.changes_nothing(instruction):
            continue
        run = _joinable(runs, form, own) if form else None
        if run is None:
            runs.append(_Run(form, [place], own))
        else:
            run.places.append(place)
            run.effects |= own
    return runs


def _joinable(runs: Sequence[_Run], form: tuple[object, ...], own: Effects) -> _Run | None:
    """The nearest run of a form that an instruction may join."""
    for run in reversed(runs[-MAX_BETWEEN:]):
        if run.form == form and len(run.places) < MAX_INSTRUCTIONS and not run.effects.feed(own):
            return run
        if run.effects.order(own):
            return None
    return None
