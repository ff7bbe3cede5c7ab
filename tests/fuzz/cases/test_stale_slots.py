"""Slots without a key that hold numbers: a kernel that reads one of them is wrong in every case, not in some."""

import pytest
from attn_fuzz.run.case.trial import try_case
from attn_fuzz.run.shard import FuzzPlan, drawn
from attn_fuzz.targets import registry
from planted_stale import BLOCK_SIZE


@pytest.mark.parametrize("name", ["OF_PLAIN", "OF_FLOAT8", "OF_INT8", "OF_LATENT"])
def test_a_kernel_of_one_head_that_reads_a_stale_slot_is_found_in_every_case(name, tmp_path):
    """Where all slots had one number, 15 of 84 such cases agreed: the sign of a sum of q said whether the slot had a weight."""
    plan = FuzzPlan(target=f"planted_stale:{name}", device="cpu", examples=60, seed=1, folder=tmp_path)
    reads_one = [
        case
        for case in drawn(plan)
        if case.num_kv_heads == 1 and any(each.query_len and each.seq_len % BLOCK_SIZE for each in case.requests)
    ]
    assert len(reads_one) > 5
    assert [case for case in reads_one if not try_case(case, registry.load(plan.target), "cpu").failed] == []
