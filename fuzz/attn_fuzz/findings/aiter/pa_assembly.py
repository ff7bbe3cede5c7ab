"""Bugs in AITER's paged decodes in assembly."""

from typing import TYPE_CHECKING

from attn_fuzz.findings.aiter.shared import in_both, in_wheel, is_decoder
from attn_fuzz.findings.finding import WRONG, is_nan

if TYPE_CHECKING:
    from attn_fuzz.cases.case import Case
    from attn_fuzz.verdict.verdict import Verdict


def _has_short_tail(case: "Case", verdict: "Verdict") -> bool:
    """True if every wrong request has 241 to 255 keys, which are in 16 blocks of 16 slots, the last of them not full."""
    wrong = [case.requests[each.request] for each in verdict.differences]
    return verdict.kind in WRONG and bool(wrong) and all(240 < each.seq_len < 256 for each in wrong)


PA_ASSEMBLY = (
    in_both(
        name="aiter-pa-assembly-short-tail",
        what="A request of 241 to 255 keys attends the slots after its last key, too, with about half the weight of a key "
        "whose logit is the same. The output is NaN if V is NaN there.",
        cause="hsa/gfx942/pa and hsa/gfx950/pa, all files of blocks of 16 without mtp: `s_cmp_lt_u32 s73, 16` enters the loop "
        "over whole tiles of 256 keys if there are 16 blocks, and should if there are 256 keys. Hardware shows NaN at the same "
        "lengths.",
        link="ROCm/aiter#5654, which repairs one file",
        meets=is_decoder,
        explains=_has_short_tail,
    ),
    in_both(
        name="aiter-pa-assembly-unused-slots",
        what="NaN in a slot of V past the end of a sequence, or in block 0 of the cache, makes the output NaN.",
        cause="hsa/gfx942/pa and hsa/gfx950/pa: V of the last tile is multiplied with weights of 0, and 0 * NaN is NaN. Blocks "
        "past the end of a block table's row have the number 0.",
        meets=is_decoder,
        explains=lambda case, verdict: is_nan(case, verdict) and not case.finite_slots,
    ),
)


def _made_of_registers(case: "Case", verdict: "Verdict") -> list[int]:
    """The query lengths of the wrong requests if each may depend on what registers held before the kernel, or none."""
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
    in_wheel(
        name="aiter-pa-assembly-third-query",
        what="Requests of 3 or 4 queries with 9 to 16 heads per KV head and a quantized cache of blocks of 16: outputs of the "
        "third and the fourth query depend on what registers held before the kernel.",
        cause=f"{_GQA16_MTP}, and the same files of main (e4048607): the code for 3 queries, and that for 4, sets the running "
        "maxima v11 and v12 to -inf, and not v13 and v14, which `v_max_f32 v15, v48, v13` reads.",
        meets=is_decoder,
        explains=lambda case, verdict: any(length > 2 for length in _made_of_registers(case, verdict)),
    ),
    in_wheel(
        name="aiter-pa-assembly-one-of-several",
        what="A request of one query beside requests of more, with 9 to 16 heads per KV head and a quantized cache of blocks "
        "of 16: whether the slots after its keys are masked depends on what a register held before the kernel.",
        cause=f"{_GQA16_MTP}: the code for one query compares s90 with the number of keys (`s_cmp_le_i32 s90, s89`, at 0x2d3c "
        "of pa_fp16_pertokenInt8) and masks a tile by it. `s_mov_b32 s90, 0xff` stands in the code for 2 to 4 queries alone. "
        "The files for 8 heads set it.",
        meets=is_decoder,
        explains=lambda case, verdict: set(_made_of_registers(case, verdict)) == {1},
    ),
)
