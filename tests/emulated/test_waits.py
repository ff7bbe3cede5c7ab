"""A forgotten wait is found, for each counter of each architecture. What stands there otherwise is enough."""

import re

import numpy as np
import pytest
from attn_amdgcn import EmulationFault

from tests.emulated.lines import ran

DATA = np.arange(256).astype(np.uint8)
NO_RECORDS = {96: 0, 97: 0, 98: 0, 99: 3 << 28}
"""A resource that nothing lies in."""

# architecture, a load, an instruction that uses what it brings, and the wait
COMPLETE = [
    ("gfx942", "global_load_dword v4, v0, s[100:101]", "v_add_u32_e32 v5, v4, v0", "s_waitcnt vmcnt(0)"),
    ("gfx942", "ds_read_b32 v4, v0", "v_add_u32_e32 v5, v4, v0", "s_waitcnt lgkmcnt(0)"),
    ("gfx942", "s_load_dword s4, s[100:101], 0x0", "s_add_u32 s5, s4, s4", "s_waitcnt lgkmcnt(0)"),
    ("gfx942", "s_load_dwordx2 vcc, s[100:101], 0x0", "s_cbranch_vccz .L", "s_waitcnt lgkmcnt(0)"),
    ("gfx942", "global_load_dword a4, v0, s[100:101]", "global_store_dword v0, a4, s[100:101]", "s_waitcnt vmcnt(0)"),
    ("gfx942", "global_load_dword v4, v0, s[100:101]", "ds_read_b32 v4, v0", "s_waitcnt vmcnt(0)"),
    ("gfx1100", "global_load_b32 v4, v0, s[100:101]", "global_store_b32 v0, v4, s[100:101]", "s_waitcnt vmcnt(0)"),
    ("gfx1100", "ds_load_b32 v4, v0", "global_store_b32 v0, v4, s[100:101]", "s_waitcnt lgkmcnt(0)"),
    ("gfx1100", "s_load_b32 s4, s[100:101], 0x0", "s_add_u32 s5, s4, s4", "s_waitcnt lgkmcnt(0)"),
    ("gfx1100", "scratch_load_b32 v4, off, off", "global_store_b32 v0, v4, s[100:101]", "s_waitcnt vmcnt(0)"),
    ("gfx1100", "ds_load_u16_d16_hi v4, v0", "global_load_d16_hi_b16 v4, v0, s[100:101]", "s_waitcnt lgkmcnt(0)"),
    ("gfx1201", "global_load_b32 v4, v0, s[100:101]", "global_store_b32 v0, v4, s[100:101]", "s_wait_loadcnt 0x0"),
    ("gfx1201", "scratch_load_b32 v4, off, off", "global_store_b32 v0, v4, s[100:101]", "s_wait_loadcnt_dscnt 0x3f"),
    ("gfx1201", "ds_load_b32 v4, v0", "global_store_b32 v0, v4, s[100:101]", "s_wait_dscnt 0x0"),
    ("gfx1201", "ds_load_b32 v4, v0", "global_store_b32 v0, v4, s[100:101]", "s_wait_storecnt_dscnt 0x3f00"),
    ("gfx1201", "s_load_b32 s4, s[100:101], 0x0", "s_add_co_u32 s5, s4, s4", "s_wait_kmcnt 0x0"),
    ("gfx1201", "s_load_b32 s4, s[100:101], 0x0", "s_add_co_u32 s5, s4, s4", "s_wait_idle"),
]


def run(architecture, *lines):
    with np.errstate(all="ignore"):
        return ran("\n".join([*lines, ".L:"]), architecture, v={0: 0, 4: 0}, s=NO_RECORDS, buffers={"data": DATA})


@pytest.mark.parametrize(("architecture", "load", "use", "wait"), COMPLETE)
def test_a_forgotten_wait_is_found(architecture, load, use, wait):
    run(architecture, load, wait, use)
    with pytest.raises(EmulationFault) as found:
        run(architecture, load, use)
    assert found.value.instruction == use
    assert f"line 1 (`{load}`) loads" in str(found.value)


