"""Bugs that the fuzzer has found in AITER's attention kernels: Triton, Gluon, HIP and assembly."""

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from attn_contract import AttentionConfig, AttentionType, Layout
from attn_fuzz.findings.finding import (
    NUMBERS,
    WRONG,
    Finding,
    has_hidden_keys,
    has_idle_requests,
    has_queries_without_keys,
    has_several_queries,
    is_nan,
    is_nan_before_windows,
    is_of_tf32,
    of,
)

if TYPE_CHECKING:
    from attn_fuzz.cases.case import Case
    from attn_fuzz.verdict.verdict import Verdict

KERNELS = "aiter/ops/triton/_triton_kernels/unified_attention.py"
SEEN_IN = "amd-aiter 0.1.7.post2.dev18"
_in_wheel = functools.partial(Finding, seen_in=SEEN_IN)
_in_main = functools.partial(Finding, seen_in="ROCm/aiter e4048607a5 (main)")
_in_both = functools.partial(Finding, seen_in=f"{SEEN_IN}, and main at e4048607")
FAR_LOGITS = ("extreme", "below")
"""Kinds of values that have logits beyond 100."""
MHA_TILE_ROWS = 128
"""Rows of q in one program of _attn_fwd."""
SPLIT_KEYS = 512
"""The kernel never splits the keys of a sequence that has at most this many."""


def _may_split(case: "Case") -> bool:
    """Whether a device with many compute units splits a case's keys into segments."""
    return case.window[0] < 0 and max((request.seq_len for request in case.requests), default=0) + case.slack > SPLIT_KEYS


def _hides_tiles(case: "Case") -> bool:
    """Whether a row may see no key of a tile that other rows of its tile of queries see, and still see keys of another tile."""
    is_windowed = case.window[0] >= 0 and case.sinks in (None, "off", "some")
    return (is_windowed or _may_split(case)) and any(request.query_len > 1 for request in case.requests)


def _has_3_queries(case: "Case") -> bool:
    return any(request.query_len > 2 for request in case.requests)


def _cache_dtype(case: "Case") -> str | None:
    return case.cache and case.cache.dtype


def _has_decodes(case: "Case") -> bool:
    return any(request.query_len == 1 for request in case.requests)


def _overflows(case: "Case", verdict: "Verdict") -> bool:
    """Whether an output is NaN where products of q and k may be beyond the range of float16."""
    return is_nan(case, verdict) and case.dtype == "float16" and case.values.kind in FAR_LOGITS


def _sees_no_tile(case: "Case") -> bool:
    """Whether _attn_fwd has a tile of queries that sees no tile of keys, in a causal call or in one before it.

    An earlier call with other contents has half of the keys, and none of a single key that has no query.
    """
    least = 1 if "contents" in case.earlier else 0
    return (bool(case.earlier) or any(request.causal for request in case.requests)) and any(
        request.seq_len == 0
        or request.query_len < request.seq_len <= least
        or request.query_len - request.seq_len >= MHA_TILE_ROWS
        for request in case.requests
    )


def _reads_unused_slots(case: "Case", verdict: "Verdict") -> bool:
    """Whether an output is NaN of a request whose last block is not full, or with NaN in keys that no query sees."""
    if not is_nan(case, verdict) or case.finite_slots or case.cache is None:
        return False
    requests = [case.requests[each.request] for each in verdict.differences]
    return any(case.recycled or request.seq_len % case.cache.block_size for request in requests)


def _is_of_decodes(case: "Case", verdict: "Verdict") -> bool:
    """Whether all requests that are wrong have one query."""
    lengths = [case.requests[each.request].query_len for each in verdict.differences]
    return bool(lengths) and all(length == 1 for length in lengths)


def _is_behind_an_empty_decode(case: "Case", verdict: "Verdict") -> bool:
    """Whether a request without a query, in a step of decodes, may have moved what is wrong."""
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


def _is_decoder(config: AttentionConfig) -> bool:
    return config.attn_type is AttentionType.DECODER


def _has_window(config: AttentionConfig) -> bool:
    return config.value_of("window")[0] >= 0


UNIFIED_ATTENTION = (
    _in_wheel(
        name="aiter-unused-slots",
        what="NaN in V of a slot that no query sees makes the output NaN: past the end of a sequence, where a tile is a block, "
        "or before the window, in a tile that holds a key of the window.",
        cause=f"{KERNELS}, kernel_unified_attention_2d and _3d: where a tile is a block, K and V are loaded without a mask, "
        "and nowhere is V masked by what a query sees; its weight is 0, and 0 * NaN is NaN.",
        meets=_is_decoder,
        explains=_reads_unused_slots,
    ),
    _in_wheel(
        name="aiter-rows-without-keys",
        what="In a request with more query tokens than keys, rows that see no key are NaN where the kernel visits a tile for "
        "their neighbours, without sinks, and where one program takes all keys. They should be 0.",
        cause=f"{KERNELS}, kernel_unified_attention_2d and _3d: a tile without a visible key leaves the denominator at 0, and "
        "the epilogue of the first divides by it.",
        meets=_is_decoder,
        explains=lambda case, verdict: is_nan(case, verdict) and any(0 < r.seq_len < r.query_len for r in case.requests),
    ),
    _in_wheel(
        name="aiter-hidden-tile",
        what="Where a row sees nothing of a tile, as a window makes them, and its logits are negative, its weights underflow: "
        "in float16 to 0 below about -17.3, and to a row of NaN below about -88. A finite sink prevents it. Where keys are "
        "split, and a row sees nothing of a part, it is 0 where float32 underflows, from about -87 on.",
        cause=f"{KERNELS}, kernel_unified_attention_2d and _3d: after a tile without a visible key the running maximum is 0 "
        "instead of minus infinity, and never falls below that.",
        meets=lambda config: _is_decoder(config) and not (_has_window(config) and config.asks("sinks")),
        explains=of(("nan", "value", "exact"), _hides_tiles),
    ),
    _in_wheel(
        name="aiter-soft-cap-overflow",
        what="A logit of more than about 88 times a soft cap of 1, or 85 times one of 50, makes the output NaN, and so does "
        "one below -88.7 times the cap. With a cap of 50, a key whose logit is below -85 times the cap loses its weight. "
        "A row that has no other key is NaN, or 0 where keys are split or it has a sink.",
        cause=f"{KERNELS}, apply_softcap: tanh by exp2(x) and exp2(-x), one of which overflows, or its product with the cap "
        "does. Infinity over itself is NaN, and so is infinity minus itself in the softmax.",
        link="vllm-project/vllm#56578 (the same lines in vLLM)",
        meets=lambda config: _is_decoder(config) and config.asks("logits_soft_cap"),
        explains=lambda case, verdict: is_nan(case, verdict) and case.logits_soft_cap is not None,
    ),
    _in_wheel(
        name="aiter-split-writes-unowned-rows",
        what="Where keys are split, rows of the output that no request owns are written, as padding for a graph has them.",
        cause=f"{KERNELS}, reduce_segments: one program for each row of q, and none asks whether a request owns it.",
        meets=lambda config: _is_decoder(config) and not _has_window(config),
        explains=of(("guard",), _may_split, lambda case: case.unowned_rows > 0),
    ),
    _in_wheel(
        name="aiter-split-without-keys",
        what="Where keys are split, a request with query tokens and no keys gets NaN (interpreted; on a GPU an integer "
        "division by 0 is undefined). It should get 0.",
        cause=f"{KERNELS}, reduce_segments: it divides by tiles_per_segment, which is 0, and all maxima of segments "
        "are -inf, whose difference is NaN.",
        meets=lambda config: _is_decoder(config) and not _has_window(config),
        explains=lambda case, verdict: is_nan(case, verdict) and _may_split(case) and has_queries_without_keys(case),
    ),
    Finding(
        name="aiter-decode-empty-request",
        what="With max_seqlen_q of 1, a request without a query, as padding for graphs has them, shifts the rows of all "
        "requests behind it, and one row behind the last is written.",
        cause="aiter/ops/triton/_triton_kernels/attention/unified_attention.py:114-118 and 526-530: with ALL_DECODE, program i "
        "takes row i for request i, whether or not each request has a query.",
        seen_in="amd-aiter's main at e4048607",
        meets=_is_decoder,
        explains=_is_behind_an_empty_decode,
        is_in_sources=_takes_programs_for_rows,
    ),
)

