"""Effects of modifiers, constants and special values on matrix instructions, beside the same instruction without them."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from attn_amdgcn.errors import EmulationFault, UnknownInstructionError
from attn_amdgcn.instructions.matrix.elements import FORMATS

from tests.emulated import matrices
from tests.emulated.lines import JUNK, ran
from tests.emulated.matrices import A, B, C, D

RNG = np.random.default_rng(0)
BF16 = matrices.encoded(matrices.drawn(RNG, "bf16", (4, 2, 128)), "bf16").astype(np.uint16)
"""[registers, waves, 2 * lanes] of numbers, for A and B."""


def floats(*shape: int) -> np.ndarray:
    return RNG.integers(-99, 99, shape).astype(np.float32)


def behind(line: str, architecture: str, v: Mapping[int, object], count: int, dtype: type = np.float32, **state) -> np.ndarray:
    """[count, waves, lanes]: D behind one instruction."""
    return ran(line, architecture, v=v, num_waves=2, **state).vector[D : D + count].view(dtype)


LANES_OF_B = {1: [0, 1, 0, 1], 2: [2, 3, 2, 3], 3: [1, 2, 3, 0], 4: [0] * 4, 5: [1] * 4, 6: [2] * 4, 7: [3] * 4}
"""By blgp: the group of 16 lanes from which each group's B comes."""


@pytest.mark.parametrize("blgp", LANES_OF_B)
@pytest.mark.parametrize(
    ("name", "architecture", "count"),
    [("32x32x1_2b_f32", "gfx942", 32), ("16x16x4_f32", "gfx950", 4), ("4x4x1f32", "gfx90a", 4), ("32x32x2f32", "gfx90a", 16)],
)
def test_blgp_reads_b_from_other_lanes(name, architecture, count, blgp):
    a, b = floats(2, 64), floats(2, 64)
    lanes = np.concatenate([np.arange(16) + 16 * group for group in LANES_OF_B[blgp]])
    line = f"v_mfma_f32_{name} v[{D}:{D + count - 1}], v{A}, v{B}, 0"
    expected = behind(line, architecture, {A: a, B: b[:, lanes]}, count)
    assert np.array_equal(behind(f"{line} blgp:{blgp}", architecture, {A: a, B: b}, count), expected)


@pytest.mark.parametrize(("shape", "rows", "count"), [("32x32x4_2b", 32, 32), ("16x16x4_4b", 16, 16), ("4x4x4_16b", 4, 4)])
def test_cbsz_reads_a_from_other_blocks(shape, rows, count):
    blocks = 64 // rows
    a, b = BF16[:2].view(np.uint32), BF16[2:].view(np.uint32)
    line = f"v_mfma_f32_{shape}_bf16 v[{D}:{D + count - 1}], v[{A}:{A + 1}], v[{B}:{B + 1}], 1.0"
    for cbsz in range(blocks.bit_length()):
        for abid in range(1 << cbsz):
            lanes = [
                lane % rows + rows * (lane // rows // (1 << cbsz) * (1 << cbsz) + abid) for lane in range(64)
            ]  # each lane's row, in the block that stands for the lane's block
            read = a[..., lanes]
            expected = behind(line, "gfx942", {A: read[0], A + 1: read[1], B: b[0], B + 1: b[1]}, count)
            found = behind(f"{line} cbsz:{cbsz} abid:{abid}", "gfx942", {A: a[0], A + 1: a[1], B: b[0], B + 1: b[1]}, count)
            assert np.array_equal(found, expected), (cbsz, abid)


@pytest.mark.parametrize("neg", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)])
def test_f64_has_signs(neg):
    a, b, c = (RNG.integers(-9, 9, (2, 64)).astype(np.float64) for _ in range(3))
    sign = [-1 if each else 1 for each in neg]

    def pair(first: int, values: np.ndarray) -> dict[int, np.ndarray]:
        words = values.view(np.uint32).reshape(2, 64, 2)
        return {first: words[..., 0], first + 1: words[..., 1]}

    line = f"v_mfma_f64_4x4x4_4b_f64 v[{D}:{D + 1}], v[{A}:{A + 1}], v[{B}:{B + 1}], v[{C}:{C + 1}]"
    expected = behind(line, "gfx942", pair(A, a * sign[0]) | pair(B, b * sign[1]) | pair(C, c * sign[2]), 2)
    found = behind(f"{line} neg:[{neg[0]},{neg[1]},{neg[2]}]", "gfx942", pair(A, a) | pair(B, b) | pair(C, c), 2)
    assert np.array_equal(found, expected)


