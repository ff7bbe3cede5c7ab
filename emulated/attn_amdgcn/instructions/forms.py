"""The forms that instructions have: which operands they read and write. A family registers a function for each meaning.

A signature such as "u32 mask = u32 u32 mask" names the kinds of the results and of the sources, in the order of the text.
Where the kinds of an instruction do not name an operand's modifiers, the modifiers are refused.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel, Operand, Register
from attn_amdgcn.errors import UnknownInstructionError
from attn_amdgcn.instructions import dpp, modes, sdwa
from attn_amdgcn.operands import (
    KINDS,
    OperandKind,
    bits_value,
    mask_result,
    mask_value,
    put_statement,
    reads_bits,
    reads_indexed,
    row_value,
    scalar_result,
    scalar_value,
    unknown,
    vector_result,
    vector_row,
    vector_value,
)
from attn_amdgcn.pieces import Piece, call, function_of, piece
from attn_amdgcn.waves import Waves

Step = Callable[[Waves], None]


@dataclass(frozen=True)
class Meaning:
    """The meaning of a vector instruction: see `vector` and `made_vector`."""

    make: Callable[[Instruction, Kernel], Callable[..., Any]]
    results: tuple[str, ...]
    sources: tuple[str, ...]
    takes: tuple[str, ...]
    keeps_half: bool


@dataclass(frozen=True)
class ScalarMeaning:
    """The meaning of a scalar instruction: see `scalar`."""

    function: Callable[..., Any]
    results: tuple[str, ...]
    sources: tuple[str, ...]
    scc: Callable[..., np.ndarray]


INDEXED = "gpr_idx"
"""The modifier of a vector instruction whose first source is the register that M0 points at (`instructions.indexing`)."""
VECTOR: dict[str, Meaning] = {}
"""The vector instructions that `vector` registers, by mnemonic. The halves of dual instructions are among them."""
SCALAR: dict[str, ScalarMeaning] = {}
"""The scalar instructions that `scalar` registers, by mnemonic."""
REGISTERED: dict[str, Callable[[Instruction, Kernel], Step]] = {}
"""The functions that make an instruction's step, by mnemonic without its encoding."""


@dataclass(frozen=True)
class Grouped:
    """An instruction that may run together with others of its kind, if all lanes are on.

    Attributes:
        make: its statements. They raise faults before they write.
        least: the least number of instructions that gain by it.
    """

    make: Callable[[Instruction, Kernel], Sequence[Piece]]
    least: int = 2


GROUPED: dict[str, Grouped] = {}
"""The instructions that may run in groups, by mnemonic."""


def register(names: str, make: Callable[[Instruction, Kernel], Step]) -> None:
    """Register what makes the steps of some mnemonics, which a space separates."""
    for name in names.split():
        assert name not in REGISTERED, f"{name} has two meanings"
        REGISTERED[name] = make


def register_statements(names: str, make: Callable[[Instruction, Kernel], Sequence[Piece]]) -> None:
    """Register what makes the statements of some mnemonics, which may run together with others of their kind."""
    for name in names.split():
        GROUPED[name] = Grouped(make)
        register(name, lambda instruction, kernel: function_of(*make(instruction, kernel)))


def own_statements(
    names: str,
) -> Callable[[Callable[[Instruction, Kernel], Sequence[Piece]]], Callable[[Instruction, Kernel], Sequence[Piece]]]:
    """Decorates a function for `register_statements`."""

    def decorate(make: Callable[[Instruction, Kernel], Sequence[Piece]]) -> Callable[[Instruction, Kernel], Sequence[Piece]]:
        register_statements(names, make)
        return make

    return decorate


def own_step(names: str) -> Callable[[Callable[[Instruction, Kernel], Step]], Callable[[Instruction, Kernel], Step]]:
    """Decorates a function that makes the step of an instruction whose operands have no common form."""

    def decorate(make: Callable[[Instruction, Kernel], Step]) -> Callable[[Instruction, Kernel], Step]:
        register(names, make)
        return make

    return decorate


