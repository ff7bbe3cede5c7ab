"""Integer instructions of vectors against Python's integers."""

import numpy as np

from tests.emulated.lines import JUNK, ran

LANES = np.arange(64, dtype=np.uint32)


def test_a_sum_wraps_at_32_bits():
    after = ran("v_add_u32_e32 v2, v0, v1", v={0: LANES, 1: 0xFFFFFFFF})
    assert after.vector[2, 0].tolist() == [(lane + 0xFFFFFFFF) % (1 << 32) for lane in range(64)]


def test_lanes_that_are_off_keep_their_register():
    after = ran("v_add_u32_e32 v2, v0, v0", v={0: LANES}, exec=0b101)
    assert after.vector[2, 0, :4].tolist() == [0, JUNK, 4, JUNK]
