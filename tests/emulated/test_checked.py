"""A launch whose result depends on the schedule is found, and the first store that differs is named."""

import numpy as np
import pytest
from attn_amdgcn import EmulationFault, Schedule, checked, load, prepare

from tests.emulated.kernels import LSHL, OUT, checked_run, kernel_text


def test_a_result_of_what_is_written_is_the_same_under_every_schedule():
    memory, report = checked_run(
        LSHL,
        "ds_write_b32 v1, v0",
        "s_waitcnt lgkmcnt(0)",
        "s_barrier",
        "ds_read_b32 v2, v1",
        "s_waitcnt lgkmcnt(0)",
        "global_store_dword v1, v2, s[4:5]",
    )
    assert memory.contents("out").view(np.uint32)[:128].tolist() == list(range(128))
    assert report.wave_instructions == 2 * 11


@pytest.mark.parametrize(
    ("body", "at_fault"),
    [
        (["global_store_dword v1, v5, s[4:5]"], "global_store_dword v1, v5, s[4:5]"),
        (["global_store_dword v1, v0, s[4:5]", "global_store_byte v1, v5, s[4:5]"], "global_store_byte v1, v5, s[4:5]"),
        (
            ["ds_read_b32 v2, v1", "s_waitcnt lgkmcnt(0)", "global_store_dword v1, v2, s[4:5]"],
            "global_store_dword v1, v2, s[4:5]",
        ),
    ],
)
def test_unwritten_memory_shows_in_a_store(body, at_fault):
    with pytest.raises(EmulationFault, match=r"byte 0 of out is .* under .* and .* under") as found:
        checked_run(LSHL, *body)
    assert found.value.instruction == at_fault
    assert (found.value.workgroup, found.value.wave, found.value.lane) == (0, 0, 0)


def test_junk_that_reaches_no_store_is_no_fault():
    checked_run(LSHL, "v_add_u32_e32 v5, v6, v7", "global_store_dword v1, v0, s[4:5]")


def test_workgroups_that_store_to_one_byte_are_found():
    body = ["v_mov_b32_e32 v1, 0", "v_mov_b32_e32 v2, s2", "global_store_dword v1, v2, s[4:5]"]
    orders = (Schedule(), Schedule(workgroups="descending"))
    with pytest.raises(
        EmulationFault, match="every store of a wave wrote the same, so stores to one byte came in another order"
    ):
        checked_run(*body, grid=(2, 1, 1), schedules=orders)


def test_a_launch_without_an_end_is_a_fault():
    with pytest.raises(EmulationFault, match="the launch has run 1000 instructions without an end"):
        checked_run("again:", "s_nop 0", "s_branch again", most=1000)


def test_a_race_is_found():
    with pytest.raises(EmulationFault, match="a race: it reads byte 0 of LDS"):
        checked_run(LSHL, "ds_write_b32 v1, v0", "v_mov_b32_e32 v1, 0", "s_waitcnt lgkmcnt(0)", "ds_read_b32 v2, v1")


def test_gfx90a_spills_through_the_resource_of_its_private_segment():
    """The resource is in s[0:3], the arguments are at s[4:5], and the kernel adds its wave's offset, s7, to the resource.

    s32 holds the bytes of all 64 lanes: 4 of each.
    """
    settings = (
        "user_sgpr_private_segment_buffer 1",
        "user_sgpr_kernarg_segment_ptr 1",
        "system_sgpr_private_segment_wavefront_offset 1",
        "user_sgpr_count 6",
    )
    text = kernel_text(
        "s_load_dwordx2 s[8:9], s[4:5], 0x0",
        "s_waitcnt lgkmcnt(0)",
        "s_add_u32 s0, s0, s7",
        "s_addc_u32 s1, s1, 0",
        LSHL,
        "buffer_store_dword v0, off, s[0:3], 0 offset:8",
        "s_movk_i32 s32, 0x100",
        "buffer_load_dword v3, off, s[0:3], s32 offset:4",
        "s_waitcnt vmcnt(0)",
        "global_store_dword v1, v3, s[8:9]",
        settings=settings,
        architecture="gfx90a",
        scratch=16,
    )
    orders = (Schedule(), Schedule("ascending", "descending", seed=1))
    memory, _ = checked(prepare(load(text)), (2, 1, 1), [("out", 0)], {"out": OUT}, schedules=orders)
    assert memory.contents("out").view(np.uint32)[:128].tolist() == list(range(128))
    beyond = prepare(load(text.replace("offset:8", "offset:16")))
    with pytest.raises(EmulationFault, match="4 bytes at byte 16 of scratch, of which a lane has 16 bytes"):
        checked(beyond, (1, 1, 1), [("out", 0)], {"out": OUT})
