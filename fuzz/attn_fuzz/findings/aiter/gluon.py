"""Bugs in AITER's Gluon kernels."""

from typing import TYPE_CHECKING

from attn_contract import Layout
from attn_fuzz.findings.aiter.mla_assembly import has_junk_in_slot_0
from attn_fuzz.findings.aiter.shared import FAR_LOGITS, PREFILL_SPARSE, has_holes, in_main, reads_unused_slots
from attn_fuzz.findings.finding import NUMBERS, WRONG, failures_where, is_nan

if TYPE_CHECKING:
    from attn_fuzz.cases.case import Case

_GLUON = "aiter/ops/triton/_gluon_kernels/gfx1250/attention"
_CHECKED = (*WRONG, "sanitizer")


def takes_gluon_2d(case: "Case") -> bool:
    """True if unified_attention launches its 2D kernel in Gluon: it does for a cache of q's dtype."""
    return not case.is_quantized and (case.window[0] >= 0 or case.max_query_len > 1)


def _has_gaps_between_blocks(case: "Case") -> bool:
    return case.cache is not None and (not case.cache.planes or case.cache.padding > 0)


def _is_no_power_of_two(case: "Case") -> bool:
    return case.group_size.bit_count() > 1 or (case.num_kv_heads * case.group_size).bit_count() > 1


