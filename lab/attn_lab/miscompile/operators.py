"""Changes of one instruction of a compiled kernel, each as a compiler's bug could make it. They know nothing of attention.

An operator takes an instruction and gives the instructions that may stand in its place. A mutant is a kernel with one of them.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from attn_amdgcn.assembly import Instruction, Kernel, Literal, Operand, Register
from attn_amdgcn.instructions.control import BARRIERS, BRANCHES, ENDS, NO_EFFECT, WAITS

Operator = Callable[[Instruction], Iterator[Instruction]]

_MATRIX = ("v_mfma_", "v_smfmac_", "v_wmma_", "v_swmmac_")
_COMMUTES = re.compile(r"_(add|addc|mul|and|or|xor|xnor|min|max|min3|max3|add3|mac|fmac|eq|ne|lg|med3|or3)_")
_EDGES = {"lt": "le", "le": "lt", "gt": "ge", "ge": "gt", "eq": "lg", "ne": "eq", "lg": "eq"} | {
    "nlt": "nle",
    "nle": "nlt",
    "ngt": "nge",
    "nge": "ngt",
    "neq": "nlg",
    "nlg": "neq",
}
_IDLE = frozenset((*NO_EFFECT.split(), *WAITS.split(), "s_sendmsg"))
"""Instructions that compute nothing."""
_HINTS = ("nt", "sc0", "sc1", "glc", "slc", "dlc", "th", "scope", "off")
"""Modifiers that change only time, or that repeat another operand."""
_OFFSETS = ("offset", "offset0", "offset1")
_DEFAULTS = {
    "row_mask": 15,
    "bank_mask": 15,
    "op_sel_hi": (1, 1, 1),
    # of SDWA
    **dict.fromkeys(("dst_sel", "src0_sel", "src1_sel"), "DWORD"),
    "dst_unused": "UNUSED_PAD",
}


def deleted(instruction: Instruction) -> Iterator[Instruction]:
    if instruction.name not in (*_IDLE, *BRANCHES, *ENDS, *BARRIERS):
        yield _nothing(instruction)


def without_wait(instruction: Instruction) -> Iterator[Instruction]:
    if instruction.name in WAITS.split():
        yield _nothing(instruction)


def without_barrier(instruction: Instruction) -> Iterator[Instruction]:
    if instruction.name in BARRIERS:
        yield _nothing(instruction)


def swapped_operands(instruction: Instruction) -> Iterator[Instruction]:
    """Two sources that differ. The first two of an instruction that commutes may stand in any order."""
    if (
        instruction.name not in _IDLE
        and instruction.name.startswith(("v_", "s_"))
        and not instruction.name.startswith((*_MATRIX, "s_load", "s_buffer_load"))
    ):
        results = 0 if instruction.name.startswith("s_cmp") else 1
        yield from _swaps(instruction, results + bool(_COMMUTES.search(instruction.name)))


def swapped_matrices(instruction: Instruction) -> Iterator[Instruction]:
    if instruction.name.startswith(_MATRIX):
        yield from list(_swaps(instruction, 1))[:1]


def other_number(instruction: Instruction) -> Iterator[Instruction]:
    """An integer of one more or of one less."""
    for i, operand in enumerate(instruction.operands):
        if isinstance(operand.of, Literal) and isinstance(operand.of.number, int) and instruction.name not in _IDLE:
            for by in (-1, 1):
                yield _with_operand(instruction, i, replace(operand, of=Literal(operand.of.number + by)))


def other_offset(instruction: Instruction) -> Iterator[Instruction]:
    for name in _OFFSETS:
        value = instruction.modifiers.get(name, 0)
        if name in instruction.modifiers and isinstance(value, int):
            for by in (-1, 1) if value else (1,):
                yield _with_modifier(instruction, name, value + by)


def edge(instruction: Instruction) -> Iterator[Instruction]:
    """`<` becomes `<=`, and `==` becomes `!=`."""
    found = re.fullmatch(r"(s_cmpk?|v_cmpx?)_(\w+)_(\w+)", instruction.name)
    if found and found[2] in _EDGES:
        other = _EDGES[found[2]]
        if other == "lg" and found[1].startswith("v") and found[3][0] != "f":
            other = "ne"  # the name of vector comparisons of integers
        yield replace(instruction, name=f"{found[1]}_{other}_{found[3]}")


def without_modifier(instruction: Instruction) -> Iterator[Instruction]:
    """Without the sign or the absolute value of a source, or without a modifier that changes a value."""
    for i, operand in enumerate(instruction.operands):
        if operand.neg or operand.abs or operand.sext:
            yield _with_operand(instruction, i, Operand(operand.of))
    if instruction.name.startswith(("v_", "ds_")):
        for name, value in instruction.modifiers.items():
            if name not in (*_HINTS, *_OFFSETS) and value != _DEFAULTS.get(name, 0):
                yield replace(instruction, modifiers={key: item for key, item in instruction.modifiers.items() if key != name})


def other_register(instruction: Instruction) -> Iterator[Instruction]:
    """A register of the same bank that stands next to it."""
    for i, operand in enumerate(instruction.operands):
        register = operand.of
        if isinstance(register, Register) and register.bank in ("v", "a", "s") and register.index >= register.count:
            for by in (-register.count, register.count):
                yield _with_operand(instruction, i, replace(operand, of=replace(register, index=register.index + by)))


OPERATORS: dict[str, Operator] = {
    "deleted": deleted,
    "without-wait": without_wait,
    "without-barrier": without_barrier,
    "swapped-operands": swapped_operands,
    "swapped-matrices": swapped_matrices,
    "number": other_number,
    "offset": other_offset,
    "edge": edge,
    "modifier": without_modifier,
    "register": other_register,
}
"""The function that makes a mutant, by the mutant's kind."""


