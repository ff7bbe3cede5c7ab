"""Code that is right only if hardware is quick enough is recorded, and goes on."""

import numpy as np
import pytest
from attn_amdgcn import EmulationFault

from tests.emulated.lines import ran

LANES = np.arange(64, dtype=np.uint32)
OWN = LANES * 4 + np.array([[0], [256]], np.uint32)
VALUES = np.arange(128, dtype=np.uint32).reshape(2, 64)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("ds_write_b32 v0, v2\ns_waitcnt lgkmcnt(0)\nds_read_b32 v3, v0\nv_mov_b32_e32 v4, v3", {(3, 4)}),
        ("ds_read_b32 v3, v0\nds_read_b32 v5, v0\nv_mov_b32_e32 v4, v3\nv_mov_b32_e32 v4, v5", {(1, 3), (2, 4)}),
        ("ds_read_b32 v3, v1\ns_waitcnt lgkmcnt(0)\nds_write_b32 v0, v2\nds_write_b8 v0, v1", {(1, 3), (1, 4)}),
        ("ds_write_b32 v0, v2\ns_waitcnt lgkmcnt(0)\ns_barrier\nds_read_b32 v3, v1\ns_waitcnt lgkmcnt(0)", set()),
    ],
)
def test_each_pair_of_lines_is_recorded(text, lines):
    given = {"v": {0: OWN, 1: OWN[::-1], 2: VALUES}, "num_waves": 2, "races": True}
    hazards = {}
    ran(text, hazards=hazards, **given)
    assert hazards.keys() == lines
    assert all(fault.instruction for fault in hazards.values())
    if lines:
        with pytest.raises(EmulationFault):
            ran(text, **given)


def test_waves_in_copies_of_one_loop_keep_in_step():
    """Each wave reads what the other one wrote, and then writes anew: wave 0 in one copy of the code, wave 1 in another."""
    read = "ds_read_b32 v3, v1\ns_waitcnt lgkmcnt(0)\nds_write_b32 v0, v5\ns_waitcnt lgkmcnt(0)"
    begin = "v_readfirstlane_b32 s0, v4\nds_write_b32 v0, v2\ns_waitcnt lgkmcnt(0)\ns_barrier\ns_cmp_eq_u32 s0, 0"
    text = f"{begin}\ns_cbranch_scc1 copy\n{read}\ns_branch end\ncopy:\n{read}\nend:"
    given = {0: OWN, 1: OWN[::-1], 2: VALUES, 4: [[0] * 64, [1] * 64], 5: 7}
    for evenly in (True, False):
        after = ran(text, v=given, num_waves=2, evenly=evenly)
        found = after.vector[3][np.argsort(after.number)].tolist()
        assert (found == VALUES[::-1].tolist()) == evenly
