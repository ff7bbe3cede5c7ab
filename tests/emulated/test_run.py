"""Branches, barriers and waits of a few lines, and launches of a whole kernel."""

import numpy as np
import pytest
from attn_amdgcn import EmulationFault, Schedule, UnknownInstructionError, launch, load, prepare

from tests.emulated.kernels import DATA, KERNEL, POINTER, kernel_text
from tests.emulated.lines import ran


def test_waves_that_leave_a_loop_at_different_times_meet_again():
    program = prepare(load(KERNEL))
    _, report = launch(program, (5, 1, 1), [("data", 0), 1], DATA)
    turns = 2 * sum(max(1, workgroup) for workgroup in range(5))  # two waves of each workgroup
    assert report.executed.tolist() == [10] * 4 + [turns] * 3 + [10]


def test_a_wave_that_branches_alone_keeps_its_registers():
    after = ran(
        "s_cmp_eq_u32 s0, 1\ns_cbranch_scc1 .L\ns_mov_b32 s1, 7\n.L:\ns_add_u32 s1, s1, s0",
        s={0: np.arange(4), 1: 100},
        num_waves=4,
    )
    order = np.argsort(after.number)
    assert after.scalar[order, 1].tolist() == [7, 101, 9, 10]


def test_a_block_begins_where_a_branch_leads_and_not_at_a_label_of_a_debugger():
    program = prepare(load(KERNEL.replace("    s_cmp_lt_u32", ".Ltmp1:\n    s_cmp_lt_u32")))
    assert [len(block.code) for block in program.blocks] == [4, 3, 1]


def test_an_access_outside_its_buffer_is_a_fault():
    with pytest.raises(EmulationFault, match="4 bytes at byte 16 of data, which has 16 bytes"):
        ran("s_load_dword s2, s[100:101], 0x10", buffers=DATA)


def test_an_unknown_instruction_is_named_before_anything_runs():
    with pytest.raises(UnknownInstructionError, match="line 2: `v_unheard_of v0`"):
        ran("s_nop 0\nv_unheard_of v0")
    with pytest.raises(UnknownInstructionError, match="the modifier 'surprise' has no meaning here"):
        ran("s_mov_b32 s0, s1 surprise")


def test_lanes_beyond_the_workgroup_are_off_in_its_last_wave():
    text = kernel_text(
        "s_load_dwordx2 s[4:5], s[0:1], 0x0",
        "v_lshlrev_b32 v1, 2, v0",
        "s_waitcnt lgkmcnt(0)",
        "global_store_dword v1, v0, s[4:5]",
    )
    program = prepare(load(text.replace(".max_flat_workgroup_size: 128", ".max_flat_workgroup_size: 80")))
    memory, _ = launch(program, (1, 1, 1), [("data", 0)], {"data": np.full(4 * 128, 0xFF, np.uint8)})
    assert memory.contents("data").view(np.int32).tolist() == [*range(80), *[-1] * 48]


@pytest.mark.parametrize("order", ["together", "ascending", "descending", "drawn"])
def test_every_order_runs_all_waves(order: str):
    program = prepare(load(KERNEL))
    workgroups = "ascending" if order == "together" else order
    _, report = launch(program, (3, 2, 1), [("data", 0), 9], DATA, schedule=Schedule(order, workgroups, seed=3))
    assert report.wave_instructions == 2 * 6 * 8


@pytest.mark.parametrize(
    ("condition", "given"),
    [
        ("s_cbranch_scc0", {"scc": False}),
        ("s_cbranch_scc1", {"scc": True}),
        ("s_cbranch_vccz", {"vcc": 0}),
        ("s_cbranch_vccnz", {"vcc": 1 << 63}),
        ("s_cbranch_execz", {"exec": 0}),
        ("s_cbranch_execnz", {"exec": 1 << 63}),
    ],
)
def test_a_branch_is_taken_on_its_condition_alone(condition, given):
    opposite = {"scc": {False: True, True: False}, "vcc": {0: 1, 1 << 63: 0}, "exec": {0: 1, 1 << 63: 0}}
    text = f"s_mov_b32 s2, 1\n{condition} there\ns_mov_b32 s2, 2\nthere:\ns_nop 0"
    assert int(ran(text, **given).scalar[0, 2]) == 1
    otherwise = {name: opposite[name][value] for name, value in given.items()}
    assert int(ran(text, **otherwise).scalar[0, 2]) == 2


def test_a_kernel_that_may_call_something_gets_further_registers():
    """LLVM then asks for the pointers of a dispatch and of services, and for the lane's number in each dimension."""
    settings = ["dispatch_ptr", "queue_ptr", "kernarg_segment_ptr", "dispatch_id"]
    lines = [
        "s_load_dwordx2 s[10:11], s[4:5], 0x0",
        "s_load_dwordx2 s[12:13], s[4:5], 0x8",
        "v_lshlrev_b32_e32 v1, 2, v0",
        "v_mov_b32_e32 v2, s8",
        "s_waitcnt lgkmcnt(0)",
        "global_store_dword v1, v2, s[10:11]",
    ]

    def launched(*lines: str) -> list[int]:
        text = kernel_text(
            *lines,
            arguments=[POINTER, ("hidden_hostcall_buffer", 8)],
            settings=[*(f"user_sgpr_{name} 1" for name in settings), "user_sgpr_count 8", "system_vgpr_workitem_id 2"],
        )
        memory, _ = launch(prepare(load(text)), (3, 1, 1), [("data", 0)], {"data": np.zeros(512, np.uint8)})
        return memory.contents("data").view(np.uint32).tolist()

    assert launched(*lines) == [2] * 128
    with pytest.raises(EmulationFault, match="of data"):
        launched(*lines, "global_load_dword v3, v1, s[12:13]")
    for byte, size in ((4, 128 | 1 << 16), (12, 3 * 128)):  # of a workgroup, of the grid
        read = f"s_load_dword s12, s[0:1], {byte:#x}", lines[4], lines[2], "v_mov_b32_e32 v2, s12", lines[5]
        assert launched(lines[0], *read) == [size] * 128
    settings.append("flat_scratch_init")
    with pytest.raises(UnknownInstructionError, match="user_sgpr_flat_scratch_init"):
        launched(*lines)
