"""Instructions that bring values from lane to lane."""

import numpy as np
import pytest
from attn_amdgcn.errors import EmulationFault, UnknownInstructionError

from tests.emulated.lines import JUNK, ran

LANES = np.arange(64, dtype=np.uint32)
SHUFFLED = np.random.default_rng(0).integers(0, 64, 64)


def test_the_first_lane_that_is_on():
    text = "v_readfirstlane_b32 s0, v0"
    assert [ran(text, v={0: LANES + 9}, exec=lanes).scalar[0, 0] for lanes in (-1, 0b1000, 1 << 63, 0)] == [9, 12, 72, 9]
    assert ran(text, "gfx1201", v={0: LANES[:32]}, exec=1 << 31).scalar[0, 0] == 31


def test_each_wave_has_its_own_first_lane():
    first = np.array([LANES, LANES + 100])
    after = ran("v_cmpx_lt_u32_e32 vcc, s0, v0\nv_readfirstlane_b32 vcc_hi, v0", v={0: first}, s={0: 7}, num_waves=2)
    assert after.scalar[:, 107].tolist() == [8, 100]


def test_v_readlane_and_v_writelane_do_not_ask_which_lanes_are_on():
    text = "s_mov_b32 m0, 3\nv_readlane_b32 s0, v0, 5\nv_readlane_b32 vcc_lo, v0, s1\n"
    text += "v_writelane_b32 v1, s0, 63\nv_writelane_b32 v1, -1, s1\nv_writelane_b32 v1, 7, m0"
    after = ran(text, v={0: LANES * 3, 1: 0}, s={1: 64 + 33}, exec=0)
    assert after.scalar[0, [0, 106]].tolist() == [15, 99]
    assert {lane: after.vector[1, 0, lane] for lane in range(64) if after.vector[1, 0, lane]} == {63: 15, 33: 0xFFFFFFFF, 3: 7}
    after = ran("v_readlane_b32 s0, v0, 63", "gfx1100", v={0: LANES[:32]})
    assert after.scalar[0, 0] == 31  # modulo the lanes of the wave


def test_v_mbcnt_counts_the_lanes_before():
    text = "v_mbcnt_lo_u32_b32 v0, s0, 0\nv_mbcnt_hi_u32_b32 v0, s1, v0"
    mask = 0xF0F0123480008001
    after = ran(text, s={0: mask & 0xFFFFFFFF, 1: mask >> 32})
    assert after.vector[0, 0].tolist() == [(mask & (1 << lane) - 1).bit_count() for lane in range(64)]


@pytest.mark.parametrize(("name", "other"), [("v_permlane16_b32", 0), ("v_permlanex16_b32", 16)])
def test_v_permlane16_gathers_within_rows(name, other):
    after = ran(f"{name} v1, v0, s0, 0xfedcba98 op_sel:[1,0]", "gfx1100", v={0: LANES[:32]}, s={0: 0x01234567}, exec=0xFFFF0FFF)
    places = [7, 6, 5, 4, 3, 2, 1, 0, *range(8, 16)]
    expected = [(lane & 16 ^ other) | places[lane % 16] for lane in range(32)]
    assert after.vector[1, 0].tolist() == [JUNK if 12 <= lane < 16 else source for lane, source in enumerate(expected)]
    after = ran(f"{name} v1, v0, -1, -1 op_sel:[1,0]", "gfx1201", v={0: LANES[:32]})
    assert after.vector[1, 0].tolist() == [(lane & 16 ^ other) | 15 for lane in range(32)]
    with pytest.raises(UnknownInstructionError):
        ran(f"{name} v1, v0, s0, s1", "gfx1100")


def test_v_swap_leaves_lanes_that_are_off():
    after = ran("v_swap_b32 v0, v1\nv_mov_b32_e32 v2, v0", "gfx1201", v={0: 5, 1: 7, 2: 9}, exec=1)
    assert [row.tolist() for row in after.vector[:3, 0, :2]] == [[7, 5], [5, 7], [7, 9]]


