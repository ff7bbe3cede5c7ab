"""Finds addresses that a compiler lost, without running the code: the argument that each access's address comes from.

An access of a kernel is to one tensor. So there is a pointer among the arguments from which its address was computed, on every
path to it. A compiler that keeps a part of an address in the lanes of a vector register, and writes something else there,
breaks that, and a load goes to another tensor or anywhere. LLVM 24, of Triton 3.9, does so: it spills a value of four words, of
which two are undefined, to the lanes of a whole one (LLVM's issue 225054; findings/compilers/llvm-partial-spill.py).

A walk over the basic blocks finds, for each register, lane and word of scratch, from which pointers the values that may be
there were computed. Where two paths meet, both values may be there. Lanes that are off are ignored: a vector instruction
writes a whole register. An address that has no pointer on any path was loaded from memory, and is not lost.
"""

import bisect
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

from attn_amdgcn.assembly import Instruction, Kernel, Literal, Operand, Register
from attn_amdgcn.dependences import results_of
from attn_amdgcn.flow import Flow
from attn_amdgcn.operands import scalar_index, vector_row

Origin = frozenset[int]
"""The pointers that a value was computed from, by the bytes at which they lie among the arguments."""
Origins = frozenset[Origin]
"""The origins of the values that may be in a place; empty if no value is known there."""
Place = tuple[str, int, int]
"""A scalar register ("s"); a vector register ("v") with lane -1, or one of its lanes; a word of scratch ("m"), too."""
State = dict[Place, Origins]

_NO_POINTER: Origins = frozenset({frozenset()})
_UNKNOWN: Origins = frozenset()
_KEEPS, _BRINGS_BACK = "v_writelane_b32", "v_readlane_b32"
_MAX_ORIGINS = 8
"""The most values of one place that are distinguished."""
_COPY = re.compile(r"s_mov_b\d+|v_mov_b\d+|v_accvgpr_(read|write|mov)_b32")
_CHOICE = re.compile(r"s_cselect_b\d+|v_cndmask_b32")
_ACCESS = re.compile(r"(buffer|global|flat)_(load|store|atomic)|s_load|s_buffer_load")
_BRINGS_DATA = re.compile(r"buffer_|global_|flat_|ds_|s_buffer_load")
_UNDEFINED = re.compile(r"^\s*; implicit-def: \$(\S+)", re.MULTILINE)
"""LLVM's comment before the code of a path on which a register has no value."""
_PRIVATE: Origin = frozenset({-1})
"""The origin of the resource of scratch, which gfx90a has among its first registers."""
_ARGUMENTS = -2
"""The arguments themselves have the origins -2, 4 bytes after them -6, and so on."""


class LostAddress(NamedTuple):
    """An access whose address is computed from a pointer on one path, and from none or another one on another path.

    Attributes:
        instruction: the load, store or atomic.
        origins: the origins of the values that each word of the address may have.
    """

    instruction: Instruction
    origins: Origins


def lost_addresses(kernel: Kernel, text: str) -> list[LostAddress]:
    """The accesses of global memory whose address has an origin, but none that all of its words have on all paths.

    Args:
        text: that of the kernel.
    """
    walk = _Walk(kernel, text)
    found = [(instruction, origins) for instruction, origins in walk.accesses() if frozenset().union(*origins)]
    return [LostAddress(*each) for each in found if not frozenset.intersection(*each[1])]


