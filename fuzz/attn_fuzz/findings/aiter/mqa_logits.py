"""Bugs in AITER's Triton kernels of an indexer's logits."""

from attn_fuzz.findings.aiter.shared import has_3_queries, in_main
from attn_fuzz.findings.finding import failures_where

MQA_LOGITS = (
    in_main(
        name="aiter-mqa-logits-strided",
        what="On gfx942, float8_e4m3fn queries or index keys that are a part of longer rows are read at wrong places, and "
        "after the last one.",
        cause="aiter/ops/triton/attention/fp8_mqa_logits.py:131-132 and 157-165, fp8_mqa_logits: the strides are taken "
        "before Q and KV are converted to float8_e4m3fnuz, and what is converted is dense.",
        explains=lambda case, verdict: (
            (verdict.kind in ("value", "nan") or (verdict.kind == "sanitizer" and "memory of Q_ptr" in verdict.message))
            # keys are dense here
            and (case.fused_qkv and case.writes and case.num_rows > 1)
        ),
    ),
)
MQA_LOGITS_STAGE1 = (
    in_main(
        name="aiter-mqa-logits-stage1-stores",
        what="Where max_model_len is no multiple of 256, up to 255 columns past a row are written, if a context reaches "
        "its last 256: the beginning of the row that follows, or the memory after the last one.",
        cause="aiter/ops/triton/_triton_kernels/attention/pa_mqa_logits.py:304-311, _deepgemm_fp8_paged_mqa_logits_stage1: the "
        "store of a chunk of 256 columns has no mask. max_model_len is given, and not used.",
        explains=failures_where(("guard", "sanitizer"), lambda case: case.slack > 0),
    ),
)
MQA_LOGITS_RAGGED = (
    in_main(
        name="aiter-mqa-logits-ragged-drafts",
        what="Query n of the N queries of a request sees the keys of query N - n: the first one sees a column after the last "
        "key, if the key's chunk of 64 columns has one, and from three queries on the last one does not see its own key.",
        cause="aiter/ops/triton/_triton_kernels/attention/pa_mqa_logits.py:191, _deepgemm_fp8_paged_mqa_logits_ragged_k: of L "
        "keys, query n sees i <= L - n. It should be i <= L - N + n, as in the kernels beside it (:300 and :455). "
        "_deepgemm_fp8_paged_mqa_logits_stage1_ragged_k has the same line (:96).",
        explains=failures_where(("value", "nan"), has_3_queries),
    ),
)