PREFILL = (
    _in_wheel(
        name="aiter-prefill-float32-as-tf32",
        what="Attention in float32 multiplies in TF32 on NVIDIA GPUs that have it (sm80 and later), and is compiled for XF32 "
        "on MI300X (gfx942): of both operands of a dot 10 bits behind the leading one are left.",
        cause="aiter/ops/triton/_triton_kernels/prefill_attention.py:124 and 163, _fwd_kernel: tl.dot has no input_precision, "
        'and Triton then takes "tf32" where the GPU has it.',
        needs_gpu=True,
        explains=lambda case, verdict: (
            verdict.kind == "value" and case.dtype == "float32" and all(is_of_tf32(each) for each in verdict.differences)
        ),
    ),
)
PAGED_DECODE = (
    _in_wheel(
        name="aiter-decode-one-head",
        what="A decode with one query head for each KV head does not compile (Triton 3.9, for gfx942 and sm90 alike).",
        cause="aiter/ops/triton/_triton_kernels/pa_decode.py, _paged_attn_decode_v1_wo_dot_kernel, its v2, and the two for "
        "scales of each token: `alpha[:, None]` of a scalar, which Triton 3.6 to 3.8 compile.",
        explains=of(("raised",), lambda case: case.group_size == 1),
    ),
)
EXTEND = (
    _in_both(
        name="aiter-fractional-soft-cap",
        what="A soft cap that is no whole number, such as 0.5, does not compile (Triton 3.6 to 3.9, for each GPU): neither in "
        "extend_attention nor in mla_decode_rope.",
        cause="aiter/ops/triton/utils/_triton/kernel_repr.py:11, _sanitize_constexpr_value: the dot of the number stands in "
        "the kernel's name, which is then no identifier.",
        explains=of(("raised",), lambda case: (case.logits_soft_cap or 0.0) % 1.0 != 0.0),
    ),
)
PAGED_PREFILL = (
    _in_wheel(
        name="aiter-prefill-outside-window",
        what="NaN in a slot before the window of all queries makes the output NaN.",
        cause="aiter/ops/triton/_triton_kernels/pa_prefill.py, _fwd_kernel: V is not masked by the window: a hidden key's "
        "weight ends as 0, and 0 * NaN is NaN.",
        explains=is_nan_before_windows,
    ),
)