def _is_not_zero(value: np.ndarray, *sources: np.ndarray) -> np.ndarray:
    return value != 0


def scalar(
    names: str, signature: str, *, scc: Callable[..., np.ndarray] = _is_not_zero
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates the meaning of scalar instructions: a function from [waves] values to the result.

    Args:
        names: the mnemonics.
        signature: kinds of KINDS, and `scc`: as a source it is read, as the last result it is written. A star at a source says
            that it is the result's register: "i32 = *i32 i16".
        scc: where SCC is written beside a result, what it becomes, of the result and of the sources.
    """
    results, sources = (tuple(side.split()) for side in signature.split("="))

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names.split():
            SCALAR[name] = ScalarMeaning(function, results, sources, scc)
        register(names, scalar_step)
        return function

    return decorate


def scalar_step(instruction: Instruction, kernel: Kernel, *, scc_matters: bool = True) -> Step:
    """The step of an instruction that `scalar` registers.

    Args:
        scc_matters: True if a later instruction may read its SCC.
    """
    meaning = SCALAR[instruction.name]
    operands, results = list(instruction.operands), meaning.results
    check_count(instruction, sum(kind != "scc" and not kind.startswith("*") for kind in results + meaning.sources))
    check_modifiers(instruction)
    if any(operand.neg or operand.abs for operand in operands):
        raise unknown(instruction, "the sign of a scalar operand")
    target = operands.pop(0) if results[0] != "scc" else operands[0]
    write = scalar_result(target, KINDS[results[0]]) if results[0] != "scc" else None
    values = [
        piece("waves.scc")
        if kind == "scc"
        else scalar_value(target if kind.startswith("*") else operands.pop(0), KINDS[kind.lstrip("*")], kernel)
        for kind in meaning.sources
    ]
    if "scc" not in results or not scc_matters:
        return function_of(write(call(meaning.function, values))) if write else function_of(piece("pass"))
    names = [piece(f"source{i}") for i in range(len(values))]
    statements = [piece("{} = {}", name, value) for name, value in zip(names, values, strict=True)]
    statements.append(piece("value = {}", call(meaning.function, names)))
    if write is None:
        found = piece("value")
    else:
        found = piece("scc")
        statements.append(piece("scc = {}", call(meaning.scc, [piece("value"), *names])))
        statements.append(write(piece("value")))
    if all(value.text == "{}" for value in values):  # constants are the same for all waves
        found = piece("{}({}, len(waves))", np.repeat, found)
    statements.append(piece("waves.scc = {}", found))
    return function_of(*statements)


def vector(
    names: str, signature: str, *, takes: Sequence[str] = (), keeps_half: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates the meaning of vector instructions: a function from values of lanes to the results.

    Args:
        names: the mnemonics, without encodings.
        signature: kinds of KINDS, and `mask`. A result that is read, too, such as the sum of v_fmac, is named again as the last
            source with a star: "f32 = f32 f32 *f32".
        takes: modifiers beside those of DPP, SDWA and of single operands: "clamp", "mul", "div", "op_sel".
        keeps_half: True if a result of 16 bits leaves the other half of its register as it is, on every architecture. From
            gfx11 on all do.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        least = 4 if isinstance(function, np.ufunc) else 2  # one alone writes its register without a copy
        decorate_make = made_vector(names, signature, takes=takes, keeps_half=keeps_half, least=least)
        decorate_make(lambda instruction, kernel: function)
        return function

    return decorate


def made_vector(
    names: str, signature: str, *, takes: Sequence[str] = (), keeps_half: bool = False, least: int = 2
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates what makes a function such as `vector` decorates, for an instruction whose modifiers change its meaning."""
    results, sources = (tuple(side.split()) for side in signature.split("="))

    def decorate(
        make: Callable[[Instruction, Kernel], Callable[..., Any]],
    ) -> Callable[[Instruction, Kernel], Callable[..., Any]]:
        meaning = Meaning(make, results, sources, tuple(takes), keeps_half)
        for name in names.split():
            VECTOR[name] = meaning
            register(name, _vector_step)
            if "mask" not in results:
                GROUPED[name] = Grouped(_vector_statements, least)
        return make

    return decorate


def _vector_step(instruction: Instruction, kernel: Kernel) -> Step:
    parts = parts_of(instruction, kernel)
    if (in_place := _in_place(instruction, parts, kernel)) is None:
        return function_of(*parts.statements())
    return in_place


def _vector_statements(instruction: Instruction, kernel: Kernel) -> Sequence[Piece]:
    compute, write = parts_of(instruction, kernel).statements()
    keep = piece("if value0.base is not None:\n    value0 = value0.copy()")  # as in `dual_step`
    return compute, keep, write


def _in_place(instruction: Instruction, parts: "StepParts", kernel: Kernel) -> Step | None:
    """The step of an instruction whose meaning is a ufunc of numpy: where all lanes are on, the ufunc writes the register.

    None if the instruction has another form: the result is finished, has lanes of its own, or is of another kind than a source.
    """
    meaning, target = VECTOR[instruction.name], instruction.operands[0].of
    if (
        not isinstance(parts.function, np.ufunc)
        or instruction.encoding == "sdwa"
        or parts.lanes is not None
        or parts.finish != [None]
        or meaning.results[0] not in ("b32", "u32", "i32", "f32")
        or {*meaning.sources} != {*meaning.results}
        or not isinstance(target, Register)
        or (row := vector_row(target, kernel)) is None
    ):
        return None
    result = row_value(row, KINDS[meaning.results[0]])
    into = call(parts.function, [*parts.values, piece("out={}", result)])
    return function_of(piece("on = waves.lanes"), put_statement(result, call(parts.function, parts.values), into))


def dual_step(instruction: Instruction, kernel: Kernel) -> Step:
    """The step of `v_dual_... :: v_dual_...`."""
    return function_of(*dual_statements(instruction, kernel))


def dual_statements(instruction: Instruction, kernel: Kernel) -> Sequence[Piece]:
    """Both halves read their sources before one of them writes."""
    assert instruction.second is not None
    first, second = (parts_of(_half(half), kernel) for half in (instruction, instruction.second))
    compute, write = zip(first.statements("x"), second.statements("y"), strict=True)
    keep = piece("if y0.base is not None:\n    y0 = y0.copy()")  # a move's value is a register, which the first half may write
    return *compute, keep, *write


def _half(half: Instruction) -> Instruction:
    """One half of a dual instruction. v_dual_cndmask_b32 does not name its mask before gfx1250: it is VCC."""
    mask = (Operand(Register("vcc_lo", 0, 1)),) if half.name == "v_dual_cndmask_b32" and len(half.operands) == 3 else ()
    return replace(half, name="v_" + half.name.removeprefix("v_dual_"), operands=half.operands + mask, second=None)


@dataclass(frozen=True)
class StepParts:
    """The parts of a vector instruction's step.

    Attributes:
        function: from the values of its sources to its results.
        values: the values of its sources.
        finish: for each result, the function that changes it before it is written, or None.
        writes: for each result, the statement that writes a value.
        lanes: which lanes are written; None: those that are on.
    """

    function: Callable[..., Any]
    values: list[Piece]
    finish: list[Callable[[np.ndarray], np.ndarray] | None]
    writes: list[Callable[[Piece], Piece]]
    lanes: Callable[[Waves], np.ndarray] | None

    def statements(self, name: str = "value") -> tuple[Piece, Piece]:
        """The statement that computes the results, under names that begin with a name, and the statements that write them."""
        found = [piece(f"{name}{i}") for i in range(len(self.writes))]
        compute = piece(f"{', '.join(each.text for each in found)} = {{}}", call(self.function, self.values))
        on = piece("on = waves.lanes") if self.lanes is None else piece("on = {}(waves)", self.lanes)
        write = [on]
        for result, value, end in zip(self.writes, found, self.finish, strict=True):
            if end:
                write.append(piece("{} = {}({})", value, end, value))
            write.append(result(value))
        return compute, piece("\n".join("{}" for _ in write), *write)


def parts_of(instruction: Instruction, kernel: Kernel) -> StepParts:
    """The parts of the step of an instruction that `vector` registers."""
    if instruction.name not in VECTOR:
        raise unknown(instruction)
    meaning = VECTOR[instruction.name]
    results, sources = meaning.results, meaning.sources
    read_again = [kind for kind in sources if kind.startswith("*")]
    check_count(instruction, len(results) + len(sources) - len(read_again))
    uses_dpp, uses_sdwa = instruction.encoding.endswith("dpp"), instruction.encoding == "sdwa"
    known = (*meaning.takes, INDEXED, *(dpp.MODIFIERS if uses_dpp else ()), *(sdwa.MODIFIERS if uses_sdwa else ()))
    check_modifiers(instruction, *known)
    destinations = instruction.operands[: len(results)]
    operands = [*instruction.operands[len(results) :], *(destinations[0] for _ in read_again)]
    op_sel: Any = instruction.modifiers.get("op_sel", ())
    if op_sel and len(op_sel) != len(instruction.operands):
        raise unknown(instruction, f"op_sel names {len(op_sel)} halves")
    values = []
    for i, (operand, kind) in enumerate(zip(operands, sources, strict=True)):
        name = kind.lstrip("*")
        if name == "mask":
            values.append(mask_value(operand, kernel))
        elif uses_sdwa:
            values.append(with_signs(operand, sdwa.value(instruction, operand, i, KINDS[name], kernel), KINDS[name]))
        elif uses_dpp and i == 0:
            bits = piece("{}(waves)", dpp.reads(instruction, reads_bits(operand, kernel), kernel))
            values.append(with_signs(operand, as_kind(bits, operand, KINDS[name], instruction), KINDS[name]))
        elif INDEXED in instruction.modifiers and i == 0:
            bits = piece("{}(waves)", reads_indexed(operand, kernel))
            values.append(with_signs(operand, as_kind(bits, operand, KINDS[name], instruction), KINDS[name]))
        elif i < len(op_sel) and op_sel[i] and KINDS[name].bits == 16:
            values.append(with_signs(operand, upper_half(bits_value(operand, kernel), KINDS[name]), KINDS[name]))
        else:
            values.append(signed_value(operand, KINDS[name], kernel))
        if name != "mask":
            values[i] = masked(values[i], KINDS[name])
    keeps = meaning.keeps_half or not kernel.architecture.startswith("gfx9")
    writes = [_result(operand, kind, instruction, kernel, keeps) for operand, kind in zip(destinations, results, strict=True)]
    finish = [finishes(instruction, KINDS[kind]) if kind != "mask" else None for kind in results]
    lanes = dpp.writes_lanes(instruction, kernel) if uses_dpp else None
    if lanes is not None and "mask" in results:
        raise unknown(instruction, "DPP that switches lanes off before a mask is written")
    function = modes.overflowing(instruction, kernel, meaning.make(instruction, kernel))
    function = modes.flushing(instruction, kernel, function, (results, sources))
    return StepParts(function, values, finish, writes, lanes)


def _result(
    operand: Operand, kind: str, instruction: Instruction, kernel: Kernel, keeps_half: bool
) -> Callable[[Piece], Piece]:
    """The statement that writes a value into an operand."""
    if kind == "mask":
        return mask_result(operand)
    if instruction.encoding == "sdwa" and not sdwa.writes_all(instruction, KINDS[kind]):
        write = sdwa.writes(instruction, operand, KINDS[kind], kernel)
        return lambda value: piece("{}(waves, {}, on)", write, value)
    op_sel: Any = instruction.modifiers.get("op_sel", ())
    if KINDS[kind].bits == 16 and len(op_sel) and op_sel[-1] and isinstance(operand.of, Register):
        operand = replace(operand, of=replace(operand.of, half="h"))
    return vector_result(operand, KINDS[kind], kernel, keeps_half=keeps_half)


def masked(value: Piece, kind: OperandKind) -> Piece:
    """A value without the bits that its kind drops."""
    if kind.mask < 0:
        return value
    kept = kind.dtype(kind.mask)
    return piece("{}", value.names[0] & kept) if value.text == "{}" else piece("({} & {})", value, kept)


def as_kind(bits: Piece, operand: Operand, kind: OperandKind, instruction: Instruction) -> Piece:
    """Values of a kind from the 32 bits that DPP brings."""
    if kind.bits == 64:
        raise unknown(instruction, "DPP or an index, of 64 bits")
    if isinstance(operand.of, Register) and operand.of.half == "h":
        return upper_half(bits, kind)
    if kind.bits == 16:
        return piece("{}.astype({}).view({})", bits, np.uint16, kind.dtype)
    return piece("{}.view({})", bits, kind.dtype)


def upper_half(bits: Piece, kind: OperandKind) -> Piece:
    """The upper 16 of 32 bits."""
    return piece("({} >> {}).astype({}).view({})", bits, np.uint32(16), np.uint16, kind.dtype)


def signed_value(operand: Operand, kind: OperandKind, kernel: Kernel) -> Piece:
    """The value of a kind for each lane, with the signs of its operand."""
    return with_signs(operand, vector_value(operand, kind, kernel), kind)


def with_signs(operand: Operand, value: Piece, kind: OperandKind) -> Piece:
    """The value with the operand's modifiers `|x|` and `-x`, which change the sign bit alone: of a NaN, too."""
    if not operand.neg and not operand.abs:
        return value
    if not np.issubdtype(kind.dtype, np.floating):
        raise UnknownInstructionError(f"{operand}: a sign modifier of a value that is no float")
    unsigned = {16: np.uint16, 32: np.uint32, 64: np.uint64}[kind.bits]
    sign = unsigned(1 << kind.bits - 1)
    bits = piece("{}.view({})", value, unsigned)
    if operand.abs:
        bits = piece("({} & {})", bits, ~sign)
    if operand.neg:
        bits = piece("({} ^ {})", bits, sign)
    return piece("{}.view({})", bits, kind.dtype)


def finishes(instruction: Instruction, kind: OperandKind) -> Callable[[np.ndarray], np.ndarray] | None:
    """The function that applies `mul:2`, `mul:4`, `div:2` and `clamp` to a float result, in this order; None without them.

    Integers cannot be clamped here: their result has already wrapped.
    """
    factor: dict[tuple[str, object], float] = {("mul", 2): 2.0, ("mul", 4): 4.0, ("div", 2): 0.5}
    scale = next((factor[item] for item in instruction.modifiers.items() if item in factor), None)
    clamps = "clamp" in instruction.modifiers
    if scale is None and not clamps:
        return None
    if not np.issubdtype(kind.dtype, np.floating):
        if instruction.encoding == "sdwa":
            raise unknown(instruction, "clamp of an integer")
        return None  # an instruction that takes `clamp` has a meaning with it

    def end(value: np.ndarray) -> np.ndarray:
        if scale is not None:
            value = value * kind.dtype(scale)
        if clamps:  # with dx10_clamp a NaN becomes 0
            value = np.where(np.isnan(value), kind.dtype(0), np.clip(value, kind.dtype(0), kind.dtype(1)))
        return value

    return end


def check_count(instruction: Instruction, count: int) -> None:
    if len(instruction.operands) != count:
        raise unknown(instruction, f"{len(instruction.operands)} operands, and {count} are expected")


def check_modifiers(instruction: Instruction, *known: str) -> None:
    """Refuse a modifier whose meaning the instruction's family does not define."""
    for name in instruction.modifiers:
        if name not in known:
            raise unknown(instruction, f"the modifier {name!r} has no meaning here")
