"""An operation that is played again gives what it gives as it is: of other numbers, and of operands once alike."""

import pytest
import torch
import triton
import triton.language as tl
from attn_fuzz.exact import followed_call
from attn_fuzz.exact.quantities import Quantities
from attn_fuzz.interpreted import interpreter, tapes

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are interpreted on a CPU only")


@pytest.fixture(autouse=True, scope="module")
def installed():
    interpreter.install()


def stands_for(operation):
    """The operation as a tape, without any that other tests have met."""
    from triton.runtime import interpreter as of_triton

    return tapes.taped(operation, of_triton)


def noted(operation, calls):
    """An operation that counts how often it runs as it is."""

    def counted(*operands, _semantic):
        calls.append(operands)
        return operation(*operands, _semantic=_semantic)

    return stands_for(counted)


def block(*numbers):
    from triton.runtime import interpreter as of_triton

    handle = of_triton.TensorHandle(torch.tensor([numbers]).numpy(), tl.float32)
    return tl.tensor(handle, tl.block_type(tl.float32, [len(numbers)]))


def product(x, y, _semantic):
    return _semantic.mul(x, y, True)


def test_an_operation_runs_once_for_operands_of_the_same_types():
    calls = []
    multiply = noted(product, calls)
    assert multiply(block(1.0, 2.0), block(3.0, 4.0)).handle.data.tolist() == [[3.0, 8.0]]
    assert multiply(block(5.0, 6.0), block(7.0, 8.0)).handle.data.tolist() == [[35.0, 48.0]]
    assert len(calls) == 1
    multiply(block(1.0, 2.0, 3.0, 4.0), block(1.0, 2.0, 3.0, 4.0))
    assert len(calls) == 2


def test_a_square_is_no_tape_of_a_product():
    multiply = stands_for(product)
    x, y = block(1.0, 2.0), block(3.0, 4.0)
    multiply(x, x)
    assert multiply(x, y).handle.data.tolist() == [[3.0, 8.0]]
    assert multiply(y, y).handle.data.tolist() == [[9.0, 16.0]]


@pytest.mark.parametrize(("first", "second"), [(0.0, -0.0), (2, 2.0), (1, True)])
def test_constants_that_are_equal_are_apart(first, second):
    constant = stands_for(lambda number, _semantic: _semantic.to_tensor(number))
    blocks = [constant(number) for number in (first, second)]
    dtypes = [each.dtype for each in blocks]
    signs = [str(each.handle.data) for each in blocks]
    assert dtypes[0] != dtypes[1] or signs[0] != signs[1]


def test_a_block_that_the_builder_has_not_made_is_not_played():
    calls = []
    double = noted(lambda x, _semantic: block(*(2 * x.handle.data[0])), calls)
    assert [double(block(number, 1.0)).handle.data[0, 0] for number in (1.0, 2.0)] == [2.0, 4.0]
    assert len(calls) == 2


def test_exact_mode_plays_nothing():
    """Its constants are elements of the call."""
    with followed_call.following(followed_call.FollowedCall(Quantities({}))):
        assert not tapes.in_use
        with followed_call.following(None):
            assert tapes.in_use
    assert tapes.in_use


@triton.jit
def numbers_kernel(numbers_ptr, out_ptr, SIZE: tl.constexpr):
    lane = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    number = tl.load(numbers_ptr + lane)
    tl.store(out_ptr + lane, tl.where(lane % 2 == 0, number * number, -number + 1.0).to(tl.float16))


@pytest.mark.parametrize("programs", [1, 4, 40])
def test_any_number_of_programs_plays_the_same_tapes(programs):
    numbers, out = torch.arange(8.0 * programs) / 16, torch.zeros(8 * programs, dtype=torch.float16)
    numbers_kernel[(programs,)](numbers, out, 8)
    is_even = torch.arange(8 * programs) % 2 == 0
    assert torch.equal(out, torch.where(is_even, numbers * numbers, 1 - numbers).half())
