"""Programs that run together compute what they compute one by one: they part at branches, loops and returns, and meet again."""

from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from attn_fuzz.interpreted import interpreter
from attn_fuzz.interpreted.together import launches, running
from attn_fuzz.run import runner, shard
from attn_fuzz.run.case.trial import try_case
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.targets import registry

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are interpreted on a CPU only")
PROGRAMS = 11


@pytest.fixture(autouse=True, scope="module")
def installed():
    interpreter.install()


@pytest.fixture(autouse=True)
def nothing_apart(monkeypatch):
    monkeypatch.setattr(launches, "apart", {})


@triton.jit
def declared_kernel(out_ptr, stride: tl.int64, small: tl.int8):
    tl.store(out_ptr, (tl.program_id(0) + 2) * stride)
    tl.store(out_ptr + 1, small.dtype.primitive_bitwidth)


def test_a_parameter_has_the_type_that_it_is_declared_with():
    """Triton's interpreter gives an int the narrowest type: a stride of tl.int64 led astray where a row lies behind 2^31."""
    out = torch.zeros(2, dtype=torch.int64)
    declared_kernel[(1,)](out, 3 << 29, 5)
    assert out.tolist() == [3 << 30, 8]


@triton.jit
def branches_kernel(numbers_ptr, out_ptr, SIZE: tl.constexpr):
    program, lane = tl.program_id(0), tl.arange(0, SIZE)
    number = tl.load(numbers_ptr + program)
    found = lane.to(tl.float32)
    if number > 4:
        found += tl.load(out_ptr + program * SIZE + lane)
        if number > 6:
            found = -found
    elif number > 2:
        found *= 3
    left, right = 0, number
    if number > 3:
        left = 2 * number
    else:
        right = 5
    smaller = left - right if number < 3 else -number + left * right
    tl.store(out_ptr + program * SIZE + lane, found + smaller + min(number, 2) - max(number, 5))


@triton.jit
def loops_kernel(numbers_ptr, out_ptr, SIZE: tl.constexpr):
    program, lane = tl.program_id(0), tl.arange(0, SIZE)
    number = tl.load(numbers_ptr + program)
    found, turns = tl.zeros([SIZE], tl.float32), 0
    for i in tl.range(number, 2 * number + 1):
        inner = lane.to(tl.float32)
        for j in range(0, i - number, 2):
            inner += i * j
            inner = inner[:, None].broadcast_to([SIZE, SIZE])  # another type than before, which no turn hands on
            inner = tl.sum(inner, axis=1) / SIZE
        found += inner
    while turns * turns < number:
        turns += 1
        for _ in tl.static_range(2):
            found += turns
    tl.store(out_ptr + program * SIZE + lane, found + turns)


@triton.jit
def sign_of(number):
    if number > 5:
        return 1.0, number
    for i in range(number):
        if i == 3:
            return 2.0 * i, number - 1
    return -1.0, number + 1


@triton.jit
def returns_kernel(numbers_ptr, out_ptr, SIZE: tl.constexpr):
    program, lane = tl.program_id(0), tl.arange(0, SIZE)
    number = tl.load(numbers_ptr + program)
    if number == 0:
        return
    sign, other = sign_of(number)
    tl.store(out_ptr + program * SIZE + lane, lane * sign + other)
    if number < 3:
        return
    tl.store(out_ptr + program * SIZE + lane, lane * sign - other, mask=lane < number)


@triton.jit
def atomics_kernel(numbers_ptr, out_ptr, SIZE: tl.constexpr):
    program, lane = tl.program_id(0), tl.arange(0, SIZE)
    if tl.load(numbers_ptr + program) > 3:
        before = tl.atomic_add(out_ptr + lane, 1.0)
        tl.atomic_max(out_ptr + SIZE + lane, before)
        tl.store(out_ptr + 2 * SIZE + lane, 5.0)


@triton.jit
def breaks_kernel(numbers_ptr, out_ptr, SIZE: tl.constexpr):
    program, lane = tl.program_id(0), tl.arange(0, SIZE)
    tl.store(out_ptr + program * SIZE + lane, 1.0 + tl.load(out_ptr + program * SIZE + lane))
    number = tl.load(numbers_ptr + program)
    for i in range(10):
        if i == number:
            break
        tl.atomic_add(out_ptr + program * SIZE + lane, 1.0)


@triton.jit
def shapes_kernel(numbers_ptr, out_ptr, SIZE: tl.constexpr):
    program, lane = tl.program_id(0), tl.arange(0, SIZE)
    scalar = tl.load(numbers_ptr + program).to(tl.float32)
    square = lane[:, None] * scalar + lane[None, :]
    joined = tl.reshape(tl.join(square, tl.trans(square)), [2 * SIZE * SIZE])
    first, second = tl.split(tl.reshape(joined, [SIZE, SIZE, 2]))
    found = tl.dot(square, first.T, input_precision="ieee") + second
    best, place = tl.max(found, axis=1, return_indices=True)
    ends = tl.cumsum(tl.sort(best), axis=0) + tl.gather(lane, place, axis=0) + tl.max(found)
    tl.store(out_ptr + program * SIZE + lane, ends + tl.sum(tl.cat(lane, lane)))


class Pair(NamedTuple):
    first: tl.tensor
    second: tl.tensor


@triton.jit
def pair_of(number, lane):
    if number > 3:
        return Pair(first=lane, second=number)
    return Pair(first=lane + 1, second=2 * number)


@triton.jit
def records_kernel(numbers_ptr, out_ptr, SIZE: tl.constexpr):
    program, lane = tl.program_id(0), tl.arange(0, SIZE)
    number = tl.load(numbers_ptr + program)
    pair = pair_of(number, lane)
    found = lane + 0
    for i in range(number):
        if pair.second > 4:
            pair = Pair(first=pair.second + lane, second=pair.second - i)
        found += pair.first
    tl.store(out_ptr + program * SIZE + lane, found)


