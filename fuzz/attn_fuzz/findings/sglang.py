"""Bugs that the fuzzer has found in SGLang's Triton attention."""

from typing import TYPE_CHECKING

from attn_fuzz.findings.finding import Finding

if TYPE_CHECKING:
    from attn_fuzz.cases.case import Case

SEEN_IN = "sglang 0.5.23"


def _is_decode(case: "Case") -> bool:
    return all(request.query_len == 1 for request in case.requests)


TRITON = (
    Finding(
        name="sglang-decode-window",
        what="A decode of a layer with a window of W tokens sees W - 1 keys. An extend sees W.",
        cause="sglang/srt/layers/attention/triton_backend.py:2869-2872, update_sliding_window_buffer: a decode gets the "
        "last `sliding_window_size` keys, its own included. This number is W - 1 (models/gemma2.py:53, "
        "models/gpt_oss.py:132). flashinfer_backend.py:1688 takes `sliding_window_size + 1`, and so does the mask of "
        "extend_attention.py:566-568.",
        seen_in=SEEN_IN,
        reach="the triton backend with Gemma 2, Gemma 3 and gpt-oss, in each decode of more tokens than the window.",
        link="sgl-project/sglang#32087 and #34354, both closed",
        explains=lambda case, verdict: (
            verdict.kind in ("value", "bitwise", "exact")
            and _is_decode(case)
            and any(0 <= case.window[0] < request.seq_len for request in case.requests)
        ),
    ),
)

MERGE = (
    Finding(
        name="sglang-merge-of-empty-parts",
        what="Two parts without a key, as context parallelism may leave them to a rank, merge to NaN. They should merge to "
        "0, with an LSE of -inf.",
        cause="sglang/kernels/ops/attention/merge_state.py:30-32, merge_state_kernel: -inf - (-inf) is NaN. vLLM's copy of "
        "the kernel guards this case (triton_merge_attn_states.py:178 and :209).",
        seen_in=SEEN_IN,
        reach="merges of context parallelism, if a rank has no key of a request.",
        explains=lambda case, verdict: verdict.kind in ("nan", "lse"),
    ),
)