def wmma_operands(architecture: str) -> tuple[str, dict[int, np.ndarray]]:
    """The text of A and B of 16 bits, and their registers; gfx11 holds them twice."""
    count = 8 if architecture == "gfx1100" else 4
    halves = RNG.integers(-5, 5, (2 * count, 2, 64)).astype(np.float16)
    if architecture == "gfx1100":
        halves[..., 32:] = halves[..., :32]
    words = halves.view(np.uint32)
    return f"v[{A}:{A + count - 1}], v[{B}:{B + count - 1}]", {
        **{A + i: words[i] for i in range(count)},
        **{B + i: words[count + i] for i in range(count)},
    }


@pytest.mark.parametrize("architecture", ["gfx1100", "gfx1201"])
@pytest.mark.parametrize(
    ("low", "high"), [("100", "000"), ("010", "010"), ("000", "100"), ("001", "000"), ("000", "001"), ("111", "111")]
)
def test_wmma_has_signs_of_halves(architecture, low, high):
    text, operands = wmma_operands(architecture)
    c = {C + i: floats(2, 32) for i in range(8)}
    line = f"v_wmma_f32_16x16x16_f16 v[{D}:{D + 7}], {text}, v[{C}:{C + 7}]"
    changed = {}
    for register, words in operands.items():
        which = register >= B
        changed[register] = words ^ np.uint32(0x8000 * int(low[which]) + 0x80000000 * int(high[which]))
    for register, values in c.items():
        magnitude = np.abs(values) if high[2] == "1" else values
        changed[register] = -magnitude if low[2] == "1" else magnitude
    expected = behind(line, architecture, changed, 8)
    found = behind(f"{line} neg_lo:[{','.join(low)}] neg_hi:[{','.join(high)}]", architecture, operands | c, 8)
    assert np.array_equal(found, expected)


def test_gfx11_keeps_the_other_half_of_16_bits():
    text, operands = wmma_operands("gfx1100")
    c = {C + i: RNG.integers(-9, 9, (2, 64)).astype(np.float16).view(np.uint32) for i in range(8)}
    exact = behind(f"v_wmma_f32_16x16x16_f16 v[{D}:{D + 7}], {text}, 0", "gfx1100", operands, 8)
    for half, end in ((0, ""), (1, "op_sel:[0,0,1]")):
        line = f"v_wmma_f16_16x16x16_f16 v[{D}:{D + 7}], {text}, v[{C}:{C + 7}] {end}"
        found = behind(line, "gfx1100", operands | c, 8, np.float16)
        for i in range(8):
            added = c[C + i].view(np.float16)[:, half::2].astype(np.float32)
            assert np.array_equal(found[i][:, half::2], (exact[i] + added).astype(np.float16))
            assert (found[i][:, 1 - half :: 2].view(np.uint16) == (JUNK >> 16 * (1 - half)) & 0xFFFF).all()


def test_bf16_results_are_rounded_to_the_nearest():
    # each row of A holds one number twice, since both groups of lanes hold the same; the second and the third sum are ties
    for number, value in ((2.0**-8, 1.0), (2.0**-9, 1.0), (3 * 2.0**-9, 1.0), (2.0**-10, 1.0), (np.nan, 1.0), (1.0, -np.inf)):
        bits = [int(torch.tensor(each, dtype=torch.bfloat16).view(torch.int16)) & 0xFFFF for each in (number, 1.0, value)]
        v = {A: bits[0], B: bits[1]} | {register + i: 0 for register in (A, B) for i in range(1, 4)}
        v |= {C + i: bits[2] | bits[2] << 16 for i in range(4)}
        line = f"v_wmma_bf16_16x16x16_bf16 v[{D}:{D + 3}], v[{A}:{A + 3}], v[{B}:{B + 3}], v[{C}:{C + 3}]"
        found = behind(line, "gfx1201", v, 4, np.uint16)
        expected = int(torch.tensor(2 * number + value, dtype=torch.float32).bfloat16().view(torch.int16)) & 0xFFFF
        assert (found == expected).all(), (number, value)


