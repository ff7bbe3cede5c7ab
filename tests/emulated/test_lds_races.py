"""Races in LDS between two waves, planted one by one."""

import numpy as np
import pytest
from attn_amdgcn import EmulationFault

from tests.emulated.lines import ran

LANES = np.arange(64, dtype=np.uint32)
OWN = LANES * 4 + np.array([[0], [256]], np.uint32)
"""[2 waves, 64 lanes]: each lane its own word."""
OTHER = OWN[::-1]
SYNC = "s_waitcnt lgkmcnt(0)\ns_barrier"
VALUES = np.arange(128, dtype=np.uint32).reshape(2, 64)


def run(*lines, races=True, **registers):
    return ran("\n".join(lines), v={0: OWN, 1: OTHER, 2: VALUES} | registers.get("v", {}), num_waves=2, races=races)


@pytest.mark.parametrize(
    ("lines", "does"),
    [
        (("ds_write_b32 v0, v2", "s_waitcnt lgkmcnt(0)", "ds_read_b32 v3, v1"), "reads byte .* of LDS, which wave . wrote"),
        (("ds_read_b32 v3, v1", "s_waitcnt lgkmcnt(0)", "ds_write_b32 v0, v2"), "writes byte .* of LDS, which wave . read"),
        (
            ("ds_write_b32 v0, v2", SYNC, "ds_write_b32 v1, v2", "ds_read_b32 v3, v0"),
            "reads byte .* of LDS, which wave . wrote",
        ),
        (("ds_write_b32 v0, v2", "ds_write_b8 v1, v2"), "writes byte .* of LDS, which wave . wrote"),
    ],
)
def test_a_missing_barrier_is_found(lines, does):
    with pytest.raises(EmulationFault, match=f"a race: it {does} by `.*`, line [14] of the assembly") as found:
        run(*lines)
    assert found.value.instruction == lines[-1]
    run(*lines, races=False)


def test_barriers_order_waves():
    after = run("ds_write_b32 v0, v2", SYNC, "ds_read_b32 v3, v1", SYNC, "ds_write_b32 v0, v2", SYNC, "ds_read_b32 v4, v1")
    assert after.vector[3].tolist() == VALUES[::-1].tolist()


def test_waves_may_read_one_byte_and_use_their_own():
    run("ds_write_b32 v0, v2", "s_waitcnt lgkmcnt(0)", "ds_read_b32 v3, v0", SYNC, "ds_read_b32 v3, v4", v={4: 0})


def test_neighbouring_bytes_do_not_race():
    run("ds_write_b8 v0, v2", v={0: np.array([[0], [1]], np.uint32) + LANES * 2})


def test_copies_of_one_value_do_not_race():
    """Waves that hold copies write the same bytes, and each may read what it wrote; a wave that did not write may not."""
    copies = {2: np.broadcast_to(LANES, (2, 64)), 0: np.broadcast_to(LANES * 4, (2, 64))}
    run("ds_write_b32 v0, v2", "s_waitcnt lgkmcnt(0)", "ds_read_b32 v3, v0", v=copies)
    with pytest.raises(EmulationFault, match=r"which wave . wrote"):
        run("ds_write_b32 v0, v2", v=copies | {2: VALUES})


def test_lanes_that_are_off_do_not_race():
    text = "ds_write_b32 v0, v2\ns_waitcnt lgkmcnt(0)\ns_mov_b64 exec, 0\nds_read_b32 v3, v1"
    ran(text, v={0: OWN, 1: OTHER, 2: VALUES}, num_waves=2, races=True)


@pytest.mark.parametrize(
    "lines",
    [
        ("ds_write_b32 v0, v2", "s_barrier", "ds_read_b32 v3, v1"),
        ("ds_read_b32 v3, v1", "s_barrier", "ds_write_b32 v0, v2"),
        ("ds_read_b32 v3, v1", "s_barrier", "s_nop 0", "s_barrier", "ds_write_b32 v0, v2"),
    ],
)
def test_a_barrier_orders_nothing_that_is_under_way(lines):
    with pytest.raises(EmulationFault, match=r"by `.*`, line 1 of the assembly.*, with no wait before the barrier between"):
        run(*lines)


def test_a_barrier_after_the_wait_orders_what_was_under_way_at_an_earlier_one():
    wait = "s_waitcnt lgkmcnt(0)"
    run("ds_read_b32 v3, v1", "s_barrier", wait, "s_barrier", "ds_write_b32 v0, v2")
    run("ds_read_b32 v3, v1", "ds_read_b32 v4, v0", "s_barrier", wait, "ds_write_b32 v0, v2 offset:512")
    with pytest.raises(EmulationFault, match=r"line 1 of the assembly.*, with no wait before the barrier between"):
        run("ds_read_b32 v3, v1", "s_barrier", wait, "ds_write_b32 v0, v2")
