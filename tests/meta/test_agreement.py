"""Can the comparison that tests of kernels share fail? By a few units in the last place, and in rows of no request."""

import math
from typing import NamedTuple

import attn_reference
import pytest
import torch
from attn_fuzz.verdict.judge import DisagreementError, Rounding

from tests.support.agreement import assert_within_bound
from tests.support.calls import PagedCall, paged_call, random_tokens

ROUNDING = Rounding(keys_per_tile=64)
ELEMENT = (2, 1, 7)
"""Row, head and dim of `out`."""
LSE_ELEMENT = (1, 2)
"""Head and row of `lse`."""


class Answer(NamedTuple):
    call: PagedCall
    out: torch.Tensor
    lse: torch.Tensor

    def judge(self) -> None:
        assert_within_bound(*self, rounding=ROUNDING)


@pytest.fixture(params=[torch.float32, torch.float16], ids=["float32", "float16"])
def answer(request) -> Answer:
    """A call with the outputs of the reference, computed in float64."""
    call = paged_call(random_tokens([3, 1], [40, 9], dtype=request.param))
    out = torch.full_like(call.q, torch.nan)
    lse = torch.full((call.q.shape[1], len(call.q)), torch.nan)
    attn_reference.paged_attention(*call, out=out, lse=lse, precision=torch.float64)
    return Answer(call, out, lse)


def plant(answer: Answer, tensor: torch.Tensor, place: tuple[int, ...], ulps: int) -> None:
    """Set one element to what is right plus its bound plus some units in the last place of its type."""
    tensor[place] += 1
    with pytest.raises(DisagreementError) as found:
        answer.judge()
    (worst,) = found.value.judgement.differences
    edge = worst.expected + worst.bound
    tensor[place] = edge + ulps * torch.finfo(tensor.dtype).eps * 2.0 ** math.floor(math.log2(abs(edge)))


@pytest.mark.parametrize(
    ("name", "place", "told"), [("out", ELEMENT, "row 2, head 1, dim 7"), ("lse", LSE_ELEMENT, "row 2, head 1")]
)
def test_an_output_agrees_up_to_its_bound(answer, name, place, told):
    plant(answer, getattr(answer, name), place, ulps=-2)
    answer.judge()
    plant(answer, getattr(answer, name), place, ulps=2)
    with pytest.raises(DisagreementError, match=f"^{name} of request 0 at {told}: "):
        answer.judge()


def test_a_number_in_a_row_of_no_request_is_found(answer):
    answer.out[-1, 0, 0] = 0
    with pytest.raises(AssertionError, match="a row that no request owns was written"):
        answer.judge()


def test_an_lse_in_a_row_of_no_request_is_found(answer):
    answer.lse[0, -1] = 0
    with pytest.raises(AssertionError, match="the LSE of a row that no request owns"):
        answer.judge()
