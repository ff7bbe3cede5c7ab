"""DPP against the lanes that the ISA documents name."""

import numpy as np
import pytest
from attn_amdgcn.errors import UnknownInstructionError

from tests.emulated.lines import JUNK, ran

LANES = np.arange(64, dtype=np.uint32)


def mov(control: str, exec: int = -1, architecture: str = "gfx942") -> list[int]:
    """v1 after a move of each lane's 100 + number: JUNK where the lane kept its register."""
    lanes = 64 if architecture.startswith("gfx9") else 32
    after = ran(f"v_mov_b32_dpp v1, v0 {control}", architecture, v={0: 100 + LANES[:lanes]}, exec=exec)
    return after.vector[1, 0].tolist()


SOURCES = {
    "quad_perm:[2,3,0,1]": lambda lane: lane ^ 2,
    "quad_perm:[3,3,3,0]": lambda lane: lane - lane % 4 + (3, 3, 3, 0)[lane % 4],
    "row_mirror": lambda lane: lane ^ 15,
    "row_half_mirror": lambda lane: lane ^ 7,
    "row_shl:1": lambda lane: lane + 1 if lane % 16 + 1 < 16 else None,
    "row_shl:15": lambda lane: lane + 15 if lane % 16 == 0 else None,
    "row_shr:8": lambda lane: lane - 8 if lane % 16 >= 8 else None,
    "row_shr:1": lambda lane: lane - 1 if lane % 16 else None,
    "row_ror:8": lambda lane: lane ^ 8,
    "row_ror:1": lambda lane: lane - 1 if lane % 16 else lane + 15,
    "row_bcast:15": lambda lane: {0: None, 1: 15, 2: 31, 3: 47}[lane // 16],
    "row_bcast:31": lambda lane: None if lane < 32 else 31,
    "row_newbcast:5": lambda lane: lane // 16 * 16 + 5,
    "wave_shl:1": lambda lane: lane + 1 if lane < 63 else None,
    "wave_shr:1": lambda lane: lane - 1 if lane else None,
    "wave_rol:1": lambda lane: (lane + 1) % 64,
    "wave_ror:1": lambda lane: (lane + 63) % 64,
}
MASKS = " row_mask:0xf bank_mask:0xf"


@pytest.mark.parametrize("control", SOURCES)
def test_a_control_names_the_lane_that_is_read(control):
    expected = [SOURCES[control](lane) for lane in range(64)]
    assert mov(control + MASKS) == [JUNK if lane is None else 100 + lane for lane in expected]
    assert mov(control + MASKS + " bound_ctrl:1") == [0 if lane is None else 100 + lane for lane in expected]


@pytest.mark.parametrize(
    ("control", "source"), [("row_share:3", lambda lane: lane & 16 | 3), ("row_xmask:5", lambda lane: lane ^ 5)]
)
def test_the_controls_that_came_with_gfx10(control, source):
    assert mov(control + MASKS, architecture="gfx1201") == [100 + source(lane) for lane in range(32)]


def test_a_lane_that_is_off_is_no_source():
    on = 0b0111
    assert mov("quad_perm:[3,2,1,0]" + MASKS, on)[:5] == [JUNK, 102, 101, JUNK, JUNK]
    assert mov("quad_perm:[3,2,1,0]" + MASKS + " bound_ctrl:1", on)[:5] == [0, 102, 101, JUNK, JUNK]
    assert mov("quad_perm:[3,2,1,0]" + MASKS + " fi:1", on, "gfx1100")[:5] == [103, 102, 101, JUNK, JUNK]


def test_fi_fetches_from_lanes_that_are_off_but_from_none_outside():
    assert mov("row_shr:1" + MASKS + " fi:1", 0b1110, "gfx1100")[:5] == [JUNK, 100, 101, 102, JUNK]
    assert mov("row_shr:1" + MASKS + " bound_ctrl:1 fi:1", 0b1101, "gfx1100")[:5] == [0, JUNK, 101, 102, JUNK]


def test_bound_ctrl_0_is_the_set_bit_before_gfx11_alone():
    assert mov("row_shr:1" + MASKS + " bound_ctrl:0")[:2] == [0, 100]
    assert mov("row_shr:1" + MASKS + " bound_ctrl:0", architecture="gfx1100")[:2] == [JUNK, 100]


@pytest.mark.parametrize("masks", ["row_mask:0xa bank_mask:0xf", "row_mask:0xf bank_mask:0x5", "row_mask:0x4 bank_mask:0x8"])
def test_rows_and_banks_that_are_masked_keep_their_register(masks):
    rows, banks = (int(part.partition(":")[2], 0) for part in masks.split())
    expected = [100 + (lane ^ 1) if rows >> lane // 16 & 1 and banks >> lane // 4 % 4 & 1 else JUNK for lane in range(64)]
    assert mov("quad_perm:[1,0,3,2] " + masks + " bound_ctrl:1") == expected


def test_the_first_source_alone_moves():
    after = ran(f"v_subrev_u32_dpp v1, v0, v0 row_ror:4{MASKS}", v={0: LANES * 10})
    assert after.vector[1, 0, :20].view(np.int32).tolist() == [
        10 * lane - 10 * (lane - 4 if lane % 16 >= 4 else lane + 12) for lane in range(20)
    ]


def test_a_sum_with_a_carry():
    text = f"v_add_co_u32_e64_dpp v1, vcc_lo, v0, v2 row_shr:1{MASKS} bound_ctrl:1"
    after = ran(text, "gfx1100", v={0: 0xFFFFFFFF, 2: LANES[:32]}, exec=0xFFFF)
    assert after.vector[1, 0, :17].tolist() == [0, 0, *range(1, 15), JUNK]
    assert after.scalar[0, 106] == 0xFFFE


def test_signs_are_changed_behind_the_move():
    values = np.array([-1.5, 2.0, np.nan, -0.0] * 8, np.float32)
    after = ran(f"v_cndmask_b32_e64_dpp v1, -|v0|, v2, s0 quad_perm:[1,0,3,2]{MASKS}", "gfx1100", v={0: values, 2: 1}, s={0: 0})
    assert after.vector[1, 0, :4].tolist() == [0xC0000000, 0xBFC00000, 0x80000000, 0xFFC00000]


def test_halves_of_registers_are_permuted():
    after = ran(
        f"v_add_nc_u16_e64_dpp v1.h, v0.h, v2.l quad_perm:[1,0,3,2]{MASKS}", "gfx1100", v={0: LANES[:32] << 16, 1: 7, 2: 5}
    )
    assert after.vector[1, 0].tolist() == [((lane ^ 1) + 5) << 16 | 7 for lane in range(32)]


@pytest.mark.parametrize(
    "text",
    [
        "v_mov_b32_dpp v1, v0 row_mask:0xf bank_mask:0xf",
        "v_mov_b32_dpp v1, v0 row_mirror row_half_mirror",
        "v_mov_b32_dpp v1, v0 row_bcast:16",
        "v_mov_b32_dpp v1, v0 dpp8:[7,6,5,4,3,2,1,0]",
        "v_add_co_u32_dpp v1, vcc, v0, v0 row_shr:1 row_mask:0xf bank_mask:0xf",
        "v_mov_b64_dpp v[2:3], v[0:1] row_newbcast:1",
    ],
)
def test_forms_without_a_meaning_are_refused(text):
    with pytest.raises(UnknownInstructionError):
        ran(text)
