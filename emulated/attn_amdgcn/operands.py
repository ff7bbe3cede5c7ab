"""What an operand means: functions that read it from waves and write it, made once for each instruction.

A value has a kind: how many bits it has, and how they are read. Values of lanes are arrays that fit [waves, lanes]; a scalar
operand of a vector instruction is [waves, 1]. Values of waves are [waves].
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel, Literal, Named, Operand, Register
from attn_amdgcn.errors import UnknownInstructionError
from attn_amdgcn.waves import EXEC, M0, TTMP, VCC, Waves

Read = Callable[[Waves], np.ndarray]
Write = Callable[..., None]
"""write(waves, value, lanes): the value goes into those of these lanes that are on; None: into all lanes that are on."""


class Kind(NamedTuple):
    """How an operand's bits are read.

    Attributes:
        bits: 16, 32 or 64.
        dtype: of numpy.
    """

    bits: int
    dtype: type


KINDS = {
    "b16": Kind(16, np.uint16),
    "u16": Kind(16, np.uint16),
    "i16": Kind(16, np.int16),
    "f16": Kind(16, np.float16),
    "b32": Kind(32, np.uint32),
    "u32": Kind(32, np.uint32),
    "i32": Kind(32, np.int32),
    "f32": Kind(32, np.float32),
    "b64": Kind(64, np.uint64),
    "u64": Kind(64, np.uint64),
    "i64": Kind(64, np.int64),
    "f64": Kind(64, np.float64),
}
"""By the names that the mnemonics use. A `mask` is a bit for each lane in scalar registers, read as bool."""

_SPECIAL = {"vcc": VCC, "vcc_lo": VCC, "vcc_hi": VCC + 1, "exec": EXEC, "exec_lo": EXEC, "exec_hi": EXEC + 1, "m0": M0}


def vector_row(register: Register, kernel: Kernel) -> int | None:
    """The row of `Waves.vector` of a vector or accumulation register; None if it is another register."""
    if register.bank == "v":
        return register.index
    if register.bank == "a":
        return kernel.settings.get("accum_offset", 256) + register.index
    return None


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


def bits_of(number: float, kind: Kind) -> int:
    """The bits of a literal. An integer is its own bits, and a float has the operand's width."""
    if isinstance(number, float):
        dtype, bits = {16: (np.float16, np.uint16), 32: (np.float32, np.uint32), 64: (np.float64, np.uint64)}[kind.bits]
        return int(dtype(number).view(bits))
    if kind.dtype is np.float64 and not -16 <= number <= 64:
        return number << 32  # 32 bits of a literal are the upper half of a double
    if kind.dtype is np.int64 and number >= 1 << 31:
        number -= 1 << 32  # a signed operand extends its 32 bits
    return number & (1 << kind.bits) - 1


def reads_scalar(operand: Operand, kind: Kind, kernel: Kernel) -> Read:
    """Reads [waves] values of a kind from a scalar register or a literal."""
    if isinstance(operand.of, Literal):
        bits, unsigned = bits_of(operand.of.number, kind), {16: np.uint16, 32: np.uint32, 64: np.uint64}[kind.bits]
        value = np.array([bits], unsigned).view(kind.dtype)
        return lambda waves: value
    if not isinstance(operand.of, Register):
        raise UnknownInstructionError(f"operand {operand.of.text!r}")
    if operand.of.bank == "scc":
        return lambda waves: waves.scc.astype(kind.dtype)
    index = scalar_index(operand.of)
    if index is None:
        zero = np.zeros(1, kind.dtype)
        return lambda waves: zero
    if kind.bits == 64 and index % 2 == 0:
        column, dtype = index // 2, kind.dtype
        return lambda waves: waves.scalar64[:, column].view(dtype)
    if kind.bits == 64:
        return lambda waves: joined(waves.scalar[:, index], waves.scalar[:, index + 1]).view(kind.dtype)
    if kind.bits == 16:
        return lambda waves: waves.scalar[:, index].astype(np.uint16).view(kind.dtype)
    return lambda waves: waves.scalar[:, index].view(kind.dtype)