@pytest.mark.parametrize(("width", "architecture"), [(16, "gfx950"), (32, "gfx950"), (16, "gfx1250")])
def test_v_permlane_swap_exchanges_rows(width, architecture):
    lanes = 64 if architecture == "gfx950" else 32
    text = f"v_permlane{width}_swap_b32_e32 v0, v1"
    after = ran(text, architecture, v={0: np.array([LANES[:lanes]] * 2), 1: 100 + LANES[:lanes]}, num_waves=2)
    for wave in range(2):
        first = [lane + 100 - width if lane & width else lane for lane in range(lanes)]
        second = [lane + 100 if lane & width else lane + width for lane in range(lanes)]
        assert after.vector[:2, wave].tolist() == [first, second]
    with pytest.raises(EmulationFault, match="while a lane is off"):
        ran(text, architecture, exec=1)


def test_v_permlane32_swap_needs_64_lanes():
    with pytest.raises(UnknownInstructionError):
        ran("v_permlane32_swap_b32_e32 v0, v1", "gfx1250")


@pytest.mark.parametrize("architecture", ["gfx942", "gfx1201"])
def test_ds_bpermute_reads_0_from_a_lane_that_is_off(architecture):
    lanes = 64 if architecture == "gfx942" else 32
    on, sources = 0x5A5AF00F5A5AF00F, SHUFFLED[:lanes]
    after = ran("ds_bpermute_b32 v2, v0, v1 offset:4", architecture, v={0: 4 * sources + 3, 1: 100 + LANES[:lanes]}, exec=on)
    sources = [(int(source) + 1) % lanes for source in sources]
    expected = [(100 + source) * (on >> source & 1) if on >> lane & 1 else JUNK for lane, source in enumerate(sources)]
    assert after.vector[2, 0].tolist() == expected


def test_ds_bpermute_in_several_waves():
    address = np.array([4 * ((LANES + wave) % 64) for wave in range(3)])
    after = ran(
        "ds_bpermute_b32 v2, v0, v1", v={0: address, 1: np.array([LANES + 1000 * wave for wave in range(3)])}, num_waves=3
    )
    assert after.vector[2].tolist() == [[1000 * wave + (lane + wave) % 64 for lane in range(64)] for wave in range(3)]
    assert (after.shared.lds == JUNK).all()


def test_ds_permute_gives_and_the_last_giver_wins():
    on = 0x0FFF00FF0F0FF00F
    after = ran("ds_permute_b32 v2, v0, v1", v={0: 4 * SHUFFLED, 1: 100 + LANES}, exec=on)
    expected = [0] * 64
    for lane in range(64):
        if on >> lane & 1:
            expected[SHUFFLED[lane]] = 100 + lane
    assert after.vector[2, 0].tolist() == [value if on >> lane & 1 else JUNK for lane, value in enumerate(expected)]


SWIZZLES = {
    "swizzle(QUAD_PERM,3,2,1,0)": lambda lane: lane ^ 3,
    "0x8039": lambda lane: lane & ~3 | (1, 2, 3, 0)[lane & 3],
    "swizzle(SWAP,16)": lambda lane: lane ^ 16,
    "swizzle(REVERSE,8)": lambda lane: lane ^ 7,
    "swizzle(BROADCAST,8,5)": lambda lane: lane & ~7 | 5,
    'swizzle(BITMASK_PERM,"01pip")': lambda lane: lane & 32 | 8 | lane & 5 | lane & 2 ^ 2,
    "0x401f": lambda lane: lane ^ 16,
    "0": lambda lane: lane & 32,
}


@pytest.mark.parametrize("pattern", SWIZZLES)
def test_ds_swizzle_gathers_by_its_pattern(pattern):
    on = 0xFFFFFFFFFFFEFFFE
    after = ran(f"ds_swizzle_b32 v1, v0 offset:{pattern}", v={0: 100 + LANES}, exec=on)
    sources = [SWIZZLES[pattern](lane) for lane in range(64)]
    expected = [(100 + source) * (on >> source & 1) if on >> lane & 1 else JUNK for lane, source in enumerate(sources)]
    assert after.vector[1, 0].tolist() == expected


@pytest.mark.parametrize(
    "text",
    ["ds_swizzle_b32 v1, v0 offset:0xc020", "ds_swizzle_b32 v1, v0 offset:swizzle(FFT,1)", "ds_bpermute_b32 v1, v0, v2 gds"],
)
def test_forms_without_a_meaning_are_refused(text):
    with pytest.raises(UnknownInstructionError):
        ran(text)