CHUNKED_PREFILL = (
    _in_wheel(
        name="aiter-chunked-outside-window",
        what="NaN in a slot before the window of a decode makes its output NaN.",
        cause="aiter/ops/triton/_triton_kernels/chunked_pa_prefill.py:131-173, _kernel_paged_attention_2d: V is not masked by "
        "the window: a hidden key's weight ends as 0, and 0 * NaN is NaN. A mask of pa_prefill's V does not reach decodes.",
        explains=lambda case, verdict: is_nan_before_windows(case, verdict) and _is_of_decodes(case, verdict),
    ),
    *PAGED_PREFILL,
    _in_wheel(
        name="aiter-chunked-unused-slots",
        what="NaN in a slot of the last block of a decode, past the end of its sequence, makes its output NaN.",
        cause="aiter/ops/triton/_triton_kernels/chunked_pa_prefill.py:123-147, _kernel_paged_attention_2d: K and V of the "
        "last block are loaded without a mask by the length of the sequence; a score of -inf plus NaN is NaN, and so is a "
        "weight of 0 times NaN. vLLM's kernel_paged_attention_2d masks both.",
        explains=lambda case, verdict: is_nan(case, verdict) and not case.finite_slots and _has_decodes(case),
    ),
    _in_wheel(
        name="aiter-chunked-empty-request",
        what="A request without a query, as padding for graphs has them, writes a row of the output: the next request's first "
        "row, or the memory behind the last row.",
        cause="aiter/ops/triton/_triton_kernels/chunked_pa_prefill.py:63-68, _kernel_paged_attention_2d: with "
        "filter_by_query_len it returns for more than one query, and not for none.",
        explains=of((*WRONG, "guard", "crashed", "sanitizer"), has_idle_requests),
    ),
    _in_wheel(
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
_PA = "aiter_meta/csrc/cpp_itfs/pa"
_UNUSED_SLOTS = _in_wheel(
    name="aiter-hip-unused-slots",
    what="NaN in a slot of V past the end of a sequence or before its window makes the output NaN.",
    cause=f"{_PA}/pa_kernels.cuh:313 and pa.cuh:331-360: V of the last block is loaded whole, and nowhere masked; its weight "
    "is 0, and 0 * NaN is NaN.",
    explains=_reads_unused_slots,
)
_LARGE_GROUPS = _in_wheel(
    name="aiter-hip-large-groups",
    what="With more than 16 query heads for each KV head, heads of the second KV head and of later ones are computed at the "
    "place of other heads, and where the group is no multiple of its parts of at most 16 heads, its last heads are nowhere.",
    cause=f"{_PA}/pa_kernels.cuh:62 and 94, pa.cuh:115 and 149: a group has DIVIDE_ROUND_UP(GQA_RATIO, 16) parts of "
    "GQA_RATIO / parts heads each, and the first head of a KV head is its number times the size of a part, not of the group.",
    explains=of(
        (*WRONG, "unwritten", "sanitizer"),
        lambda case: case.group_size > 16 and (case.num_kv_heads > 1 or case.group_size % -(-case.group_size // 16) > 0),
    ),
)
_MAXIMUM_FROM_ZERO = _in_wheel(
    name="aiter-hip-maximum-from-zero",
    what="With more than 16 query heads for each KV head, heads behind the first part of a group take 0 as a logit of each "
    "partition's maximum. Where all logits are negative, their weights lose to the 1e-6 in the divisors, and vanish.",
    cause=f"{_PA}/pa_kernels.cuh:487 and 556, pa.cuh:509 and 589: the initializers of qk_max and partition_qk_max set the "
    "first element to -FLT_MAX, and C++ sets the others to 0.",
    explains=of(NUMBERS, lambda case: case.group_size > 16),
)


def _has_unread_dims(case: "Case") -> bool:
    """Whether dims are left over: V's are in steps of 64; those of the scores in ceil(D / 128) parts, in steps of 32, or 64."""
    part = -(-case.head_size // -(-case.head_size // 128))
    return case.head_size % 64 > 0 or part % (64 if case.is_quantized else 32) > 0


_HEAD_SIZES = _in_wheel(
    name="aiter-hip-head-sizes",
    what="Heads whose size is no multiple of 64: dims behind the last multiple are never computed, and the scores lack those "
    "behind the last multiple of 32, or of 64 beside a float8 cache. There the scores of heads of 192 lack dims 64 to 95 and "
    "160 to 191.",
    cause=f"{_PA}/pa_kernels.cuh:79 and 269, pa.cuh:132 and 303: QKHELOOP and VHELOOP are quotients that are rounded down. "
    "QKHELOOP is of a part of at most 128 dims: two of 96 (pa.cuh:76-77), of which a step of float8 takes 64. "
    "aiter/paged_attn.py:171-172 names 80, 96, 112, 120 and 192 as supported.",
    explains=of(WRONG, _has_unread_dims),
)
_TOO_MUCH_LDS = _in_wheel(
    name="aiter-hip-lds-of-groups",
    what="With more than 48 query heads for each KV head and heads of more than 128, the kernel does not compile for gfx942: "
    "it takes 72 KiB of LDS or more, of which there are 64.",
    cause=f"{_PA}/pa_kernels.cuh:67, pa.cuh:120: shared_logits has 8 KiB for each 16 heads of a group and each 128 dims.",
    explains=of(("raised",), lambda case: case.group_size > 48 and case.head_size > 128),
)
HIP_PA_RAGGED = (_LARGE_GROUPS, _MAXIMUM_FROM_ZERO, _HEAD_SIZES, _TOO_MUCH_LDS)
HIP_PA = (_LARGE_GROUPS, _MAXIMUM_FROM_ZERO, _HEAD_SIZES, _UNUSED_SLOTS, _TOO_MUCH_LDS)


def _has_short_tail(case: "Case", verdict: "Verdict") -> bool:
    """Whether all requests that are wrong have 241 to 255 keys: 16 blocks of 16 slots, of which the last is not full."""
    wrong = [case.requests[each.request] for each in verdict.differences]
    return verdict.kind in WRONG and bool(wrong) and all(240 < each.seq_len < 256 for each in wrong)


PA_ASSEMBLY = (
    _in_both(
        name="aiter-pa-assembly-short-tail",
        what="A request of 241 to 255 keys attends the slots behind its last key, too, with about half the weight of a key "
        "whose logit is the same. The output is NaN if V is NaN there.",
        cause="hsa/gfx942/pa and hsa/gfx950/pa, all files of blocks of 16 without mtp: `s_cmp_lt_u32 s73, 16` enters the loop "
        "over whole tiles of 256 keys if there are 16 blocks, and should if there are 256 keys. Hardware shows NaN at the same "
        "lengths.",
        link="ROCm/aiter#5654, which repairs one file",
        meets=_is_decoder,
        explains=_has_short_tail,
    ),
    _in_both(
        name="aiter-pa-assembly-unused-slots",
        what="NaN in a slot of V past the end of a sequence, or in block 0 of the cache, makes the output NaN.",
        cause="hsa/gfx942/pa and hsa/gfx950/pa: V of the last tile is multiplied with weights of 0, and 0 * NaN is NaN. Blocks "
        "behind the end of a block table's row have the number 0.",
        meets=_is_decoder,
        explains=lambda case, verdict: is_nan(case, verdict) and not case.finite_slots,
    ),
)


def _made_of_registers(case: "Case", verdict: "Verdict") -> list[int]:
    """The query lengths of the wrong requests, if each may depend on what registers held before the kernel; else none."""
    lengths = [each.query_len for each in case.requests]
    may = {length for length in lengths if length > 2 or (length == 1 and max(lengths) > 1)}
    wrong = [lengths[each.request] for each in verdict.differences]
    if verdict.kind == "sanitizer":  # outputs that change with what registers hold at the start
        wrong = [length for length in lengths if length in may]
    is_of_files = 8 < case.group_size <= 16 and case.is_quantized
    is_output = verdict.kind in ("nan", "value", "bitwise", "sanitizer")
    return wrong if is_of_files and is_output and may.issuperset(wrong) else []


_GQA16_MTP = "hsa/gfx942/pa and hsa/gfx950/pa, pa_*_pertoken*_gqa16_1tg_4w_mtp_msk1.co"
PA_MTP_ASSEMBLY = (
    *PA_ASSEMBLY,
    _in_wheel(
        name="aiter-pa-assembly-third-query",
        what="Requests of 3 or 4 queries with 9 to 16 heads per KV head and a quantized cache of blocks of 16: outputs of the "
        "third and the fourth query depend on what registers held before the kernel.",
        cause=f"{_GQA16_MTP}, and the same files of main (e4048607): the code for 3 queries, and that for 4, sets the running "
        "maxima v11 and v12 to -inf, and not v13 and v14, which `v_max_f32 v15, v48, v13` reads.",
        meets=_is_decoder,
        explains=lambda case, verdict: any(length > 2 for length in _made_of_registers(case, verdict)),
    ),
    _in_wheel(
        name="aiter-pa-assembly-one-of-several",
        what="A request of one query beside requests of more, with 9 to 16 heads per KV head and a quantized cache of blocks "
        "of 16: whether the slots behind its keys are masked depends on what a register held before the kernel.",
        cause=f"{_GQA16_MTP}: the code for one query compares s90 with the number of keys (`s_cmp_le_i32 s90, s89`, at 0x2d3c "
        "of pa_fp16_pertokenInt8) and masks a tile by it. `s_mov_b32 s90, 0xff` stands in the code for 2 to 4 queries alone. "
        "The files for 8 heads set it.",
        meets=_is_decoder,
        explains=lambda case, verdict: set(_made_of_registers(case, verdict)) == {1},
    ),
)
HIP_PA_V1 = (
    _LARGE_GROUPS,
    _MAXIMUM_FROM_ZERO,
    _UNUSED_SLOTS,
    _TOO_MUCH_LDS,
    _in_wheel(
        name="aiter-hip-alibi-under-soft-cap",
        what="With a soft cap, the cap is applied to the sum of score and ALiBi, and not to the score alone.",
        cause=f"{_PA}/pa_kernels.cuh:419-482: ALiBi is added first. AITER's Triton unified_attention, which vLLM calls for the "
        "same layer's steps of several queries, adds it behind the cap.",
        explains=of(NUMBERS, lambda case: case.logits_soft_cap is not None and case.alibi_slopes),
    ),
    _in_wheel(
        name="aiter-hip-window-under-soft-cap",
        what="With a soft cap c, keys before a window are not hidden: each has the logit -c.",
        cause=f"{_PA}/pa_kernels.cuh:443-482: a key before the window gets the logit -FLT_MAX, and the cap is applied behind "
        "that. vLLM 0.33 trims the block table to the window's blocks, so that the keys are those of the first block alone.",
        explains=of(NUMBERS, has_hidden_keys, lambda case: case.logits_soft_cap is not None),
    ),
)
MHA_VARLEN = (
    _in_wheel(
        name="aiter-mha-lse-of-empty-requests",
        what="A causal call with a request without a key, with queries or without, writes 0 as the LSE of rows behind this "
        "request: of later requests, or in the memory behind the last row.",
        cause="aiter/ops/triton/_triton_kernels/mha.py:512, _attn_fwd: where no tile of keys is left, the store of the LSE is "
        "masked by the longest request's queries, SEQLEN_Q, and not by this request's. `start_m * BLOCK_M > seqlen_q` (457) "
        "lets a request without a query get there, too, and a further block of a request whose queries fill theirs.",
        explains=of(("lse", "sanitizer"), _sees_no_tile),
    ),
)


def _of_decoders(finding: Finding) -> Finding:
    """The finding for decoders alone: a backend launches this project's kernels for the other attention types."""
    return dataclasses.replace(
        finding,
        explains=lambda case, verdict: case.attn_type is AttentionType.DECODER and finding.explains(case, verdict),
    )


BACKENDS = {
    name: tuple(_of_decoders(finding) for finding in UNIFIED_ATTENTION) for name in ("ROCM_AITER_UNIFIED_ATTN", "ROCM_AITER_FA")
}
"""The findings that each backend inherits from the kernel, by the backend's name."""

_SPARSE_MLA = "aiter/ops/triton/_triton_kernels/unified_attention_sparse_mla.py, _kernel_unified_attention_sparse_mla_2d"


def _has_holes(case: "Case") -> bool:
    """Whether a tile of entries may name no token, and a later one may name some."""
    return case.selection_unit is not None and case.selected in ("holes", "ahead")


def _is_latent(config: AttentionConfig) -> bool:
    return config.has_latent_cache


MLA_DECODE_ROPE = (
    _in_wheel(
        name="aiter-mla-rope-past-row",
        what="With use_rope, where the number of dims behind the latent ones is no power of two, dims behind the row of a "
        "request's last key are read, and a NaN in them makes the output NaN.",
        cause="aiter/ops/triton/_triton_kernels/mla_decode_rope.py, _fwd_grouped_kernel_stage1_rope: k_pe_last_token and "
        "k_pe_rot_last_token are loaded without a mask, BLOCK_R dims of each; q is 0 in those behind the row, and 0 * NaN is "
        "NaN.",
        meets=_is_latent,
        explains=lambda case, verdict: (
            (is_nan(case, verdict) or verdict.kind == "sanitizer")
            # an earlier call may be of another width
            and ((case.head_size - case.value_size).bit_count() > 1 or "head_size_v" in case.earlier)
        ),
    ),
)
SPARSE_MLA = (
    _in_wheel(
        name="aiter-sparse-mla-heads",
        what="Query heads behind the last multiple of 16 are never computed; with fewer than 16 no head is.",
        cause="aiter/ops/triton/unified_attention_sparse_mla.py, unified_attention_sparse_mla: the grid has "
        "num_query_heads // 16 programs for each row of q, and no check refuses what is left over.",
        meets=lambda config: _is_latent(config) and config.num_heads % 16 != 0,
        explains=of(("unwritten",), lambda case: case.group_size % 16 != 0),
    ),
    _in_wheel(
        name="aiter-sparse-mla-hidden-tile",
        what="A row whose first tile of chosen indices is all -1 loses its weights where its logits are negative: it is 0, "
        "less exact, infinite or NaN.",
        cause=f"{_SPARSE_MLA}: after a tile without a key the running maximum is 0 instead of -inf, and weights are taken "
        "relative to it.",
        meets=_is_latent,
        explains=of(WRONG, _has_holes),
    ),
)


def _is_of_no_keys(case: "Case", verdict: "Verdict") -> bool:
    """Whether all requests that are wrong have no key, in a call without a causal mask, as is one of one query each.

    Outputs that are what lay in registers differ with the schedule, which names no request.
    """
    has_mask = any(request.causal for request in case.requests) and max(r.query_len for r in case.requests) + case.slack > 1
    if has_mask:
        return False
    if verdict.kind == "sanitizer":
        return "under Schedule(" in verdict.message and any(r.query_len > 0 == r.seq_len for r in case.requests)
    wrong = [case.requests[each.request] for each in verdict.differences]
    return bool(wrong) and all(request.seq_len == 0 for request in wrong)


def _is_far_before_keys(case: "Case", verdict: "Verdict") -> bool:
    """Whether the LSE is wrong, and a causal request has two tiles of queries of fmha_v3_fwd before its first key."""
    requests = [case.requests[each.request] for each in verdict.differences]
    return verdict.kind == "lse" and all(r.causal and r.query_len - r.seq_len >= 512 for r in requests)


FMHA_ASSEMBLY = (
    _in_wheel(
        name="aiter-fmha-no-keys",
        what="In a call without a causal mask, a request without a key gets NaN or what lay in registers, and so does its LSE. "
        "They should be 0 and minus infinity. vLLM's extends make such calls, where a context ends before the last chunk.",
        cause="hsa/gfx942/fmha_v3_fwd/*/fwd_hd128_bf16_*_group.co: the number of keys is taken as it is (s_mov_b32 s38, s7), "
        "and the last of 0 tiles is looked for in registers that no tile has written. The causal files take at least 32 keys. "
        "gfx950's file for heads of 128 does it, too. The files of main (e4048607) do not.",
        link="ROCm/aiter#1442, which repairs the files",
        meets=_is_decoder,
        explains=_is_of_no_keys,
    ),
    _in_wheel(
        name="aiter-fmha-lse-before-keys",
        what="On MI300X and gfx950, where a causal request has 512 or more queries more than keys, the LSE of some rows "
        "without keys may be the logarithm of a number from 1 to 32. It should be minus infinity.",
        cause="fwd_hd128_bf16_causal_*.co of gfx942, MI300, and of gfx950: a tile of keys is visited before the first key, "
        "and the mask leaves some of them, which read as 0. The files of main (e4048607) do not.",
        link="ROCm/aiter#1442, which repairs the files",
        meets=_is_decoder,
        explains=_is_far_before_keys,
    ),
)


def _has_empty_split(case: "Case") -> bool:
    """Whether a request has fewer splits than the reduction reads, in AITER's decode of float8 latent rows.

    The splits are those of the average length, by the tile of keys that get_meta_param has for the rows of q.
    """
    rows = case.group_size * max((request.query_len for request in case.requests), default=0)
    if case.cache is None or case.cache.dtype is None or rows <= 16:
        return False
    tile = 128 if rows <= 32 else 64 if rows <= 64 else 32
    lengths = [request.seq_len for request in case.requests]
    average = -(-(sum(lengths) // len(lengths)) // tile)
    return any(-(-length // tile) < min(-(-length // 16), average) for length in lengths)


def _has_junk_in_slot_0(case: "Case") -> bool:
    """Whether slot 0 may hold NaN: no request has a key there, or none that a query sees."""
    if case.cache is None or case.finite_slots:
        return False
    if case.recycled:
        return True
    size = case.cache.block_size
    return not any(0 in request.blocks[: -(-request.seq_len // size)] for request in case.requests)


_SLOT_0 = _in_both(
    name="aiter-mla-slot-0",
    what="NaN in slot 0 of the cache makes the output NaN, also of requests that have no key there.",
    cause="All files below hsa/gfx942/mla: indices of keys behind the end of a sequence are loaded as 0, so a tile that is not "
    "full reads slot 0, and nothing masks V: its weight is 0, and 0 * NaN is NaN.",
    explains=lambda case, verdict: is_nan(case, verdict) and _has_junk_in_slot_0(case),
)
MLA_PREFILL_ASSEMBLY = (_SLOT_0,)
MLA_ASSEMBLY = (
    _SLOT_0,
    _in_both(
        name="aiter-mla-128-heads-not-causal",
        what="bfloat16, 128 heads and several queries of a request: each query but the last one sees the keys behind it, too.",
        cause="hsa/gfx942/mla/mla_dec_stage1_bf16_a16w16_subQ128_mqa128.co has no causal mask, and asm_mla.cu:165-172 takes it "
        "for any max_seqlen_q. Hardware shows the same (AITER issue 5679).",
        explains=of(WRONG, has_several_queries, lambda case: case.group_size == 128 and not case.is_quantized),
    ),
    _in_both(
        name="aiter-mla-large-scales",
        what="A scale above 1 / log2(e) = 0.69, and several queries of a request: a query that sees no key of a split is NaN.",
        cause="hsa/gfx942/mla/mla_a16w16_qh16_m16x4_n16x1_coex0_mask1.co and others hide a key by the logit -3.4e38, which the "
        "scale makes -inf, and the maximum of such logits is subtracted from them. Scales of models are smaller.",
        explains=lambda case, verdict: is_nan(case, verdict) and case.scale > 0.69 and has_several_queries(case),
    ),
    _in_both(
        name="aiter-mla-splits-at-one-place",
        what="gfx950, float8, 16 heads, 3 or 4 queries of a request, and more than one split of the keys: all splits store "
        "their parts at one place, and the output is made of memory that nobody has written.",
        cause="hsa/gfx950/mla/mla_a8w8_qh16_qseqlen4_gqaratio16.co: v_lshlrev_b32 at 0x91f8 overwrites the register that has "
        "the split's offset (0x8ec8 to 0x8ecc) before the stores from 0x9218 on. gfx942's file of this name is right. "
        "Main has mla_a8w8_qh64_qseqlen4_gqaratio16.co in its place, which stores at one place, too.",
        explains=lambda case, verdict: (
            (verdict.kind in WRONG or (verdict.kind, verdict.about) == ("sanitizer", "access"))
            and (case.group_size, _cache_dtype(case)) == (16, "fp8_e4m3fn")
            and max((request.query_len for request in case.requests), default=0) in (3, 4)
        ),
    ),
    _in_wheel(
        name="aiter-mla-empty-splits",
        what="float8, requests of different lengths, and 128 heads or several queries of a request: the output of shorter "
        "requests is made of memory that nobody has written.",
        cause="aiter/mla.py:135-141 and 55-57: the reduction reads up to one split for each 16 keys of a request, and the "
        "kernels write one for each 32 or more. AITER's main has 32 for 128 heads (e4048607, aiter/mla.py:604-607), and still "
        "16 for 16 heads and several queries.",
        explains=of(WRONG, _has_empty_split),
    ),
)


UNWRITTEN = (*WRONG, "unwritten")


def _of_accesses(instruction: str, *holds: "Callable[[Case], object]") -> "Callable[[Case, Verdict], bool]":
    """As `of`, of accesses by an instruction that are forbidden."""

    def explains(case: "Case", verdict: "Verdict") -> bool:
        is_access = (verdict.kind, verdict.about) == ("sanitizer", "access") and instruction in verdict.message
        return is_access and all(hold(case) for hold in holds)

    return explains


def _in_16_bits(*group_sizes: int) -> "Callable[[Case], bool]":
    return lambda case: not case.is_quantized and case.group_size in group_sizes


def _of_8_heads(case: "Case") -> bool:
    return case.group_size == 8


_OF_32_AND_64_HEADS = "hsa/gfx942/mla/MLA_A16W16_1TG_4W_32mx1_16nx1_Coex0_Msk1_QH16.co, and 64mx1 there and of gfx950"
MLA_ASSEMBLY_OF_MAIN = (
    _in_main(
        name="aiter-mla-output-pointer",
        what="bfloat16, without metadata, 32 heads (gfx942) or 64 heads and several queries of a request: where keys are in "
        "one split, the output is stored at a null pointer.",
        cause=f"{_OF_32_AND_64_HEADS}: with one split (s_cmp_le_u32 s67, 1 at 0x67e4 and 0x69bc) they store 16-bit outputs at "
        "ptr_RP (0xf0; from 0x6d88 and 0x6f58 on), which csrc/py_itfs_cu/asm_mla.cu:782 sets to null without metadata. "
        "op_tests/test_mla.py:627 leaves out 64 heads and several queries, because they fault.",
        explains=_of_accesses("buffer_store", _in_16_bits(32, 64)),
    ),
    _in_main(
        name="aiter-mla-32-heads-empty-splits",
        what="gfx950, bfloat16, 32 heads, without metadata: the output of a request of more than 16 keys may be made of memory "
        "that nobody has written. 17 keys in two splits are enough.",
        cause="aiter/mla.py:598-617: the reduction reads up to one split for each 16 keys (mgc), and "
        "hsa/gfx950/mla/MLA_A16W16_1TG_4W_16mx4_32nx1_Coex0_Msk1_QH16.co writes one for each 32.",
        explains=of(UNWRITTEN, _in_16_bits(32), lambda case: any(each.seq_len > 16 for each in case.requests)),
    ),
    _in_main(
        name="aiter-mla-64-heads-not-causal",
        what="bfloat16, without metadata, 32 heads (gfx942) or 64 heads, and several queries of a request: each query but the "
        "last one sees the keys behind it, too. Of 32 heads the second half of the queries has no output.",
        cause=f"{_OF_32_AND_64_HEADS}, have no causal mask, and asm_mla.cu:911-943 takes them for any max_seqlen_q. A "
        "workgroup of 32mx1 has 32 rows (s_mov_b32 s65, 32 at 0x23bc), and the grid is made for 64 (:915).",
        explains=of(UNWRITTEN, _in_16_bits(32, 64), has_several_queries),
    ),
    _in_main(
        name="aiter-mla-8-heads-unscaled-values",
        what="gfx942, float8, 8 heads: with a scale of the cache that is not 1 the output lacks it.",
        cause="hsa/gfx942/mla/mla_a8w8_qh8_qseqlen1_gqaratio8_v1.co multiplies by kv_scale once, at 0x2268, for the logits. "
        "The file for 16 heads multiplies the output by it, too (0x65d8).",
        explains=of(NUMBERS, _of_8_heads, lambda case: _cache_dtype(case) == "fp8_e4m3fnuz"),
    ),
    _in_main(
        name="aiter-mla-8-heads-float32",
        what="bfloat16, 8 heads and one query, keys in one split: float32 numbers are stored into the output of 16 "
        "bits, which is wrong, and as many bytes behind it are overwritten.",
        cause="aiter/mla.py:623-645 gives the output itself as the place of the only split, and "
        "mla_a16w16_qh8_qseqlen1_gqaratio8_v3.co of gfx942 (0x7104 to 0x7174) and of gfx950 stores float32: it does not read "
        "out_16_nosplit (0x120), which asm_mla.cu:781 sets.",
        explains=_of_accesses("buffer_store", _in_16_bits(8)),
    ),
    _in_main(
        name="aiter-mla-8-heads-two-queries",
        what="gfx950, bfloat16, 8 heads and 2 queries of a request: bytes behind the last row of q are read, and the first "
        "query may see the key of the second one.",
        cause="hsa/gfx950/mla/mla_a16w16_qh8_qseqlen2_gqaratio8.co and its _causal load 32 and more bytes behind their 16 "
        "rows (lines 216 and 219). Only the second has a causal mask, and mla_asm.csv has both in rows that differ in their "
        "files alone: get_heuristic_kernel_mla (asm_mla.cu:142-178) finds the first in the order of a std::unordered_map. With "
        "libstdc++ that is the one without a mask if the map has gfx950's rows, and the other if it has gfx942's, too.",
        explains=lambda case, verdict: (
            _of_accesses("buffer_load", _of_8_heads, has_several_queries)(case, verdict)
            or of(UNWRITTEN, _in_16_bits(8), has_several_queries)(case, verdict)
        ),
    ),
    _in_main(
        name="aiter-mla-8-heads-past-end",
        what="gfx942, float8, 8 heads: bytes behind the last slot of the cache are read.",
        cause="hsa/gfx942/mla/mla_a8w8_qh8_qseqlen1_gqaratio8_v1.co, 0x244c: lanes behind the 576 dims of a row load, too, and "
        "the buffer has no bound.",
        explains=_of_accesses("buffer_load", _of_8_heads, lambda case: case.is_quantized),
    ),
)
"""Of files that the wheel has not: with the wheel no case meets them."""


def _has_short_end(case: "Case") -> bool:
    """Whether the last block of 16 keys of a request has fewer keys than the request has queries."""
    return any((each.seq_len - 1) % 16 + 1 < each.query_len <= each.seq_len for each in case.requests)


_SHORT_END = (
    "several queries of a request, and fewer keys in its last block of 16 than queries. 17 keys and 2 queries are enough, if "
    "keys are split there."
)
MLA_PERSISTENT = (
    *MLA_PREFILL_ASSEMBLY,
    _in_wheel(
        name="aiter-mla-empty-works",
        what=f"float8, 128 heads, {_SHORT_END} Rows of the output are made of memory that nobody has written.",
        cause="csrc/kernels/mla/metadata/v1_2_device.cuh:138-140 subtracts the queries behind a tile from the end of its keys, "
        "so a part can have none. hsa/gfx942/mla/mla_a8w8_qh128_m32x4_n16x2_msk0_ps.co ends the workgroup at such a work "
        "(0x2550: s_cmp_le_u32 s81, s80 and a branch to s_endpgm): it writes neither that part nor any later work. "
        "AITER's main (e4048607) makes no such part.",
        explains=of(WRONG, _has_short_end, lambda case: case.group_size == 128),
    ),
    _in_both(
        name="aiter-mla-unscaled-values",
        what="float8, 16 heads and 3 or 4 queries of a request: with a scale of the cache that is not 1 the output lacks it.",
        cause="hsa/gfx942/mla/mla_a8w8_qh16_qseqlen4_gqaratio16_ps.co multiplies by kv_scale once, at 0x2a94, for the logits. "
        "The file for 2 queries multiplies the output by it, too (0x85ec). Main has mla_a8w8_qh64_qseqlen4_gqaratio16_ps.co in "
        "its place, which does not either; 32 and 64 heads are computed as 16 heads of more requests (aiter/mla.py:666-753).",
        explains=of(NUMBERS, _has_3_queries, lambda case: case.group_size in (16, 32, 64) and case.is_quantized),
    ),
    _in_wheel(
        name="aiter-mla-unmasked-parts",
        what=f"16 heads, {_SHORT_END} A query that sees no key of the last part gets the weights of all of them.",
        cause="The _ps files of hsa/gfx942/mla for 16 heads mask nothing of a part of which a query sees nothing: its LSE "
        "should be minus infinity, and is that of the whole part. AITER's main (e4048607) makes no such part: "
        "tail_done_threshold, v1_2_device.cuh:485-490. Issue 3013 tells of errors for 2 queries of float8.",
        explains=of(WRONG, _has_short_end, lambda case: case.group_size == 16),
    ),
)


_GLUON = "aiter/ops/triton/_gluon_kernels/gfx1250/attention"
_CHECKED = (*WRONG, "sanitizer")


def takes_gluon_2d(case: "Case") -> bool:
    """Whether unified_attention launches its 2D kernel, which is Gluon where the cache has q's dtype."""
    return not case.is_quantized and (case.window[0] >= 0 or case.max_query_len > 1)


def _has_gaps_between_blocks(case: "Case") -> bool:
    return case.cache is not None and (not case.cache.planes or case.cache.padding > 0)


def _is_no_power_of_two(case: "Case") -> bool:
    return case.group_size.bit_count() > 1 or (case.num_kv_heads * case.group_size).bit_count() > 1


_GLUON_UNUSED_SLOTS = _in_main(
    name="aiter-gluon-unused-slots",
    what="NaN in a slot of V past the end of a sequence makes the output NaN.",
    cause=f"{_GLUON}/unified_attention_2d.py, unified_attention_3d.py and mla.py, and gluon/pa_decode_gluon.py: V of the last "
    "tile is loaded whole, and nowhere masked; its weight is 0, and 0 * NaN is NaN.",
    explains=_reads_unused_slots,
)
GLUON_DECODE = (
    _GLUON_UNUSED_SLOTS,
    _in_main(
        name="aiter-gluon-negative-scales",
        what="float8 with a scale for each token: where the scales of all values of a tile are negative, as another writer may "
        "have them, the output of a tile that is not full is 0.",
        cause="aiter/ops/triton/gluon/pa_decode_gluon.py:926-941, and so in the file's other kernels: weights are multiplied "
        "by scale / (max + 1e-8) and the output by max, the largest scale of the tile. It is taken with its sign, and slots "
        "behind the last key have 0. AITER's own writers make positive scales.",
        # attn_fuzz.cases.tensors: every fourth seed is of another writer, with the other sign
        explains=of(_CHECKED, lambda case: case.cache and case.cache.scales == "token" and case.values.seed % 4 == 1),
    ),
)
GLUON_UNIFIED = (
    _GLUON_UNUSED_SLOTS,
    _in_main(
        name="aiter-gluon-stride-of-blocks",
        what="Blocks of the cache that do not follow one another, as with K and V side by side in each block or with padding "
        "behind it, are looked for where they would be if they did.",
        cause=f"{_GLUON}/unified_attention_2d.py:328-349 and unified_attention_3d.py: descriptors of the cache have the stride "
        "of a row, and a block's first row is its number times the rows of a block. The stride of blocks is not used.",
        explains=of(
            _CHECKED,
            _has_gaps_between_blocks,
            lambda case: takes_gluon_2d(case) or (case.cache and case.cache.layout is Layout.SHUFFLED),
        ),
    ),
    _in_main(
        name="aiter-gluon-power-of-two-heads",
        what="A prefill, or a window, with a number of query heads for each KV head that is no power of two does not compile, "
        "and the host code has no other kernel for it.",
        cause=f"{_GLUON}/unified_attention_2d.py and unified_attention_reduce.py:57: layouts of Gluon have powers of two.",
        explains=of(("raised",), _is_no_power_of_two),
    ),
    _in_main(
        name="aiter-gluon-infinite-sink",
        what="A sink above 3.4e38 times the scale makes the output NaN in a prefill or with a window. It should be 0.",
        cause=f"{_GLUON}/unified_attention_2d.py:2080: the sink is divided by the scale, and becomes infinite.",
        explains=of(("nan", "value"), takes_gluon_2d, lambda case: case.sinks == "above" and abs(case.scale) < 1),
    ),
    _in_main(
        name="aiter-gluon-past-table-row",
        what="A prefill, or a window, reads entries of the block table behind a row, if rows lie further apart than they are "
        "long: behind the last row, memory that need not be the table's. What is read there is not used.",
        cause=f"{_GLUON}/unified_attention_2d.py:464-465 and 652-654: the place in a row is bounded by the stride of rows.",
        explains=lambda case, verdict: (
            verdict.kind == "sanitizer" and "of block_tables_ptr" in verdict.message and takes_gluon_2d(case)
        ),
    ),
)
GLUON_SPARSE = (
    _in_main(
        name="aiter-gluon-tile-without-keys",
        what="A row whose logits are all below -87, and which has a tile, or a part, of indices of -1 alone, is NaN: its "
        "weights underflow. One key and -1 behind it are enough.",
        cause="aiter/ops/triton/_gluon_kernels/gfx950/attention/pa_decode_sparse.py:238 and 374: after a tile without a key "
        "the running maximum is 0 instead of -inf (`guard all-masked rows`), and weights are taken relative to it; so they are "
        "in the reduction of parts (:981).",
        explains=of(WRONG, lambda case: case.values.kind in FAR_LOGITS),
    ),
    _in_main(
        name="aiter-gluon-full-tile-slot-0",
        what="NaN in slot 0 of a cache makes rows NaN that have an index of -1 in a full tile.",
        cause="aiter/ops/triton/_gluon_kernels/gfx950/attention/pa_decode_sparse.py:67-71 and 143-175: in a full tile slot 0 "
        "is read in the place of -1, and V is not masked, as it is in the last tile: its weight is 0, and 0 * NaN is NaN.",
        # a copy of the cache in another order is the second one: any slot's NaN may be in its slot 0
        explains=lambda case, verdict: (
            is_nan(case, verdict) and not case.finite_slots and any(one.seq_len > 64 for one in case.requests)
        ),
    ),
)
GLUON_SPARSE_GFX1250 = (
    _in_main(
        name="aiter-gluon-hidden-tile",
        what="A row that has a tile of 16 indices of -1 in front of a part's first key is NaN.",
        cause=f"{_GLUON}/pa_decode_sparse.py:372-381: after a tile without a key the running maximum is -inf, and -inf minus "
        "-inf is NaN.",
        explains=of(WRONG, _has_holes),
    ),
    _in_main(
        name="aiter-gluon-sparse-no-sink",
        what="With one split, heads whose sink is -inf, which has no weight, are NaN.",
        cause=f"{_GLUON}/pa_decode_sparse.py:219-221: the sum of weights begins as exp2(sink - sink), which is NaN.",
        explains=lambda case, verdict: is_nan(case, verdict) and case.sinks in ("off", "some"),
    ),
    _in_main(
        name="aiter-gluon-slot-0",
        what="NaN in slot 0 of the cache makes the output of rows with an index of -1 NaN.",
        cause=f"{_GLUON}/pa_decode_sparse.py:348-352: slot 0 is read in the place of -1, and V is nowhere masked: its weight "
        "is 0, and 0 * NaN is NaN.",
        explains=lambda case, verdict: is_nan(case, verdict) and _has_junk_in_slot_0(case),
    ),
)
_PREFILL_SPARSE = "aiter/ops/triton/attention/pa_prefill_sparse.py"
GLUON_PREFILL_SPARSE = (
    _in_main(
        name="aiter-gluon-prefill-sink-per-part",
        what="On gfx950 pa_prefill_sparse adds a sink to each part of a row's keys, so it counts as often as there are parts. "
        "In a step of up to 128 rows of 16 heads, a row of more than 64 keys has several.",
        cause="aiter/ops/triton/gluon/mla_gluon.py:678-689, _mla_gluon: the sum and the LSE of each part hold the sink, and "
        "_mla_softmax_reducev_kernel merges parts by these.",
        explains=of(NUMBERS, lambda case: case.sinks and any(one.seq_len > 64 for one in case.requests)),
    ),
    _in_main(
        name="aiter-gluon-prefill-holes",
        what="On gfx950 pa_prefill_sparse takes an index of -1, which it says it skips, for a key: the row in front of the "
        "pool.",
        cause=f"{_PREFILL_SPARSE}:171-190 hands the indices to mla_gluon (aiter/ops/triton/gluon/mla_gluon.py), which does not "
        "look for -1.",
        explains=of(_CHECKED, _has_holes),
    ),
)
GLUON_PREFILL_SPARSE_GFX1250 = (
    _in_main(
        name="aiter-gluon-prefill-short-holes",
        what="On gfx1250 pa_prefill_sparse takes an index of -1, of the pool and of the step's own rows, for a key, if the "
        "rows of a step have up to 16 indices of the pool on average.",
        cause=f"{_PREFILL_SPARSE}:90-91: without has_invalid, such lists pass for lists without -1.",
        explains=of(_CHECKED, _has_holes),
    ),
    _in_main(
        name="aiter-gluon-prefill-no-sink",
        what="In pa_prefill_sparse on gfx1250, heads whose sink is -inf, which has no weight, are NaN.",
        cause=f"{_GLUON}/pa_prefill_sparse.py:186: the sum of weights begins as exp2(sink - sink), which is NaN.",
        explains=lambda case, verdict: is_nan(case, verdict) and case.sinks in ("off", "some"),
    ),
    _in_main(
        name="aiter-gluon-prefill-slot-0",
        what="In pa_prefill_sparse on gfx1250, NaN in slot 0 of the pool, or in row 0 of the step's own, makes rows NaN whose "
        "last tile is not full.",
        cause=f"{_GLUON}/pa_prefill_sparse.py:41-43, 242-246 and 377-381: row 0 is read in the place of -1 and of what is "
        "behind the end of a list, and V is nowhere masked: its weight is 0, and 0 * NaN is NaN.",
        # a copy of the pool in another order is the step's own: any slot's NaN may be its row 0
        explains=lambda case, verdict: is_nan(case, verdict) and not case.finite_slots,
    ),
)


def _decodes_one_block(case: "Case") -> bool:
    size = case.cache.block_size if case.cache else 0
    return all(request.query_len <= 1 and request.seq_len <= size for request in case.requests)


GLUON_MLA = (
    _GLUON_UNUSED_SLOTS,
    _in_main(
        name="aiter-gluon-mla-one-part",
        what="mla_decode_fwd of requests that all have at most one block of keys: outputs are overwritten by the sum of "
        "weights and the maximum.",
        cause=f"{_GLUON}/mla.py:2886-2892: segm_output is the output where there is one part, and segm_expsum and segm_max are "
        "stored as if they were not (aiter/ops/triton/attention/mla.py).",
        explains=of(_CHECKED, _decodes_one_block),
    ),
)

DECODE_SPARSE = (
    _in_main(
        name="aiter-decode-sparse-no-sink",
        what="With one split, heads whose sink is -inf, which has no weight, are 0.",
        cause="aiter/ops/triton/_triton_kernels/attention/pa_decode_sparse.py:157-159, _pa_decode_sparse: the sum of weights "
        "begins as exp2(sink - sink), which is NaN.",
        explains=lambda case, verdict: (
            verdict.kind in NUMBERS and case.sinks in ("off", "some") and {each.got for each in verdict.differences} == {0}
        ),
    ),
)
MQA_LOGITS = (
    _in_main(
        name="aiter-mqa-logits-strided",
        what="On gfx942, float8_e4m3fn queries or index keys that are a part of longer rows are read at wrong places, and "
        "behind the last one.",
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
    _in_main(
        name="aiter-mqa-logits-stage1-stores",
        what="Where max_model_len is no multiple of 256, up to 255 columns behind a row are written, if a context reaches "
        "its last 256: the beginning of the row that follows, or the memory behind the last one.",
        cause="aiter/ops/triton/_triton_kernels/attention/pa_mqa_logits.py:304-311, _deepgemm_fp8_paged_mqa_logits_stage1: the "
        "store of a chunk of 256 columns has no mask. max_model_len is given, and not used.",
        explains=of(("guard", "sanitizer"), lambda case: case.slack > 0),
    ),
)
MQA_LOGITS_RAGGED = (
    _in_main(
        name="aiter-mqa-logits-ragged-drafts",
        what="Query n of the N queries of a request sees the keys of query N - n: the first one sees a column behind the last "
        "key, if the key's chunk of 64 columns has one, and from three queries on the last one does not see its own key.",
        cause="aiter/ops/triton/_triton_kernels/attention/pa_mqa_logits.py:191, _deepgemm_fp8_paged_mqa_logits_ragged_k: of L "
        "keys, query n sees i <= L - n. It should be i <= L - N + n, as in the kernels beside it (:300 and :455). "
        "_deepgemm_fp8_paged_mqa_logits_stage1_ragged_k has the same line (:96).",
        explains=of(("value", "nan"), _has_3_queries),
    ),
)
OF_MAIN = (
    _in_main(
        name="aiter-prefill-sparse-sinks",
        what="On GPUs other than gfx950 and gfx1250, a step of pa_prefill_sparse with sinks of several heads raises, and one "
        "without sinks gets those of memory that nobody wrote.",
        cause=f"{_PREFILL_SPARSE}:202-203: `attn_sink or torch.empty(1)` asks whether a tensor of several numbers is true, and "
        "has_attn_sink is what follows from the result.",
        explains=lambda case, verdict: False,
    ),
)
"""Of a source later than the wheel's, which the targets are declared for."""
