"""Bugs in AITER's Triton kernels whose keys are tensors: prefill_attention, extend_attention and mha."""

from typing import TYPE_CHECKING

from attn_fuzz.findings.aiter.shared import in_both, in_wheel
from attn_fuzz.findings.finding import failures_where, is_of_tf32

if TYPE_CHECKING:
    from attn_fuzz.cases.case import Case

MHA_TILE_ROWS = 128
"""Rows of q in one program of _attn_fwd."""


def _sees_no_tile(case: "Case") -> bool:
    """True if a tile of queries sees no tile of keys in _attn_fwd, in a causal call or in one before it.

    An earlier call with other contents has half of a request's keys, and none if the request has one key and no query.
    """
    least = 1 if "contents" in case.earlier else 0
    return (bool(case.earlier) or any(request.causal for request in case.requests)) and any(
        request.seq_len == 0
        or request.query_len < request.seq_len <= least
        or request.query_len - request.seq_len >= MHA_TILE_ROWS
        for request in case.requests
    )


PREFILL = (
    in_wheel(
        name="aiter-prefill-float32-as-tf32",
        what="Attention in float32 multiplies in TF32 on NVIDIA GPUs that have it (sm80 and later), and is compiled for XF32 "
        "on MI300X (gfx942): of both operands of a dot 10 bits after the leading one are left.",
        cause="aiter/ops/triton/_triton_kernels/prefill_attention.py:124 and 163, _fwd_kernel: tl.dot has no input_precision, "
        'and Triton then takes "tf32" where the GPU has it.',
        needs_gpu=True,
        explains=lambda case, verdict: (
            verdict.kind == "value" and case.dtype == "float32" and all(is_of_tf32(each) for each in verdict.differences)
        ),
    ),
)
EXTEND = (
    in_both(
        name="aiter-fractional-soft-cap",
        what="A soft cap that is no whole number, such as 0.5, does not compile (Triton 3.6 to 3.9, for each GPU): neither in "
        "extend_attention nor in mla_decode_rope.",
        cause="aiter/ops/triton/utils/_triton/kernel_repr.py:11, _sanitize_constexpr_value: the dot of the number stands in "
        "the kernel's name, which is then no identifier.",
        explains=failures_where(("raised",), lambda case: (case.logits_soft_cap or 0.0) % 1.0 != 0.0),
    ),
)
MHA_VARLEN = (
    in_wheel(
        name="aiter-mha-lse-of-empty-requests",
        what="A causal call with a request without a key, with queries or without, writes 0 as the LSE of rows after this "
        "request: of later requests, or in the memory after the last row.",
        cause="aiter/ops/triton/_triton_kernels/mha.py:512, _attn_fwd: where no tile of keys is left, the store of the LSE is "
        "masked by the longest request's queries, SEQLEN_Q, and not by this request's. `start_m * BLOCK_M > seqlen_q` (457) "
        "lets a request without a query get there, too, and a further block of a request whose queries fill theirs.",
        explains=failures_where(("lse", "sanitizer"), _sees_no_tile),
    ),
)
