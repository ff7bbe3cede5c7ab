"""Registers that M0 points at, between s_set_gpr_idx_on and s_set_gpr_idx_off."""

import pytest
from attn_amdgcn import EmulationFault, UnknownInstructionError

from tests.emulated.lines import JUNK, ran

ON, OFF = "s_set_gpr_idx_on s0, gpr_idx(SRC0)\n", "\ns_set_gpr_idx_off\n"
REGISTERS = {10 + i: 100 + i for i in range(8)} | {2: 1000}


@pytest.mark.parametrize("index", [0, 1, 4, 0x104])
def test_the_first_source_alone_is_moved(index):
    code = "v_add_u32_e32 v1, v10, v2\nv_add_u32_e32 v10, v11, v2\nv_sub_u32_e32 v3, 7, v2\nv_fma_f32 v4, -v12, 1.0, 0"
    after = ran(f"{ON}{code}{OFF}v_add_u32_e32 v5, v11, v2", v=REGISTERS, s={0: index})
    low = index & 0xFF
    first = [1100 + low, 1101 + low, (7 - 1000) & 0xFFFFFFFF]
    assert [int(after.vector[row, 0, 63]) for row in (1, 10, 3)] == first
    assert int(after.vector[4, 0, 0]) == 1 << 31 | 102 + low  # a denormal, with the sign of the operand
    assert int(after.vector[5, 0, 0]) == 1101
    assert int(after.scalar[0, 124]) == JUNK & ~0xF0FF | low | 1 << 12


def test_each_wave_has_its_own_index_and_lanes_that_are_off_keep_theirs():
    code = "v_readfirstlane_b32 s0, v0\n" + ON + "v_add_u32_e32 v1, v10, v2" + OFF
    after = ran(code, v=REGISTERS | {0: [[0] * 64, [5] * 64]}, num_waves=2, exec=0b10)
    assert after.vector[1, :, :2].tolist() == [[JUNK, 1100], [JUNK, 1105]]


@pytest.mark.parametrize(("name", "index"), [("v191", 1), ("v100", 92), ("a63", 1)])
def test_an_index_beyond_the_registers_is_a_fault(name, index):
    ran(f"{ON}v_mov_b32_e32 v1, {name}{OFF}", s={0: index - 1})
    with pytest.raises(EmulationFault, match="beyond the kernel's registers"):
        ran(f"{ON}v_mov_b32_e32 v1, {name}{OFF}", s={0: index})


@pytest.mark.parametrize(
    "code",
    [
        f"s_set_gpr_idx_on s0, gpr_idx(DST){OFF}",
        ON,
        f"{ON}s_cbranch_scc0 at{OFF}at:",
        f"{ON}buffer_load_dword v1, v10, s[4:7], 0 offen{OFF}",
        f"{ON}v_mov_b32_dpp v1, v10 row_shl:1 row_mask:0xf bank_mask:0xf{OFF}",
        f"{ON}s_mov_b32 m0, 0{OFF}",
        f"{ON}v_readlane_b32 s1, v10, 0{OFF}",
    ],
)
def test_forms_without_a_meaning_are_refused(code):
    with pytest.raises(UnknownInstructionError):
        ran(code, s={0: 0})
