"""Functions that read operands from waves and write them, made once for each instruction.

A value has a kind: how many bits it has, and how they are read. Values of lanes are arrays that fit [waves, lanes]; a scalar
operand of a vector instruction is [waves, 1]. Values of waves are [waves].
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel, Literal, Named, Operand, Register
from attn_amdgcn.errors import EmulationFault, UnknownInstructionError
from attn_amdgcn.pieces import Piece, Row, SourceRow, function_of, piece, value_of
from attn_amdgcn.waves import EXEC, M0, TTMP, VCC, Waves, masks_at

Read = Callable[[Waves], np.ndarray]
Write = Callable[..., None]
"""write(waves, value, lanes): the value goes into those of these lanes that are on; None: into all lanes that are on."""


class OperandKind(NamedTuple):
    """The reading of an operand's bits.

    Attributes:
        bits: 16, 32 or 64.
        dtype: a dtype of numpy.
        mask: the bits that are kept, where others are dropped.
        is_bfloat: True if a float in the text stands for the bits of its bfloat16.
    """

    bits: int
    dtype: type
    mask: int = -1
    is_bfloat: bool = False


KINDS = {
    "b16": OperandKind(16, np.uint16),
    "u16": OperandKind(16, np.uint16),
    "i16": OperandKind(16, np.int16),
    "f16": OperandKind(16, np.float16),
    "bf16": OperandKind(16, np.uint16, is_bfloat=True),
    "2bf16": OperandKind(32, np.uint32, is_bfloat=True),
    "b32": OperandKind(32, np.uint32),
    "u32": OperandKind(32, np.uint32),
    "i32": OperandKind(32, np.int32),
    "u5": OperandKind(32, np.uint32, 31),
    "i5": OperandKind(32, np.int32, 31),
    "f32": OperandKind(32, np.float32),
    "b64": OperandKind(64, np.uint64),
    "u64": OperandKind(64, np.uint64),
    "i64": OperandKind(64, np.int64),
    "f64": OperandKind(64, np.float64),
}
"""Kinds by their names in mnemonics: u5 and i5 count shifts, and 2bf16 are two bfloat16. A `mask` is a bit for each lane in
scalar registers, read as bool."""

_SPECIAL = {"vcc": VCC, "vcc_lo": VCC, "vcc_hi": VCC + 1, "exec": EXEC, "exec_lo": EXEC, "exec_hi": EXEC + 1, "m0": M0}


def vector_row(register: Register, kernel: Kernel) -> int | None:
    """The row of `Waves.vector` of a vector or accumulation register; None if it is another register."""
    if register.bank == "v":
        return register.index
    if register.bank == "a":
        return kernel.settings.get("accum_offset", 256) + register.index
    return None


def row_of(instruction: Instruction, operand: Operand, count: int, kernel: Kernel) -> int:
    """The first row of an operand that must be `count` vector or accumulation registers, without a sign."""
    register = operand.of
    row = vector_row(register, kernel) if isinstance(register, Register) and not register.half else None
    is_plain = not (operand.neg or operand.abs or operand.sext)
    if row is None or not isinstance(register, Register) or register.count != count or not is_plain:
        raise unknown(instruction, f"{count} vector registers are expected")
    return row


def scalar_index(register: Register) -> int | None:
    """The first column of `Waves.scalar` of a scalar register; None for `null`."""
    if register.bank == "s":
        return register.index
    if register.bank == "ttmp":
        return TTMP + register.index
    if register.bank == "null":
        return None
    if register.bank in _SPECIAL:
        return _SPECIAL[register.bank]
    raise UnknownInstructionError(f"register {register.bank!r} as an operand")


def bits_of(number: float, kind: OperandKind) -> int:
    """The bits of a literal. An integer is its own bits, and a float has the operand's width."""
    if isinstance(number, float) and kind.is_bfloat:
        return int(np.float32(number).view(np.uint32)) >> 16
    if isinstance(number, float):
        dtype, bits = {16: (np.float16, np.uint16), 32: (np.float32, np.uint32), 64: (np.float64, np.uint64)}[kind.bits]
        return int(dtype(number).view(bits))
    if kind.dtype is np.float64 and not -16 <= number <= 64:
        return number << 32  # 32 bits of a literal are the upper half of a double
    if kind.dtype is np.int64 and number >= 1 << 31:
        number -= 1 << 32  # a signed operand extends its 32 bits
    return number & (1 << kind.bits) - 1


