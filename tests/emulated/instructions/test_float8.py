"""Floats of 8 bits against torch's four types."""

import numpy as np
import pytest
import torch
from attn_amdgcn import UnknownInstructionError

from tests.emulated.floats import EDGES32, f32
from tests.emulated.lines import JUNK, ran

TYPES = {
    ("gfx942", "fp8"): torch.float8_e4m3fnuz,
    ("gfx942", "bf8"): torch.float8_e5m2fnuz,
    ("gfx950", "fp8"): torch.float8_e4m3fn,
    ("gfx950", "bf8"): torch.float8_e5m2,
}
OVERFLOW = "s_setreg_imm32_b32 hwreg(HW_REG_MODE, 23, 1), 1\n"
CODES = np.arange(256, dtype=np.uint32).reshape(4, 64)


def floats(bits: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(bits).view(np.float32))


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """The same numbers with the same signs of zeros, and NaN where NaN are expected."""
    nan = expected.isnan()
    return torch.equal(found.isnan(), nan) and torch.equal(found[~nan].view(torch.int32), expected[~nan].view(torch.int32))


@pytest.mark.parametrize(("architecture", "word"), TYPES)
def test_numbers_of_all_codes(architecture, word):
    expected = torch.from_numpy(CODES.astype(np.uint8)).view(TYPES[architecture, word]).float()
    for byte in range(4):
        text = f"v_cvt_f32_{word}_sdwa v9, v0 dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:BYTE_{byte}"
        v = {0: CODES << np.uint32(8 * byte) | np.uint32(0x21212121 & ~(0xFF << 8 * byte))}
        for mode in ("", OVERFLOW):
            assert same(floats(ran(mode + text, architecture, v=v, num_waves=4).vector[9]), expected)
    pairs = CODES | np.uint32(0x3800)
    low = ran(f"v_cvt_pk_f32_{word}_e32 v[8:9], v0", architecture, v={0: pairs}, num_waves=4).vector
    high = ran(
        f"v_cvt_pk_f32_{word}_sdwa v[8:9], v0 src0_sel:WORD_1", architecture, v={0: pairs << np.uint32(16)}, num_waves=4
    ).vector
    second = torch.tensor([0x38], dtype=torch.uint8).view(TYPES[architecture, word]).float()
    for after in (low, high):
        assert same(floats(after[8]), expected)
        assert (floats(after[9]) == second).all()


def test_bytes_and_halves_of_gfx12():
    v = {0: 0x38404448}
    assert [f32(int(ran(f"v_cvt_f32_fp8 v9, v0 byte_sel:{i}", "gfx1201", v=v).vector[9, 0, 0])) for i in range(4)] == [
        4.0,
        3.0,
        2.0,
        1.0,
    ]
    after = ran("v_cvt_pk_f32_fp8 v[8:9], v0.h", "gfx1201", v=v).vector
    assert (f32(int(after[8, 0, 0])), f32(int(after[9, 0, 0]))) == (2.0, 1.0)
    with pytest.raises(UnknownInstructionError):
        ran("v_cvt_f32_fp8_sdwa v9, v0 src0_sel:WORD_1", v=v)


@pytest.mark.parametrize("word", ["fp8", "bf8"])
def test_pairs_with_a_factor(word):
    expected = torch.from_numpy(CODES.astype(np.uint8)).view(TYPES["gfx950", word]).float()
    second = torch.tensor([0x38], dtype=torch.uint8).view(TYPES["gfx950", word]).float()
    for shift, modifier in ((0, ""), (16, " op_sel:[1,0,0]")):
        v = {0: (CODES | np.uint32(0x3800)) << np.uint32(shift)}
        after = ran(f"v_cvt_scalef32_pk_f32_{word} v[8:9], v0, 1.0{modifier}", "gfx950", v=v, num_waves=4).vector
        assert same(floats(after[8]), expected)
        assert (floats(after[9]) == second).all()
    for factor in ("2.0", "v1", "-1.0", "1"):
        with pytest.raises(UnknownInstructionError, match="other than 1"):
            ran(f"v_cvt_scalef32_pk_f32_{word} v[8:9], v0, {factor}", "gfx950", v={0: CODES}, num_waves=4)
    with pytest.raises(UnknownInstructionError, match="op_sel"):
        ran(f"v_cvt_scalef32_pk_f32_{word} v[8:9], v0, 1.0 op_sel:[0,1,0]", "gfx950", v={0: CODES}, num_waves=4)


