"""Every access that a kernel has no business with is named before it happens: by kernel, line, program, tensor and index."""

import contextlib
import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import attn_optimized
import click
import msgspec
import pytest
import torch
import triton
import triton.language as tl
from attn_contract import AttentionType, Layout
from attn_contract.memory import extent
from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import PROGRAM_ORDERS, Cache, Case, Request, Rope
from attn_fuzz.interpreted import accesses, program_order, sanitizer, unwritten
from attn_fuzz.interpreted.permissions import READ, WRITE, Region, region
from attn_fuzz.interpreted.together import running
from attn_fuzz.run.case.trial import try_case
from attn_fuzz.run.processes.executor import Executor
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_fuzz.targets.target import Target
from attn_fuzz.targets.triton import TRITON
from attn_parity.device import sanitizes
from triton import knobs
from triton.runtime import interpreter

from tests.support import processes

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="kernels are compiled here, and checked as they are interpreted"
)
replace = msgspec.structs.replace


@pytest.fixture
def sanitized(monkeypatch):
    """The sanitizer for one test; the interpreter is then as it was."""
    for name in (*accesses._BUILDER_HOOKS, *accesses._ACCESS_HOOKS):
        monkeypatch.setattr(interpreter.InterpreterBuilder, name, getattr(interpreter.InterpreterBuilder, name))
    monkeypatch.setattr(interpreter.GridExecutor, "_init_args_hst", interpreter.GridExecutor._init_args_hst)
    monkeypatch.setattr(sanitizer, "checks", "nothing")
    accesses.install()
    accesses.install()  # twice is once


@triton.jit
def copy_kernel(source_ptr, target_ptr, shift, num_elements, SIZE: tl.constexpr):
    element = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    row = tl.load(source_ptr + shift + element, mask=element < num_elements, other=0.0)
    tl.store(target_ptr + element, row, mask=element < num_elements)


@triton.jit
def overlapping_kernel(target_ptr, SIZE: tl.constexpr):
    tl.store(target_ptr + tl.program_id(0) + tl.arange(0, SIZE), tl.zeros([SIZE], tl.float32))


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


Permissions = Callable[[], list[Region]]


def call() -> tuple[torch.Tensor, torch.Tensor, Permissions]:
    """A call that reads the first two rows of a source, a part of a larger buffer, and writes the first two of an output."""
    source, out = torch.zeros(8, 6)[2:6, :4], torch.full((4, 4), 7.0)
    of_rows = torch.tensor([1, 1, 0, 0], dtype=torch.int32).view(-1, 1)
    permissions = lambda: [  # noqa: E731
        region("source", source, READ * of_rows, reads="its first rows"),
        region("out", out, WRITE * of_rows, writes="its first rows"),
    ]
    return source, out, permissions


def violation(permissions: Permissions, launch: Callable[[], object]) -> str:
    with pytest.raises(sanitizer.Violation) as raised, sanitizer.watch(permissions):
        launch()
    text = str(raised.value)
    assert re.match(r"\w+ at test_sanitizer\.py:\d+ in \w+_kernel, program \(\d+, \d+, \d+\): ", text), text
    assert "\n" not in text
    return text


