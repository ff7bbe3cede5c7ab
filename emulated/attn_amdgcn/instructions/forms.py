"""The forms that instructions have: which operands they read and write. A family registers a function for each meaning.

A signature such as "u32 mask = u32 u32 mask" names the kinds of the results and of the sources, in the order of the text.
Where the kinds of an instruction do not name an operand's modifiers, the modifiers are refused.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel, Operand, Register
from attn_amdgcn.errors import UnknownInstructionError
from attn_amdgcn.instructions import dpp, modes, sdwa
from attn_amdgcn.operands import (
    KINDS,
    Kind,
    Read,
    Write,
    reads_bits,
    reads_mask,
    reads_scalar,
    reads_vector,
    unknown,
    vector_row,
    writes_mask,
    writes_scalar,
    writes_vector,
)
from attn_amdgcn.waves import Waves

Step = Callable[[Waves], None]


@dataclass(frozen=True)
class Meaning:
    """What a vector instruction does: see `vector` and `made_vector`."""

    make: Callable[[Instruction, Kernel], Callable[..., Any]]
    results: tuple[str, ...]
    sources: tuple[str, ...]
    takes: tuple[str, ...]
    keeps_half: bool


VECTOR: dict[str, Meaning] = {}
"""By mnemonic: the vector instructions that `vector` registers. The halves of dual instructions are among them."""
REGISTERED: dict[str, Callable[[Instruction, Kernel], Step]] = {}
"""By mnemonic without its encoding: what makes the step of an instruction."""


_VIEWS: dict[str, Callable[[Waves], np.ndarray]] = {
    **dict.fromkeys(("b32", "u32"), operator.attrgetter("vector")),
    "i32": operator.attrgetter("vector_i32"),
    "f32": operator.attrgetter("vector_f32"),
}
"""The vector registers as numbers of a kind."""


def register(names: str, make: Callable[[Instruction, Kernel], Step]) -> None:
    """Register what makes the steps of some mnemonics, which a space separates."""
    for name in names.split():
        assert name not in REGISTERED, f"{name} has two meanings"
        REGISTERED[name] = make


def own_step(names: str) -> Callable[[Callable[[Instruction, Kernel], Step]], Callable[[Instruction, Kernel], Step]]:
    """Decorates a function that makes the step of an instruction whose operands have no common form."""

    def decorate(make: Callable[[Instruction, Kernel], Step]) -> Callable[[Instruction, Kernel], Step]:
        register(names, make)
        return make

    return decorate


def scalar(names: str, signature: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates the meaning of scalar instructions: a function from [waves] values to the results, then to SCC.

    Kinds are those of KINDS, and `scc`: as a source it is read, as the last result it is written.
    """
    results, sources = (side.split() for side in signature.split("="))

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        register(names, partial(_scalar_step, function, results, sources))
        return function

    return decorate


def _scalar_step(function: Callable, results: list[str], sources: list[str], instruction: Instruction, kernel: Kernel) -> Step:
    operands = list(instruction.operands)
    check_count(instruction, sum(kind != "scc" for kind in results + sources))
    check_modifiers(instruction)
    if any(operand.neg or operand.abs for operand in operands):
        raise unknown(instruction, "the sign of a scalar operand")
    writes = [writes_scalar(operands.pop(0), KINDS[kind]) for kind in results if kind != "scc"]
    reads: list[Read] = [
        (lambda waves: waves.scc) if kind == "scc" else reads_scalar(operands.pop(0), KINDS[kind], kernel) for kind in sources
    ]
    sets_scc, returns_one = "scc" in results, len(results) == 1

    def step(waves: Waves) -> None:
        found = function(*[read(waves) for read in reads])
        values = (found,) if returns_one else found
        for write, value in zip(writes, values, strict=False):
            write(waves, value)
        if sets_scc:
            scc = values[-1]
            waves.scc = scc if len(scc) == len(waves) else np.repeat(scc, len(waves))

    return step


