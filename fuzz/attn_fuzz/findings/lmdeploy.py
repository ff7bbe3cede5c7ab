"""Bugs that the fuzzer has found in LMDeploy's Triton attention."""

import functools
from typing import TYPE_CHECKING

from attn_fuzz.findings.finding import NUMBERS, Finding, failures_where, has_hidden_keys

if TYPE_CHECKING:
    from attn_fuzz.cases.case import Case
    from attn_fuzz.verdict.verdict import Verdict

_in_release = functools.partial(Finding, seen_in="lmdeploy 0.18.0")
BACKEND, KERNELS = "lmdeploy/pytorch/backends/cuda/attention", "lmdeploy/pytorch/kernels/cuda"


def _decodes_a_quantized_block(case: "Case", verdict: "Verdict") -> bool:
    queries = max((request.query_len for request in case.requests), default=0)
    if verdict.kind == "sanitizer":  # a second tile of 16 heads and queries is taken for a KV head
        return case.is_quantized and queries > 1 and queries * case.group_size > 16
    return case.is_quantized and queries > 1 and verdict.kind in ("value", "nan")


WINDOW = _in_release(
    name="lmdeploy-window-one-key-more",
    what="A layer with a window of W tokens sees W + 1 keys, in prefills and in decodes.",
    cause=f"{BACKEND}/__init__.py:83, _normalize_sliding_window: the kernels take the number of keys before the query's own, "
    "which is W - 1, and get the model's W (models/gpt_oss.py:56, models/mistral.py:58). Through the same function it "
    "reaches FlashAttention 3 (fa3.py:402 and 568). The kernels take 0, which a window of 1 token needs, for no window.",
    explains=failures_where(("value", "bitwise", "exact"), has_hidden_keys),
)
ALIBI = _in_release(
    name="lmdeploy-alibi-behind-maximum",
    what="A prefill with ALiBi subtracts the largest logit before it adds the biases. Where a far key has this logit, weights "
    "of near keys are too small for float16: the row is imprecise, or 0. A decode is right.",
    cause=f"{KERNELS}/flashattention.py:90-118, _prefill_fwd_inner: the maximum is taken and subtracted before the bias is "
    "added. pagedattention.py:188-195 does it after.",
    explains=failures_where(NUMBERS, lambda case: case.alibi_slopes and case.dtype == "float16"),
)
DECODE = (WINDOW,)
PREFILL = (WINDOW, ALIBI)
BLOCK_DECODE = (
    _in_release(
        name="lmdeploy-block-decode-quantized",
        what="A decode of several tokens of each request, as block diffusion models make it, is wrong if the cache is "
        "quantized. Of R requests, row r of the step attends to the keys of request r, and the rows from R on are what the "
        "memory held. Where its "
        "heads of a KV head times its tokens are more than a tile (64, with blocks of 64 slots), keys after the last KV head "
        "are read, too.",
        cause=f"{KERNELS}/pagedattention.py:325-364, _fwd_grouped_split_quant_kernel: it has no seq_len, and takes the index "
        "of the request for that of the row. Its sibling for other caches has it (82-92).",
        explains=_decodes_a_quantized_block,
    ),
)
