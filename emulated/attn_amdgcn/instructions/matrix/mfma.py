"""MFMA, the matrix instructions of gfx9.

EXEC is ignored: all lanes take part. gfx90a takes denormals of f16 and bf16, and of what is added to their products, for
zeros; later architectures keep them.

cbsz and abid (of several blocks of A, one is read by others), and blgp (B's lanes are read by others) exist where
`_broadcasts` says so. With f64, blgp is written `neg:[a,b,c]` from gfx940 on. In f8f6f4, cbsz and blgp are the formats of A
and B.

v_mfma_..._xf32 is left out: how hardware rounds its inputs is not published.

Sources: "Matrix Arithmetic Instructions" in AMD's Instinct MI300 ISA, MI200 ISA and CDNA4 ISA; "MI200 MFMA behavior
specifics" in the documentation of MIOpen, for denormals; the fields "CBSZ and ABID" and "BLGP" of AMD's Matrix Instruction
Calculator.
"""

import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import NamedTuple

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel
from attn_amdgcn.instructions.forms import check_count, check_modifiers, register_statements
from attn_amdgcn.instructions.matrix import layouts
from attn_amdgcn.instructions.matrix.elements import FORMATS
from attn_amdgcn.instructions.matrix.product import (
    Gather,
    accumulates_floats,
    accumulates_integers,
    accumulates_pairs,
    gathers,
    multiplies,
    words_of,
)
from attn_amdgcn.operands import number, numbers, unknown
from attn_amdgcn.pieces import Piece, call

LANES = 64
_16_BITS = "32x32x4_2b 16x16x4_4b 4x4x4_16b 32x32x8 16x16x16"
SHAPES: dict[str, str] = {
    "f32 f32": "32x32x1_2b 16x16x1_4b 4x4x1_16b 32x32x2 16x16x4",
    "f32 f16": f"{_16_BITS} 32x32x16 16x16x32",
    "f32 bf16": f"{_16_BITS} 32x32x16 16x16x32",
    "i32 i8": "32x32x4_2b 16x16x4_4b 4x4x4_16b 32x32x16 16x16x32 32x32x32 16x16x64",
    "f64 f64": "16x16x4 4x4x4_4b",
    **{f"f32 {kinds}": "32x32x16 16x16x32" for kinds in ("fp8_fp8", "fp8_bf8", "bf8_fp8", "bf8_bf8")},
}
"""Shapes by the kinds of D and of A and B: rows x columns x k, and the number of blocks, as gfx940 and later write them."""
SHAPES_GFX90A: dict[str, str] = {
    "f32 f32": SHAPES["f32 f32"],
    "f32 f16": _16_BITS,
    "f32 bf16_1k": _16_BITS,
    "f32 bf16": "32x32x2_2b 16x16x2_4b 4x4x2_16b 32x32x4 16x16x8",
    "i32 i8": "32x32x4_2b 16x16x4_4b 4x4x4_16b 32x32x8 16x16x16",
    "f64 f64": SHAPES["f64 f64"],
}
"""The same for gfx90a, whose mnemonics have no number of blocks, and no underscore before the kind of A and B."""
F8F6F4 = ("fp8", "bf8", "fp6", "bf6", "fp4")
"""The formats of f8f6f4 by their numbers, cbsz for A and blgp for B."""


class Shape(NamedTuple):
    """Rows and columns of D, k, and the number of blocks."""

    rows: int
    columns: int
    k: int
    blocks: int

    @property
    def per_lane(self) -> int:
        """Elements of A that a lane holds."""
        return self.rows * self.k * self.blocks // LANES

    @property
    def results(self) -> int:
        """Elements of D that a lane holds."""
        return self.rows * self.columns * self.blocks // LANES


def shape_of(text: str) -> Shape:
    rows, columns, k, blocks = re.fullmatch(r"(\d+)x(\d+)x(\d+)(?:_(\d+)b)?", text).groups(default="1")  # pyright: ignore
    return Shape(int(rows), int(columns), int(k), int(blocks))