def vector(
    names: str, signature: str, *, takes: Sequence[str] = (), keeps_half: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates the meaning of vector instructions: a function from values of lanes to the results.

    Args:
        names: the mnemonics, without encodings.
        signature: kinds of KINDS, and `mask`. A result that is read, too, such as the sum of v_fmac, is named again as the last
            source with a star: "f32 = f32 f32 *f32".
        takes: modifiers beside those of DPP, SDWA and of single operands: "clamp", "mul", "div", "op_sel".
        keeps_half: whether a result of 16 bits leaves the other half of its register as it is, on every architecture. From
            gfx11 on all do.
    """
    decorate_make = made_vector(names, signature, takes=takes, keeps_half=keeps_half)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        decorate_make(lambda instruction, kernel: function)
        return function

    return decorate


def made_vector(
    names: str, signature: str, *, takes: Sequence[str] = (), keeps_half: bool = False
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
        return make

    return decorate


def _vector_step(instruction: Instruction, kernel: Kernel) -> Step:
    compute, write = parts(instruction, kernel)
    if (fast := _in_place(instruction, kernel)) is None:
        return lambda waves: write(waves, compute(waves))

    def step(waves: Waves) -> None:
        if waves.lanes is None:
            fast(waves)
        else:
            write(waves, compute(waves))

    return step


def _in_place(instruction: Instruction, kernel: Kernel) -> Step | None:
    """The step of an instruction whose meaning is a ufunc of numpy, where all lanes are on: the ufunc writes the register.

    None if the instruction has another form: modifiers, DPP or SDWA, a result that is not 32 bits of a vector register.
    """
    meaning = VECTOR[instruction.name]
    function = meaning.make(instruction, kernel)
    if (
        not isinstance(function, np.ufunc)
        or len(meaning.results) != 1
        or instruction.modifiers
        or instruction.encoding == "sdwa"
    ):
        return None
    (result,), (target, *operands) = meaning.results, instruction.operands
    if result not in _VIEWS or set(meaning.sources) != {result} or len(operands) > 2 or not isinstance(target.of, Register):
        return None
    row, rows_of = vector_row(target.of, kernel), _VIEWS[result]
    if row is None:
        return None
    reads = [with_signs(operand, reads_vector(operand, KINDS[result], kernel), KINDS[result]) for operand in operands]

    def of_one(waves: Waves) -> None:
        function(reads[0](waves), out=rows_of(waves)[row])

    def of_two(waves: Waves) -> None:
        function(first(waves), second(waves), out=rows_of(waves)[row])

    first, second = reads[0], reads[-1]
    return of_one if len(reads) == 1 else of_two


def dual_step(instruction: Instruction, kernel: Kernel) -> Step:
    """The step of `v_dual_... :: v_dual_...`: both halves read their sources before one of them writes."""
    assert instruction.second is not None
    first, second = (parts(_half(half), kernel) for half in (instruction, instruction.second))

    def step(waves: Waves) -> None:
        value, other = first[0](waves), second[0](waves)
        if other.base is not None:  # a move's value is the register itself, which the first half may write
            other = other.copy()
        first[1](waves, value)
        second[1](waves, other)

    return step


def _half(half: Instruction) -> Instruction:
    """One half of a dual instruction. v_dual_cndmask_b32 does not name its mask before gfx1250: it is VCC."""
    mask = (Operand(Register("vcc_lo", 0, 1)),) if half.name == "v_dual_cndmask_b32" and len(half.operands) == 3 else ()
    return replace(half, name="v_" + half.name.removeprefix("v_dual_"), operands=half.operands + mask, second=None)


def parts(instruction: Instruction, kernel: Kernel) -> tuple[Callable[[Waves], Any], Callable[[Waves, Any], None]]:
    """The two parts of a vector instruction's step: one computes the results, and one writes them."""
    if instruction.name not in VECTOR:
        raise unknown(instruction)
    meaning = VECTOR[instruction.name]
    results, sources = meaning.results, meaning.sources
    read_again = [kind for kind in sources if kind.startswith("*")]
    check_count(instruction, len(results) + len(sources) - len(read_again))
    uses_dpp, uses_sdwa = instruction.encoding.endswith("dpp"), instruction.encoding == "sdwa"
    check_modifiers(instruction, *meaning.takes, *(dpp.MODIFIERS if uses_dpp else ()), *(sdwa.MODIFIERS if uses_sdwa else ()))
    destinations = instruction.operands[: len(results)]
    operands = [*instruction.operands[len(results) :], *(destinations[0] for _ in read_again)]
    op_sel: Any = instruction.modifiers.get("op_sel", ())
    reads = []
    for i, (operand, kind) in enumerate(zip(operands, sources, strict=True)):
        name = kind.lstrip("*")
        if name == "mask":
            reads.append(reads_mask(operand, kernel))
        elif uses_sdwa:
            reads.append(with_signs(operand, sdwa.reads(instruction, operand, i, KINDS[name], kernel), KINDS[name]))
        elif uses_dpp and i == 0:
            bits = dpp.reads(instruction, reads_bits(operand, kernel), kernel)
            reads.append(with_signs(operand, as_kind(bits, operand, KINDS[name], instruction), KINDS[name]))
        elif i < len(op_sel) and op_sel[i] and KINDS[name].bits == 16:
            bits = reads_bits(operand, kernel)
            reads.append(with_signs(operand, upper_half(bits, KINDS[name]), KINDS[name]))
        else:
            reads.append(with_signs(operand, reads_vector(operand, KINDS[name], kernel), KINDS[name]))
    keeps = meaning.keeps_half or not kernel.architecture.startswith("gfx9")
    writes = [_writes(operand, kind, instruction, kernel, keeps) for operand, kind in zip(destinations, results, strict=True)]
    finish = [finishes(instruction, KINDS[kind]) if kind != "mask" else None for kind in results]
    lanes = dpp.writes_lanes(instruction, kernel) if uses_dpp else None
    if lanes is not None and "mask" in results:
        raise unknown(instruction, "DPP that switches lanes off before a mask is written")
    function = modes.overflowing(instruction, kernel, meaning.make(instruction, kernel))

    compute = _computes(function, reads)
    if len(results) == 1 and finish[0] is None:
        (write_only,) = writes
        if lanes is None:
            return compute, write_only
        return compute, lambda waves, found: write_only(waves, found, lanes(waves))

    def write(waves: Waves, found: Any) -> None:
        on = lanes(waves) if lanes else None
        for put, value, end in zip(writes, (found,) if len(results) == 1 else found, finish, strict=True):
            put(waves, end(value) if end else value, on)

    return compute, write


def _computes(function: Callable[..., Any], reads: Sequence[Read]) -> Callable[[Waves], Any]:
    """What calls a function with what is read. A list of the values would take longer, and most steps pass here."""
    match reads:
        case [first]:
            return lambda waves: function(first(waves))
        case [first, second]:
            return lambda waves: function(first(waves), second(waves))
        case [first, second, third]:
            return lambda waves: function(first(waves), second(waves), third(waves))
    return lambda waves: function(*[read(waves) for read in reads])


def _writes(operand: Operand, kind: str, instruction: Instruction, kernel: Kernel, keeps_half: bool) -> Write:
    if kind == "mask":
        return writes_mask(operand)
    if instruction.encoding == "sdwa":
        return sdwa.writes(instruction, operand, KINDS[kind], kernel)
    op_sel: Any = instruction.modifiers.get("op_sel", ())
    if KINDS[kind].bits == 16 and len(op_sel) and op_sel[-1] and isinstance(operand.of, Register):
        operand = replace(operand, of=replace(operand.of, half="h"))
    return writes_vector(operand, KINDS[kind], kernel, keeps_half=keeps_half)


def as_kind(read: Read, operand: Operand, kind: Kind, instruction: Instruction) -> Read:
    """Values of a kind from the 32 bits that DPP brings."""
    if kind.bits == 64:
        raise unknown(instruction, "DPP of 64 bits")
    if isinstance(operand.of, Register) and operand.of.half == "h":
        return upper_half(read, kind)
    if kind.bits == 16:
        return lambda waves: read(waves).astype(np.uint16).view(kind.dtype)
    return lambda waves: read(waves).view(kind.dtype)


def upper_half(read: Read, kind: Kind) -> Read:
    """The upper 16 of 32 bits."""
    return lambda waves: (read(waves) >> np.uint32(16)).astype(np.uint16).view(kind.dtype)


def with_signs(operand: Operand, read: Read, kind: Kind) -> Read:
    """The value with the operand's modifiers `|x|` and `-x`, which change the sign bit alone: of a NaN, too."""
    if not operand.neg and not operand.abs:
        return read
    if not np.issubdtype(kind.dtype, np.floating):
        raise UnknownInstructionError(f"{operand}: a sign modifier of a value that is no float")
    unsigned = {16: np.uint16, 32: np.uint32, 64: np.uint64}[kind.bits]
    sign = unsigned(1 << kind.bits - 1)

    def signed(waves: Waves) -> np.ndarray:
        bits = read(waves).view(unsigned)
        if operand.abs:
            bits = bits & ~sign
        if operand.neg:
            bits = bits ^ sign
        return bits.view(kind.dtype)

    return signed


def finishes(instruction: Instruction, kind: Kind) -> Callable[[np.ndarray], np.ndarray] | None:
    """What `mul:2`, `mul:4`, `div:2` and `clamp` do to a float result, in this order; None if there is none of them."""
    factor: dict[tuple[str, object], float] = {("mul", 2): 2.0, ("mul", 4): 4.0, ("div", 2): 0.5}
    scale = next((factor[item] for item in instruction.modifiers.items() if item in factor), None)
    clamps = "clamp" in instruction.modifiers
    if scale is None and not clamps:
        return None
    if not np.issubdtype(kind.dtype, np.floating):
        raise unknown(instruction, "clamp of an integer")

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