KERNELS = [records_kernel, branches_kernel, loops_kernel, returns_kernel, atomics_kernel, shapes_kernel]


def launched(kernel, at_once, size=4):
    numbers = torch.tensor([3, 0, 7, 1, 5, 9, 2, 4, 0, 8, 6], dtype=torch.int32)
    out = torch.arange(PROGRAMS * size, dtype=torch.float32)
    with mock.patch.object(running, "at_once", at_once):
        kernel[(PROGRAMS,)](numbers, out, SIZE=size)
    return out


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.fn.__name__)
@pytest.mark.parametrize("at_once", [2, 5, PROGRAMS])
def test_together_is_one_by_one(kernel, at_once):
    alone, together = launched(kernel, 1), launched(kernel, at_once)
    assert torch.equal(alone, together)
    assert not torch.equal(alone, torch.arange(alone.numel(), dtype=torch.float32))
    assert not launches.apart, "they ran together"


def test_programs_that_cannot_run_together_run_one_by_one_on_the_memory_as_it_was():
    assert torch.equal(launched(breaks_kernel, 1), launched(breaks_kernel, PROGRAMS))
    assert list(launches.apart.values()) == ["the truth of a tensor, which differs among programs"]
    assert torch.equal(launched(breaks_kernel, 1), launched(breaks_kernel, PROGRAMS)), "a later launch"


@triton.jit
def asserting_kernel(numbers_ptr, out_ptr, SIZE: tl.constexpr):
    program = tl.program_id(0)
    tl.atomic_add(out_ptr, 1.0)
    if tl.load(numbers_ptr + program) != 3:
        tl.assume(program != 7)


def test_an_error_is_that_of_the_program_alone():
    out = torch.zeros(4)
    numbers = torch.arange(PROGRAMS, dtype=torch.int32)
    with pytest.raises(Exception, match="Assume failed"), mock.patch.object(running, "at_once", PROGRAMS):
        asserting_kernel[(PROGRAMS,)](numbers, out, SIZE=4)
    assert out[0] == 8, "the programs 0 to 7, once each"
    assert not launches.apart, "the next launch may run together again"


def test_programs_that_fail_only_together_are_named_and_not_tried_again(monkeypatch):
    builder = triton.runtime.interpreter.InterpreterBuilder
    store = builder.create_masked_store

    def fails_for_many(self, *arguments, **named):
        if running.current.count > 1:
            raise TypeError("a fault of the interpreter's")
        return store(self, *arguments, **named)

    alone = launched(branches_kernel, 1)
    monkeypatch.setattr(builder, "create_masked_store", fails_for_many)
    assert torch.equal(alone, launched(branches_kernel, PROGRAMS))
    (why,) = launches.apart.values()
    assert why.startswith("they raised together, and alone none did: ")
    assert "a fault of the interpreter's" in why


@pytest.mark.parametrize("name", ["triton", "triton-latent", "triton-merge-parts", "triton-write"])
def test_the_programs_of_our_kernels_run_together(name, tmp_path):
    target = registry.load(name)
    plan = FuzzPlan(target=name, device="cpu", examples=15, seed=3, folder=tmp_path)
    for case in (case for part in runner.shards(plan) for case in shard.drawn(part)):
        try_case(case, target, "cpu")
    assert not launches.apart


def test_programs_that_have_returned_take_no_place(monkeypatch):
    counts = []

    class Counted(running.Running):
        def __init__(self, indices: np.ndarray, code: object) -> None:
            super().__init__(indices, code)
            counts.append(self.count)

    monkeypatch.setattr(launches, "Running", Counted)
    launched(returns_kernel, 4)
    # 11 programs, of which 2 return at once: the first of them ends the first four, the second the last three
    assert sum(counts[:3]) == PROGRAMS
    assert max(counts) == 4
    assert sum(counts) < 2 * PROGRAMS


@triton.jit
def block_pointers_kernel(numbers_ptr, out_ptr, rows, SIZE: tl.constexpr):
    """A tile of the transposed numbers, whose last columns are behind the numbers, doubled and moved by a column."""
    program = tl.program_id(0)
    shape, strides = (SIZE, rows), (1, SIZE)
    source = tl.make_block_ptr(numbers_ptr, shape, strides, (0, program), (SIZE, SIZE), (0, 1))
    tile = tl.load(tl.advance(source, (0, 1)), boundary_check=(1,), padding_option="zero")
    target = tl.make_block_ptr(out_ptr + program * SIZE * SIZE, (SIZE, SIZE), (SIZE, 1), (0, 0), (SIZE, SIZE), (1, 0))
    tl.store(target.advance((0, 0)), 2 * tile, boundary_check=(0,))


@pytest.mark.skipif(tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9), reason="this Triton has no block pointers")
@pytest.mark.filterwarnings("ignore:tl.make_block_ptr is deprecated")
def test_block_pointers_run_one_by_one():
    size, rows = 4, 6
    numbers, out = torch.randn(rows, size), torch.full((rows, size, size), torch.nan)
    block_pointers_kernel[(rows,)](numbers, out, rows, size)
    padded = torch.nn.functional.pad(numbers, (0, 0, 0, size + 1))
    expected = torch.stack([2 * padded[program + 1 : program + 1 + size].T for program in range(rows)])
    assert torch.equal(out, expected)
    if not triton.__version__.startswith("3.8"):  # whose block pointers are made of other functions
        assert list(launches.apart.values()) == ["tl.make_block_ptr"]
