"""Bugs in AITER's older Triton kernels on paged caches: pa_decode, pa_prefill and chunked_pa_prefill."""

from typing import TYPE_CHECKING

from attn_fuzz.findings.aiter.shared import FAR_LOGITS, in_wheel
from attn_fuzz.findings.finding import NUMBERS, WRONG, failures_where, has_idle_requests, is_nan, is_nan_before_windows

if TYPE_CHECKING:
    from attn_fuzz.cases.case import Case
    from attn_fuzz.verdict.verdict import Verdict


def _has_decodes(case: "Case") -> bool:
    return any(request.query_len == 1 for request in case.requests)


def _overflows(case: "Case", verdict: "Verdict") -> bool:
    """True if an output is NaN, and products of q and k may be beyond the range of float16."""
    return is_nan(case, verdict) and case.dtype == "float16" and case.values.kind in FAR_LOGITS


def _is_of_decodes(case: "Case", verdict: "Verdict") -> bool:
    """True if every wrong request has one query."""
    lengths = [case.requests[each.request].query_len for each in verdict.differences]
    return bool(lengths) and all(length == 1 for length in lengths)


PAGED_DECODE = (
    in_wheel(
        name="aiter-decode-one-head",
        what="A decode with one query head for each KV head does not compile (Triton 3.9, for gfx942 and sm90 alike).",
        cause="aiter/ops/triton/_triton_kernels/pa_decode.py, _paged_attn_decode_v1_wo_dot_kernel, its v2, and the two for "
        "scales of each token: `alpha[:, None]` of a scalar, which Triton 3.6 to 3.8 compile.",
        explains=failures_where(("raised",), lambda case: case.group_size == 1),
    ),
)
PAGED_PREFILL = (
    in_wheel(
        name="aiter-prefill-outside-window",
        what="NaN in a slot before the window of all queries makes the output NaN.",
        cause="aiter/ops/triton/_triton_kernels/pa_prefill.py, _fwd_kernel: V is not masked by the window: a hidden key's "
        "weight ends as 0, and 0 * NaN is NaN.",
        explains=is_nan_before_windows,
    ),
)
CHUNKED_PREFILL = (
    in_wheel(
        name="aiter-chunked-outside-window",
        what="NaN in a slot before the window of a decode makes its output NaN.",
        cause="aiter/ops/triton/_triton_kernels/chunked_pa_prefill.py:131-173, _kernel_paged_attention_2d: V is not masked by "
        "the window: a hidden key's weight ends as 0, and 0 * NaN is NaN. A mask of pa_prefill's V does not reach decodes.",
        explains=lambda case, verdict: is_nan_before_windows(case, verdict) and _is_of_decodes(case, verdict),
    ),
    *PAGED_PREFILL,
    in_wheel(
        name="aiter-chunked-unused-slots",
        what="NaN in a slot of the last block of a decode, past the end of its sequence, makes its output NaN.",
        cause="aiter/ops/triton/_triton_kernels/chunked_pa_prefill.py:123-147, _kernel_paged_attention_2d: K and V of the "
        "last block are loaded without a mask by the length of the sequence; a score of -inf plus NaN is NaN, and so is a "
        "weight of 0 times NaN. vLLM's kernel_paged_attention_2d masks both.",
        explains=lambda case, verdict: is_nan(case, verdict) and not case.finite_slots and _has_decodes(case),
    ),
    in_wheel(
        name="aiter-chunked-empty-request",
        what="A request without a query, as padding for graphs has them, writes a row of the output: the next request's first "
        "row, or the memory after the last row.",
        cause="aiter/ops/triton/_triton_kernels/chunked_pa_prefill.py:63-68, _kernel_paged_attention_2d: with "
        "filter_by_query_len it returns for more than one query, and not for none.",
        explains=failures_where((*WRONG, "guard", "crashed", "sanitizer"), has_idle_requests),
    ),
    in_wheel(
        name="aiter-chunked-rounded-products",
        what="A decode rounds the products of q and k, and their partial sums, to the dtype of q. A logit is off by up to 2^-8 "
        "(bfloat16) or 2^-11 (float16) of the sum of the products' magnitudes, times the scale, by the products alone, and by "
        "more by the sums. Products of float16 below 2^-14 lose more. In float16 a sum of 65520 or more of a visible key makes "
        "the output NaN, and a sum of -65520 or less of a visible key hides the key, among others that are visible. Prefills "
        "in the same step sum exact products in float32.",
        cause="aiter/ops/triton/_triton_kernels/chunked_pa_prefill.py:144, _kernel_paged_attention_2d: `tl.sum(K * Q[:, None], "
        "axis=0)` multiplies in the dtype of q, and tl.sum adds in it. (A compiler may fuse some products with the addition.)",
        explains=lambda case, verdict: _is_of_decodes(case, verdict) and (verdict.kind in NUMBERS or _overflows(case, verdict)),
    ),
)
