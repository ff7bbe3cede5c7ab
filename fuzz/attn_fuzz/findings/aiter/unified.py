"""Bugs in AITER's Triton unified_attention, and the backends that inherit them."""

import dataclasses
from typing import TYPE_CHECKING

from attn_contract import AttentionConfig, AttentionType
from attn_fuzz.findings.aiter.shared import in_wheel, is_decoder, reads_unused_slots
from attn_fuzz.findings.finding import Finding, failures_where, has_queries_without_keys, is_nan

if TYPE_CHECKING:
    from attn_fuzz.cases.case import Case
    from attn_fuzz.verdict.verdict import Verdict

KERNELS = "aiter/ops/triton/_triton_kernels/unified_attention.py"
SPLIT_KEYS = 512
"""The kernel never splits the keys of a sequence that has at most this many."""


def _may_split(case: "Case") -> bool:
    """True if a device with many compute units splits a case's keys into segments."""
    return case.window[0] < 0 and max((request.seq_len for request in case.requests), default=0) + case.slack > SPLIT_KEYS


def _hides_tiles(case: "Case") -> bool:
    """True if a row may see no key of a tile that its neighbours in the tile of queries see, but keys of another tile."""
    is_windowed = case.window[0] >= 0 and case.sinks in (None, "off", "some")
    return (is_windowed or _may_split(case)) and any(request.query_len > 1 for request in case.requests)


def _is_after_an_empty_decode(case: "Case", verdict: "Verdict") -> bool:
    """True if the wrong rows may have been moved by a request without a query, in a step of decodes."""
    empty = [index for index, request in enumerate(case.requests) if not request.query_len]
    if case.max_query_len > 1 or not empty:
        return False
    if verdict.kind in ("guard", "sanitizer"):
        return True
    wrong = [each.request for each in verdict.differences]
    return verdict.kind in ("value", "bitwise", "nan", "unwritten") and bool(wrong) and min(wrong) > empty[0]


def _takes_programs_for_rows() -> bool:
    from attn_fuzz import foreign

    try:
        kernels = foreign.sources("aiter") / "ops/triton/_triton_kernels/attention/unified_attention.py"
        return "cur_batch_in_all_start_index: tl.int32 = q_block_global_idx" in kernels.read_text()
    except (OSError, foreign.MissingSourcesError):
        return False


def _has_window(config: AttentionConfig) -> bool:
    return config.value_of("window")[0] >= 0


UNIFIED_ATTENTION = (
    in_wheel(
        name="aiter-unused-slots",
        what="NaN in V of a slot that no query sees makes the output NaN: past the end of a sequence, where a tile is a block, "
        "or before the window, in a tile that holds a key of the window.",
        cause=f"{KERNELS}, kernel_unified_attention_2d and _3d: where a tile is a block, K and V are loaded without a mask, "
        "and nowhere is V masked by what a query sees; its weight is 0, and 0 * NaN is NaN.",
        meets=is_decoder,
        explains=reads_unused_slots,
    ),
    in_wheel(
        name="aiter-rows-without-keys",
        what="In a request with more query tokens than keys, rows that see no key are NaN where the kernel visits a tile for "
        "their neighbours, without sinks, and where one program takes all keys. They should be 0.",
        cause=f"{KERNELS}, kernel_unified_attention_2d and _3d: a tile without a visible key leaves the denominator at 0, and "
        "the epilogue of the first divides by it.",
        meets=is_decoder,
        explains=lambda case, verdict: is_nan(case, verdict) and any(0 < r.seq_len < r.query_len for r in case.requests),
    ),
    in_wheel(
        name="aiter-hidden-tile",
        what="Where a row sees nothing of a tile, as a window makes them, and its logits are negative, its weights underflow: "
        "in float16 to 0 below about -17.3, and to a row of NaN below about -88. A finite sink prevents it. Where keys are "
        "split, and a row sees nothing of a part, it is 0 where float32 underflows, from about -87 on.",
        cause=f"{KERNELS}, kernel_unified_attention_2d and _3d: after a tile without a visible key the running maximum is 0 "
        "instead of minus infinity, and never falls below that.",
        meets=lambda config: is_decoder(config) and not (_has_window(config) and config.asks("sinks")),
        explains=failures_where(("nan", "value", "exact"), _hides_tiles),
    ),
    in_wheel(
        name="aiter-soft-cap-overflow",
        what="A logit of more than about 88 times a soft cap of 1, or 85 times one of 50, makes the output NaN, and so does "
        "one below -88.7 times the cap. With a cap of 50, a key whose logit is below -85 times the cap loses its weight. "
        "A row that has no other key is NaN, or 0 where keys are split or it has a sink.",
        cause=f"{KERNELS}, apply_softcap: tanh by exp2(x) and exp2(-x), one of which overflows, or its product with the cap "
        "does. Infinity over itself is NaN, and so is infinity minus itself in the softmax.",
        link="vllm-project/vllm#56578 (the same lines in vLLM)",
        meets=lambda config: is_decoder(config) and config.asks("logits_soft_cap"),
        explains=lambda case, verdict: is_nan(case, verdict) and case.logits_soft_cap is not None,
    ),
    in_wheel(
        name="aiter-split-writes-unowned-rows",
        what="Where keys are split, rows of the output that no request owns are written, as padding for a graph has them.",
        cause=f"{KERNELS}, reduce_segments: one program for each row of q, and none asks whether a request owns it.",
        meets=lambda config: is_decoder(config) and not _has_window(config),
        explains=failures_where(("guard",), _may_split, lambda case: case.unowned_rows > 0),
    ),
    in_wheel(
        name="aiter-split-without-keys",
        what="Where keys are split, a request with query tokens and no keys gets NaN (interpreted; on a GPU an integer "
        "division by 0 is undefined). It should get 0.",
        cause=f"{KERNELS}, reduce_segments: it divides by tiles_per_segment, which is 0, and all maxima of segments "
        "are -inf, whose difference is NaN.",
        meets=lambda config: is_decoder(config) and not _has_window(config),
        explains=lambda case, verdict: is_nan(case, verdict) and _may_split(case) and has_queries_without_keys(case),
    ),
    Finding(
        name="aiter-decode-empty-request",
        what="With max_seqlen_q of 1, a request without a query, as padding for graphs has them, shifts the rows of all "
        "requests after it, and one row after the last is written.",
        cause="aiter/ops/triton/_triton_kernels/attention/unified_attention.py:114-118 and 526-530: with ALL_DECODE, program i "
        "takes row i for request i, whether or not each request has a query.",
        seen_in="amd-aiter's main at e4048607",
        meets=is_decoder,
        explains=_is_after_an_empty_decode,
        is_in_sources=_takes_programs_for_rows,
    ),
)


def _of_decoders(finding: Finding) -> Finding:
    """The finding, but only for decoders: a backend launches this project's kernels for the other attention types."""
    return dataclasses.replace(
        finding,
        explains=lambda case, verdict: case.attn_type is AttentionType.DECODER and finding.explains(case, verdict),
    )


BACKENDS = {
    name: tuple(_of_decoders(finding) for finding in UNIFIED_ATTENTION) for name in ("ROCM_AITER_UNIFIED_ATTN", "ROCM_AITER_FA")
}
"""The findings that each backend inherits from the kernel, by the backend's name."""