GLOBAL_4, GLOBAL_5 = (f"global_load_dword v{number}, v0, s[100:101]" for number in (4, 5))
STORE = "global_store_dword v0, v0, s[100:101]"
LDS_4, LDS_5 = (f"ds_read_b32 v{number}, v0" for number in (4, 5))
SCALAR_4, SCALAR_5 = (f"s_load_dword s{number}, s[100:101], 0x0" for number in (4, 5))
USE, USE_SCALAR = "v_add_u32_e32 v6, v4, v4", "s_add_u32 s6, s4, s4"
# the same in later names
LATER_4, LATER_STORE = "global_load_b32 v4, v0, s[100:101]", "global_store_b32 v0, v0, s[100:101]"
SCRATCH, LATER_LDS = "scratch_store_b32 off, v0, off", "ds_load_b32 v4, v0"
LATER_SCALAR_4, LATER_SCALAR_5 = (f"s_load_b32 s{number}, s[100:101], 0x0" for number in (4, 5))
LOW, HIGH = "ds_load_u16_d16 v4, v0", "ds_load_u16_d16_hi v4, v0"
LATER_USE, LATER_USE_SCALAR, STORE_4 = "ds_load_b32 v6, v4", "s_add_co_u32 s6, s4, s4", "global_store_b32 v0, v4, s[100:101]"

# architecture, two loads, a use of the first one, a wait before it, and whether that is enough
COUNTED = [
    # in order: the older load has come when one is under way
    ("gfx942", GLOBAL_4, GLOBAL_5, USE, "s_waitcnt vmcnt(1)", True),
    ("gfx942", GLOBAL_5, GLOBAL_4, USE, "s_waitcnt vmcnt(1)", False),
    # gfx9 counts stores among the loads, gfx11 and gfx12 do not
    ("gfx942", GLOBAL_4, STORE, USE, "s_waitcnt vmcnt(1)", True),
    ("gfx1100", LATER_4, LATER_STORE, LATER_USE, "s_waitcnt vmcnt(1)", False),
    ("gfx1100", LATER_4, LATER_STORE, LATER_USE, "s_waitcnt_vscnt null, 0x0", False),
    ("gfx1201", LATER_4, SCRATCH, LATER_USE, "s_wait_loadcnt 0x1", False),
    ("gfx1201", LATER_4, SCRATCH, LATER_USE, "s_wait_storecnt 0x0", False),
    # scalar memory comes in any order, and is counted with LDS before gfx12
    ("gfx942", SCALAR_4, SCALAR_5, USE_SCALAR, "s_waitcnt lgkmcnt(1)", False),
    ("gfx942", LDS_4, SCALAR_5, USE, "s_waitcnt lgkmcnt(1)", False),
    ("gfx942", LDS_4, LDS_5, USE, "s_waitcnt lgkmcnt(1)", True),
    ("gfx1201", LATER_LDS, LATER_SCALAR_5, STORE_4, "s_wait_dscnt 0x0", True),
    ("gfx1201", LATER_SCALAR_4, LATER_SCALAR_5, LATER_USE_SCALAR, "s_wait_kmcnt 0x1", False),
    # two halves of one register
    ("gfx1201", LOW, HIGH, STORE_4, "s_wait_dscnt 0x0", True),
    ("gfx1201", LOW, HIGH, STORE_4, "s_wait_dscnt 0x1", False),
    # loads of one counter come in order, so the newer one may write the same register
    ("gfx942", GLOBAL_4, GLOBAL_4, USE, "s_waitcnt vmcnt(0)", True),
    ("gfx942", GLOBAL_4, GLOBAL_4, USE, "s_waitcnt vmcnt(1)", False),
]


@pytest.mark.parametrize(("architecture", "first", "second", "use", "wait", "enough"), COUNTED)
def test_a_wait_covers_the_counts_of_its_counter(architecture, first, second, use, wait, enough):
    if enough:
        run(architecture, first, second, wait, use)
        return
    with pytest.raises(EmulationFault, match="no wait stands before its use"):
        run(architecture, first, second, wait, use)


def test_loads_of_two_halves_do_not_wait_for_each_other():
    loads = "ds_load_u16_d16 v4, v0", "global_load_d16_hi_b16 v4, v0, s[100:101]"
    use = "global_store_b32 v0, v4, s[100:101]"
    run("gfx1100", *loads, "s_waitcnt vmcnt(0) lgkmcnt(0)", use)
    for wait, missing in (("s_waitcnt vmcnt(0)", loads[0]), ("s_waitcnt lgkmcnt(0)", loads[1])):
        with pytest.raises(EmulationFault, match=re.escape(missing)):
            run("gfx1100", *loads, wait, use)