class _Walk:
    """The origins in a kernel's places, block by block."""

    def __init__(self, kernel: Kernel, text: str) -> None:
        self.kernel = kernel
        self.pointers = {
            byte for each in kernel.arguments if each.kind == "global_buffer" for byte in (each.offset, each.offset + 4)
        }
        self.undefined = _undefined(kernel, text)
        self.flow = Flow(kernel)

    def accesses(self) -> list[tuple[Instruction, Origins]]:
        """Each access of global memory, but those of the arguments, with the origins of the words of its address."""
        entry: dict[int, State] = {0: self._start()}
        waiting = [0]
        while waiting:
            block = waiting.pop(0)
            state = dict(entry[block])
            for instruction in self.flow.code(block):
                self._step(instruction, state)
            waiting += [after for after in self.flow.after[block] if _joined(entry, after, state) and after not in waiting]
        found = []
        for block, state in sorted(entry.items()):
            for instruction in self.flow.code(block):
                if (address := self._address(instruction, state)) and self._offset_in_arguments(address[0], state) is None:
                    found.append((instruction, frozenset().union(*(state.get(word, _UNKNOWN) for word in address))))
                self._step(instruction, state)
        return found

    def _start(self) -> State:
        """The first registers: those of a launch hold no pointer, but for the address of the arguments."""
        settings = self.kernel.settings
        private = 4 * bool(settings.get("user_sgpr_private_segment_buffer"))
        others = 2 * sum(bool(settings.get(f"user_sgpr_{name}_ptr")) for name in ("dispatch", "queue"))
        state: State = {("s", i, 0): _NO_POINTER for i in (*range(settings["user_sgpr_count"] + 8), *range(106, 128))}
        state |= {("v", i, -1): _NO_POINTER for i in range(3)}
        state |= {("s", i, 0): frozenset({_PRIVATE}) for i in range(private)}
        return state | {("s", private + others + i, 0): frozenset({frozenset({_ARGUMENTS})}) for i in range(2)}

    def _step(self, instruction: Instruction, state: State) -> None:
        """Change a state as an instruction does. The halves of one that issues two read before either writes."""
        for register in self.undefined.get(instruction.line, ()):
            state.update(dict.fromkeys(self._places(Operand(register)), _UNKNOWN))
        halves = (instruction, instruction.second) if instruction.second else (instruction,)
        for written in [self._written(half, state) for half in halves]:
            state.update(written)

    def _written(self, instruction: Instruction, state: State) -> State:
        name, operands = instruction.name, instruction.operands
        if name == _BRINGS_BACK:
            (target,), vector = self._places(operands[0]), self._places(operands[1])[0]
            lane = _lane(instruction)
            return {
                target: _NO_POINTER if lane is None else state.get((vector[0], vector[1], lane), state.get(vector, _UNKNOWN))
            }
        if name == _KEEPS:
            vector, lane = self._places(operands[0])[0], _lane(instruction)
            return {} if lane is None else {(vector[0], vector[1], lane): _combined(self._places(operands[1]), state)}
        if name.startswith("scratch_") or self._is_private(instruction, state):
            return self._spilled(instruction, state)
        count = results_of(instruction, self.kernel)
        targets = [place for operand in operands[:count] for place in self._places(operand)]
        if not targets:
            return {}
        if name.startswith("s_load"):
            return self._loaded(instruction, targets, state)
        if name == "v_readfirstlane_b32":
            # in a loop over lanes with unlike addresses, lanes that are off may hold what was loaded
            found = _combined(self._places(operands[1]), state)
            return dict.fromkeys(targets, found - _NO_POINTER or found)
        if _COPY.fullmatch(name) and not instruction.encoding.endswith(("dpp", "sdwa")):
            return _copied(self._places(operands[1]), targets, state)
        sources = [self._places(operand) for operand in operands[count:]]
        if _BRINGS_DATA.match(name):
            origins = _NO_POINTER
        elif _CHOICE.fullmatch(name):
            origins = _combined(sources[0], state) | _combined(sources[1], state)
        else:
            origins = _combined([place for places in sources for place in places], state)
        written = dict.fromkeys(targets, origins)
        if name in ("s_add_u32", "s_add_co_u32", "s_add_nc_u64") and isinstance(operands[2].of, Literal) and sources[0]:
            base = self._offset_in_arguments(sources[0][0], state)
            if base is not None:
                written[targets[0]] = frozenset({frozenset({_ARGUMENTS - base - int(operands[2].of.number)})})
        return written

    def _loaded(self, instruction: Instruction, targets: Sequence[Place], state: State) -> State:
        """The state after a scalar load, which brings pointers if it reads the arguments."""
        base, offset = instruction.operands[1:3]
        begin = self._offset_in_arguments(self._places(base)[0], state)
        if begin is None or not isinstance(offset.of, Literal):
            return dict.fromkeys(targets, _NO_POINTER)
        first = begin + int(offset.of.number)
        return {
            target: frozenset({frozenset({(first + 4 * i) // 8 * 8})}) if first + 4 * i in self.pointers else _NO_POINTER
            for i, target in enumerate(targets)
        }

    def _offset_in_arguments(self, place: Place, state: State) -> int | None:
        """The offset in bytes of an address from the arguments' beginning; None for an address of something else."""
        origins = state.get(place, _UNKNOWN)
        (origin,) = origins if len(origins) == 1 else (frozenset(),)
        return _ARGUMENTS - min(origin) if origin and max(origin) <= _ARGUMENTS else None

    def _spilled(self, instruction: Instruction, state: State) -> State:
        """The state after an access of scratch at a fixed place. Lanes go with their words."""
        stores, resource = "store" in instruction.name, self._resource(instruction)
        operands = [self._places(operand) for operand in instruction.operands]
        data = operands.pop(1 if stores and not resource else 0)
        if any(places and places != resource for places in operands):  # a register says where
            return {} if stores else dict.fromkeys(data, _UNKNOWN)
        first = int(instruction.modifiers.get("offset", 0)) // 4  # pyright: ignore[reportArgumentType]
        words: list[Place] = [("m", first + i, -1) for i in range(len(data))]
        return _copied(data, words, state) if stores else _copied(words, data, state)

    def _is_private(self, instruction: Instruction, state: State) -> bool:
        resource = self._resource(instruction)
        return bool(resource) and _PRIVATE in state.get(resource[0], _UNKNOWN)

    def _resource(self, instruction: Instruction) -> list[Place]:
        """The four words through which a buffer instruction goes."""
        if not instruction.name.startswith("buffer_"):
            return []
        fours = [self._places(each) for each in instruction.operands if isinstance(each.of, Register) and each.of.count == 4]
        return next((four for four in fours if four and four[0][0] == "s"), [])

    def _address(self, instruction: Instruction, state: State) -> list[Place]:
        """The registers of the address of an access of global memory; none if it is none."""
        name, operands = instruction.name, instruction.operands
        if not _ACCESS.match(name) or self._is_private(instruction, state):
            return []
        if name.startswith("buffer_"):
            return self._resource(instruction)[:2]
        if name.startswith("s_"):
            return self._places(operands[1])[:2]
        sources = [self._places(operand) for operand in operands[results_of(instruction, self.kernel) :]]
        scalars = [places for places in sources if places and places[0][0] == "s"]
        return scalars[-1] if scalars else sources[0]

    def _places(self, operand: Operand) -> list[Place]:
        register = operand.of
        if not isinstance(register, Register) or register.bank == "scc":
            return []
        row = vector_row(register, self.kernel)
        if row is not None:
            return [("v", row + i, -1) for i in range(register.count)]
        index = scalar_index(register)
        return [] if index is None else [("s", index + i, 0) for i in range(register.count)]


def _copied(sources: Sequence[Place], targets: Sequence[Place], state: State) -> State:
    """The state after values moved from places to as many others. Lanes go with their vector register or word of scratch."""
    written: State = {}
    for target, source in itertools.zip_longest(targets, sources[: len(targets)]):
        written[target] = _NO_POINTER if source is None else state.get(source, _UNKNOWN)
        if target[2] == -1:
            written |= {place: _UNKNOWN for place in state if place[:2] == target[:2] and place[2] >= 0}
            if source is not None and source[2] == -1:
                lanes = [place for place in state if place[:2] == source[:2] and place[2] >= 0]
                written |= {(target[0], target[1], lane): state[bank, row, lane] for bank, row, lane in lanes}
    return written


def _combined(places: Sequence[Place], state: State) -> Origins:
    found = _NO_POINTER
    for origins in {state.get(place, _UNKNOWN) for place in places} - {_NO_POINTER}:
        found = frozenset(one | other for one in found for other in origins)
        if len(found) > _MAX_ORIGINS:
            found = frozenset({frozenset.intersection(*found)})
    return found


def _lane(instruction: Instruction) -> int | None:
    """The lane that a v_readlane_b32 or v_writelane_b32 names; None if a register has its number."""
    lane = instruction.operands[2].of
    return int(lane.number) if isinstance(lane, Literal) else None


def _joined(entry: dict[int, State], block: int, state: State) -> bool:
    """Add to what may be at a block's begin. Returns whether anything is new there."""
    before = entry.get(block)
    if before is None:
        entry[block] = dict(state)
        return True
    new = {place: before.get(place, _UNKNOWN) | origins for place, origins in state.items()}
    if all(before.get(place) == origins for place, origins in new.items()):
        return False
    before.update(new)
    return True


def _undefined(kernel: Kernel, text: str) -> dict[int, list[Register]]:
    """Registers without a value before an instruction, by the instruction's line."""
    lines = [each.line for each in kernel.instructions]
    found: dict[int, list[Register]] = {}
    for comment in _UNDEFINED.finditer(text):
        following = bisect.bisect(lines, text.count("\n", 0, comment.start()) + 1)
        if following < len(lines):
            named = re.findall(r"([sva])gpr(\d+)", comment[1])
            found.setdefault(lines[following], []).extend(Register(bank, int(number), 1) for bank, number in named)
    return found


def lane_moves_in_loops(kernel: Kernel) -> int:
    """Instructions of loops that keep a scalar register in a lane of a vector register, or bring it back: scalar spills."""
    flow = Flow(kernel)
    kept = {_kept_in(each) for each in kernel.instructions if each.name == _KEEPS}
    code = [each for block in flow.in_loops() for each in flow.code(block)]
    return sum(each.name in (_KEEPS, _BRINGS_BACK) and _kept_in(each) in kept for each in code)


def _kept_in(instruction: Instruction) -> tuple[Operand, Operand]:
    """The vector register and the lane of a v_writelane_b32 or a v_readlane_b32."""
    return instruction.operands[0 if instruction.name == _KEEPS else 1], instruction.operands[2]
