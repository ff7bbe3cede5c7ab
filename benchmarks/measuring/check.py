"""Compares a sample of a participant's rows with float64, before anything is timed."""

from dataclasses import replace

import attn_reference
import torch

from benchmarks.steps.calls import DTYPE, Call, requests_of

SAMPLED_ROWS = 64
MAX_ERROR = 2 * torch.finfo(DTYPE).eps
"""The largest relative error: half an eps each for the output, the weights, a q that is scaled first, and dequantized keys and
values. These errors are independent in a sample of rows, but their worst sum is allowed. The fuzzer is the strict judge. This
check finds a forgotten sink, cap or window, a wrong block, or missing keys."""


def sampled_rows(call: Call) -> list[int]:
    """Up to SAMPLED_ROWS rows of q, from as many requests as possible: the last row of each, and others at random."""
    case = call.case
    generator = torch.Generator().manual_seed(0)
    requests = torch.randperm(len(case.query_lens), generator=generator)[:SAMPLED_ROWS].tolist()
    rows = []
    for request in requests:
        first, query_len = sum(case.query_lens[:request]), case.query_lens[request]
        queries = torch.randperm(query_len - 1, generator=generator)[: SAMPLED_ROWS // len(requests) - 1]
        rows += [first + query for query in (*queries.tolist(), query_len - 1)]
    return sorted(rows)


def expected_rows(call: Call, rows: list[int]) -> torch.Tensor:
    """[len(rows), H, D] float64: attention of these rows of q, which are sorted, by the reference."""
    expected = []
    for request in requests_of(call):
        own = [row - request.rows.start for row in rows if request.rows.start <= row < request.rows.stop]
        if own:
            some = replace(request, query=request.query[own], visible=request.visible[..., own, :])
            expected.append(attn_reference.attend(some, call.layer).out)
    return torch.cat(expected)


def relative_error(out: torch.Tensor, rows: list[int], expected: torch.Tensor) -> float:
    """The Euclidean norm of the error of some rows over that of the expected numbers; infinite if any row is not finite."""
    if not bool(out.double().isfinite().all()):
        return float("inf")
    return float((out[rows].double() - expected).norm() / expected.norm())


def too_large(error: float) -> str:
    return f"relative error {error:.2g}, at most {MAX_ERROR:.2g} is allowed"