# architecture, a load of one half, an instruction that leaves that half alone, and one that touches it
HALVES = [
    ("gfx1201", "global_load_d16_hi_u8 v4, v0, s[100:101]", "ds_store_b8 v0, v4", "ds_store_b8_d16_hi v0, v4"),
    ("gfx1201", "ds_load_u16_d16 v4, v0", "global_store_d16_hi_b16 v0, v4, s[100:101]", "global_store_b16 v0, v4, s[100:101]"),
    ("gfx1201", "ds_load_u16_d16 v4, v0", "buffer_store_d16_hi_b16 v4, v0, s[96:99], 0 offen", "scratch_store_b8 off, v4, off"),
    ("gfx1201", "ds_load_u16_d16 v4, v0", "v_mov_b16_e32 v5.l, v4.h", "v_mov_b16_e32 v5.h, v4.l"),
    ("gfx1201", "ds_load_u16_d16_hi v4, v0", "v_mov_b16_e32 v4.l, v5.h", "v_mov_b16_e32 v4.h, v5.h"),
    ("gfx1201", "ds_load_u16_d16_hi v4, v0", "v_mov_b16_e32 v4.l, v5.h", "ds_store_b8 v4, v5"),  # v4 as an address
    ("gfx1100", "ds_load_u16_d16_hi v4, v0", "ds_store_b16 v0, v4", "v_mov_b16_e32 v5.l, v4.l"),
]


@pytest.mark.parametrize(("architecture", "load", "other", "same"), HALVES)
def test_a_half_that_no_load_writes_needs_no_wait(architecture, load, other, same):
    lines = ["v_mov_b32_e32 v5, 0", load]
    run(architecture, *lines, other)
    with pytest.raises(EmulationFault, match="no wait stands before its use"):
        run(architecture, *lines, same)


# a load, instructions that begin behind it, how many of them the counter does not count further than, and a use
FULL = [
    ("global_load_dword v4, v0, s[100:101]", "global_load_dword v5, v0, s[100:101]", 63, "v_add_u32_e32 v6, v4, v4"),
    ("global_load_dword v4, v0, s[100:101]", "global_store_dword v0, v0, s[100:101]", 63, "v_add_u32_e32 v6, v4, v4"),
    ("ds_read_b32 v4, v0", "ds_read_b32 v5, v0", 15, "v_add_u32_e32 v6, v4, v4"),
]


@pytest.mark.parametrize(("load", "other", "most", "use"), FULL)
def test_a_full_counter_waits_by_itself(load, other, most, use):
    """gfx9 only: what begins when the counter is full begins when the oldest one has ended."""
    run("gfx942", load, *[other] * most, use)
    with pytest.raises(EmulationFault, match="loads v4"):
        run("gfx942", load, *[other] * (most - 1), use)


def test_a_full_counter_says_nothing_of_scalar_loads():
    """They end in any order."""
    with pytest.raises(EmulationFault, match="loads s4"):
        run("gfx942", "s_load_dword s4, s[100:101], 0x0", *["ds_read_b32 v5, v0"] * 20, "s_add_u32 s6, s4, s4")


def test_no_full_counter_of_gfx11_is_relied_upon():
    others = ["global_load_b32 v5, v0, s[100:101]"] * 70
    with pytest.raises(EmulationFault, match="loads v4"):
        run("gfx1100", "global_load_b32 v4, v0, s[100:101]", *others, "v_add_nc_u32_e32 v6, v4, v4")


def test_a_wait_of_one_branch_is_not_enough():
    lines = [
        "global_load_dword v4, v0, s[100:101]",
        "s_cbranch_scc0 .L0",
        "s_waitcnt vmcnt(0)",
        ".L0:",
        "v_add_u32_e32 v5, v4, v4",
    ]
    ran("\n".join(lines), v={0: 0}, scc=True, buffers={"data": DATA})
    with pytest.raises(EmulationFault, match="loads v4"):
        ran("\n".join(lines), v={0: 0}, buffers={"data": DATA})


def test_a_loop_without_waits_comes_to_an_end():
    """The outstanding accesses return to an earlier state."""
    lines = [
        "s_mov_b32 s4, 300",
        ".L0:",
        "global_store_dword v0, v0, s[100:101]",
        "global_load_dword v4, v0, s[100:101]",
        "s_sub_u32 s4, s4, 1",
        "s_cmp_lg_u32 s4, 0",
        "s_cbranch_scc1 .L0",
    ]
    ran("\n".join(lines), v={0: 0}, buffers={"data": DATA})
