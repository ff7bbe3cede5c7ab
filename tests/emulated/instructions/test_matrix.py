"""Matrix instructions against exact products of small integers."""

import re

import numpy as np
import pytest
from attn_amdgcn.instructions.matrix.mfma import SHAPES, SHAPES_GFX90A
from attn_amdgcn.instructions.matrix.wmma import NAMES

from tests.emulated import matrices
from tests.emulated.lines import JUNK, ran
from tests.emulated.matrices import ACCUMULATION, A, B, C, D, drawn, held, multiplied, of_b, registers

WAVES = 2


def numbers_of(shape: str) -> tuple[int, int, int, int]:
    """Rows, columns, k and blocks."""
    rows, columns, k, *blocks = map(int, re.findall(r"\d+", shape))
    return rows, columns, k, blocks[0] if blocks else 1


def mfma_cases() -> list[tuple[str, str, str, str, str]]:
    """A mnemonic, its architecture, its shape, and the kinds of D and of A and B."""
    found = []
    for names, shapes in SHAPES.items():
        accumulators, kinds = names.split()
        for shape in shapes.split():
            is_new = (shape in ("32x32x16", "16x16x32") and kinds in ("f16", "bf16")) or shape in ("32x32x32", "16x16x64")
            for architecture in ("gfx950",) if is_new else ("gfx942", "gfx950") if "8_" in kinds else ("gfx942",):
                found.append((f"v_mfma_{accumulators}_{shape}_{kinds}", architecture, shape, accumulators, kinds))
    for names, shapes in SHAPES_GFX90A.items():
        accumulators, kinds = names.split()
        for shape in shapes.split():
            name = f"v_mfma_{accumulators}_{shape.split('_')[0]}{kinds}"
            found.append((name, "gfx90a", shape, accumulators, kinds.removesuffix("_1k")))
    return found