def mutated(kernel: Kernel, place: int, instruction: Instruction) -> Kernel:
    """The kernel with another instruction at a place."""
    instructions = kernel.instructions
    return replace(kernel, instructions=(*instructions[:place], instruction, *instructions[place + 1 :]))


def change(before: Instruction, after: Instruction) -> str:
    """The change that an operator made, in words of the assembly."""
    if after.name == "s_nop":
        return f"{before.text} -> nothing"
    if before.name != after.name:
        return f"{before.text} -> {after.name}"
    for old, new in zip(before.operands, after.operands, strict=True):
        if old != new:
            return f"{before.text} -> {_words(new)} for {_words(old)}"
    other = [name for name in before.modifiers if before.modifiers[name] != after.modifiers.get(name)]
    return f"{before.text} -> " + ", ".join(f"{name} {after.modifiers.get(name, 'dropped')}" for name in other)


def _words(operand: Operand) -> str:
    of = operand.of
    if isinstance(of, Register):
        last = f":{of.index + of.count - 1}" if of.count > 1 else ""
        text = f"{of.bank}{of.index}{last}{of.half}"
    else:
        text = str(of.number if isinstance(of, Literal) else of.text)
    return f"{'-' * operand.neg}{'abs ' * operand.abs}{text}"


def _nothing(instruction: Instruction) -> Instruction:
    return replace(instruction, name="s_nop", encoding="", operands=(Operand(Literal(0)),), modifiers={}, second=None)


def _swaps(instruction: Instruction, first: int) -> Iterator[Instruction]:
    """Instructions with two neighbouring sources in the other order. `first` is the place of the first that may change."""
    operands = instruction.operands
    for i in range(first, len(operands) - 1):
        if operands[i] != operands[i + 1]:
            yield replace(instruction, operands=(*operands[:i], operands[i + 1], operands[i], *operands[i + 2 :]))


def _with_operand(instruction: Instruction, place: int, operand: Operand) -> Instruction:
    operands = instruction.operands
    return replace(instruction, operands=(*operands[:place], operand, *operands[place + 1 :]))


def _with_modifier(instruction: Instruction, name: str, value: int) -> Instruction:
    return replace(instruction, modifiers={**instruction.modifiers, name: value})