def test_clamp_ends_integers():
    v = {A: 0x7F7F7F7F, A + 1: 0x7F7F7F7F, B: 0x7F7F7F7F, B + 1: 0x7F7F7F7F, **{C + i: 0x7FFFFFF0 for i in range(8)}}
    line = f"v_wmma_i32_16x16x16_iu8 v[{D}:{D + 7}], v[{A}:{A + 1}], v[{B}:{B + 1}], v[{C}:{C + 7}]"
    total = 16 * 127 * 127 + 0x7FFFFFF0
    assert (behind(line, "gfx1201", v, 8, np.int32) == total - (1 << 32)).all()
    assert (behind(f"{line} clamp", "gfx1201", v, 8, np.int32) == 0x7FFFFFFF).all()


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("1.0", 1), ("-4.0", -4), ("0.5", 0.5)])
def test_c_may_be_a_constant(text, value):
    a, b = BF16[:2].view(np.uint32), BF16[2:].view(np.uint32)
    v = {A: a[0], A + 1: a[1], B: b[0], B + 1: b[1]}
    line = f"v_mfma_f32_16x16x16_bf16 v[{D}:{D + 3}], v[{A}:{A + 1}], v[{B}:{B + 1}], "
    with_registers = v | {C + i: np.full((2, 64), value, np.float32) for i in range(4)}
    assert np.array_equal(behind(line + text, "gfx942", v, 4), behind(f"{line}v[{C}:{C + 3}]", "gfx942", with_registers, 4))
    integers = behind(
        f"v_mfma_i32_16x16x32_i8 v[{D}:{D + 3}], v[{A}:{A + 1}], v[{B}:{B + 1}], -3", "gfx942", dict.fromkeys(v, 0), 4, np.int32
    )
    assert (integers == -3).all()


@pytest.mark.parametrize(("name", "least"), [("f16", 2.0**-24), ("bf16", 2.0**-133)])
def test_gfx90a_takes_denormals_for_zeros(name, least):
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[name]
    small, one = (int(torch.tensor(value, dtype=dtype).view(torch.int16)) for value in (least, 1.0))
    v = {A: small, A + 1: 0, B: one, B + 1: 0, **{C + i: 0 for i in range(4)}}
    for architecture, mnemonic, expected in (("gfx942", f"_{name}", 4 * least), ("gfx90a", name + "_1k" * (name == "bf16"), 0)):
        line = f"v_mfma_f32_16x16x16{mnemonic} v[{D}:{D + 3}], v[{A}:{A + 1}], v[{B}:{B + 1}], v[{C}:{C + 3}]"
        assert (behind(line, architecture, v, 4) == expected).all()
        denormal = v | {A: 0, **{C + i: 1 for i in range(4)}}
        assert (behind(line, architecture, denormal, 4, np.uint32) == (architecture == "gfx942")).all()


def test_nan_and_infinity_spread_over_their_row():
    a = np.zeros((2, 64), np.float32)
    a[0, 3], a[1, 5] = np.nan, np.inf
    found = behind(f"v_mfma_f32_16x16x4_f32 v[{D}:{D + 3}], v{A}, v{B}, 0", "gfx942", {A: a, B: np.ones(64, np.float32)}, 4)
    assert np.isnan(found[3, 0, :16]).all()
    assert np.isnan(found[:, 0]).sum() == 16
    assert np.isinf(found[1, 1, 16:32]).all()
    assert np.isinf(found[:, 1]).sum() == 16