@cache
def output(shape: Shape, is_f64: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """The table of layouts.output_table for D."""
    layout = layouts.mfma_output_f64(shape.columns, shape.blocks) if is_f64 else layouts.mfma_output(shape.rows, shape.columns)
    return layouts.output_table(layout, LANES, shape.results, (shape.blocks, shape.rows, shape.columns))


@cache
def table_a(shape: Shape, bits: int, cbsz: int = 0, abid: int = 0) -> np.ndarray:
    """A's elements [blocks, rows, k], the rows in the order of D's registers."""
    table = layouts.input_table(_input(shape, bits), LANES, shape.per_lane, (shape.blocks, shape.rows, shape.k))
    order, _ = output(shape, is_f64=bits == 64)
    return np.ascontiguousarray(layouts.broadcast_blocks(table, cbsz, abid)[:, order])


@cache
def table_b(shape: Shape, bits: int, blgp: int = 0) -> np.ndarray:
    """B's elements [blocks, k, columns]."""
    source = layouts.BLGP[blgp](np.arange(LANES)) if blgp else None
    table = layouts.input_table(_input(shape, bits), LANES, shape.per_lane, (shape.blocks, shape.columns, shape.k), source)
    return np.ascontiguousarray(table.transpose(0, 2, 1))


def _input(shape: Shape, bits: int) -> layouts.Layout:
    if bits == 8 and shape.per_lane == 32:
        return layouts.mfma_input_of_32_bytes(shape.rows)
    return layouts.mfma_input(shape.rows, shape.blocks, shape.per_lane)


def _mfma(shape: Shape, accumulators: str, kinds: tuple[str, str], instruction: Instruction, kernel: Kernel) -> Sequence[Piece]:
    _check_wave(instruction, kernel)
    check_count(instruction, 4)
    is_gfx90a, is_f64 = kernel.architecture == "gfx90a", accumulators == "f64"
    broadcasts = _broadcasts(shape, kinds[0], instruction, is_gfx90a)
    neg = numbers(instruction, "neg", 3)
    flush = is_gfx90a and kinds[0] in ("f16", "bf16")
    is_fnuz = kernel.architecture in ("gfx940", "gfx941", "gfx942")
    forms = tuple(f"{kind}_fnuz" if is_fnuz and kind in ("fp8", "bf8") else kind for kind in kinds)
    words = [shape.per_lane * FORMATS[form].bits // 32 for form in forms]
    a, b = (words_of(instruction.operands[1 + i], words[i], instruction, kernel) for i in range(2))
    if is_f64:
        accumulate = accumulates_pairs(instruction, kernel, shape.results, neg=bool(neg[2]))
    elif accumulators == "i32":
        accumulate = accumulates_integers(instruction, kernel, shape.results, clamp=False)
    else:
        accumulate = accumulates_floats(instruction, kernel, shape.results, flush=flush)
    return (accumulate(call(_multiply(shape, forms, broadcasts, neg[:2], flush), [a, b])),)


@cache
def _multiply(
    shape: Shape, forms: tuple[str, ...], broadcasts: tuple[int, int, int], neg: tuple[int, ...], flush: bool
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The product of two formats: the same for all instructions that have it, which may run together by that."""
    cbsz, abid, blgp = broadcasts
    gather = []
    for i, form in enumerate(forms):
        bits = FORMATS[form].bits
        table = table_a(shape, bits, cbsz, abid) if i == 0 else table_b(shape, bits, blgp)
        signs = np.full(shape.per_lane, -1.0) if neg[i] else None
        gather.append(gathers(shape.per_lane * bits // 32, table, FORMATS[form], lanes=LANES, signs=signs, flush=flush))
    return multiplies(gather[0], gather[1], output(shape, forms[0] == "f64")[1], shape.results)


def _broadcasts(shape: Shape, kind: str, instruction: Instruction, is_gfx90a: bool) -> tuple[int, int, int]:
    """cbsz, abid and blgp, where the instruction has them."""
    if kind == "f64":
        check_modifiers(instruction, *(() if is_gfx90a else ("neg",)))
        return 0, 0, 0
    has_blgp = is_gfx90a or shape.blocks > 1 or kind == "f32"
    check_modifiers(instruction, *(("cbsz", "abid") if shape.blocks > 1 else ()), *(("blgp",) if has_blgp else ()))
    cbsz, abid, blgp = (number(instruction, name) for name in ("cbsz", "abid", "blgp"))
    if 1 << cbsz > shape.blocks or abid >= 1 << cbsz or blgp > 7:
        raise unknown(instruction, f"cbsz {cbsz}, abid {abid} and blgp {blgp} with {shape.blocks} blocks")
    return cbsz, abid, blgp


def _check_wave(instruction: Instruction, kernel: Kernel) -> None:
    if kernel.wave_size != LANES:
        raise unknown(instruction, f"MFMA with a wave of {kernel.wave_size} lanes")


def _f8f6f4(shape: Shape, has_scales: bool, instruction: Instruction, kernel: Kernel) -> Sequence[Piece]:
    """gfx950's formats of 8, 6 and 4 bits. A lane holds 32 elements of each of A and B."""
    _check_wave(instruction, kernel)
    check_count(instruction, 6 if has_scales else 4)
    check_modifiers(instruction, "cbsz", "blgp", *(("op_sel", "op_sel_hi") if has_scales else ()))
    formats = [number(instruction, name) for name in ("cbsz", "blgp")]
    if max(formats) >= len(F8F6F4):
        raise unknown(instruction, f"formats {formats}")
    forms = tuple(F8F6F4[each] for each in formats)
    sources = [words_of(instruction.operands[1 + i], FORMATS[form].bits, instruction, kernel) for i, form in enumerate(forms)]
    multiply = _multiply(shape, forms, (0, 0, 0), (0, 0), False)
    if has_scales:
        shifts = tuple(_shift(which, instruction) for which in range(2))
        multiply = _multiply_scaled(shape, forms, shifts)
        sources += [words_of(instruction.operands[4 + which], 1, instruction, kernel) for which in range(2)]
    return (accumulates_floats(instruction, kernel, shape.results)(call(multiply, sources)),)


def _shift(which: int, instruction: Instruction) -> int:
    """The place of the byte of A's or B's scale in its register."""
    if "op_sel_hi" not in instruction.modifiers:
        raise unknown(instruction, "scales without op_sel_hi")
    low, high = (numbers(instruction, name, 3)[which] for name in ("op_sel", "op_sel_hi"))
    return 8 * (low + 2 * high)


@cache
def _multiply_scaled(shape: Shape, forms: tuple[str, ...], shifts: tuple[int, ...]) -> Callable[..., np.ndarray]:
    """A product with scales, in float64: one scale, a power of two, for each row or column and each 32 of k.

    Lane `row + rows * (k // 32)` holds the scale as one byte of a register, an exponent with a bias of 127 (E8M0; 255 is NaN).
    op_sel is the lower bit of the byte's number, and op_sel_hi the upper one.
    """
    order, places = output(shape, False)
    lane = np.arange(shape.rows)[:, None] + shape.rows * (np.arange(shape.k) // 32)
    tables = lane[None, order], lane.T[None]
    powers = np.append(2.0 ** (np.arange(255) - 127.0), np.nan)
    bits = [FORMATS[form].bits for form in forms]
    unscaled = (
        gathers(bits[0], table_a(shape, bits[0]), FORMATS[forms[0]], lanes=LANES),
        gathers(bits[1], table_b(shape, bits[1]), FORMATS[forms[1]], lanes=LANES),
    )

    def multiply(a: np.ndarray, b: np.ndarray, scales_a: np.ndarray, scales_b: np.ndarray) -> np.ndarray:
        def scaled(which: int, scales: np.ndarray) -> Gather:
            exponents = scales[..., 0, :, :] >> np.uint32(shifts[which]) & np.uint32(255)
            return lambda words: unscaled[which](words) * powers[exponents].take(tables[which], axis=-1)

        return multiplies(scaled(0, scales_a), scaled(1, scales_b), places, shape.results)(a, b)

    return multiply


def _register_all() -> None:
    made: dict[str, Callable[[Instruction, Kernel], Sequence[Piece]]] = {}
    for names, shapes in SHAPES.items():
        accumulators, kinds = names.split()
        a, _, b = kinds.partition("_")
        for shape in shapes.split():
            made[f"v_mfma_{accumulators}_{shape}_{kinds}"] = partial(_mfma, shape_of(shape), accumulators, (a, b or a))
    for names, shapes in SHAPES_GFX90A.items():
        accumulators, kinds = names.split()
        kind = kinds.removesuffix("_1k")
        for shape in shapes.split():
            name = f"v_mfma_{accumulators}_{shape.partition('_')[0]}{kinds}"
            made[name] = partial(_mfma, shape_of(shape), accumulators, (kind, kind))
    for shape in ("16x16x128", "32x32x64"):
        made[f"v_mfma_f32_{shape}_f8f6f4"] = partial(_f8f6f4, shape_of(shape), False)
        made[f"v_mfma_scale_f32_{shape}_f8f6f4"] = partial(_f8f6f4, shape_of(shape), True)
    for name, make in made.items():
        register_statements(name, make)


_register_all()
