"""Bugs that the fuzzer has found in vLLM's Triton kernels."""

import functools
import math
from typing import TYPE_CHECKING

import msgspec
from attn_fuzz.findings.finding import (
    NUMBERS,
    Finding,
    explanation,
    failures_where,
    has_idle_requests,
    has_queries_without_keys,
    has_several_queries,
    is_nan_before_windows,
    is_of_tf32,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from attn_fuzz.cases.case import Case, Request
    from attn_fuzz.verdict.judge import Difference
    from attn_fuzz.verdict.verdict import Verdict

_in_33, _since_29, _since_32 = (
    functools.partial(Finding, seen_in=f"vllm 0.33.0{others}") for others in ("", ", and 0.29.0", ", and 0.32.0")
)
UNIFIED = "vllm/v1/attention/ops/triton_unified_attention.py"
_INDEXER = "vllm/v1/attention/ops/rocm_aiter_mla_sparse.py"
OF_TWO_WIDTHS = "vllm/v1/attention/ops/triton_unified_attention_diffkv.py"


VALUES = ("value", "bitwise", "exact")


def _each(
    kinds: "Collection[str]", holds: "Callable[[Case, Request, Difference], bool]", *others: "Callable[[Case], object]"
) -> "Callable[[Case, Verdict], bool]":
    """A predicate as `of`, which also asks something of each wrong request and of its worst element."""
    explains = failures_where(kinds, *others)

    def explains_each(case: "Case", verdict: "Verdict") -> bool:
        found = [holds(case, case.requests[each.request], each) for each in verdict.differences]
        return explains(case, verdict) and bool(found) and all(found)

    return explains_each


def _is_denormal(case: "Case", request: "Request", worst: "Difference") -> bool:
    """True if an error may come from products of weights and scales below float16's normal numbers.

    Each is off by up to 2^-25. It is multiplied by a number of V, which is 448 at most, and divided by the sum of all weights,
    which is at least 1.
    """
    return abs(worst.got - worst.expected) <= worst.bound + request.seq_len * 448 * 2.0**-25


def _is_scaled(case: "Case", request: "Request", worst: "Difference") -> bool:
    """True if an error may be that of a row which is multiplied by exp of the rounding of an LSE of up to 2^14."""
    return abs(worst.got - worst.expected) <= worst.bound + 2.0**-10 * abs(worst.expected)


def _leaves_out_blocks(case: "Case", request: "Request", worst: "Difference") -> bool:
    """True if a query's bidirectional range goes on into blocks ahead of it, or begins in blocks before its window."""
    size, width = case.cache.block_size if case.cache else 1, case.window[0]
    for first, last in request.bidirectional_ranges or ():
        query = max(first, request.context_len)
        is_ahead = request.causal and last // size > query // size
        is_before = width >= 0 and max(0, last - width) // size > first // size
        if query <= last and (is_ahead or is_before):
            return True
    return False


def _sees_a_range_beyond_its_window(case: "Case", request: "Request", worst: "Difference") -> bool:
    """True if the wrong query is in a bidirectional range that begins before the query's window."""
    position = request.context_len + worst.row - case.query_start_loc[worst.request]
    begin = position - case.window[0]
    return case.window[0] >= 0 and any(first < begin <= position <= last for first, last in request.bidirectional_ranges)


def _splits_two_widths(case: "Case") -> bool:
    """True if unified_attention_diffkv splits keys. Without a window it splits those of requests of up to 16 queries."""
    return case.max_query_len <= 1 or (case.max_query_len <= 16 and case.window[0] < 0)


def _sees_ahead(case: "Case") -> bool:
    """True if a window reaches ahead of a query that shares its tile with an earlier one."""
    return case.window[0] >= 0 and any(request.query_len > 1 and not request.causal for request in case.requests)


def _has_a_tile_past_its_blocks(case: "Case") -> bool:
    """True if the last tile of 32 keys of a request with one query ends past its last block."""
    if case.cache is None:
        return False
    keys = [request.seq_len for request in case.requests if request.query_len == 1]
    return any(-n % 32 > -n % case.cache.block_size for n in keys)


def _has_a_hidden_tile(case: "Case", request: "Request", worst: "Difference") -> bool:
    """True if a tile of 32 keys may be hidden from the wrong query, and not from the first query of its tile of queries.

    A tile of queries has up to 64 of them. Its keys begin where its first query sees its first one, rounded down to a tile.
    """
    query, left = worst.row - case.query_start_loc[worst.request], case.window[0]
    begin = max(0, request.context_len + max(0, query - 63) - left)
    return left >= 0 and begin // 32 * 32 + 32 <= request.context_len + query - left


def _has_blocks(case: "Case") -> bool:
    """True if blocks of the cache have several slots."""
    return case.cache is not None and case.cache.block_size > 1


def _has_ranges(case: "Case", request: "Request", worst: "Difference") -> bool:
    return bool(request.bidirectional_ranges)


def _scales_tokens(case: "Case") -> bool:
    return case.cache is not None and case.cache.scales_tokens


def _is_of_bfloat16(case: "Case", verdict: "Verdict") -> bool:
    """True if index logits are as wrong as each head's product may be that was rounded to bfloat16, by 2^-9 of itself.

    A bound of `attn_fuzz.verdict.indexer` is n 2^-23 of the sum of the products' magnitudes, and n is D + Hs + 4.
    """
    roundings = case.head_size + case.num_kv_heads * case.group_size + 4
    return verdict.kind == "value" and verdict.ratio <= 2.0**14 / roundings + 1


def _float32_as_tf32(others: tuple[Finding, ...]) -> Finding:
    """The finding, in a target that has others: nearly all cases of float32 have this one, and some requests another one."""

    def explains(case: "Case", verdict: "Verdict") -> bool:
        rest = tuple(each for each in verdict.differences if not is_of_tf32(each))
        if verdict.kind != "value" or case.dtype != "float32" or len(rest) == len(verdict.differences):
            return False
        kind = "nan" if all(math.isnan(each.got) for each in rest) else "value"
        beside = msgspec.structs.replace(verdict, kind=kind, differences=rest)
        return not rest or explanation(others, case, beside) is not None

    return _in_33(
        name="vllm-float32-as-tf32",
        what="On NVIDIA GPUs that have TF32 (sm80 and later), attention in float32 multiplies in TF32: of both operands of a "
        "dot 10 bits after the leading one are left. A logit is off by up to 2^-9 of the sum of its products' magnitudes, and "
        "an output by up to 2^-9 of the values that it is a mean of, beside what the logits move.",
        cause=f"{UNIFIED}:547-549, 589 and 599, kernel_unified_attention, and triton_prefill_attention.py:178 and 199, "
        '_fwd_kernel: tl.dot has no input_precision, and Triton then takes "tf32". VLLM_FLOAT32_MATMUL_PRECISION, which is '
        '"highest" by default, does not reach the kernels.',
        needs_gpu=True,
        explains=explains,
    )


_UNIFIED_ATTENTION = (
    _since_29(
        name="vllm-window-ahead",
        what="In a step that is not causal, with a window to each side, the values of the last keys that a query sees ahead "
        "count as 0, though their weights count: all queries of a tile but its first lose up to as many keys as they "
        "are after the first.",
        cause=f"{UNIFIED}:571-585, kernel_unified_attention: V is masked by `dist > -SLIDING_WINDOW`, the distance from the "
        "first query of the tile. A later query of the tile sees keys that are farther ahead of the first.",
        explains=failures_where(VALUES, _sees_ahead),
    ),
    _since_29(
        name="vllm-range-beyond-window",
        what="In a layer with a window, a query sees all keys of its bidirectional range, also keys before its window. The "
        "values of keys before the window of the first query of a tile count as 0, though their weights count.",
        cause=f"{UNIFIED}:571-585, kernel_unified_attention: V is masked by `dist < SLIDING_WINDOW`, which holds for the "
        "window alone and not for ranges (mm_prefix_range) that win over it.",
        explains=_each(VALUES, _sees_a_range_beyond_its_window, lambda case: not case.ranges_clamped),
    ),
    _since_29(
        name="vllm-scales-outside-window",
        what="In a layer with a window and a cache that has a scale for each token and head, a scale of V of NaN or "
        "infinity in a slot before the window, in the tile in which the window begins, makes the output NaN.",
        cause=f"{UNIFIED}:586-589, kernel_unified_attention: the weights are multiplied by the scales of all keys of a tile, "
        "and 0 * NaN is NaN. V alone is masked by the window (571-585).",
        explains=lambda case, verdict: is_nan_before_windows(case, verdict) and _scales_tokens(case),
    ),
    _since_29(
        name="vllm-narrow-scaled-weights",
        what="In float16 with a cache that has a scale for each token and head, weights lose digits where the scale of V is "
        "small: the product of a weight and a scale is rounded to float16, whose numbers below 6e-5 are denormal.",
        cause=f"{UNIFIED}:588, kernel_unified_attention: the weights times the scales are rounded to the dtype of V, as small "
        "as the scales are. A factor for each tile would keep them normal.",
        explains=_each(NUMBERS, _is_denormal, _scales_tokens, lambda case: case.dtype == "float16"),
    ),
    _in_33(
        name="vllm-split-without-keys",
        what="Where keys are split (the 3D kernel), a request with query tokens and no keys, as cross-attention may have, "
        "leaves its rows of the output unwritten. Where they are not split, the rows are 0.",
        cause=f"{UNIFIED}:736-737, reduce_segments: it returns where seq_len is 0, before anything is written.",
        explains=failures_where(("unwritten", "nan"), has_queries_without_keys),
    ),
)
UNIFIED_ATTENTION = (*_UNIFIED_ATTENTION, _float32_as_tf32(_UNIFIED_ATTENTION))

DIFFKV = (
    _in_33(
        name="vllm-diffkv-writes-unowned-rows",
        what="Where keys are split (the 3D kernel of layers with K and V of two widths), rows of the output that no request "
        "owns are written, as padding for a graph has them.",
        cause=f"{OF_TWO_WIDTHS}:354-360 and :401-406, kernel_reduce_segments_diffkv: one program for each row of q, and none "
        "asks whether a request owns it. reduce_segments of triton_unified_attention.py:726-728 does.",
        link="vllm-project/vllm#58141 (a reducer that skips such rows)",
        explains=failures_where(("guard", "sanitizer"), _splits_two_widths, lambda case: case.unowned_rows > 0),
    ),
)

_EMPTY_REQUEST = _since_29(
    name="vllm-rocm-empty-request",
    what="A request without a query, as padding for graphs has them, writes a row of the output: the next request's first "
    "row, or the memory after the last row.",
    cause="vllm/v1/attention/ops/chunked_prefill_paged_decode.py, kernel_paged_attention_2d: with filter_by_query_len it "
    "returns for more than one query, and not for none.",
    explains=failures_where((*VALUES, "nan", "guard", "crashed", "sanitizer"), has_idle_requests),
)
ROCM_ATTN = (
    _since_29(
        name="vllm-rocm-soft-cap",
        what="ROCM_ATTN ignores the soft cap of logits, and says nothing. Gemma 2 has one (models/gemma2.py:165).",
        cause="vllm/v1/attention/backends/rocm_attn.py:288-291 and :444-468, RocmAttentionImpl: the soft cap is kept and "
        "not handed to chunked_prefill_paged_decode, which has no argument for it. platforms/rocm.py:557 offers "
        "ROCM_ATTN to such layers.",
        explains=failures_where(VALUES, lambda case: case.logits_soft_cap is not None),
    ),
    _since_29(
        name="vllm-rocm-window-ahead",
        what="In a step that is not causal, a window has no right edge: a query sees all keys ahead. TRITON_ATTN and "
        "FLASH_ATTN (flash_attn.py:586-597) take the window to both sides.",
        cause="vllm/v1/attention/ops/prefix_prefill.py: _fwd_kernel: SLIDING_WINDOW bounds `query - key` alone, also where "
        "CAUSAL is false.",
        explains=failures_where(VALUES, _sees_ahead),
    ),
    _since_29(
        name="vllm-rocm-outside-window",
        what="NaN in a slot before the window of all queries makes the output NaN.",
        cause="vllm/v1/attention/ops/prefix_prefill.py, _fwd_kernel, and chunked_prefill_paged_decode.py, "
        "kernel_paged_attention_2d: V is not masked by the window: a hidden key's weight is 0, at once or after a rescaling, "
        "and 0 * NaN is NaN.",
        link="vllm-project/vllm#53323, and the pull requests #53628 and #49588",
        explains=is_nan_before_windows,
    ),
    Finding(
        name="vllm-rocm-table-past-end",
        what="In a decode with a block size that is neither a power of two nor a multiple of 32, such as 80 or 784, an entry "
        "after a request's last block may be loaded, also where the table has none.",
        cause="vllm/v1/attention/ops/chunked_prefill_paged_decode.py:162, kernel_paged_attention_2d: a tile of 32 keys can end "
        "after such a block, and the load of its entries has no mask.",
        seen_in="vllm 0.33.0",
        explains=failures_where(("sanitizer", "crashed"), _has_a_tile_past_its_blocks),
    ),
    _EMPTY_REQUEST,
)
ROCM_ALIBI = (_EMPTY_REQUEST,)
SEGMENTED = (
    _since_32(
        name="vllm-segmented-hidden-tile",
        what="In a layer with a window, a query takes 0 for the largest of its logits if the first tile of keys of its tile of "
        "queries is hidden from it. If all its logits are far below 0, its weights are too small for numbers of 16 bits, and "
        "its output is rounded, or 0.",
        cause="vllm/v1/attention/ops/segmented_attention.py:228-230 and 280, _segmented_attention_stage: a maximum of -inf is "
        "replaced by 0 for the exponents of its tile, and kept as 0 for the tiles that follow.",
        explains=_each(VALUES, _has_a_hidden_tile),
    ),
    _since_32(
        name="vllm-segmented-window-ahead",
        what="In a step that is not causal, a window has no right edge: a query sees all keys ahead. unified_attention, to "
        "which the same backend hands longer queries and soft caps, takes the window to both sides, as FLASH_ATTN does "
        "(flash_attn.py:586-597).",
        cause="vllm/v1/attention/ops/segmented_attention.py:222-225, _segmented_attention_stage: WINDOW bounds a key from "
        "below alone, also where CAUSAL is false.",
        explains=failures_where(VALUES, _sees_ahead),
    ),
    _since_32(
        name="vllm-segmented-outside-window",
        what="NaN in a slot of the first tile of keys, before the window of all queries, makes the output NaN.",
        cause="vllm/v1/attention/ops/segmented_attention.py:233-282, _segmented_attention_stage: the first tile of keys begins "
        "at a multiple of its size before the window, V is not masked there, its weight is 0, and 0 * NaN is NaN.",
        explains=is_nan_before_windows,
    ),
)
ENCODER = (
    _since_29(
        name="vllm-encoder-narrow-sinks",
        what="Sinks of 16 bits are multiplied by log2(e) in 16 bits: in bfloat16 a sink of about 10 is off by up to "
        "0.037, and all weights of its head by up to 3.8 %.",
        cause="vllm/v1/attention/ops/triton_prefill_attention.py:110, _fwd_kernel: the constant and the product have the "
        "dtype of Sinks. init_softmax_M of unified attention makes it float32 first.",
        explains=failures_where(VALUES, lambda case: case.sinks is not None and case.narrow_sinks and case.dtype != "float32"),
    ),
    _float32_as_tf32(()),
)
LARGE_LSE = _in_33(
    name="vllm-dcp-large-lse",
    what="The weights of ranks do not add up to 1 where LSEs are large: the merged output is multiplied by exp of the rounding "
    "of the merged LSE, which is up to 1.5e-5 for LSEs from 256 to 512, and up to 6e-5 from 1024 to 2048.",
    cause="vllm/v1/attention/ops/dcp.py:188 and :207-213, CorrectAttnCPOutKernel.kernel, and :802-831, "
    "_dcp_a2a_unpack_combine_kernel: a weight is exp(lse - merged lse), and the merged LSE was rounded to float32. "
    "_lse_weighted_combine (576-587), their reference, divides by the sum of the weights.",
    explains=_each(VALUES, _is_scaled, lambda case: case.dtype == "float32"),
)
DCP_REDUCE_SCATTER = (LARGE_LSE,)
TRITON_MLA = (
    _in_33(
        name="vllm-mla-narrow-lse",
        what="The LSE has the dtype of q. Decode context parallelism merges ranks by it: from an LSE of 32 to 64, bfloat16 "
        "rounds it by up to 0.125, and exp of it by up to 13 %; larger ones by more.",
        cause="vllm/v1/attention/backends/mla/triton_mla.py:265, TritonMLAImpl.forward_mqa: torch.zeros(..., dtype=q.dtype). "
        "The kernel computes the LSE in float32, and stores it there.",
        explains=failures_where(("lse",), lambda case: case.dtype != "float32"),
    ),
)
DCP_ALL_TO_ALL = (
    _in_33(
        name="vllm-dcp-pack-no-request",
        what="A rank that has no local sequence in a step, as while graphs are warmed up, reads in front of an empty tensor, "
        "which is an illegal access.",
        cause="vllm/v1/attention/ops/dcp.py:677-679, _dcp_a2a_pack_send_kernel: the index of a row's request is at most "
        "num_seqs - 1, which is -1, and seq_lens is read there. mask_dcp_empty_shards_ (:84-86) returns before that.",
        explains=failures_where(("crashed",), lambda case: not case.requests),
    ),
    LARGE_LSE,
)
FLEX = (
    _in_33(
        name="vllm-flex-range-ahead",
        what="In a causal step, a query does not see the keys of its bidirectional range that lie in later blocks than the "
        "queries of its group of 16. In a layer with a window, it does not see those of blocks before the window either. No "
        "model is known to show this half: compute_mm_prefix_ranges drops ranges longer than the window, except of models that "
        "clamp them to it (Gemma 4), which should not see keys before it.",
        cause="vllm/v1/attention/backends/flex_attention.py:739-751, _build_block_mask_direct: blocks ahead of a query, and "
        "blocks before its window, are taken out of the block mask, also where get_mask_mod (628-631) adds ranges to what is "
        "visible. The compiled kernel visits the blocks of the mask alone.",
        explains=_each(VALUES, _leaves_out_blocks),
    ),
    _in_33(
        name="vllm-flex-range-clamped",
        what="In a layer whose ranges end at the window, as Gemma 4 has them, a query also sees keys of its bidirectional "
        "range that lie before its window: those of the blocks that its mask keeps.",
        cause="vllm/v1/attention/backends/flex_attention.py:628-631, get_mask_mod adds ranges to what the window shows, and "
        "nothing in the file reads the layer's mm_prefix_clamp_sliding_window, as triton_attn.py:731 does.",
        explains=lambda case, verdict: (
            (verdict.kind != "nan" or case.recycled)  # NaN lies in keys that no query should see
            and _each((*VALUES, "nan"), _has_ranges, lambda case: case.ranges_clamped)(case, verdict)
        ),
    ),
)
SPARSE_MLA = (
    _in_33(
        name="vllm-sparse-decode-dims",
        what="The decode in parts over chosen rows, whose number of dims is no power of two, raises.",
        cause="vllm/v1/attention/ops/rocm_aiter_mla_sparse.py:3407, _sparse_attn_decode_reduce_kernel: tl.arange(0, COMB_DIM), "
        "where COMB_DIM is the width of a row, 576 of a model with a rotation (3938).",
        meets=lambda config: config.has_latent_cache and config.head_size.bit_count() > 1,
        explains=failures_where(("raised",), lambda case: case.head_size.bit_count() > 1),
    ),
)
_ROWS_OF_DRAFTS = _in_33(
    name="vllm-index-decode-drafts",
    what="Where requests have several queries, as when drafts are verified, index keys are read in blocks of several slots as "
    "rows of D numbers and a scale. All writers put the scales of a block after its numbers. With one query it is read so.",
    cause=f"{_INDEXER}:489-490, fp8_paged_mqa_logits_torch: kv_cache[..., :dim] and kv_cache[..., dim:].",
    explains=failures_where(("value", "nan"), _has_blocks, has_several_queries),
)
PAGED_MQA_LOGITS_TORCH = (_ROWS_OF_DRAFTS,)
INDEX_DECODE = (
    _in_33(
        name="vllm-index-decode-tiles",
        what="On ROCm with VLLM_ROCM_USE_AITER off, a decode of one query scores wrong numbers: index keys are written in "
        "tiles of 16 slots and 16 dims where blocks have 16 slots or more, and are read one slot after the other.",
        cause=f"{_INDEXER}:196, indexer_k_quant_and_cache_triton, writes tiles, and so does fused_norm_rope of "
        "DeepSeek-V3.2. rocm_fp8_paged_mqa_logits (:859-868) hands the cache to fp8_paged_mqa_logits_torch (:458-482), "
        "which knows none. Neither does AITER's deepgemm_fp8_paged_mqa_logits_stage1, which gets the cache on other GPUs "
        "with AITER (:840-858).",
        explains=failures_where(("value", "nan"), _has_blocks),
    ),
    _ROWS_OF_DRAFTS,
)
MQA_LOGITS_TORCH = (
    _in_33(
        name="vllm-mqa-logits-bfloat16",
        what="In prefills on ROCm without AITER, the product of a query and an index key is rounded to bfloat16 for each head "
        "before heads are summed: 257 is 256. AITER's kernels and vLLM's function for decodes keep float32.",
        cause=f"{_INDEXER}:899-900 and 917, fp8_mqa_logits_torch: q and k become bfloat16, which holds float8 exactly, and the "
        "result of torch.einsum has the dtype of its operands.",
        explains=_is_of_bfloat16,
    ),
)