def copy(source: torch.Tensor, out: torch.Tensor, shift: int = 0, num_elements: int = 4) -> None:
    copy_kernel[(-(-num_elements // 4),)](source, out, shift, num_elements, SIZE=4)


@pytest.mark.parametrize("order", PROGRAM_ORDERS)
def test_a_race_is_named_in_every_order_of_programs(sanitized, order):
    out = torch.zeros(8)
    permissions = lambda: [region("out", out, WRITE, writes="its elements")]  # noqa: E731
    with program_order.programs(order, 5):
        message = violation(permissions, lambda: overlapping_kernel[(4,)](out, SIZE=2))
    assert re.search(r"program \(\d, 0, 0\) of this launch writes it too", message), message


@pytest.mark.parametrize("num_elements", [4, 3])
def test_what_may_be_done_is_done_and_its_lanes_are_counted(sanitized, num_elements):
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
    assert got == f"load at test_sanitizer.py:{line} in copy_kernel, program (0, 0, 0): {message}"


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


def test_an_address_stays_in_the_argument_that_it_comes_from(sanitized):
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


def test_what_only_an_earlier_call_wrote_is_stale(sanitized):
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


def test_what_nobody_holds_after_a_call_is_forgotten(sanitized):
    with sanitizer.watch(list):
        kept = torch.empty(1 << 20)
        torch.empty(1 << 21)
    sizes = [torch.UntypedStorage._new_with_weak_ptr(reference.cdata).nbytes() for reference, _ in unwritten._kept]
    assert kept.nbytes in sizes
    assert 2 * kept.nbytes not in sizes


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


def test_what_a_kernel_did_comes_out_whatever_the_target_makes_of_it(sanitized):
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
def test_a_kernel_without_rights_stays_in_the_memory_of_its_arguments(shift, num_elements, access):
    source, target = torch.zeros(32 if access == "store" else 8), torch.zeros(8)
    where = r"program \(0, 0, 0\): \d+ bytes (before|past) the memory of (source|target)_ptr: outside of every argument$"
    message = rf"^{access} at test_sanitizer.py:\d+ in copy_kernel, {where}"
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


# two requests in blocks of their own, the last block of each not full; a layer beside, and rows that nobody owns
PAGED = Case(
    target="planted",
    num_kv_heads=2,
    requests=(Request(2, 7, (1, 4), True), Request(1, 5, (0, 3), True)),
    cache=Cache(layout=Layout.CONTENT_PACKED, block_size=4, num_blocks=6, num_layers=2),
    unowned_rows=1,
    rows_past=1,
    unwritten=(0,),
    table_padding=1,
    lse=True,
)
DENSE = Case(
    target="planted",
    attn_type=AttentionType.ENCODER,
    requests=(Request(3, 3), Request(2, 2)),
    rows_past=2,
    kv_rows_past=1,
    fused_qkv=True,
)
ROPE = replace(PAGED, rope=Rope(rotary_dim=8))
TOKEN_SCALES = replace(
    PAGED, cache=replace(PAGED.cache, layout=Layout.KV_FIRST_NHD, num_layers=1, dtype="int8", scales="token")
)
INLINE_SCALES = replace(PAGED, cache=replace(PAGED.cache, layout=Layout.CONTENT_PACKED_SCALED, dtype="fp8_e4m3fn"))
X_PACKED = replace(PAGED, cache=replace(PAGED.cache, layout=Layout.X_PACKED, num_layers=1))
SPLIT = replace(
    PAGED,
    requests=(Request(1, 300, tuple(range(19)), True),),
    cache=Cache(layout=Layout.KV_FIRST_NHD, block_size=16, num_blocks=20),
    unwritten=(),
)


@pytest.mark.parametrize("case", [PAGED, DENSE, ROPE, TOKEN_SCALES, INLINE_SCALES, X_PACKED, SPLIT])
def test_our_kernels_keep_to_it(sanitized, monkeypatch, case):
    lanes = []
    check = sanitizer.Watch.check
    monkeypatch.setattr(sanitizer.Watch, "check", lambda self, *access: (check(self, *access), lanes.append(self.lanes)))
    verdict = try_case(case, TRITON, "cpu")
    assert verdict.kind == "agree", verdict.message
    assert max(lanes) > 300
    assert (case is SPLIT) == ("split" in verdict.events)


def handed(**changes: Callable[..., torch.Tensor]) -> Target:
    """Our kernels, called with something else than what they were to be called with."""

    def attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        of_batch = {name: change(getattr(batch, name)) for name, change in changes.items() if hasattr(batch, name)}
        batch = dataclasses.replace(batch, **of_batch)
        tensors = {"k": k, "v": v, "kv_cache": kv_cache, "out": out}
        k, v, kv_cache, out = (changes.get(name, lambda same: same)(tensor) for name, tensor in tensors.items())
        if kv_cache is None:
            attn_optimized.varlen_attention(q, k, v, layer, batch, out=out, lse=lse)
        else:
            attn_optimized.paged_attention(q, kv_cache, layer, batch, out=out, lse=lse)

    def write(k, v, kv_cache, layer, slot_mapping) -> None:
        slot_mapping = changes.get("slots", lambda same: same)(slot_mapping)
        kv_cache = changes.get("written", lambda same: same)(kv_cache)
        attn_optimized.write_kv_cache(k, v, kv_cache, layer, slot_mapping)

    def rotate(q, k, v, positions, cos_sin_cache, kv_cache, layer, slot_mapping, *, is_neox) -> None:
        positions = changes.get("positions", lambda same: same)(positions)
        attn_optimized.rope_and_write_kv_cache(
            q, k, v, positions, cos_sin_cache, kv_cache, layer, slot_mapping, is_neox=is_neox
        )

    return dataclasses.replace(
        TRITON, name="planted", attention=attention, write_kv_cache=write, rope_and_write_kv_cache=rotate
    )


def shifted(elements: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The same view, so many elements later in its memory."""
    return lambda tensor: tensor.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset() + elements)


def with_entry(r: int, column: int, block: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(table: torch.Tensor) -> torch.Tensor:
        table = table.clone()
        table[r, column] = block
        return table

    return change


FAULTS = {
    "a slot past the sequence": (PAGED, {"seq_lens": lambda lens: lens + 1}, "load .*kv_cache, K of block 3, slot 1, head 0"),
    "a garbage entry": (PAGED, {"seq_lens": lambda lens: lens + 4}, r"load .*block_table\[1, 2\].*entries of blocks that hold"),
    "a garbage block": (
        PAGED,
        {"block_table": with_entry(0, 1, -1)},
        "load .*kv_cache, .*only slots that hold a key of a request may be read",
    ),
    "a wild block": (PAGED, {"block_table": with_entry(0, 1, 2**31 - 1)}, "load .*kv_cache, .*outside of its memory"),
    "an unused block": (PAGED, {"block_table": with_entry(0, 1, 5)}, "load .*kv_cache, K of block 5, slot 0, head 0, dim 0"),
    "another's block": (
        PAGED,
        {"block_table": with_entry(0, 0, 0)},
        "load .*kv_cache, K of block 0, slot 0, .*it belongs to another request than the program's queries",
    ),
    "another layer": (
        PAGED,
        {"kv_cache": lambda cache: shifted(cache.stride(0) * len(cache))(cache)},
        "load .*kv_cache, element .*belongs to no block",
    ),
    "another's token scale": (TOKEN_SCALES, {"block_table": with_entry(0, 0, 0)}, "load .*kv_cache, .*another request"),
    "packed": (X_PACKED, {"seq_lens": lambda lens: lens + 1}, "load .*kv_cache, K of block 3, slot 1, head 0"),
    "an unowned query": (
        PAGED,
        {"query_start_loc": lambda starts: starts + (starts == 3)},
        r"load .*q\[3, 0, 0\].*that a request",
    ),
    "an unowned key": (
        DENSE,
        {"k": lambda k: k[1:], "v": lambda v: v[1:]},
        r"load .*k\[5, 0, 0\].*only rows that a request owns may be read",
    ),
    "another's key": (
        DENSE,
        {"k": lambda k: k[:1].expand_as(k)},
        r"load .*: k\[0, 0, 0\].*it belongs to another request than the program's queries",
    ),
    "another's value": (
        DENSE,
        {"v": lambda v: v[:1].expand_as(v)},
        r"load .*: v\[0, 0, 0\].*it belongs to another request than the program's queries",
    ),
    "an unowned output": (
        PAGED,
        {"out": shifted(2 * (2 * 16 + 8))},
        r"store .*out\[4, 0, 0\].*only rows that a request owns may be written",
    ),
    "around the output": (PAGED, {"out": shifted(32)}, r"store .*past out\[2, 1, 15\]"),
    "the output of another": (PAGED, {"out": shifted(-(2 * 16 + 8))}, r"store .*out\[1, 0, 0\].*it belongs to another request"),
    "a key without a slot": (PAGED, {"slots": lambda slots: slots.clamp(min=0)}, r"load .*k\[0, 0, 0\].*rows that have a slot"),
    "the slot after": (
        PAGED,
        {"slots": lambda slots: slots + (slots >= 0)},
        "store .*kv_cache, K of block 4, slot 3.*slot_mapping",
    ),
    "the layer beside": (
        PAGED,
        {"written": lambda cache: shifted(cache.stride(0) * len(cache))(cache)},
        "store .*kv_cache, element .*belongs to no block",
    ),
    "a row with its scale": (
        INLINE_SCALES,
        {"slots": lambda slots: slots + (slots >= 0)},
        "store .*kv_cache, K of block 4, slot 3",
    ),
    "a token scale": (
        TOKEN_SCALES,
        {"slots": lambda slots: slots + (slots >= 0)},
        r"store .*k_scale_cache\[4, 3, 0\].*slot_mapping",
    ),
    "a row of angles": (ROPE, {"positions": lambda positions: positions + 1}, r"load .*cos_sin_cache.*rows of its positions"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_a_verdict_that_names_it(sanitized, fault):
    case, changes, message = FAULTS[fault]
    assert try_case(case, handed(**changes), "cpu").kind == "sanitizer"
    with mock.patch.object(running, "at_once", 1):  # together, another of the faulty programs may be named first
        verdict = try_case(case, handed(**changes), "cpu")
    assert verdict.kind == "sanitizer", verdict
    assert re.search(message, verdict.message), verdict.message
    assert re.match(r"\w+ at \w+\.py:\d+ in \w+_kernel, program \(\d+, \d+, \d+\): ", verdict.message), verdict.message
    assert "\n" not in verdict.message


def test_attention_that_writes_into_the_cache_is_named(sanitized):
    def attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        attn_optimized.write_kv_cache(k, v, kv_cache, layer, batch.slot_mapping)

    verdict = try_case(PAGED, dataclasses.replace(TRITON, attention=attention), "cpu")
    assert verdict.kind == "sanitizer"
    assert re.search("^store .*kv_cache, K of block 4, slot 2.*nothing of it may be written$", verdict.message)


@pytest.mark.parametrize("case", [PAGED, DENSE, replace(DENSE, fused_qkv=False), ROPE, TOKEN_SCALES])
@pytest.mark.parametrize("name", ["q", "k", "query_start_loc", "seq_lens", "block_table"])
@pytest.mark.parametrize("side", ["before", "after"])
def test_a_write_around_an_input_is_found_without_it(case, name, side):
    def attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        REFERENCE_FP32.attention(q, k, v, kv_cache, layer, batch, out=out, lse=lse)
        tensor = {"q": q, "k": k, **batch.tensors}.get(name)
        if tensor is not None:
            beside = -1 if side == "before" else extent(tensor.shape, tensor.stride())
            tensor.as_strided((1,), (1,), tensor.storage_offset() + beside).fill_(7)

    verdict = try_case(case, dataclasses.replace(REFERENCE_FP32, attention=attention), "cpu")
    if name == "block_table" and case.cache is None:
        assert verdict.kind == "agree"
    else:
        assert verdict.kind in ("guard", "input"), "of a fused tensor, what is around q is k"


@pytest.mark.parametrize("target", ["TARGET", "NULL"])
@pytest.mark.parametrize(("sanitize", "kind"), [(True, "sanitizer"), (False, "crashed")])
def test_a_wild_load_is_a_verdict_and_not_the_end_of_its_process(tmp_path, target, sanitize, kind):
    with Executor(f"planted_wild:{target}", "cpu", 60.0, tmp_path / "ahead.json", sanitize=sanitize) as executor:
        assert executor.run(PAGED).kind == kind


def test_a_case_is_replayed_with_it_and_without(attn_parity, tmp_path):
    (tmp_path / "case.json").write_text(case_file.dumps(PAGED))
    run = attn_parity("replay", "case.json", "--target", "planted_wild:TARGET", "--device", "cpu")
    assert run.code == 1
    assert run.out.startswith("case.json: sanitizer")
    assert "attention_kernel, program (0, 0, 0): kv_cache, " in run.out


def test_a_gpu_cannot_be_sanitized():
    with pytest.raises(click.ClickException, match="only with --device cpu"):
        sanitizes(True, TRITON, "cuda")
    assert not sanitizes(None, TRITON, "cuda")
    assert sanitizes(None, TRITON, "cpu")
    assert not sanitizes(False, TRITON, "cpu")


def test_the_page_s_program_runs_and_its_message_is_one(sanitized, tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "reference" / "sanitizer.md").read_text()
    program = re.findall(r"```python in_process.py\n(.*?)```", page, flags=re.DOTALL)[0]
    message = re.findall(r"```\n(load .*)\n```", page)[0]
    case, changes, _ = FAULTS["a slot past the sequence"]
    without_line = re.compile(r"py:\d+ ")
    got = try_case(case, handed(**changes), "cpu").message
    assert without_line.sub("", got) == without_line.sub("", message), got
    (tmp_path / "in_process.py").write_text(program.replace('"cuda"', '"cpu"'))
    result = processes.run(["in_process.py", "triton", 2, 3], cwd=tmp_path)  # a seed without bfloat16
    assert result.stdout == "2 cases, 0 failed\n", result.stderr
