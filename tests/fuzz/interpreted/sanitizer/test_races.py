"""Two programs, or two lanes of one store, that touch one element are named, unless the order makes no difference."""

import re
from unittest import mock

import pytest
import torch
import triton
import triton.language as tl
from attn_fuzz.cases.case import PROGRAM_ORDERS
from attn_fuzz.interpreted import program_order, sanitizer
from attn_fuzz.interpreted.permissions import WRITE, region
from attn_fuzz.interpreted.together import running

from tests.fuzz.interpreted.sanitizer import watched
from tests.fuzz.interpreted.sanitizer.watched import overlapping_kernel, violation

pytestmark = watched.interpreted_only


@triton.jit
def neighbour_kernel(target_ptr, step):
    me = tl.program_id(0)
    if step > 0:
        tl.store(target_ptr + me, 1.0)
        tl.load(target_ptr + me - (me > 0).to(tl.int32))
    else:
        tl.load(target_ptr + me + 1)
        tl.store(target_ptr + me, 1.0)


@triton.jit
def add_kernel(sum_ptr, shift):
    tl.atomic_add(sum_ptr + shift, 1.0)


@triton.jit
def swap_kernel(flag_ptr, shift):
    tl.atomic_cas(flag_ptr + shift, 0, 1)


@pytest.mark.parametrize("order", PROGRAM_ORDERS)
def test_a_race_is_named_in_every_order_of_programs(sanitized, order):
    out = torch.zeros(8)
    permissions = lambda: [region("out", out, WRITE, writes="its elements")]  # noqa: E731
    with program_order.programs(order, 5):
        message = violation(permissions, lambda: overlapping_kernel[(4,)](out, SIZE=2))
    assert re.search(r"program \(\d, 0, 0\) of this launch writes it too", message), message


def test_two_programs_that_write_one_element_are_named(sanitized):
    text = violation(list, lambda: overlapping_kernel[(2,)](torch.zeros(8), SIZE=2))
    assert re.search(r"^store .*program \(0, 0, 0\): target_ptr\[1\]: program \(1, 0, 0\) of this launch writes it too$", text)
    buffer = torch.zeros(8)
    with sanitizer.watch(list):
        overlapping_kernel[(1,)](buffer, SIZE=2)
        overlapping_kernel[(1,)](buffer, SIZE=2)  # one launch after the other


@triton.jit
def lanes_kernel(target_ptr, HOW: tl.constexpr, TIMES: tl.constexpr):
    lane, row = tl.arange(0, 8), tl.arange(0, 4)
    first = target_ptr + 8 * tl.program_id(0)
    if HOW == "all on one":
        tl.store(first + 0 * lane, lane * TIMES)
    elif HOW == "pairs":
        tl.store(first + lane // 2, lane * TIMES)
    elif HOW == "the last two":
        tl.store(first + tl.minimum(lane, 6), lane * TIMES)
    elif HOW == "backwards":
        tl.store(first + (7 - lane) // 2, lane * TIMES)
    elif HOW == "rows":
        tl.store(first + 0 * row[:, None] + lane[None, :], row[:, None] * TIMES + lane[None, :])
    elif HOW == "around":
        tl.store(first + (lane + 5) % 7, lane * TIMES)
    elif HOW == "masked":
        tl.store(first + lane // 4, lane * TIMES, mask=lane % 4 < 2)
    elif HOW == "in bytes":
        tl.store(first.to(tl.pointer_type(tl.int8)) + lane // 2, (lane * TIMES).to(tl.int8))
    elif HOW == "signs":
        tl.store(first.to(tl.pointer_type(tl.float32)) + lane // 2, tl.where(lane % 2 == 0, 0.0, -0.0 * TIMES))
    elif HOW == "some programs" and tl.program_id(0) == 1:
        tl.store(first + lane // 2, lane * TIMES)


LANES = ["all on one", "pairs", "the last two", "backwards", "rows", "around", "masked", "in bytes", "signs", "some programs"]


@pytest.mark.parametrize("how", LANES)
def test_two_lanes_of_one_store_may_write_one_element_only_alike(sanitized, how):
    message = violation(list, lambda: lanes_kernel[(2,)](torch.zeros(16, dtype=torch.int32), how, 1))
    assert re.search(r"^store .*: target_ptr\[\d+\]: two lanes of one store write different values$", message)
    if how not in ("rows", "signs"):
        with sanitizer.watch(list):
            lanes_kernel[(2,)](torch.zeros(16, dtype=torch.int32), how, 0)


def test_a_lane_that_is_masked_out_writes_nothing(sanitized):
    with sanitizer.watch(list):
        masked_lanes_kernel[(2,)](torch.zeros(16, dtype=torch.int32))


@triton.jit
def masked_lanes_kernel(target_ptr):
    lane = tl.arange(0, 8)
    tl.store(target_ptr + 8 * tl.program_id(0) + (7 - lane) // 2, lane, mask=lane % 2 == 0)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (1, r"load .*program \(1, 0, 0\): target_ptr\[0\]: program \(0, 0, 0\) of this launch writes it too"),
        (-1, r"store .*program \(1, 0, 0\): target_ptr\[1\]: program \(0, 0, 0\) of this launch reads it"),
    ],
)
def test_a_program_that_reads_what_another_writes_is_named_in_either_order(sanitized, step, message):
    assert re.search(message, violation(list, lambda: neighbour_kernel[(2,)](torch.zeros(8), step)))


def test_atomic_updates_are_no_race_and_checked(sanitized):
    total, flag = torch.zeros(1), torch.zeros(1, dtype=torch.int32)
    with sanitizer.watch(list):
        add_kernel[(3,)](total, 0)
        swap_kernel[(2,)](flag, 0)
    assert (total, flag) == (3, 1)
    for kernel, tensor in ((add_kernel, total), (swap_kernel, flag)):
        text = violation(list, lambda kernel=kernel, tensor=tensor: kernel[(1,)](tensor, 5))
        assert re.search(r"^atomic .*_ptr, 5 elements past its last: outside of its memory$", text)


@triton.jit
def mixed_kernel(sum_ptr, copy_ptr, FIRST: tl.constexpr, SECOND: tl.constexpr):
    does = tl.where(tl.program_id(0) == 0, FIRST, SECOND)
    if does == 0:
        tl.atomic_add(sum_ptr, 1.0)
    elif does == 1:
        tl.store(sum_ptr, 1.0)
    else:
        tl.store(copy_ptr, tl.load(sum_ptr))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (0, 1, "store .*updates it"),
        (1, 0, "atomic .*writes it too"),
        (0, 2, "load .*updates it"),
        (2, 0, "atomic .*reads it"),
    ],
)
def test_an_atomic_update_and_another_program_s_access_are_a_race(sanitized, first, second, message):
    with mock.patch.object(running, "at_once", 1):  # together, each of the two may be named
        text = violation(list, lambda: mixed_kernel[(2,)](torch.zeros(1), torch.zeros(1), first, second))
    assert re.search(message, text)
    violation(list, lambda: mixed_kernel[(2,)](torch.zeros(1), torch.zeros(1), first, second))
    with sanitizer.watch(list):
        mixed_kernel[(1,)](torch.zeros(1), torch.zeros(1), first, second)
