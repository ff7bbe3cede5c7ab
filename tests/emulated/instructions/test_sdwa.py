"""SDWA: parts of registers as sources and results."""

import itertools

import numpy as np
import pytest
from attn_amdgcn.errors import UnknownInstructionError

from tests.emulated.lines import JUNK, ran

PARTS = {
    "DWORD": (0, 32),
    "WORD_0": (0, 16),
    "WORD_1": (16, 16),
    "BYTE_0": (0, 8),
    "BYTE_1": (8, 8),
    "BYTE_2": (16, 8),
    "BYTE_3": (24, 8),
}
VALUES = (0, 1, 0x7F80, 0x8000, 0x80FF7F01, 0x7F0180FF, 0xFFFFFFFF, 0x12345678)
A, B = (np.array(column, np.uint32) for column in zip(*itertools.product(VALUES, VALUES), strict=True))


def part(value: int, name: str, signed: bool = False) -> int:
    first, bits = PARTS[name]
    value = (value >> first) % (1 << bits)
    return value - (1 << bits) if signed and value >> bits - 1 else value


@pytest.mark.parametrize("second", PARTS)
@pytest.mark.parametrize("first", PARTS)
def test_selected_parts_of_sources_are_read(first, second):
    selected = f"dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:{first} src1_sel:{second}"
    operations = ("v_sub_u32_sdwa v2, v0, v1", "v_sub_u32_sdwa v3, sext(v0), sext(v1)", "v_and_b32_sdwa v4, v0, s0")
    after = ran("\n".join(f"{operation} {selected}" for operation in operations), v={0: A, 1: B}, s={0: 0xFEDCBA98})
    for row, signed in ((2, False), (3, True)):
        expected = [(part(int(a), first, signed) - part(int(b), second, signed)) % (1 << 32) for a, b in zip(A, B, strict=True)]
        assert after.vector[row, 0].tolist() == expected
    assert after.vector[4, 0].tolist() == [part(int(a), first) & part(0xFEDCBA98, second) for a in A]


def result(value: int, old: int, name: str, unused: str) -> int:
    first, bits = PARTS[name]
    value %= 1 << bits
    if unused == "UNUSED_PRESERVE":
        return old & ~(((1 << bits) - 1) << first) | value << first
    if unused == "UNUSED_SEXT" and value >> bits - 1:
        value -= 1 << bits
    return (value << first) % (1 << 32)


@pytest.mark.parametrize("unused", ["UNUSED_PAD", "UNUSED_SEXT", "UNUSED_PRESERVE"])
@pytest.mark.parametrize("name", PARTS)
def test_selected_parts_of_results_are_written(name, unused):
    selected = f"dst_sel:{name} dst_unused:{unused} src0_sel:DWORD src1_sel:DWORD"
    after = ran(f"v_or_b32_sdwa v2, v0, v1 {selected}", v={0: A, 1: B}, exec=-2)
    expected = [result(int(a | b), JUNK, name, unused) for a, b in zip(A, B, strict=True)]
    assert after.vector[2, 0].tolist() == [JUNK, *expected[1:]]


def test_results_of_16_bits_leave_zeros():
    """The other bits of the register become zeros, for which dst_sel:DWORD asks, too."""
    selected = "dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:DWORD src1_sel:WORD_1"
    after = ran(f"v_ashrrev_i16_sdwa v2, v0, v1 {selected}", v={0: A, 1: B})
    expected = [(part(int(b), "WORD_1", True) >> int(a) % 16) % (1 << 16) for a, b in zip(A, B, strict=True)]
    assert after.vector[2, 0].tolist() == expected
    selected = "dst_sel:WORD_1 dst_unused:UNUSED_PRESERVE src0_sel:BYTE_3 src1_sel:WORD_0"
    after = ran(f"v_add_u16_sdwa v2, sext(v0), v1 {selected}", v={0: A, 1: B})
    expected = [((part(int(a), "BYTE_3", True) + int(b)) % (1 << 16)) << 16 | JUNK & 0xFFFF for a, b in zip(A, B, strict=True)]
    assert after.vector[2, 0].tolist() == expected


def test_comparisons_write_a_mask():
    selected = "src0_sel:BYTE_3 src1_sel:DWORD"
    after = ran(
        f"v_cmp_eq_u16_sdwa s[4:5], v0, s0 {selected}\nv_cmp_lt_i32_sdwa vcc, sext(v0), v1 {selected}",
        v={0: A, 1: B},
        s={0: 0x7F},
        exec=-2,
    )
    assert after.mask(4)[0].tolist() == [False] + [int(a) >> 24 == 0x7F for a in A[1:]]
    expected = [part(int(a), "BYTE_3", True) < part(int(b), "DWORD", True) for a, b in zip(A, B, strict=True)]
    assert after.mask(106)[0].tolist() == [False, *expected[1:]]


def test_a_choice_into_a_byte():
    selected = "dst_sel:BYTE_1 dst_unused:UNUSED_PAD src0_sel:DWORD src1_sel:DWORD"
    after = ran(f"v_cndmask_b32_sdwa v2, v0, v1, vcc {selected}", v={0: A, 1: B}, vcc=0xF0F0)
    expected = [part(int(b if 0xF0F0 >> lane & 1 else a), "BYTE_0") << 8 for lane, (a, b) in enumerate(zip(A, B, strict=True))]
    assert after.vector[2, 0].tolist() == expected


@pytest.mark.parametrize("modifiers", ["dst_sel:BYTE_4", "dst_unused:UNUSED_KEEP", "src0_sel:HALF_0", "clamp", "op_sel:[1,0]"])
def test_modifiers_without_a_meaning_are_refused(modifiers):
    with pytest.raises(UnknownInstructionError):
        ran(f"v_add_u32_sdwa v2, v0, v1 {modifiers}")
