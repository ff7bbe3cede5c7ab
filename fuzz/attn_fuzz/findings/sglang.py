"""Bugs that the fuzzer has found in SGLang's Triton attention."""

import dataclasses
import functools
import math
from typing import TYPE_CHECKING

from attn_fuzz.findings import vllm
from attn_fuzz.findings.finding import Finding, failures_where

if TYPE_CHECKING:
    import torch
    from attn_fuzz.cases.case import Case
    from attn_fuzz.verdict.verdict import Verdict

_in_release = functools.partial(Finding, seen_in="sglang 0.5.23")


VERIFY_SPLITS, VERIFY_TILE = 4, 32
"""Into how many parts verify_splitkv_fwd splits prefixes of fewer than 4096 tokens, and the keys by whose multiples it does."""


def _is_decode(case: "Case") -> bool:
    return all(request.query_len == 1 for request in case.requests)


def _leaves_parts(prefix: int) -> bool:
    """True if a prefix has too few keys for all parts of verify_splitkv_fwd."""
    per_part = math.ceil(math.ceil(prefix / VERIFY_SPLITS) / VERIFY_TILE) * VERIFY_TILE
    return prefix <= (VERIFY_SPLITS - 1) * per_part


def _has_rounded_products(case: "Case", verdict: "Verdict") -> bool:
    """True if the worst number of each request is that of exact sums of products which are rounded to 16 bits."""
    if verdict.kind not in ("value", "bitwise") or not _is_decode(case) or case.group_size > 1:
        return False
    outs = _of_rounded_products(case)
    return all(abs(each.got - float(outs[each.row, each.head, each.dim])) <= each.bound for each in verdict.differences)


def _of_rounded_products(case: "Case") -> "torch.Tensor":
    """[T, H, D] float64, right outputs of a decode but for its products: 1 times a rounded product of q and k is summed."""
    import attn_reference
    import torch
    from attn_fuzz.cases.tensors import build
    from attn_fuzz.verdict.oracle import requests

    step = build(case)
    for write in step.writes:
        assert step.raw is not None
        attn_reference.write_kv_cache(write.k, write.v, write.view.tensor(step.raw), write.layer, write.slot_mapping)
    outs = torch.zeros(case.num_rows, case.num_heads, case.head_size, dtype=torch.float64)
    for each in requests(step):
        products = (each.query * each.key).to(step.q.dtype).double()
        of_products = dataclasses.replace(each, query=torch.ones_like(each.query), key=products)
        outs[each.rows] = attn_reference.attend(of_products, step.layer).out
    return outs


DECODE = (
    _in_release(
        name="sglang-decode-rounded-products",
        what="In a decode of a model with one query head for each KV head, each product of an element of q and one of k is "
        "rounded to 16 bits before the products are summed. A logit is off by up to 2^-8 (bfloat16) or 2^-11 (float16) of the "
        "sum of the products' magnitudes. Decodes of grouped heads, and extends, sum exact products.",
        cause="sglang/kernels/ops/attention/decode_attention.py:352, _fwd_kernel_stage1: `(q[None, :] * k).to(tl.float32)` "
        "multiplies in 16 bits. The comment above says that it is so on purpose, to save a tile of float32.",
        explains=_has_rounded_products,
    ),
)
TRITON = (
    _in_release(
        name="sglang-decode-window",
        what="A decode of a layer with a window of W tokens sees W - 1 keys, of models that hand W - 1 to the layer, as "
        "Gemma 2 and gpt-oss do. An extend sees W.",
        cause="sglang/srt/layers/attention/triton_backend.py:573-583 and 921-931 ask update_sliding_window_buffer for the last "
        "`sliding_window_size` keys of a decode, its own included. This number is W - 1 (models/gemma2.py:53, "
        "models/gpt_oss.py:132). flashinfer_backend.py:1688 takes `sliding_window_size + 1`, and so does the mask of "
        "extend_attention.py:566-568. Extends ask for keys before their own, of which W - 1 is right.",
        link="sgl-project/sglang#32087 and #34354, both closed",
        explains=failures_where(
            vllm.VALUES, _is_decode, lambda case: any(0 <= case.window[0] < request.seq_len for request in case.requests)
        ),
    ),
    *DECODE,
)
VERIFY = (
    _in_release(
        name="sglang-verify-unwritten-parts",
        what="A prefix of too few keys for all parts into which verify_splitkv_fwd splits it, as each of up to 96 tokens "
        "is, gives NaN if the memory of the parts holds NaN or infinity. The memory is new at first and then kept, so what "
        "one request left there reaches later requests, in all layers of a shape, until a longer prefix overwrites it.",
        cause="sglang/kernels/ops/attention/verify_splitkv.py: _verify_prefix_stage1 writes -inf as the LSE of a part without "
        "keys and leaves its output unwritten; _verify_combine_stage2 loads the output and multiplies it by a weight of 0, "
        "and 0 * NaN is NaN. VerifySplitKV._alloc takes the memory from torch.empty and _VK_CACHE keeps it.",
        explains=failures_where(("nan",), lambda case: any(_leaves_parts(request.context_len) for request in case.requests)),
    ),
)