@pytest.mark.parametrize(("name", "architecture", "shape", "accumulators", "kinds"), mfma_cases())
def test_mfma_multiplies_whatever_exec_is(name, architecture, shape, accumulators, kinds):
    rows, columns, k, blocks = numbers_of(shape)
    is_fnuz = architecture == "gfx942" and "8_" in kinds
    kind_a, kind_b = (kind + "_fnuz" * is_fnuz for kind in (kinds.split("_") * 2)[:2])
    rng = np.random.default_rng(len(name))
    a, b = drawn(rng, kind_a, (WAVES, blocks, rows, k)), drawn(rng, kind_b, (WAVES, blocks, k, columns))
    c = drawn(rng, "i32", (WAVES, blocks, rows, columns))
    places = matrices.mfma_input(rows, blocks, rows * k * blocks // 64)
    into = matrices.mfma_output(rows, accumulators == "f64")
    in_a, in_b = registers(a, kind_a, places, 64), registers(b, kind_b, of_b(places), 64)
    in_c = registers(c, accumulators, into, 64)
    # three mixtures of banks; C is apart from D, is D, and overlaps D
    for first_a, first_b, first_c, first_d in ((A, B, C, D), (A + ACCUMULATION, B, C, C), (A, B + ACCUMULATION, C + 2, C)):
        operands = {first_a: in_a, first_b: in_b, first_c: in_c}
        after = multiplied(name, architecture, operands, len(in_c), first_d=first_d, exec=5)
        assert np.array_equal(held(after.vector, first_d, accumulators, into, c.shape), a @ b + c), (name, first_c)


@pytest.mark.parametrize("shape", ["16x16x128", "32x32x64"])
@pytest.mark.parametrize(("cbsz", "blgp"), [(0, 0), (1, 0), (0, 4), (4, 4), (2, 3), (3, 1), (4, 2)])
def test_f8f6f4_multiplies_by_scales(shape, cbsz, blgp):
    rows, columns, k, _ = numbers_of(shape)
    rng = np.random.default_rng(cbsz)
    formats = ("fp8", "bf8", "fp6", "bf6", "fp4")
    operands, expected = {}, []
    for first, number, size in ((A, cbsz, (WAVES, 1, rows, k)), (B, blgp, (WAVES, 1, columns, k))):
        kind = formats[number]
        places = matrices.bytes_of_f8f6f4(rows) if kind in ("fp8", "bf8") else matrices.mfma_input(rows, 1, 32)
        values = rng.choice([-4, -3, -2, -1, 0, 1, 2, 3, 4], size).astype(np.float64)
        operands[first], expected = registers(values, kind, places, 64), [*expected, values]
    into = matrices.mfma_output(rows, False)
    c = drawn(rng, "i32", (WAVES, 1, rows, columns))
    operands[C] = registers(c, "f32", into, 64)
    end = f"cbsz:{cbsz} blgp:{blgp}"
    after = multiplied(f"v_mfma_f32_{shape}_f8f6f4", "gfx950", operands, len(operands[C]), end=end)
    assert np.array_equal(held(after.vector, D, "f32", into, c.shape), expected[0] @ expected[1].swapaxes(2, 3) + c)

    # byte 2 of A's scales, and byte 1 of B's, of the lane that has the row and the 32 k
    exponents = rng.integers(125, 130, (2, WAVES, 64)).astype(np.uint32)
    scales = np.stack([JUNK & 0xFF00FFFF | exponents[0] << 16, JUNK & 0xFFFF00FF | exponents[1] << 8]).astype(np.uint32)
    for which in range(2):
        for wave, _, row, j in np.ndindex(expected[which].shape):
            expected[which][wave, 0, row, j] *= 2.0 ** (int(exponents[which, wave, row + rows * (j // 32)]) - 127)
    text = ", ".join(matrices.named(first, len(words)) for first, words in {D: operands[C], **operands}.items())
    v = {first + i: word for first, words in operands.items() for i, word in enumerate(words)} | {
        130: scales[0],
        131: scales[1],
    }
    line = f"v_mfma_scale_f32_{shape}_f8f6f4 {text}, v130, v131 op_sel:[0,1,0] op_sel_hi:[1,0,0] {end}"
    after = ran(line, "gfx950", v=v | {130: scales[0], 131: scales[1]}, num_waves=WAVES)
    assert np.array_equal(held(after.vector, D, "f32", into, c.shape), expected[0] @ expected[1].swapaxes(2, 3) + c)


def wmma_cases() -> list[tuple[str, str]]:
    architectures = {"gfx11": "gfx1100", "gfx120": "gfx1201", "gfx125": "gfx1250"}
    return [(name, architectures[generation]) for generation, names in NAMES.items() for name in names.split()]


@pytest.mark.parametrize(("name", "architecture"), wmma_cases())
def test_wmma_multiplies(name, architecture):
    accumulators, shape, kinds = name.split("_", 2)
    rows, columns, k, _ = numbers_of(shape)
    is_gfx11 = architecture == "gfx1100"
    rng = np.random.default_rng(len(name))
    into = matrices.gfx11_output if is_gfx11 else matrices.gfx12_output
    half = is_gfx11 and accumulators in ("f16", "bf16")
    for signed in ((0, 0), (1, 0), (0, 1), (1, 1)) if "iu" in kinds else ((0, 0),):
        kind_a, kind_b = (
            kind.replace("iu", "i" if sign else "u") for kind, sign in zip((kinds.split("_") * 2)[:2], signed, strict=True)
        )
        places = matrices.gfx11_input if is_gfx11 else matrices.gfx12_input(k, matrices.width_of(kind_a))
        a, b = drawn(rng, kind_a, (WAVES, 1, rows, k)), drawn(rng, kind_b, (WAVES, 1, k, columns))
        if accumulators in ("f16", "bf16"):  # sums that the format holds
            a, b = np.clip(a, -1, 1), np.clip(b, -2, 2)
        c = drawn(rng, "i32" if accumulators in ("f32", "i32") else "fp8", (WAVES, 1, rows, columns))
        in_a, in_b = registers(a, kind_a, places, 32), registers(b, kind_b, of_b(places), 32)
        # gfx11 holds one element of 16 bits in each register: the lower half here
        spread = (lambda block, i, j: [(lane, 2 * element) for lane, element in into(block, i, j)]) if half else into
        in_c = registers(c, accumulators, spread, 32)
        end = f"neg_lo:[{signed[0]},{signed[1]},0]" if any(signed) else ""
        for first_c in (C, D):
            after = multiplied(f"v_wmma_{name}", architecture, {A: in_a, B: in_b, first_c: in_c}, len(in_c), end=end)
            assert np.array_equal(held(after.vector, D, accumulators, spread, c.shape), a @ b + c), (signed, first_c)
