"""Memory that nobody has written holds NaN, or numbers, and integers that lead out of every tensor."""

import contextlib

import msgspec
import pytest
import torch
from attn_fuzz.interpreted import eager, new_memory
from attn_fuzz.run.case.attempt import own_state

SHAPE = (3, 5)
ALLOCATIONS = {
    "empty": lambda like: torch.empty(SHAPE, dtype=like.dtype),
    "empty_like": torch.empty_like,
    "new_empty": lambda like: like.new_empty(SHAPE),
    "empty_strided": lambda like: torch.empty_strided(SHAPE, (8, 1), dtype=like.dtype),
    "new_empty_strided": lambda like: like.new_empty_strided(SHAPE, (1, 3)),
    "empty_permuted": lambda like: torch.empty_permuted(SHAPE, (1, 0), dtype=like.dtype),
    "new": lambda like: like.new(*SHAPE),
    "resize_": lambda like: like.new_zeros(0).resize_(SHAPE),
}
FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e4m3fnuz]


@pytest.mark.parametrize("allocate", ALLOCATIONS.values(), ids=ALLOCATIONS)
@pytest.mark.parametrize("dtype", [*FLOATS, torch.int32, torch.int64])
@pytest.mark.parametrize("with_numbers", [False, True])
def test_new_memory_holds_nan_or_numbers(allocate, dtype, with_numbers):
    like = torch.zeros(SHAPE, dtype=dtype)
    with new_memory.filled(with_numbers):
        made = allocate(like)
        assert not torch.zeros(SHAPE, dtype=dtype).float().any()
    if not dtype.is_floating_point:
        assert (made > 2**30).all()
    elif with_numbers and allocate is not ALLOCATIONS["resize_"]:  # what it leaves of the old memory is not new
        assert (made.float() > 1).all()
        assert (made.float() < 16).all()
    else:
        assert made.isnan().all()


def test_gaps_between_rows_are_new_memory_too_and_bytes_are_numbers_of_any_type():
    with new_memory.filled(with_numbers=True):
        rows, workspace = torch.empty_strided((2, 4), (8, 1)), torch.empty(64, dtype=torch.uint8)
        assert torch.empty(3, dtype=torch.bool).all()
    for dtype in FLOATS:
        for memory in (rows.as_strided((12,), (1,)), workspace):
            numbers = memory.view(dtype).float()
            assert ((numbers > 1) & (numbers < 16)).all()


@pytest.mark.parametrize("with_numbers", [False, True])
def test_afterwards_torch_is_as_before_whatever_happened(with_numbers):
    with contextlib.suppress(ArithmeticError), new_memory.filled(with_numbers):
        assert new_memory.holds_numbers is with_numbers
        raise ArithmeticError
    assert not new_memory.holds_numbers
    assert torch.get_deterministic_debug_mode() == 0
    with new_memory.filled(with_numbers=False):
        assert torch.empty(2).isnan().all()


def test_half_of_the_seeds_give_numbers_and_0_gives_nan(step_case):
    seeds = range(200)
    cases = [msgspec.structs.replace(step_case, values=msgspec.structs.replace(step_case.values, seed=s)) for s in seeds]
    numbers = [new_memory.numbers_in(case) for case in cases]
    assert not numbers[0]
    assert 70 < sum(numbers) < 130
    with own_state(cases[numbers.index(True)]):
        assert (torch.empty(2) > 1).all()


def test_a_list_comes_back_from_a_mode_with_an_empty_tensor_for_each_that_is_undefined():
    """C++ returns such a list. Torch raises where a mode returns None in it."""
    given = torch.ones(2)
    one, none = eager.returned([given, None])
    assert one is given
    assert none.numel() == 0
    assert eager.returned((given, None)) == (given, None)