@pytest.mark.parametrize("word", ["fp8", "bf8"])
def test_codes_become_bfloat16(word):
    codes = CODES.astype(np.uint8)
    numbers = torch.from_numpy(codes).view(TYPES["gfx950", word]).bfloat16()
    pairs = CODES | np.uint32(0x3800)
    for shift, modifier in ((0, ""), (16, " op_sel:[1,0,0]")):
        text = f"v_cvt_scalef32_pk_bf16_{word} v9, v0, 1.0{modifier}"
        after = ran(text, "gfx950", v={0: pairs << np.uint32(shift)}, num_waves=4).vector[9]
        halves = torch.from_numpy(after.view(np.int16)).view(torch.bfloat16).view(4, 64, 2)
        assert same(halves[..., 0].float(), numbers.float())
    rows = codes.reshape(32, 8)  # eight codes of each lane
    v = dict(enumerate(np.ascontiguousarray(rows).view(np.uint32).T))
    after = ran(f"v_cvt_scale_pk8_bf16_{word} v[8:11], v[0:1], 0x7f", "gfx1250", v=v).vector[8:12, 0]
    halves = torch.from_numpy(np.ascontiguousarray(after.T).view(np.int16)).view(torch.bfloat16)
    assert same(halves.float(), numbers.view(32, 8).float())
    with pytest.raises(UnknownInstructionError, match="an exponent"):
        ran(f"v_cvt_scale_pk8_bf16_{word} v[8:11], v[0:1], 0x80", "gfx1250")


@pytest.mark.parametrize("word", ["fp8", "bf8"])
def test_eight_float32_of_codes_and_back(word):
    codes = CODES.astype(np.uint8).reshape(32, 8)  # eight of each lane
    dtype = TYPES["gfx950", word]
    v = dict(enumerate(np.ascontiguousarray(codes).view(np.uint32).T))
    text = f"v_cvt_scale_pk8_f32_{word} v[8:15], v[0:1], 0x7f"
    after = ran(text, "gfx1250", v=v).vector[8:16, 0]
    numbers = torch.from_numpy(codes).view(dtype).float()
    assert same(floats(after).T, numbers)
    back = ran(f"v_cvt_scalef32_pk8_{word}_f32 v[0:1], v[8:15], 1.0", "gfx1250", v=dict(enumerate(after, 8))).vector[:2, 0]
    found = torch.from_numpy(np.ascontiguousarray(back.T).view(np.uint8)).view(dtype)
    assert same(found.float(), numbers)
    for wrong in (text.replace("0x7f", "0x80"), f"v_cvt_scalef32_pk8_{word}_f32 v[0:1], v[8:15], 1"):
        with pytest.raises(UnknownInstructionError, match="of other than"):
            ran(wrong, "gfx1250")


@pytest.mark.parametrize(("architecture", "word"), TYPES)
def test_numbers_become_the_nearest_codes(architecture, word):
    dtype, values = TYPES[architecture, word], values_around(TYPES[architecture, word])
    expected = values.to(dtype).float()
    if dtype is torch.float8_e4m3fn:  # some versions of torch return the largest number for all beyond it
        expected = torch.where(values.abs() > 464, torch.nan, expected)
    for name, factor in ((f"v_cvt_pk_{word}_f32", ""), (f"v_cvt_scalef32_pk_{word}_f32", ", 1.0")):
        if factor and architecture != "gfx950":
            continue
        check_codes(name, factor, architecture, values, expected, dtype)


@pytest.mark.parametrize(("architecture", "word"), TYPES)
def test_codes_beyond_the_largest_number_in_the_mode_that_saturates(architecture, word):
    dtype, values = TYPES[architecture, word], values_around(TYPES[architecture, word])
    most = torch.finfo(dtype).max
    expected = values.clamp(-most, most).to(dtype).float()
    check_codes(f"{OVERFLOW}v_cvt_pk_{word}_f32", "", architecture, values, expected, dtype)
    if architecture == "gfx950":
        check_codes(f"{OVERFLOW}v_cvt_scalef32_pk_{word}_f32", ", 1.0", architecture, values, expected, dtype)


def values_around(dtype: torch.dtype) -> torch.Tensor:
    """[n, 64]: the numbers of a type, what lies between and beside them, beyond them, and edges of float32."""
    exact = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(dtype).float()
    exact = exact[exact.isfinite()].sort().values
    halfway = (exact[1:] + exact[:-1]) / 2
    least, most = (torch.finfo(dtype).smallest_normal / 64, torch.finfo(dtype).max)
    drawn = torch.randn(300, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 4, 300)
    edges = floats(np.array(EDGES32, np.uint32))
    around = [torch.nextafter(halfway, torch.tensor(side)) for side in (-torch.inf, torch.inf)]
    values = torch.cat([exact, halfway, *around, drawn, edges, torch.tensor([most * 1.05, -most * 4, least, -least])])
    return torch.cat([values, values[: -len(values) % 64]]).view(-1, 64)


def check_codes(
    name: str, factor: str, architecture: str, values: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype
) -> None:
    """Convert values and 1 into each half of a register, and compare: the other half stays."""
    v = {0: values.numpy(), 1: np.float32(1), 9: JUNK}
    halves = "0,0,0,1" if factor else "0,0,1"
    for modifier, shift in (("", 0), (f" op_sel:[{halves}]", 16)):
        after = ran(f"{name} v9, v0, v1{factor}{modifier}", architecture, v=v, num_waves=len(values)).vector[9]
        assert (after >> np.uint32(16 - shift) & 0xFFFF == JUNK >> 16 - shift & 0xFFFF).all()
        found = torch.from_numpy((after >> np.uint32(shift)).astype(np.uint8)).view(dtype).float()
        assert same(found, expected)
        one = torch.from_numpy((after >> np.uint32(shift + 8)).astype(np.uint8)).view(dtype).float()
        assert (one == 1).all()
