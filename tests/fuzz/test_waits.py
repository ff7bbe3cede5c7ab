"""A call that takes numbers out of tensors waits for the device, and is found."""

from unittest import mock

import pytest
import torch
from attn_contract import Layer, Layout
from attn_fuzz.targets import waits
from attn_optimized import write_kv_cache
from attn_optimized.kernel_call import KernelCall

NUMBERS = torch.tensor([2, 0, 1])


@pytest.mark.parametrize(
    "call",
    [
        lambda: bool((NUMBERS == 1).all()),
        lambda: int(NUMBERS.max()),
        lambda: NUMBERS.nonzero(),
        lambda: NUMBERS[NUMBERS > 0],
        lambda: torch.equal(NUMBERS, NUMBERS),
        lambda: torch.repeat_interleave(NUMBERS, NUMBERS),
    ],
    ids=["bool", "int", "nonzero", "mask", "equal", "repeat_interleave"],
)
def test_a_number_that_is_read_is_found(call):
    with pytest.raises(AssertionError, match="waits for the device"):
        waits.check(call)


def test_what_reads_no_number_waits_for_nothing():
    waits.check(lambda: (NUMBERS.cumsum(0) + NUMBERS.long())[NUMBERS].repeat_interleave(2).clone())


def test_a_check_of_values_waits_and_no_kernel_is_launched():
    layer = Layer(num_heads=1, num_kv_heads=1, head_size=8, scale=1.0, layout=Layout.KV_FIRST_NHD)
    rows, cache, slots = torch.ones(3, 1, 8), torch.zeros(2, 1, 4, 1, 8), torch.arange(3)
    with mock.patch.object(KernelCall, "run", side_effect=AssertionError("launched")):
        waits.check(lambda: write_kv_cache(rows, rows, cache, layer, slots))
        with pytest.raises(AssertionError, match="waits for the device"):
            waits.check(lambda: write_kv_cache(rows, rows, cache, layer, slots, validate=True))
    assert not cache.any()
