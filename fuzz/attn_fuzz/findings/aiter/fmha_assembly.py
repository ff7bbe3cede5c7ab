"""Bugs in AITER's prefill in assembly, fmha_v3."""

from typing import TYPE_CHECKING

from attn_fuzz.findings.aiter.shared import in_wheel, is_decoder

if TYPE_CHECKING:
    from attn_fuzz.cases.case import Case
    from attn_fuzz.verdict.verdict import Verdict


def _is_of_no_keys(case: "Case", verdict: "Verdict") -> bool:
    """True if every wrong request is without keys, and the call without a causal mask.

    A causal call in which each request has one query needs no mask. Outputs that are left over in registers differ with the
    schedule; such a verdict names no request.
    """
    has_mask = any(request.causal for request in case.requests) and max(r.query_len for r in case.requests) + case.slack > 1
    if has_mask:
        return False
    if verdict.kind == "sanitizer":
        return "under Schedule(" in verdict.message and any(r.query_len > 0 == r.seq_len for r in case.requests)
    wrong = [case.requests[each.request] for each in verdict.differences]
    return bool(wrong) and all(request.seq_len == 0 for request in wrong)


def _is_far_before_keys(case: "Case", verdict: "Verdict") -> bool:
    """True if the LSE is wrong, only of causal requests with two of fmha_v3_fwd's tiles of queries before their first key."""
    requests = [case.requests[each.request] for each in verdict.differences]
    return verdict.kind == "lse" and all(r.causal and r.query_len - r.seq_len >= 512 for r in requests)


FMHA_ASSEMBLY = (
    in_wheel(
        name="aiter-fmha-no-keys",
        what="In a call without a causal mask, a request without a key gets NaN or what lay in registers, and so does its LSE. "
        "They should be 0 and minus infinity. vLLM's extends make such calls, where a context ends before the last chunk.",
        cause="hsa/gfx942/fmha_v3_fwd/*/fwd_hd128_bf16_*_group.co: the number of keys is taken as it is (s_mov_b32 s38, s7), "
        "and the last of 0 tiles is looked for in registers that no tile has written. The causal files take at least 32 keys. "
        "gfx950's file for heads of 128 does it, too. The files of main (e4048607) do not.",
        link="ROCm/aiter#1442, which repairs the files",
        meets=is_decoder,
        explains=_is_of_no_keys,
    ),
    in_wheel(
        name="aiter-fmha-lse-before-keys",
        what="On MI300X and gfx950, where a causal request has 512 or more queries more than keys, the LSE of some rows "
        "without keys may be the logarithm of a number from 1 to 32. It should be minus infinity.",
        cause="fwd_hd128_bf16_causal_*.co of gfx942, MI300, and of gfx950: a tile of keys is visited before the first key, "
        "and the mask leaves some of them, which read as 0. The files of main (e4048607) do not.",
        link="ROCm/aiter#1442, which repairs the files",
        meets=is_decoder,
        explains=_is_far_before_keys,
    ),
)