_GLUON_UNUSED_SLOTS = in_main(
    name="aiter-gluon-unused-slots",
    what="NaN in a slot of V past the end of a sequence makes the output NaN.",
    cause=f"{_GLUON}/unified_attention_2d.py, unified_attention_3d.py and mla.py, and gluon/pa_decode_gluon.py: V of the last "
    "tile is loaded whole, and nowhere masked; its weight is 0, and 0 * NaN is NaN.",
    explains=reads_unused_slots,
)
GLUON_DECODE = (
    _GLUON_UNUSED_SLOTS,
    in_main(
        name="aiter-gluon-negative-scales",
        what="float8 with a scale for each token: where the scales of all values of a tile are negative, as another writer may "
        "have them, the output of a tile that is not full is 0.",
        cause="aiter/ops/triton/gluon/pa_decode_gluon.py:926-941, and so in the file's other kernels: weights are multiplied "
        "by scale / (max + 1e-8) and the output by max, the largest scale of the tile. It is taken with its sign, and slots "
        "after the last key have 0. AITER's own writers make positive scales.",
        # attn_fuzz.cases.tensors: with every fourth seed scales are negative, as another writer may have them
        explains=failures_where(
            _CHECKED, lambda case: case.cache and case.cache.scales == "token" and case.values.seed % 4 == 1
        ),
    ),
)
GLUON_UNIFIED = (
    _GLUON_UNUSED_SLOTS,
    in_main(
        name="aiter-gluon-stride-of-blocks",
        what="Blocks of the cache that do not follow one another, as with K and V side by side in each block or with padding "
        "after it, are looked for where they would be if they did.",
        cause=f"{_GLUON}/unified_attention_2d.py:328-349 and unified_attention_3d.py: descriptors of the cache have the stride "
        "of a row, and a block's first row is its number times the rows of a block. The stride of blocks is not used.",
        explains=failures_where(
            _CHECKED,
            _has_gaps_between_blocks,
            lambda case: takes_gluon_2d(case) or (case.cache and case.cache.layout is Layout.SHUFFLED),
        ),
    ),
    in_main(
        name="aiter-gluon-power-of-two-heads",
        what="A prefill, or a window, with a number of query heads for each KV head that is no power of two does not compile, "
        "and the host code has no other kernel for it.",
        cause=f"{_GLUON}/unified_attention_2d.py and unified_attention_reduce.py:57: layouts of Gluon have powers of two.",
        explains=failures_where(("raised",), _is_no_power_of_two),
    ),
    in_main(
        name="aiter-gluon-infinite-sink",
        what="A sink above 3.4e38 times the scale makes the output NaN in a prefill or with a window. It should be 0.",
        cause=f"{_GLUON}/unified_attention_2d.py:2080: the sink is divided by the scale, and becomes infinite.",
        explains=failures_where(("nan", "value"), takes_gluon_2d, lambda case: case.sinks == "above" and abs(case.scale) < 1),
    ),
    in_main(
        name="aiter-gluon-past-table-row",
        what="A prefill, or a window, reads entries of the block table past a row, if rows lie further apart than they are "
        "long: after the last row, memory that need not be the table's. What is read there is not used.",
        cause=f"{_GLUON}/unified_attention_2d.py:464-465 and 652-654: the place in a row is bounded by the stride of rows.",
        explains=lambda case, verdict: (
            verdict.kind == "sanitizer" and "of block_tables_ptr" in verdict.message and takes_gluon_2d(case)
        ),
    ),
)
GLUON_SPARSE = (
    in_main(
        name="aiter-gluon-tile-without-keys",
        what="A row whose logits are all below -87, and which has a tile, or a part, of indices of -1 alone, is NaN: its "
        "weights underflow. One key and -1 after it are enough.",
        cause="aiter/ops/triton/_gluon_kernels/gfx950/attention/pa_decode_sparse.py:238 and 374: after a tile without a key "
        "the running maximum is 0 instead of -inf (`guard all-masked rows`), and weights are taken relative to it; so they are "
        "in the reduction of parts (:981).",
        explains=failures_where(WRONG, lambda case: case.values.kind in FAR_LOGITS),
    ),
    in_main(
        name="aiter-gluon-full-tile-slot-0",
        what="NaN in slot 0 of a cache makes rows NaN that have an index of -1 in a full tile.",
        cause="aiter/ops/triton/_gluon_kernels/gfx950/attention/pa_decode_sparse.py:67-71 and 143-175: in a full tile slot 0 "
        "is read in the place of -1, and V is not masked, as it is in the last tile: its weight is 0, and 0 * NaN is NaN.",
        # the second cache is a copy of the first in another order: NaN of any slot may be in its slot 0
        explains=lambda case, verdict: (
            is_nan(case, verdict) and not case.finite_slots and any(one.seq_len > 64 for one in case.requests)
        ),
    ),
)
GLUON_SPARSE_GFX1250 = (
    in_main(
        name="aiter-gluon-hidden-tile",
        what="A row that has a tile of 16 indices of -1 in front of a part's first key is NaN.",
        cause=f"{_GLUON}/pa_decode_sparse.py:372-381: after a tile without a key the running maximum is -inf, and -inf minus "
        "-inf is NaN.",
        explains=failures_where(WRONG, has_holes),
    ),
    in_main(
        name="aiter-gluon-sparse-no-sink",
        what="With one split, heads whose sink is -inf, which has no weight, are NaN.",
        cause=f"{_GLUON}/pa_decode_sparse.py:219-221: the sum of weights begins as exp2(sink - sink), which is NaN.",
        explains=lambda case, verdict: is_nan(case, verdict) and case.sinks in ("off", "some"),
    ),
    in_main(
        name="aiter-gluon-slot-0",
        what="NaN in slot 0 of the cache makes the output of rows with an index of -1 NaN.",
        cause=f"{_GLUON}/pa_decode_sparse.py:348-352: slot 0 is read in the place of -1, and V is nowhere masked: its weight "
        "is 0, and 0 * NaN is NaN.",
        explains=lambda case, verdict: is_nan(case, verdict) and has_junk_in_slot_0(case),
    ),
)
GLUON_PREFILL_SPARSE = (
    in_main(
        name="aiter-gluon-prefill-sink-per-part",
        what="On gfx950 pa_prefill_sparse adds a sink to each part of a row's keys, so it counts as often as there are parts. "
        "In a step of up to 128 rows of 16 heads, a row of more than 64 keys has several.",
        cause="aiter/ops/triton/gluon/mla_gluon.py:678-689, _mla_gluon: the sum and the LSE of each part hold the sink, and "
        "_mla_softmax_reducev_kernel merges parts by these.",
        explains=failures_where(NUMBERS, lambda case: case.sinks and any(one.seq_len > 64 for one in case.requests)),
    ),
    in_main(
        name="aiter-gluon-prefill-holes",
        what="On gfx950 pa_prefill_sparse takes an index of -1, which it says it skips, for a key: the row in front of the "
        "pool.",
        cause=f"{PREFILL_SPARSE}:171-190 hands the indices to mla_gluon (aiter/ops/triton/gluon/mla_gluon.py), which does not "
        "look for -1.",
        explains=failures_where(_CHECKED, has_holes),
    ),
)
GLUON_PREFILL_SPARSE_GFX1250 = (
    in_main(
        name="aiter-gluon-prefill-short-holes",
        what="On gfx1250 pa_prefill_sparse takes an index of -1, of the pool and of the step's own rows, for a key, if the "
        "rows of a step have up to 16 indices of the pool on average.",
        cause=f"{PREFILL_SPARSE}:90-91: without has_invalid, such lists pass for lists without -1.",
        explains=failures_where(_CHECKED, has_holes),
    ),
    in_main(
        name="aiter-gluon-prefill-no-sink",
        what="In pa_prefill_sparse on gfx1250, heads whose sink is -inf, which has no weight, are NaN.",
        cause=f"{_GLUON}/pa_prefill_sparse.py:186: the sum of weights begins as exp2(sink - sink), which is NaN.",
        explains=lambda case, verdict: is_nan(case, verdict) and case.sinks in ("off", "some"),
    ),
    in_main(
        name="aiter-gluon-prefill-slot-0",
        what="In pa_prefill_sparse on gfx1250, NaN in slot 0 of the pool, or in row 0 of the step's own, makes rows NaN whose "
        "last tile is not full.",
        cause=f"{_GLUON}/pa_prefill_sparse.py:41-43, 242-246 and 377-381: row 0 is read in the place of -1 and of what is "
        "past the end of a list, and V is nowhere masked: its weight is 0, and 0 * NaN is NaN.",
        # the step's own rows are a copy of the pool in another order: NaN of any slot may be in row 0
        explains=lambda case, verdict: is_nan(case, verdict) and not case.finite_slots,
    ),
)


def _decodes_one_block(case: "Case") -> bool:
    size = case.cache.block_size if case.cache else 0
    return all(request.query_len <= 1 and request.seq_len <= size for request in case.requests)


GLUON_MLA = (
    _GLUON_UNUSED_SLOTS,
    in_main(
        name="aiter-gluon-mla-one-part",
        what="mla_decode_fwd of requests that all have at most one block of keys: outputs are overwritten by the sum of "
        "weights and the maximum.",
        cause=f"{_GLUON}/mla.py:2886-2892: segm_output is the output where there is one part, and segm_expsum and segm_max are "
        "stored as if they were not (aiter/ops/triton/attention/mla.py).",
        explains=failures_where(_CHECKED, _decodes_one_block),
    ),
)