MERGE = (
    _in_release(
        name="sglang-merge-of-empty-parts",
        what="Two parts without a key, as context parallelism may leave them to a rank, merge to NaN. They should merge to "
        "0, with an LSE of -inf.",
        cause="sglang/kernels/ops/attention/merge_state.py:30-32, merge_state_kernel: -inf - (-inf) is NaN. vLLM's copy of "
        "the kernel guards this case (triton_merge_attn_states.py:178 and :209).",
        explains=lambda case, verdict: (
            verdict.kind in ("nan", "lse")
            and bool(verdict.differences)
            and all(math.isnan(difference.got) for difference in verdict.differences)
        ),
    ),
)

UNIFIED_KV = (
    _in_release(
        name="sglang-unified-kv-far-rows",
        what="In a pool of more than 2^31 elements, 4 GiB of a layer, keys in rows 2^22 to 3 * 2^22 - 1 are read 2^32 elements "
        "before their place: up to row 2^23 - 1 in front of the pool, and from there on in rows of other requests.",
        cause="sglang/kernels/ops/attention/dsv4/unified_kv_kernels/paged_decode.py:345 and 511, and paged_prefill.py:135: the "
        "int32 number of a row is multiplied by the 512 elements of a row in 32 bits.",
        explains=failures_where((*vllm.VALUES, "nan"), lambda case: case.target.endswith("@far")),
    ),
)
DCP_REDUCE_SCATTER = (
    _in_release(
        name="sglang-dcp-large-lse",
        what="The weights of ranks do not add up to 1 where LSEs are large: the merged output is multiplied by exp of the "
        "rounding of the merged LSE, which is up to 1.5e-5 for LSEs from 256 to 512. vLLM's kernel has it, too.",
        cause="sglang/kernels/ops/attention/dcp_kernels.py:297-309, _correct_attn_cp_out_kernel: a weight is exp(lse - merged "
        "lse), and the merged LSE was rounded to float32. _dcp_lse_combine_kernel divides by the sum of the weights.",
        explains=vllm.LARGE_LSE.explains,
    ),
)

HOST = (
    _in_release(
        name="sglang-aiter-decode-window",
        what="On AMD GPUs with the aiter backend and AITER's unified attention (a pool of windows, or "
        "SGLANG_USE_AITER_UNIFIED_ATTN=1), a layer with a window of W tokens sees W - 1 keys, of models that hand W - 1 to the "
        "layer, as Gemma 2 and gpt-oss do: in decodes, in extends, and in verifications with a topk of 1. With a cache of "
        "layout vectorized_5d, decodes and extends take other kernels, but for extends of drafts with a topk of 1.",
        cause="sglang/srt/layers/attention/aiter_backend.py:4793, 4150, 4302 and 1230 hand AITER's unified_attention "
        "`sliding_window_size - 1` keys before a query's own. The field is W - 1 already (models/gemma2.py:53, "
        "models/gpt_oss.py:132).",
        explains=lambda case, verdict: False,
    ),
)
"""Findings of host code, which no target runs."""
