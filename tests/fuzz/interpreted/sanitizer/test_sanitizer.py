"""Every access that a kernel has no business with is named before it happens: by kernel, line, program, tensor and index."""

import contextlib
import inspect
import re

import pytest
import torch
import triton
import triton.language as tl
from attn_fuzz.interpreted import accesses, sanitizer
from attn_fuzz.interpreted.permissions import READ, WRITE, region
from triton import knobs
from triton.runtime import interpreter

from tests.fuzz.interpreted.sanitizer import watched
from tests.fuzz.interpreted.sanitizer.watched import call, copy, copy_kernel, overlapping_kernel, violation

pytestmark = watched.interpreted_only


@triton.jit
def indirect_kernel(pointers_ptr, target_ptr, source_ptr):
    pointer = tl.load(pointers_ptr).to(tl.pointer_type(tl.float32))
    tl.store(target_ptr, tl.load(pointer))


@triton.jit
def choosing_kernel(target_ptr, first_ptr, second_ptr, SIZE: tl.constexpr):
    element = tl.arange(0, SIZE)
    is_first = element < SIZE // 2
    added_before = tl.load(tl.where(is_first, first_ptr + element, second_ptr + element))
    added_after = tl.load(tl.where(is_first, first_ptr, second_ptr) + element)
    tl.store(target_ptr + element, added_before + added_after)


@pytest.mark.parametrize("num_elements", [4, 3])
def test_permitted_accesses_happen_and_their_lanes_are_counted(sanitized, num_elements):
    source, out, permissions = call()
    with sanitizer.watch(permissions) as watching:
        copy(source, out, num_elements=num_elements)
    assert watching.lanes == 2 * num_elements, "those that a mask leaves"
    assert (out.flatten()[:num_elements] == 0).all()


@pytest.mark.parametrize(
    ("shift", "message"),
    [
        (4, "1 elements past source[0, 3]: the first of 2 such elements; only its first rows may be read"),
        (12, "source[2, 0]: the first of 4 such elements; only its first rows may be read"),
        (-1, "source, 1 elements before its first: only its first rows may be read"),
        (-13, "source, 13 elements before its first: outside of its memory"),
        (36, "source, 15 elements past its last: the first of 4 such elements; outside of its memory"),
        (1 << 29, "source, 536870891 elements past its last: the first of 4 such elements; outside of its memory"),
    ],
)
def test_a_load_from_elsewhere_is_named(sanitized, shift, message):
    source, out, permissions = call()
    lines, first = inspect.getsourcelines(copy_kernel.fn)
    line = first + next(i for i, text in enumerate(lines) if "tl.load" in text)
    got = violation(permissions, lambda: copy(source, out, shift))
    assert got == f"load at watched.py:{line} in copy_kernel, program (0, 0, 0): {message}"


@triton.jit
def pairs_kernel(source_ptr, target_ptr):
    pairs_ptr = source_ptr.to(tl.pointer_type(tl.int16)) + tl.arange(0, 2)
    tl.store(target_ptr + tl.arange(0, 2), tl.load(pairs_ptr))


@pytest.mark.parametrize("first", [0, 1])
def test_an_address_is_a_multiple_of_what_is_loaded_there(sanitized, first):
    """An interpreted kernel loads from any address. A GPU does not."""
    source, out = torch.zeros(8, dtype=torch.int8)[first:], torch.zeros(2, dtype=torch.int16)
    permissions = lambda: [  # noqa: E731
        region("source", source, READ, reads="its elements"),
        region("out", out, WRITE, writes="its elements"),
    ]
    if first == 0:
        with sanitizer.watch(permissions):
            pairs_kernel[(1,)](source, out)
        return
    message = violation(permissions, lambda: pairs_kernel[(1,)](source, out))
    assert "of source: it is no multiple of 2 bytes, which are accessed at once" in message