_SCALARS = {np.uint32: "scalars", np.int32: "scalars_i32", np.float32: "scalars_f32", np.uint64: "scalars64"}
"""The attribute of `Waves` that holds the scalar registers as numbers of a type."""
_UNIFORMS = {np.uint32: "uniform", np.int32: "uniform_i32", np.float32: "uniform_f32", np.uint64: "uniform64"}
"""The attribute of `Waves` that holds the scalar registers as values of lanes, by type."""
_VECTORS = {np.uint32: "vector", np.int32: "vector_i32", np.float32: "vector_f32"}
"""The attribute of `Waves` that holds the vector registers, by type."""
_UNSIGNED = {16: np.uint16, 32: np.uint32, 64: np.uint64}


def scalar_value(operand: Operand, kind: OperandKind, kernel: Kernel) -> Piece:
    """[waves] values of a kind of a scalar register or a literal."""
    if isinstance(operand.of, Literal):
        return piece("{}", np.array([bits_of(operand.of.number, kind)], _UNSIGNED[kind.bits]).view(kind.dtype))
    if not isinstance(operand.of, Register):
        raise UnknownInstructionError(f"operand {operand.of.text!r}")
    if operand.of.bank == "scc":
        return piece("waves.scc.astype({})", kind.dtype)
    index = scalar_index(operand.of)
    if index is None:
        return piece("{}", np.zeros(1, kind.dtype))
    if kind.bits == 64 and index % 2:
        both = piece("{}(waves.scalars[{}], waves.scalars[{}])", joined, index, index + 1)
        return piece("{}.view({})", both, kind.dtype)
    if kind.bits == 16:
        return piece("waves.scalars[{}].astype({}).view({})", index, np.uint16, kind.dtype)
    return _in_rows(_SCALARS, kind, index // 2 if kind.bits == 64 else index)


def _in_rows(attributes: dict[type, str], kind: OperandKind, place: object) -> Piece:
    """Registers of 32 or 64 bits as numbers of a kind."""
    index = "{}" if isinstance(place, SourceRow) else "[{}]"
    if kind.dtype in attributes:
        return piece(f"waves.{attributes[kind.dtype]}{index}", place)
    return piece(f"waves.{attributes[_UNSIGNED[kind.bits]]}{index}.view({{}})", place, kind.dtype)


def reads_scalar(operand: Operand, kind: OperandKind, kernel: Kernel) -> Read:
    """Reads [waves] values of a kind from a scalar register or a literal."""
    return value_of(scalar_value(operand, kind, kernel))


def scalar_result(operand: Operand, kind: OperandKind) -> Callable[[Piece], Piece]:
    """The statement that writes [waves] values into a scalar register."""
    if not isinstance(operand.of, Register):
        raise UnknownInstructionError(f"a result in {operand.of}")
    index = scalar_index(operand.of)
    if index is None:
        return lambda value: piece("{}", value)
    count = 2 if kind.bits == 64 else 1
    forget = piece("".join("waves.masks.pop({}, None)\n" for _ in range(count + 1)), *masks_at(index, count))
    switch = piece("\nwaves.switch()" if index >= EXEC else "")
    if kind.bits == 32:
        rows = "scalars_f32" if kind.dtype is np.float32 else "scalars"
        return lambda value: piece(f"{{}}waves.{rows}[{{}}] = {{}}{{}}", forget, index, value, switch)
    if kind.bits == 64 and index % 2 == 0:
        return lambda value: piece("{}waves.scalars64[{}] = {}.view({}){}", forget, index // 2, value, np.uint64, switch)
    if kind.bits == 64:
        text = "{}waves.scalars[{}], waves.scalars[{}] = {}({}.view({}).copy()){}"
        return lambda value: piece(text, forget, index, index + 1, halves, value, np.uint64, switch)
    return lambda value: piece("{}waves.scalars[{}] = {}{}", forget, index, value, switch)


def writes_scalar(operand: Operand, kind: OperandKind) -> Callable[[Waves, np.ndarray], None]:
    """Writes [waves] values into a scalar register."""
    return function_of(scalar_result(operand, kind)(piece("value")), parameters="waves, value")


def bits_value(operand: Operand, kernel: Kernel, offset: int = 0) -> Piece:
    """32 bits for each lane; `offset` counts registers after the operand's first one."""
    return _value_of_32_bits(operand, KINDS["b32"], kernel, offset)


def _value_of_32_bits(operand: Operand, kind: OperandKind, kernel: Kernel, offset: int = 0) -> Piece:
    if isinstance(operand.of, Literal):
        return piece("{}", np.array([[bits_of(operand.of.number, kind)]], np.uint32).view(kind.dtype))
    if not isinstance(operand.of, Register):
        raise UnknownInstructionError(f"operand {operand.of}")
    if (row := vector_row(operand.of, kernel)) is not None:
        return _in_rows(_VECTORS, kind, SourceRow(row + offset))
    index = scalar_index(operand.of)
    if index is None:
        return piece("{}", np.zeros((1, 1), kind.dtype))
    return _in_rows(_UNIFORMS, kind, Row(index + offset))


def reads_bits(operand: Operand, kernel: Kernel, offset: int = 0) -> Read:
    """Reads 32 bits for each lane; `offset` counts registers after the operand's first one."""
    return value_of(bits_value(operand, kernel, offset))


def reads_indexed(operand: Operand, kernel: Kernel) -> Read:
    """Reads 32 bits for each lane, of the register that lies as far after an operand's as M0 says.

    Raises (the function):
        EmulationFault: there is no such register.
    """
    assert isinstance(operand.of, Register)
    register = operand.of
    first, has = vector_row(register, kernel), kernel.settings["next_free_vgpr"]
    end = min(has, kernel.settings.get("accum_offset", has)) if register.bank == "v" else has

    def read(waves: Waves) -> np.ndarray:
        rows = first + (waves.scalars[M0] & np.uint32(0xFF)).astype(np.int64)
        if (rows >= end).any():
            at = int(np.argmax(rows >= end))
            what = f"{register.bank}{register.index} + {rows[at] - first} is beyond the kernel's registers"
            raise EmulationFault(what, workgroup=int(waves.workgroup[at]), wave=int(waves.number[at]))
        return waves.vector[rows, np.arange(len(waves))]

    return read


def vector_value(operand: Operand, kind: OperandKind, kernel: Kernel) -> Piece:
    """A value of a kind for each lane, without the operand's modifiers."""
    if kind.bits == 32:
        return _value_of_32_bits(operand, kind, kernel)
    if isinstance(operand.of, Literal):
        return piece("{}", np.array([[bits_of(operand.of.number, kind)]], _UNSIGNED[kind.bits]).view(kind.dtype))
    if kind.bits == 64:
        if isinstance(operand.of, Register) and vector_row(operand.of, kernel) is None:
            index = scalar_index(operand.of)
            if index is not None and index % 2 == 0:
                return _in_rows(_UNIFORMS, kind, Row(index // 2))
        low, high = bits_value(operand, kernel), bits_value(operand, kernel, 1)
        return piece("{}({}, {}).view({})", joined, low, high, kind.dtype)
    shift = np.uint32(16 * (isinstance(operand.of, Register) and operand.of.half == "h"))
    return piece("({} >> {}).astype({}).view({})", bits_value(operand, kernel), shift, np.uint16, kind.dtype)


def mask_value(operand: Operand, kernel: Kernel) -> Piece:
    """A bit for each lane."""
    if isinstance(operand.of, Literal):
        bits = np.array([bits_of(operand.of.number, KINDS["b64"])], np.uint64).view(np.uint8)
        return piece("{}", np.unpackbits(bits, bitorder="little").view(bool)[None, : kernel.wave_size])
    if not isinstance(operand.of, Register) or (index := scalar_index(operand.of)) is None:
        raise UnknownInstructionError(f"a mask in {operand.of}")
    return piece("waves.mask({})", index)


def mask_result(operand: Operand) -> Callable[[Piece], Piece]:
    """The statement that writes a bit for each lane. Lanes that are off get 0."""
    if not isinstance(operand.of, Register):
        raise UnknownInstructionError(f"a mask in {operand.of}")
    index = scalar_index(operand.of)
    if index is None:
        return lambda value: piece("{}", value)
    switch = piece("\nwaves.switch()" if index >= EXEC else "")
    return lambda value: piece("waves.set_mask({}, {} if on is None else {} & on){}", index, value, value, switch)


def vector_result(operand: Operand, kind: OperandKind, kernel: Kernel, *, keeps_half: bool) -> Callable[[Piece], Piece]:
    """The statement that writes a value of a kind for each lane that is `on`.

    Args:
        keeps_half: True if a value of 16 bits leaves the other half of the register as it is; False: the upper half becomes 0.
    """
    if not isinstance(operand.of, Register) or (row := vector_row(operand.of, kernel)) is None:
        raise UnknownInstructionError(f"a vector result in {operand.of}")
    if kind.bits == 64:
        low, high = (put_statement(row_value(row + i, KINDS["b32"]), piece(half)) for i, half in enumerate(("low", "high")))
        return lambda value: piece("low, high = {}({})\n{}\n{}", halves, value, low, high)
    target = row_value(row, kind)
    if kind.bits == 32:
        return lambda value: put_statement(target, value)
    high = operand.of.half == "h"
    if not keeps_half and not high:
        return lambda value: put_statement(target, piece("{}.view({})", value, np.uint16))

    def merged(value: Piece) -> Piece:
        bits = piece("{}.view({}).astype({})", value, np.uint16, np.uint32)
        if high:
            both = piece("{} & {} | {} << {}", target, np.uint32(0xFFFF), bits, np.uint32(16))
        else:
            both = piece("{} & {} | {}", target, np.uint32(0xFFFF0000), bits)
        return put_statement(target, both)

    return merged


def row_value(row: int, kind: OperandKind) -> Piece:
    """A row of vector registers as numbers of a kind; as 32 bits, if there is no view of the kind."""
    return piece(f"waves.{_VECTORS.get(kind.dtype, 'vector')}[{{}}]", Row(row))


def put_statement(target: Piece, value: Piece, for_all: Piece | None = None) -> Piece:
    """The statement that puts a value into the lanes of a row that are `on`; `for_all` is that for all lanes."""
    for_all = for_all or piece("{} = {}", target, value)
    return piece("if on is None:\n    {}\nelse:\n    copyto({}, {}, where=on, casting='unsafe')", for_all, target, value)


def writes_vector(operand: Operand, kind: OperandKind, kernel: Kernel, *, keeps_half: bool) -> Write:
    """Writes a value of a kind for each lane that is on; arguments are those of `vector_result`."""
    return _writes(vector_result(operand, kind, kernel, keeps_half=keeps_half))


def _writes(result: Callable[[Piece], Piece]) -> Write:
    default = piece("if on is None:\n    on = waves.lanes")
    return function_of(default, result(piece("value")), parameters="waves, value, on=None")


def put(waves: Waves, row: int, value: np.ndarray, lanes: np.ndarray | None = None) -> None:
    """Write 32 bits into a vector register: in these lanes, or in those that are on."""
    if value.dtype.kind == "f":
        value = value.view(np.uint32)
    on = waves.lanes if lanes is None else lanes
    if on is None:
        waves.vector[row] = value
    else:
        np.copyto(waves.vector[row], value, where=on, casting="unsafe")


def joined(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """uint64 from two halves."""
    both = np.empty((*low.shape, 2), np.uint32)
    both[..., 0], both[..., 1] = low, high
    return both.view(np.uint64)[..., 0]


def halves(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lower and the upper 32 bits of uint64: views of them."""
    both = np.ascontiguousarray(value)[..., None].view(np.uint32)
    return both[..., 0], both[..., 1]


def unknown(instruction: Instruction, why: str = "") -> UnknownInstructionError:
    return UnknownInstructionError(f"line {instruction.line}: `{instruction.text}`{f': {why}' if why else ''}")


def number(instruction: Instruction, modifier: str, default: int = 0) -> int:
    """A modifier that is a number, such as `offset:16`; the default if the instruction has none."""
    value = instruction.modifiers.get(modifier, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise unknown(instruction, f"{modifier} is no number")
    return value


def numbers(instruction: Instruction, modifier: str, count: int, default: int = 0) -> tuple[int, ...]:
    """A modifier of `count` numbers, such as `op_sel:[0,1]`; all are the default if the instruction has none."""
    value = instruction.modifiers.get(modifier, (default,) * count)
    if not isinstance(value, tuple) or len(value) != count:
        raise unknown(instruction, f"{modifier}: {count} numbers are expected")
    return value


def label_of(instruction: Instruction) -> str:
    """The label that a branch names."""
    if len(instruction.operands) != 1 or not isinstance(label := instruction.operands[0].of, Named):
        raise unknown(instruction, "a branch to something else than a label")
    return label.text
