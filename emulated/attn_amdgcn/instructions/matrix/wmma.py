"""WMMA, the matrix instructions of gfx11, gfx12 and gfx1250, with waves of 32 lanes.

EXEC must be all ones. On gfx11, lanes 16 to 31 of A and of B must repeat lanes 0 to 15. A wave that breaks one of these rules
is a fault.

neg_lo and neg_hi: of A and B of 16 bits, they negate the elements in the lower and in the upper halves of registers; of
integers, neg_lo says that A or B is signed. Their third numbers negate C (neg_lo) after they have taken its magnitude
(neg_hi). The third number of op_sel is the half of D's and C's registers that gfx11 uses with elements of 16 bits; the other
half is kept.

Sources: "Wave Matrix Multiply Accumulate" in AMD's RDNA3 ISA and RDNA4 ISA; the fields "NEG", "NEG_HI" and "OPSEL" of AMD's
Matrix Instruction Calculator. gfx1250: the instructions that LLVM's AMDGPU backend has, with the layouts that Triton gives
them (`layouts.gfx12_input`), f32 and i32 results only.
"""

from functools import cache, partial

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel
from attn_amdgcn.errors import EmulationFault
from attn_amdgcn.instructions.forms import Step, check_count, check_modifiers, register
from attn_amdgcn.instructions.matrix import layouts
from attn_amdgcn.instructions.matrix.elements import FORMATS
from attn_amdgcn.instructions.matrix.product import (
    accumulates_floats,
    accumulates_halves,
    accumulates_integers,
    gathers,
    multiplies,
    words_of,
)
from attn_amdgcn.operands import numbers, unknown
from attn_amdgcn.pieces import call, function_of, piece
from attn_amdgcn.waves import Waves

LANES = 32
RESULTS = 8
"""Elements of D that a lane holds, of 16 x 16."""
_FLOATS_8 = "fp8_fp8 fp8_bf8 bf8_fp8 bf8_bf8"
_GFX11 = "f32_16x16x16_f16 f32_16x16x16_bf16 f16_16x16x16_f16 bf16_16x16x16_bf16 i32_16x16x16_iu8 i32_16x16x16_iu4"
NAMES = {
    "gfx11": _GFX11,
    "gfx120": " ".join([_GFX11, "i32_16x16x32_iu4", *(f"f32_16x16x16_{kinds}" for kinds in _FLOATS_8.split())]),
    "gfx125": " ".join(
        [
            "f32_16x16x4_f32 f32_16x16x32_f16 f32_16x16x32_bf16 i32_16x16x64_iu8",
            *(f"f32_16x16x{k}_{kinds}" for k in (64, 128) for kinds in _FLOATS_8.split()),
        ]
    ),
}
"""D's kind, rows x columns x k, and the kinds of A and B, without `v_wmma_`, by the beginning of the architecture's name."""


