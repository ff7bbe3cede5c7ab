"""Bugs in AITER's decodes of latent attention in assembly."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from attn_fuzz.findings.aiter.shared import has_3_queries, in_both, in_main, in_wheel
from attn_fuzz.findings.finding import NUMBERS, WRONG, failures_where, has_several_queries, is_nan

if TYPE_CHECKING:
    from attn_fuzz.cases.case import Case
    from attn_fuzz.verdict.verdict import Verdict


def _cache_dtype(case: "Case") -> str | None:
    return case.cache and case.cache.dtype


def _has_empty_split(case: "Case") -> bool:
    """True if AITER's decode of float8 latent rows makes fewer splits of a request than its reduction reads.

    The reduction reads as many as the average length has tiles; get_meta_param chooses the tile by the rows of q.
    """
    rows = case.group_size * max((request.query_len for request in case.requests), default=0)
    if case.cache is None or case.cache.dtype is None or rows <= 16:
        return False
    tile = 128 if rows <= 32 else 64 if rows <= 64 else 32
    lengths = [request.seq_len for request in case.requests]
    average = -(-(sum(lengths) // len(lengths)) // tile)
    return any(-(-length // tile) < min(-(-length // 16), average) for length in lengths)


def has_junk_in_slot_0(case: "Case") -> bool:
    """True if slot 0 may hold NaN: no request has a key there, or keys that no query sees hold NaN, too."""
    if case.cache is None or case.finite_slots:
        return False
    if case.recycled:
        return True
    size = case.cache.block_size
    return not any(0 in request.blocks[: -(-request.seq_len // size)] for request in case.requests)


_SLOT_0 = in_both(
    name="aiter-mla-slot-0",
    what="NaN in slot 0 of the cache makes the output NaN, also of requests that have no key there.",
    cause="All files below hsa/gfx942/mla: indices of keys past the end of a sequence are loaded as 0, so a tile that is not "
    "full reads slot 0, and nothing masks V: its weight is 0, and 0 * NaN is NaN.",
    explains=lambda case, verdict: is_nan(case, verdict) and has_junk_in_slot_0(case),
)
MLA_PREFILL_ASSEMBLY = (_SLOT_0,)
MLA_ASSEMBLY = (
    _SLOT_0,
    in_both(
        name="aiter-mla-128-heads-not-causal",
        what="bfloat16, 128 heads and several queries of a request: each query but the last one sees the keys after it, too.",
        cause="hsa/gfx942/mla/mla_dec_stage1_bf16_a16w16_subQ128_mqa128.co has no causal mask, and asm_mla.cu:165-172 takes it "
        "for any max_seqlen_q. Hardware shows the same (AITER issue 5679).",
        explains=failures_where(WRONG, has_several_queries, lambda case: case.group_size == 128 and not case.is_quantized),
    ),
    in_both(
        name="aiter-mla-large-scales",
        what="A scale above 1 / log2(e) = 0.69, and several queries of a request: a query that sees no key of a split is NaN.",
        cause="hsa/gfx942/mla/mla_a16w16_qh16_m16x4_n16x1_coex0_mask1.co and others hide a key by the logit -3.4e38, which the "
        "scale makes -inf, and the maximum of such logits is subtracted from them. Scales of models are smaller.",
        explains=lambda case, verdict: is_nan(case, verdict) and case.scale > 0.69 and has_several_queries(case),
    ),
    in_both(
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
    in_wheel(
        name="aiter-mla-empty-splits",
        what="float8, requests of different lengths, and 128 heads or several queries of a request: the output of shorter "
        "requests is made of memory that nobody has written.",
        cause="aiter/mla.py:135-141 and 55-57: the reduction reads up to one split for each 16 keys of a request, and the "
        "kernels write one for each 32 or more. AITER's main has 32 for 128 heads (e4048607, aiter/mla.py:604-607), and still "
        "16 for 16 heads and several queries.",
        explains=failures_where(WRONG, _has_empty_split),
    ),
)
UNWRITTEN = (*WRONG, "unwritten")


def _of_accesses(instruction: str, *holds: "Callable[[Case], object]") -> "Callable[[Case, Verdict], bool]":
    """A test like those of `of`, for forbidden accesses by an instruction."""

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
    in_main(
        name="aiter-mla-output-pointer",
        what="bfloat16, without metadata, 32 heads (gfx942) or 64 heads and several queries of a request: where keys are in "
        "one split, the output is stored at a null pointer.",
        cause=f"{_OF_32_AND_64_HEADS}: with one split (s_cmp_le_u32 s67, 1 at 0x67e4 and 0x69bc) they store 16-bit outputs at "
        "ptr_RP (0xf0; from 0x6d88 and 0x6f58 on), which csrc/py_itfs_cu/asm_mla.cu:782 sets to null without metadata. "
        "op_tests/test_mla.py:627 leaves out 64 heads and several queries, because they fault.",
        explains=_of_accesses("buffer_store", _in_16_bits(32, 64)),
    ),
    in_main(
        name="aiter-mla-32-heads-empty-splits",
        what="gfx950, bfloat16, 32 heads, without metadata: the output of a request of more than 16 keys may be made of memory "
        "that nobody has written. 17 keys in two splits are enough.",
        cause="aiter/mla.py:598-617: the reduction reads up to one split for each 16 keys (mgc), and "
        "hsa/gfx950/mla/MLA_A16W16_1TG_4W_16mx4_32nx1_Coex0_Msk1_QH16.co writes one for each 32.",
        explains=failures_where(UNWRITTEN, _in_16_bits(32), lambda case: any(each.seq_len > 16 for each in case.requests)),
    ),
    in_main(
        name="aiter-mla-64-heads-not-causal",
        what="bfloat16, without metadata, 32 heads (gfx942) or 64 heads, and several queries of a request: each query but the "
        "last one sees the keys after it, too. Of 32 heads the second half of the queries has no output.",
        cause=f"{_OF_32_AND_64_HEADS}, have no causal mask, and asm_mla.cu:911-943 takes them for any max_seqlen_q. A "
        "workgroup of 32mx1 has 32 rows (s_mov_b32 s65, 32 at 0x23bc), and the grid is made for 64 (:915).",
        explains=failures_where(UNWRITTEN, _in_16_bits(32, 64), has_several_queries),
    ),
    in_main(
        name="aiter-mla-8-heads-unscaled-values",
        what="gfx942, float8, 8 heads: with a scale of the cache that is not 1 the output lacks it.",
        cause="hsa/gfx942/mla/mla_a8w8_qh8_qseqlen1_gqaratio8_v1.co multiplies by kv_scale once, at 0x2268, for the logits. "
        "The file for 16 heads multiplies the output by it, too (0x65d8).",
        explains=failures_where(NUMBERS, _of_8_heads, lambda case: _cache_dtype(case) == "fp8_e4m3fnuz"),
    ),
    in_main(
        name="aiter-mla-8-heads-float32",
        what="bfloat16, 8 heads and one query, keys in one split: float32 numbers are stored into the output of 16 "
        "bits, which is wrong, and as many bytes after it are overwritten.",
        cause="aiter/mla.py:623-645 gives the output itself as the place of the only split, and "
        "mla_a16w16_qh8_qseqlen1_gqaratio8_v3.co of gfx942 (0x7104 to 0x7174) and of gfx950 stores float32: it does not read "
        "out_16_nosplit (0x120), which asm_mla.cu:781 sets.",
        explains=_of_accesses("buffer_store", _in_16_bits(8)),
    ),
    in_main(
        name="aiter-mla-8-heads-two-queries",
        what="gfx950, bfloat16, 8 heads and 2 queries of a request: bytes after the last row of q are read, and the first "
        "query may see the key of the second one.",
        cause="hsa/gfx950/mla/mla_a16w16_qh8_qseqlen2_gqaratio8.co and its _causal load 32 and more bytes after their 16 "
        "rows (lines 216 and 219). Only the second has a causal mask, and mla_asm.csv has both in rows that differ in their "
        "files alone: get_heuristic_kernel_mla (asm_mla.cu:142-178) finds the first in the order of a std::unordered_map. With "
        "libstdc++ that is the one without a mask if the map has gfx950's rows, and the other if it has gfx942's, too.",
        explains=lambda case, verdict: (
            _of_accesses("buffer_load", _of_8_heads, has_several_queries)(case, verdict)
            or failures_where(UNWRITTEN, _in_16_bits(8), has_several_queries)(case, verdict)
        ),
    ),
    in_main(
        name="aiter-mla-8-heads-past-end",
        what="gfx942, float8, 8 heads: bytes after the last slot of the cache are read.",
        cause="hsa/gfx942/mla/mla_a8w8_qh8_qseqlen1_gqaratio8_v1.co, 0x244c: lanes after the 576 dims of a row load, too, and "
        "the buffer has no bound.",
        explains=_of_accesses("buffer_load", _of_8_heads, lambda case: case.is_quantized),
    ),
)
"""Findings in files that the wheel lacks: with the wheel no case meets them."""


def _has_short_end(case: "Case") -> bool:
    """True if the last block of 16 keys of a request holds fewer keys than the request has queries."""
    return any((each.seq_len - 1) % 16 + 1 < each.query_len <= each.seq_len for each in case.requests)


_SHORT_END = (
    "several queries of a request, and fewer keys in its last block of 16 than queries. 17 keys and 2 queries are enough, if "
    "keys are split there."
)
MLA_PERSISTENT = (
    *MLA_PREFILL_ASSEMBLY,
    in_wheel(
        name="aiter-mla-empty-works",
        what=f"float8, 128 heads, {_SHORT_END} Rows of the output are made of memory that nobody has written.",
        cause="csrc/kernels/mla/metadata/v1_2_device.cuh:138-140 subtracts the queries after a tile from the end of its keys, "
        "so a part can have none. hsa/gfx942/mla/mla_a8w8_qh128_m32x4_n16x2_msk0_ps.co ends the workgroup at such a work "
        "(0x2550: s_cmp_le_u32 s81, s80 and a branch to s_endpgm): it writes neither that part nor any later work. "
        "AITER's main (e4048607) makes no such part.",
        explains=failures_where(WRONG, _has_short_end, lambda case: case.group_size == 128),
    ),
    in_both(
        name="aiter-mla-unscaled-values",
        what="float8, 16 heads and 3 or 4 queries of a request: with a scale of the cache that is not 1 the output lacks it.",
        cause="hsa/gfx942/mla/mla_a8w8_qh16_qseqlen4_gqaratio16_ps.co multiplies by kv_scale once, at 0x2a94, for the logits. "
        "The file for 2 queries multiplies the output by it, too (0x85ec). Main has mla_a8w8_qh64_qseqlen4_gqaratio16_ps.co in "
        "its place, which does not either; 32 and 64 heads are computed as 16 heads of more requests (aiter/mla.py:666-753).",
        explains=failures_where(NUMBERS, has_3_queries, lambda case: case.group_size in (16, 32, 64) and case.is_quantized),
    ),
    in_wheel(
        name="aiter-mla-unmasked-parts",
        what=f"16 heads, {_SHORT_END} A query that sees no key of the last part gets the weights of all of them.",
        cause="The _ps files of hsa/gfx942/mla for 16 heads mask nothing of a part of which a query sees nothing: its LSE "
        "should be minus infinity, and is that of the whole part. AITER's main (e4048607) makes no such part: "
        "tail_done_threshold, v1_2_device.cuh:485-490. Issue 3013 tells of errors for 2 queries of float8.",
        explains=failures_where(WRONG, _has_short_end, lambda case: case.group_size == 16),
    ),
)
