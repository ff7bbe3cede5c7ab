"""Bugs in AITER's HIP paged attention."""

from typing import TYPE_CHECKING

from attn_fuzz.findings.aiter.shared import in_wheel, reads_unused_slots
from attn_fuzz.findings.finding import NUMBERS, WRONG, failures_where, has_hidden_keys

if TYPE_CHECKING:
    from attn_fuzz.cases.case import Case

_PA = "aiter_meta/csrc/cpp_itfs/pa"
_UNUSED_SLOTS = in_wheel(
    name="aiter-hip-unused-slots",
    what="NaN in a slot of V past the end of a sequence or before its window makes the output NaN.",
    cause=f"{_PA}/pa_kernels.cuh:313 and pa.cuh:331-360: V of the last block is loaded whole, and nowhere masked; its weight "
    "is 0, and 0 * NaN is NaN.",
    explains=reads_unused_slots,
)
_LARGE_GROUPS = in_wheel(
    name="aiter-hip-large-groups",
    what="With more than 16 query heads for each KV head, heads of the second KV head and of later ones are computed at the "
    "place of other heads, and where the group is no multiple of its parts of at most 16 heads, its last heads are nowhere.",
    cause=f"{_PA}/pa_kernels.cuh:62 and 94, pa.cuh:115 and 149: a group has DIVIDE_ROUND_UP(GQA_RATIO, 16) parts of "
    "GQA_RATIO / parts heads each, and the first head of a KV head is its number times the size of a part, not of the group.",
    explains=failures_where(
        (*WRONG, "unwritten", "sanitizer"),
        lambda case: case.group_size > 16 and (case.num_kv_heads > 1 or case.group_size % -(-case.group_size // 16) > 0),
    ),
)
_MAXIMUM_FROM_ZERO = in_wheel(
    name="aiter-hip-maximum-from-zero",
    what="With more than 16 query heads for each KV head, heads after the first part of a group take 0 as a logit of each "
    "partition's maximum. Where all logits are negative, their weights lose to the 1e-6 in the divisors, and vanish.",
    cause=f"{_PA}/pa_kernels.cuh:487 and 556, pa.cuh:509 and 589: the initializers of qk_max and partition_qk_max set the "
    "first element to -FLT_MAX, and C++ sets the others to 0.",
    explains=failures_where(NUMBERS, lambda case: case.group_size > 16),
)


def _has_unread_dims(case: "Case") -> bool:
    """True if the kernel computes fewer dims than a head has.

    V's are computed in steps of 64; those of the scores in ceil(D / 128) parts, in steps of 32, or of 64 for float8.
    """
    part = -(-case.head_size // -(-case.head_size // 128))
    return case.head_size % 64 > 0 or part % (64 if case.is_quantized else 32) > 0


_HEAD_SIZES = in_wheel(
    name="aiter-hip-head-sizes",
    what="Heads whose size is no multiple of 64: dims after the last multiple are never computed, and the scores lack those "
    "after the last multiple of 32, or of 64 beside a float8 cache. There the scores of heads of 192 lack dims 64 to 95 and "
    "160 to 191.",
    cause=f"{_PA}/pa_kernels.cuh:79 and 269, pa.cuh:132 and 303: QKHELOOP and VHELOOP are quotients that are rounded down. "
    "QKHELOOP is of a part of at most 128 dims: two of 96 (pa.cuh:76-77), of which a step of float8 takes 64. "
    "aiter/paged_attn.py:171-172 names 80, 96, 112, 120 and 192 as supported.",
    explains=failures_where(WRONG, _has_unread_dims),
)
_TOO_MUCH_LDS = in_wheel(
    name="aiter-hip-lds-of-groups",
    what="With more than 48 query heads for each KV head and heads of more than 128, the kernel does not compile for gfx942: "
    "it takes 72 KiB of LDS or more, of which there are 64.",
    cause=f"{_PA}/pa_kernels.cuh:67, pa.cuh:120: shared_logits has 8 KiB for each 16 heads of a group and each 128 dims.",
    explains=failures_where(("raised",), lambda case: case.group_size > 48 and case.head_size > 128),
)
HIP_PA_RAGGED = (_LARGE_GROUPS, _MAXIMUM_FROM_ZERO, _HEAD_SIZES, _TOO_MUCH_LDS)
HIP_PA = (_LARGE_GROUPS, _MAXIMUM_FROM_ZERO, _HEAD_SIZES, _UNUSED_SLOTS, _TOO_MUCH_LDS)
HIP_PA_V1 = (
    _LARGE_GROUPS,
    _MAXIMUM_FROM_ZERO,
    _UNUSED_SLOTS,
    _TOO_MUCH_LDS,
    in_wheel(
        name="aiter-hip-alibi-under-soft-cap",
        what="With a soft cap, the cap is applied to the sum of score and ALiBi, and not to the score alone.",
        cause=f"{_PA}/pa_kernels.cuh:419-482: ALiBi is added first. AITER's Triton unified_attention, which vLLM calls for the "
        "same layer's steps of several queries, adds it after the cap.",
        explains=failures_where(NUMBERS, lambda case: case.logits_soft_cap is not None and case.alibi_slopes),
    ),
    in_wheel(
        name="aiter-hip-window-under-soft-cap",
        what="With a soft cap c, keys before a window are not hidden: each has the logit -c.",
        cause=f"{_PA}/pa_kernels.cuh:443-482: a key before the window gets the logit -FLT_MAX, and the cap is applied after "
        "that. vLLM 0.33 trims the block table to the window's blocks, so that the keys are those of the first block alone.",
        explains=failures_where(NUMBERS, has_hidden_keys, lambda case: case.logits_soft_cap is not None),
    ),
)