def test_an_address_lies_in_the_argument_that_it_comes_from(sanitized):
    """It lies in another argument, which may be read there, as it was written before."""
    source, out, permissions = call()

    def reads_the_output() -> None:
        copy(source, out)
        copy(source, out, (out.data_ptr() - source.data_ptr()) // 4)

    assert re.search(r"source, \d+ elements .*outside of its memory$", violation(permissions, reads_the_output))


def test_a_store_elsewhere_is_named_and_does_not_happen(sanitized):
    source, out, permissions = call()
    text = violation(permissions, lambda: copy(source, out[2:]))
    assert re.search(r"^store .* in copy_kernel, .*: out\[2, 0\]: .*only its first rows may be written$", text)
    assert (out == 7).all()
    text = violation(permissions, lambda: copy(source, source))
    assert re.search(r"^store .*: source\[0, 0\]: .*nothing of it may be written$", text)


def test_an_address_that_comes_from_no_argument_lies_in_one(sanitized):
    source, out, permissions = call()
    elsewhere = torch.zeros(1)
    with sanitizer.watch(permissions):
        indirect_kernel[(1,)](torch.tensor([source.data_ptr()]), out, source)
    text = violation(permissions, lambda: indirect_kernel[(1,)](torch.tensor([elsewhere.data_ptr()]), out, source))
    assert re.search(r"^load .*: address 0x\w+: outside of every argument$", text)


def test_a_block_of_pointers_may_lead_to_several_arguments(sanitized):
    source, out, permissions = call()
    with sanitizer.watch(permissions):
        choosing_kernel[(1,)](out, source, torch.ones(8), SIZE=8)
    assert out.flatten()[:8].tolist() == [0] * 4 + [2] * 4
    text = violation(permissions, lambda: choosing_kernel[(1,)](out, source, torch.ones(7), SIZE=8))
    assert re.search(r"^load .*: outside of every argument$", text)


def test_a_violation_is_raised_even_if_the_target_catches_it(sanitized):
    source, out, permissions = call()

    def quiet() -> None:
        with contextlib.suppress(Exception):
            copy(source, out, 1 << 29)

    assert "outside of its memory" in violation(permissions, quiet)

    def raises() -> None:
        copy(source, out)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), sanitizer.watch(permissions):
        raises()


@pytest.fixture
def bounds_alone(sanitized):
    accesses.install("bounds")


@pytest.mark.usefixtures("bounds_alone")
@pytest.mark.parametrize(("shift", "num_elements", "access"), [(9, 8, "load"), (-9, 8, "load"), (0, 24, "store")])
def test_a_kernel_without_rights_keeps_to_the_memory_of_its_arguments(shift, num_elements, access):
    source, target = torch.zeros(32 if access == "store" else 8), torch.zeros(8)
    where = r"program \(0, 0, 0\): \d+ bytes (before|behind) the memory of (source|target)_ptr: outside of every argument$"
    message = rf"^{access} at watched.py:\d+ in copy_kernel, {where}"
    with pytest.raises(sanitizer.Violation, match=message), sanitizer.watch(list) as watching:
        copy_kernel[1,](source, target, shift, num_elements, SIZE=32)
    assert watching.violation is not None
    assert watching.violation.about == f"{access} of an address"


@pytest.mark.usefixtures("bounds_alone")
def test_a_kernel_without_rights_may_touch_all_of_its_storages_and_race():
    source, target = torch.arange(16.0)[4:12], torch.zeros(8)
    with sanitizer.watch(list) as watching:
        copy_kernel[1,](source, target, 4, 8, SIZE=32)
        overlapping_kernel[4,](torch.zeros(64), SIZE=16)
    assert watching.lanes == 2 * 8 + 4 * 16
    assert target.tolist() == list(range(8, 16))


def test_a_triton_that_moved_its_hooks_is_named(monkeypatch):
    monkeypatch.delattr(interpreter.InterpreterBuilder, "create_masked_load")
    monkeypatch.delattr(interpreter.GridExecutor, "_init_args_hst")
    hooks = "create_masked_load, _init_args_hst"
    with pytest.raises(RuntimeError, match=f"^triton {triton.__version__}: its interpreter has no {hooks}, where accesses"):
        accesses.install()


def test_a_process_that_compiles_is_an_error(monkeypatch):
    monkeypatch.setattr(knobs.runtime, "interpret", False)
    with pytest.raises(RuntimeError, match="set TRITON_INTERPRET=1"):
        accesses.install()
