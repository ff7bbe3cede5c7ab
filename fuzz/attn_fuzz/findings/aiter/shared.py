"""The parts that findings in several of AITER's kernels share: where they were seen, and the cases that they explain."""

import functools
from typing import TYPE_CHECKING

from attn_contract import AttentionConfig, AttentionType
from attn_fuzz.findings.finding import Finding, is_nan

if TYPE_CHECKING:
    from attn_fuzz.cases.case import Case
    from attn_fuzz.verdict.verdict import Verdict

SEEN_IN = "amd-aiter 0.1.7.post2.dev18"
in_wheel = functools.partial(Finding, seen_in=SEEN_IN)
in_main = functools.partial(Finding, seen_in="ROCm/aiter e4048607a5 (main)")
in_both = functools.partial(Finding, seen_in=f"{SEEN_IN}, and main at e4048607")
FAR_LOGITS = ("extreme", "below")
"""Kinds of values that have logits beyond 100."""


def has_3_queries(case: "Case") -> bool:
    return any(request.query_len > 2 for request in case.requests)


def reads_unused_slots(case: "Case", verdict: "Verdict") -> bool:
    """True if an output is NaN, and its request's last block is not full or the case has NaN in keys that no query sees."""
    if not is_nan(case, verdict) or case.finite_slots or case.cache is None:
        return False
    requests = [case.requests[each.request] for each in verdict.differences]
    return any(case.recycled or request.seq_len % case.cache.block_size for request in requests)


def is_decoder(config: AttentionConfig) -> bool:
    return config.attn_type is AttentionType.DECODER


def has_holes(case: "Case") -> bool:
    """True if a tile of entries may name no token while a later tile names some."""
    return case.selection_unit is not None and case.selected in ("holes", "ahead")


PREFILL_SPARSE = "aiter/ops/triton/attention/pa_prefill_sparse.py"
