"""Memory is read only after something was written there, in this call."""

import re

import pytest
import torch
import triton
import triton.language as tl
from attn_fuzz.interpreted import sanitizer, unwritten

from tests.fuzz.interpreted.sanitizer import watched
from tests.fuzz.interpreted.sanitizer.watched import call, copy, violation

pytestmark = watched.interpreted_only


def test_an_output_is_read_only_after_it_is_written(sanitized):
    source, out, permissions = call()
    text = violation(permissions, lambda: copy(out, out))
    assert re.search(r"^load .*: out\[0, 0\]: .*nothing of it may be read$", text)
    with sanitizer.watch(permissions):
        copy(source, out)
        copy(out, out)


def test_scratch_that_nobody_wrote_is_not_read(sanitized):
    source, out, permissions = call()
    with sanitizer.watch(permissions):
        scratch = torch.empty(4)
        copy(source, scratch)
        copy(scratch, out)
        copy(torch.empty(4).fill_(2.0), out)

    def through_a_partly_masked_tile() -> None:
        scratch = torch.empty(4)
        copy(source, scratch, num_elements=3)
        copy(scratch, out)

    text = violation(permissions, through_a_partly_masked_tile)
    assert re.search(r"^load .*: source_ptr\[3\]: only what was written may be read$", text)
    text = violation(permissions, lambda: copy(source, torch.empty(8)[:3]))
    assert re.search(r"^store .*: target_ptr, 1 elements past its last: only its elements may be written$", text)


@triton.jit
def pass_on_kernel(source_ptr, target_ptr, SIZE: tl.constexpr):
    element = tl.arange(0, SIZE)
    tl.store(target_ptr + element, tl.load(source_ptr + element))


@pytest.mark.parametrize("name", ["float64", "float32", "bfloat16", "float8_e4m3fn", "int64", "int32", "int8", "uint8", "bool"])
def test_scratch_of_every_dtype_is_read_once_it_is_written(sanitized, name):
    dtype = getattr(torch, name)

    def others() -> torch.Tensor:
        return torch.zeros(4, dtype=dtype)

    with sanitizer.watch(list):
        scratch = torch.empty(4, dtype=dtype)
        pass_on_kernel[(1,)](others(), scratch, SIZE=4)
        pass_on_kernel[(1,)](scratch, others(), SIZE=4)
        for written in (torch.empty(4, dtype=dtype).copy_(others()), torch.empty_like(others()).zero_()):
            pass_on_kernel[(1,)](written, others(), SIZE=4)
        pass_on_kernel[(1,)](scratch.view(torch.uint8)[:4], torch.zeros(4, dtype=torch.uint8), SIZE=4)

    def partly_written() -> None:
        scratch = torch.empty(4, dtype=dtype)
        scratch.view(torch.uint8)[: 3 * scratch.element_size()] = 1
        pass_on_kernel[(1,)](scratch, others(), SIZE=4)

    for read in (partly_written, lambda: pass_on_kernel[(1,)](torch.empty(4, dtype=dtype), others(), SIZE=4)):
        assert re.search(r"^load .*: source_ptr\[[03]\]: .*only what was written may be read$", violation(list, read))


def test_scratch_that_torch_filled_with_nan_is_written(sanitized):
    out = torch.zeros(4)
    with sanitizer.watch(list):
        for nan in (torch.full((4,), torch.nan), torch.empty(4).fill_(torch.nan), torch.tensor([torch.nan] * 4)):
            pass_on_kernel[(1,)](nan, out, SIZE=4)


def test_a_tensor_that_has_a_size_and_no_memory_is_not_noted(sanitized):
    """Plans of calls are made of tensors on the meta device."""
    with sanitizer.watch(list):
        torch.empty(0)
        shape = torch.empty(1 << 50, dtype=torch.uint8, device="meta")
        torch.empty_like(shape)[1:].zero_()


@triton.jit
def sum_of_two_kernel(source_ptr, target_ptr):
    element = tl.arange(0, 4)
    tl.store(target_ptr, tl.sum(tl.load(source_ptr + element, mask=element < 2)))


def test_lanes_that_a_mask_leaves_out_are_no_zeros(sanitized):
    """They hold anything on a GPU."""
    floats, integers = torch.zeros(1), torch.zeros(1, dtype=torch.int32)
    with sanitizer.watch(list):
        sum_of_two_kernel[(1,)](torch.ones(4), floats)
        sum_of_two_kernel[(1,)](torch.ones(4, dtype=torch.int32), integers)
    assert floats.isnan()
    assert integers != 2


def test_memory_that_only_an_earlier_call_wrote_is_stale(sanitized):
    """A workspace that a target keeps holds the numbers of its last call, which may even be right."""
    source, out, permissions = call()
    kept: list[torch.Tensor] = []
    with sanitizer.watch(permissions):
        kept += [torch.empty(4), torch.empty(4).fill_(2.0), torch.zeros(4)]
        copy(source, kept[0])
        copy(kept[0], out)
        copy(source, kept[1], num_elements=2)
    with sanitizer.watch(permissions):
        copy(source, kept[0])
        for workspace in kept:  # torch has written the others: a constant may be made once
            copy(workspace, out)

    def read_a_part_that_the_last_call_wrote() -> None:
        copy(source, kept[0], num_elements=3)
        copy(kept[0], out)

    for _ in range(2):
        text = violation(permissions, read_a_part_that_the_last_call_wrote)
        assert re.search(r"^load .*: source_ptr\[3\]: only what was written may be read$", text)


def test_tensors_that_are_freed_after_a_call_are_forgotten(sanitized):
    with sanitizer.watch(list):
        kept = torch.empty(1 << 20)
        torch.empty(1 << 21)
    sizes = [torch.UntypedStorage._new_with_weak_ptr(reference.cdata).nbytes() for reference, _ in unwritten._kept]
    assert kept.nbytes in sizes
    assert 2 * kept.nbytes not in sizes