@cache
def tables(generation: str, k: int, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The tables of A [1, rows, k] (rows in the order of D's registers) and of B [1, k, columns], and the places of D."""
    is_gfx11 = generation == "gfx11"
    per_lane = k if is_gfx11 else k // 2
    layout = layouts.gfx11_input if is_gfx11 else layouts.gfx12_input(_run(generation, k, bits))
    table = layouts.input_table(layout, 16 if is_gfx11 else LANES, per_lane, (1, 16, k))
    order, places = layouts.output_table(
        layouts.gfx11_output if is_gfx11 else layouts.gfx12_output, LANES, RESULTS, (1, 16, 16)
    )
    return np.ascontiguousarray(table[:, order]), np.ascontiguousarray(table.transpose(0, 2, 1)), places


def _run(generation: str, k: int, bits: int) -> int:
    """The number of consecutive k that a lane holds: see layouts.gfx12_input."""
    if generation == "gfx120":
        return 4 if bits == 16 else k // 2
    return {32: 2, 16: 8, 8: 16 if k == 128 else 8}[bits]


def _wmma(name: str, instruction: Instruction, kernel: Kernel) -> Step:
    generation = kernel.architecture[: 5 if kernel.architecture.startswith("gfx11") else 6]
    if generation not in NAMES or name not in NAMES[generation].split() or kernel.wave_size != LANES:
        raise unknown(instruction, f"{kernel.architecture} with a wave of {kernel.wave_size} lanes")
    check_count(instruction, 4)
    accumulators, shape, kinds = name.split("_", 2)
    a, _, b = kinds.partition("_")
    k, is_gfx11 = int(shape.split("x")[2]), generation == "gfx11"
    check_modifiers(instruction, *_modifiers(accumulators, a, is_gfx11))
    low, high = (numbers(instruction, modifier, 3) for modifier in ("neg_lo", "neg_hi"))
    if accumulators == "i32" and low[2]:
        raise unknown(instruction, "neg_lo of an integer C")
    bits = int(a.lstrip("fpbiu"))
    table_a, table_b, places = tables(generation, k, bits)
    per_lane = k if is_gfx11 else k // 2
    gather, sources = [], []
    for i, (kind, table) in enumerate(((a, table_a), (b or a, table_b))):
        form = FORMATS[("i" if low[i] else "u") + kind.removeprefix("iu") if kind.startswith("iu") else kind]
        words = per_lane * form.bits // 32
        sources.append(words_of(instruction.operands[1 + i], words, instruction, kernel))
        signs = np.where(np.arange(per_lane) % 2, -1.0 if high[i] else 1.0, -1.0 if low[i] else 1.0).astype(np.float32)
        plain = kind.startswith("iu") or not (low[i] or high[i])
        lanes = 16 if is_gfx11 else LANES
        gather.append(gathers(words, table, form, lanes=lanes, signs=None if plain else signs))
    if accumulators == "f32":
        accumulate = accumulates_floats(instruction, kernel, RESULTS, neg=bool(low[2]), absolute=bool(high[2]))
    elif accumulators == "i32":
        accumulate = accumulates_integers(instruction, kernel, RESULTS, clamp="clamp" in instruction.modifiers)
    else:
        *sources_halves, half = numbers(instruction, "op_sel", 3) if is_gfx11 else (0, 0, None)
        if any(sources_halves):
            raise unknown(instruction, "op_sel of A or B")
        accumulate = accumulates_halves(
            instruction, kernel, accumulators, RESULTS, half=half, neg=bool(low[2]), absolute=bool(high[2])
        )
    check = piece("{}(waves)", _check_lanes)
    repeats = [piece("{}(waves, {})", _check_repeated, source) for source in sources] if is_gfx11 else []
    return function_of(check, *repeats, accumulate(call(multiplies(gather[0], gather[1], places, RESULTS), sources)))


def _modifiers(accumulators: str, kind: str, is_gfx11: bool) -> tuple[str, ...]:
    if accumulators == "i32":
        return "neg_lo", "clamp"
    if kind not in ("f16", "bf16"):
        return ()
    return ("neg_lo", "neg_hi", "op_sel") if is_gfx11 and accumulators != "f32" else ("neg_lo", "neg_hi")


def _check_lanes(waves: Waves) -> None:
    if waves.lanes is not None:
        raise _fault("WMMA while EXEC switches lanes off", waves, ~waves.lanes)


def _check_repeated(waves: Waves, registers: np.ndarray) -> None:
    """The two halves of a register's lanes must agree."""
    differs = registers[..., :16] != registers[..., 16:]
    if differs.any():
        raise _fault("lanes 16 to 31 of A or B do not repeat lanes 0 to 15", waves, differs.any(axis=0))


def _fault(what: str, waves: Waves, lanes: np.ndarray) -> EmulationFault:
    """A fault of the first of these [waves, lanes]."""
    wave, lane = np.argwhere(lanes)[0].tolist()
    return EmulationFault(what, wave=int(waves.number[wave]), workgroup=int(waves.workgroup[wave]), lane=lane)


for _name in sorted({name for names in NAMES.values() for name in names.split()}):
    register(f"v_wmma_{_name}", partial(_wmma, _name))