@pytest.mark.parametrize("kind", ["fp8", "bf8", "fp8_fnuz", "bf8_fnuz"])
def test_each_float_of_8_bits_is_torchs(kind):
    bits = np.arange(256, dtype=np.uint8)
    expected = torch.from_numpy(bits.copy()).view(matrices.TORCH[kind]).float().numpy()
    found = FORMATS[kind].values(bits)
    assert np.array_equal(found, expected, equal_nan=True)
    assert np.array_equal(np.signbit(found[~np.isnan(found)]), np.signbit(expected[~np.isnan(expected)]))


@pytest.mark.parametrize("kind", ["fp4", "fp6", "bf6"])
def test_each_float_of_4_and_6_bits_is_the_tables(kind):
    table, width = matrices.TABLES[kind], matrices.width_of(kind)
    values = np.array(table + [-value for value in table])
    joined = sum(number << width * number for number in range(len(values)))
    words = np.frombuffer(joined.to_bytes(len(values) * width // 8, "little"), np.uint32)
    assert FORMATS[kind].values(words).tolist() == values.tolist()


def test_wmma_needs_all_lanes():
    text, operands = wmma_operands("gfx1201")
    with pytest.raises(EmulationFault, match=r"EXEC switches lanes off \(workgroup 0, wave 0, lane 1\)"):
        behind(f"v_wmma_f32_16x16x16_f16 v[{D}:{D + 7}], {text}, 0", "gfx1201", operands, 8, exec=1)


def test_gfx11_needs_a_and_b_twice():
    text, operands = wmma_operands("gfx1100")
    operands[B + 2][1, 20] ^= 1
    with pytest.raises(EmulationFault, match=r"do not repeat lanes 0 to 15 \(workgroup 0, wave 1, lane 4\)"):
        behind(f"v_wmma_f32_16x16x16_f16 v[{D}:{D + 7}], {text}, 0", "gfx1100", operands, 8)


@pytest.mark.parametrize(
    ("line", "architecture"),
    [
        ("v_mfma_f32_32x32x8_bf16 v[0:15], v[16:17], v[18:19], v[0:15] blgp:1", "gfx942"),
        ("v_mfma_f32_16x16x4_f32 v[0:3], v4, v5, v[0:3] cbsz:1", "gfx942"),
        ("v_mfma_f32_16x16x1_4b_f32 v[0:15], v16, v17, 0 cbsz:3", "gfx942"),
        ("v_mfma_f32_16x16x1_4b_f32 v[0:15], v16, v17, 0 cbsz:1 abid:2", "gfx942"),
        ("v_mfma_f64_4x4x4f64 v[0:1], v[2:3], v[4:5], 0 neg:[1,0,0]", "gfx90a"),
        ("v_mfma_f32_16x16x16_bf16 v[0:3], v[4:7], v[8:9], 0", "gfx942"),
        ("v_mfma_f32_16x16x16_bf16 v[0:3], v[4:5], 0, 0", "gfx942"),
        ("v_mfma_f32_16x16x8_xf32 v[0:3], v[4:5], v[6:7], 0", "gfx942"),
        ("v_mfma_f32_32x32x64_f8f6f4 v[0:15], v[16:23], v[24:31], 0 cbsz:5", "gfx950"),
        ("v_wmma_f32_16x16x16_f16 v[0:7], v[8:11], v[12:15], 0 clamp", "gfx1201"),
        ("v_wmma_f32_16x16x16_f16 v[0:7], v[8:11], v[12:15], 0", "gfx1250"),
        ("v_wmma_f32_16x16x16_fp8_fp8 v[0:7], v[8:9], v[10:11], 0 neg_lo:[1,0,0]", "gfx1201"),
        ("v_wmma_f32_16x16x16_fp8_fp8 v[0:7], v[8:9], v[10:11], 0", "gfx1100"),
    ],
)
def test_modifiers_that_are_not_defined_are_refused(line, architecture):
    with pytest.raises(UnknownInstructionError):
        ran(line, architecture)