def writes_scalar(operand: Operand, kind: Kind) -> Callable[[Waves, np.ndarray], None]:
    """Writes [waves] values into a scalar register."""
    if not isinstance(operand.of, Register):
        raise UnknownInstructionError(f"a result in {operand.of}")
    index = scalar_index(operand.of)
    if index is None:
        return lambda waves, value: None
    wide = kind.bits == 64
    count = 2 if wide else 1

    def write(waves: Waves, value: np.ndarray) -> None:
        waves.forget_masks(index, count)
        if not wide:
            waves.scalar[:, index] = value if value.dtype.itemsize != 4 else value.view(np.uint32)
        elif index % 2 == 0:
            waves.scalar64[:, index // 2] = value.view(np.uint64) if value.dtype.itemsize == 8 else value
        else:
            waves.scalar[:, index], waves.scalar[:, index + 1] = halves(value.view(np.uint64).copy())

    def write_exec(waves: Waves, value: np.ndarray) -> None:
        write(waves, value)
        waves.switch()

    return write_exec if index >= EXEC else write


def reads_bits(operand: Operand, kernel: Kernel, offset: int = 0) -> Read:
    """Reads 32 bits for each lane; `offset` counts registers behind the operand's first one."""
    if isinstance(operand.of, Register) and (row := vector_row(operand.of, kernel)) is not None:
        place = row + offset
        return lambda waves: waves.vector[place]
    if isinstance(operand.of, Literal):
        value = np.array([[bits_of(operand.of.number, KINDS["b32"])]], np.uint32)
        return lambda waves: value
    if isinstance(operand.of, Register):
        index = scalar_index(operand.of)
        if index is None:
            zero = np.zeros((1, 1), np.uint32)
            return lambda waves: zero
        column = index + offset
        return lambda waves: waves.scalar[:, column : column + 1]
    raise UnknownInstructionError(f"operand {operand.of}")


def reads_vector(operand: Operand, kind: Kind, kernel: Kernel) -> Read:
    """Reads a value of a kind for each lane, without the operand's modifiers."""
    if isinstance(operand.of, Literal):
        unsigned = {16: np.uint16, 32: np.uint32, 64: np.uint64}[kind.bits]
        value = np.array([[bits_of(operand.of.number, kind)]], unsigned).view(kind.dtype)
        return lambda waves: value
    if kind.bits == 32 and isinstance(operand.of, Register) and (row := vector_row(operand.of, kernel)) is not None:
        if kind.dtype is np.float32:
            return lambda waves: waves.vector_f32[row]
        if kind.dtype is np.int32:
            return lambda waves: waves.vector_i32[row]
    low = reads_bits(operand, kernel)
    if kind.dtype is np.uint32:
        return low
    if kind.bits == 64:
        high = reads_bits(operand, kernel, 1)
        return lambda waves: joined(low(waves), high(waves)).view(kind.dtype)
    if kind.bits == 16:
        shift = np.uint32(16 * (isinstance(operand.of, Register) and operand.of.half == "h"))
        return lambda waves: (low(waves) >> shift).astype(np.uint16).view(kind.dtype)
    return lambda waves: low(waves).view(kind.dtype)


def reads_mask(operand: Operand, kernel: Kernel) -> Read:
    """Reads a bit for each lane."""
    if isinstance(operand.of, Literal):
        bits = np.array([bits_of(operand.of.number, KINDS["b64"])], np.uint64).view(np.uint8)
        value = np.unpackbits(bits, bitorder="little").view(bool)[None, : kernel.wave_size]
        return lambda waves: value
    if not isinstance(operand.of, Register) or (index := scalar_index(operand.of)) is None:
        raise UnknownInstructionError(f"a mask in {operand.of}")
    return lambda waves: waves.mask(index)


def writes_mask(operand: Operand) -> Write:
    """Writes a bit for each lane. Lanes that are off get 0."""
    if not isinstance(operand.of, Register):
        raise UnknownInstructionError(f"a mask in {operand.of}")
    index = scalar_index(operand.of)
    if index is None:
        return lambda waves, value, lanes=None: None

    def write(waves: Waves, value: np.ndarray, lanes: np.ndarray | None = None) -> None:
        on = waves.lanes if lanes is None else lanes
        waves.set_mask(index, value if on is None else value & on)
        if index >= EXEC:
            waves.switch()

    return write


def writes_vector(operand: Operand, kind: Kind, kernel: Kernel, *, keeps_half: bool) -> Write:
    """Writes a value of a kind for each lane that is on.

    Args:
        keeps_half: whether a value of 16 bits leaves the other half of the register as it is; else the upper half becomes 0.
    """
    if not isinstance(operand.of, Register) or (row := vector_row(operand.of, kernel)) is None:
        raise UnknownInstructionError(f"a vector result in {operand.of}")
    if kind.bits == 64:
        return lambda waves, value, lanes=None: put_wide(waves, row, value.view(np.uint64), lanes)
    if kind.bits == 32:
        return lambda waves, value, lanes=None: put(waves, row, value, lanes)
    high = operand.of.half == "h"
    if not keeps_half and not high:
        return lambda waves, value, lanes=None: put(waves, row, value.view(np.uint16).astype(np.uint32), lanes)

    def write(waves: Waves, value: np.ndarray, lanes: np.ndarray | None = None) -> None:
        bits, old = value.view(np.uint16).astype(np.uint32), waves.vector[row]
        merged = old & np.uint32(0xFFFF) | bits << np.uint32(16) if high else old & np.uint32(0xFFFF0000) | bits
        put(waves, row, merged, lanes)

    return write


def put(waves: Waves, row: int, value: np.ndarray, lanes: np.ndarray | None = None) -> None:
    """Write 32 bits into a vector register: in these lanes, or in those that are on."""
    if value.dtype.kind == "f":
        value = value.view(np.uint32)
    on = waves.lanes if lanes is None else lanes
    if on is None:
        waves.vector[row] = value
    else:
        np.copyto(waves.vector[row], value, where=on, casting="unsafe")


def put_wide(waves: Waves, row: int, value: np.ndarray, lanes: np.ndarray | None = None) -> None:
    """Write 64 bits into two vector registers."""
    low, high = halves(value)
    put(waves, row, low, lanes)
    put(waves, row + 1, high, lanes)


def joined(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """uint64 of two halves."""
    both = np.empty((*low.shape, 2), np.uint32)
    both[..., 0], both[..., 1] = low, high
    return both.view(np.uint64)[..., 0]


def halves(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lower and the upper 32 bits of uint64: views of them."""
    both = np.ascontiguousarray(value)[..., None].view(np.uint32)
    return both[..., 0], both[..., 1]


def unknown(instruction: Instruction, why: str = "") -> UnknownInstructionError:
    return UnknownInstructionError(f"line {instruction.line}: `{instruction.text}`{f': {why}' if why else ''}")


def label_of(instruction: Instruction) -> str:
    """The label that a branch names."""
    (operand,) = instruction.operands
    if not isinstance(operand.of, Named):
        raise unknown(instruction, "a branch to something else than a label")
    return operand.of.text
