"""A call that checks no values waits for no device, so that a CUDA graph can hold it."""

from functools import partial

import pytest
import torch
from attn_optimized.attention import forget_launches

from tests.optimized.conftest import FUNCTIONS
from tests.support.waits import waits_of

NUMBERS = torch.tensor([2, 0, 1])
WAITING = {
    "bool": lambda: bool((NUMBERS == 1).all()),
    "int": lambda: int(NUMBERS.max()),
    "nonzero": lambda: NUMBERS.nonzero(),
    "mask": lambda: NUMBERS[NUMBERS > 0],
    "equal": lambda: torch.equal(NUMBERS, NUMBERS),
    "repeat_interleave": lambda: torch.repeat_interleave(NUMBERS, NUMBERS),
}


@pytest.mark.parametrize("call", WAITING.values(), ids=WAITING)
def test_a_number_that_is_read_is_a_wait(call):
    assert waits_of(call)
    assert not waits_of(lambda: (NUMBERS.cumsum(0) + NUMBERS.long())[NUMBERS].repeat_interleave(2).clone())


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_nothing_is_read_in_a_first_call_or_a_later_one(kind, every_call):
    call = every_call(torch.float32)[kind]
    forget_launches()
    for _ in range(2):
        assert waits_of(call) == []


@pytest.mark.parametrize("kind", ["paged", "dense", "cascade", "write", "rope", "latent write"])
def test_values_are_read_on_demand(kind, every_call):
    assert waits_of(partial(every_call(torch.float32)[kind], validate=True))
