"""One comparison of outputs with the reference, for all tests of kernels and backends."""

import torch
from attn_fuzz.cases.call import Call
from attn_fuzz.verdict.judge import Rounding, judge_call

from tests.support.calls import PagedCall, VarlenCall


def assert_within_bound(
    call: PagedCall | VarlenCall, out: torch.Tensor, lse: torch.Tensor | None = None, *, rounding: Rounding
) -> None:
    """Hold each row of a request to the judge's bound for independent numbers, and all other rows to NaN.

    Args:
        call: what was attended to; its numbers are independent of each other.
        out: [T, H, D] or [T, H * D]; NaN before the call.
        lse: [H, T] or None; NaN before the call.
        rounding: where the kernel rounds.
    """
    judge_call(Call(**call._asdict()), out, lse, rounding, generic=True).raise_for_differences()
    num_owned = int(call.batch.query_start_loc[-1])
    assert out[num_owned:].float().isnan().all(), "a row that no request owns was written"
    if lse is not None:
        assert lse[:, num_owned:].isnan().all(), "the LSE of a row that no request owns was written"
