"""A finding explains what its bug can cause, and no more: its stored case with other errors, lengths and slots."""

import attn_reference
import msgspec
import pytest
from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import Case, Request, Values
from attn_fuzz.cases.tensors import build
from attn_fuzz.findings import sglang, vllm
from attn_fuzz.findings.aiter.dense import MHA_VARLEN, PREFILL
from attn_fuzz.findings.aiter.gluon import (
    GLUON_DECODE,
    GLUON_MLA,
    GLUON_PREFILL_SPARSE,
    GLUON_PREFILL_SPARSE_GFX1250,
    GLUON_SPARSE,
    GLUON_SPARSE_GFX1250,
    GLUON_UNIFIED,
)
from attn_fuzz.findings.aiter.hip import HIP_PA
from attn_fuzz.findings.aiter.mqa_logits import MQA_LOGITS, MQA_LOGITS_RAGGED, MQA_LOGITS_STAGE1
from attn_fuzz.findings.aiter.paged import CHUNKED_PREFILL
from attn_fuzz.findings.aiter.unified import UNIFIED_ATTENTION
from attn_fuzz.findings.finding import Finding
from attn_fuzz.verdict.judge import Difference
from attn_fuzz.verdict.oracle import requests
from attn_fuzz.verdict.verdict import Verdict, VerdictKind

FINDINGS = {
    finding.name: finding
    for findings in (
        *(vllm.UNIFIED_ATTENTION, vllm.DCP_REDUCE_SCATTER, vllm.FLEX, vllm.MQA_LOGITS_TORCH, vllm.INDEX_DECODE),
        *(UNIFIED_ATTENTION, CHUNKED_PREFILL, MHA_VARLEN, PREFILL),
        *(MQA_LOGITS, MQA_LOGITS_STAGE1, MQA_LOGITS_RAGGED, sglang.DECODE),
        *(GLUON_UNIFIED, GLUON_DECODE, GLUON_SPARSE, GLUON_SPARSE_GFX1250, GLUON_MLA),
        *(GLUON_PREFILL_SPARSE, GLUON_PREFILL_SPARSE_GFX1250, HIP_PA),
    )
    for finding in findings
}


def known(name: str, **changes: object) -> tuple[Finding, Case]:
    """A finding, and its stored case with changes."""
    finding = FINDINGS[name]
    return finding, msgspec.structs.replace(case_file.load(finding.path), **changes)


def wrong(got: float, expected: float = 1.0, *, request: int = 0, kind: VerdictKind = "value") -> Verdict:
    """A verdict on the worst element of one request, whose bound is 1e-6."""
    worst = Difference(request=request, tensor="out", row=0, head=0, dim=0, got=got, expected=expected, bound=1e-6, rows=1)
    return Verdict(kind=kind, about="out", differences=(worst,))


@pytest.mark.parametrize(("error", "explained"), [(1e-5, True), (9e-4, True), (1e-2, False), (1.0, False)])
@pytest.mark.parametrize("expected", [1.0, 100.0])
def test_a_rounded_lse_multiplies_outputs_by_nearly_one(error, explained, expected):
    finding, case = known("vllm-dcp-large-lse")
    assert finding.explains(case, wrong(expected * (1 + error), expected)) == explained
    assert not finding.explains(msgspec.structs.replace(case, dtype="bfloat16"), wrong(expected * (1 + error), expected))


@pytest.mark.parametrize(("error", "explained"), [(1e-5, True), (2e-5, False), (0.5, False)])
def test_a_denormal_is_off_by_little_for_each_key(error, explained):
    finding, case = known("vllm-narrow-scaled-weights")
    assert finding.explains(case, wrong(1.0 + error)) == explained
    [request] = case.requests
    longer = msgspec.structs.replace(case, requests=(msgspec.structs.replace(request, seq_len=2),))
    assert finding.explains(longer, wrong(1.0 + error)) == (error < 0.5)


@pytest.mark.parametrize("name", ["vllm-float32-as-tf32", "aiter-prefill-float32-as-tf32"])
@pytest.mark.parametrize(("error", "explained"), [(2e-6, True), (3e-2, True), (4e-2, False), (float("nan"), False)])
def test_tf32_is_less_exact_by_2_to_the_15(name, error, explained):
    """The bound is 1e-6, of which 2^15 are 0.033."""
    finding, case = known(name)
    assert finding.explains(case, wrong(1.0 + error)) == explained
    assert not finding.explains(msgspec.structs.replace(case, dtype="bfloat16"), wrong(1.0 + error))
    assert not finding.explains(case, wrong(1.0 + error, kind="nan"))


@pytest.mark.parametrize(("seq_len", "explained"), [(0, True), (1, False)])
def test_beside_tf32_another_finding_explains_the_other_requests(seq_len, explained):
    """A row of a request without a key is NaN by a finding of its own, and no other row is."""
    finding, case = known("vllm-float32-as-tf32")
    other = msgspec.structs.replace(case.requests[0], seq_len=seq_len, blocks=(1,) * seq_len)
    case = msgspec.structs.replace(case, requests=(*case.requests, other))
    differences = wrong(1.01).differences + wrong(float("nan"), request=1).differences
    assert finding.explains(case, Verdict(kind="value", about="out", differences=differences)) == explained
    assert not finding.explains(case, Verdict(kind="value", about="out", differences=differences[1:]))


def ranged(query_len: int, seq_len: int, *ranges: tuple[int, int], causal: bool = True) -> Request:
    blocks = tuple(range(-(-seq_len // 16)))
    return Request(query_len=query_len, seq_len=seq_len, blocks=blocks, causal=causal, bidirectional_ranges=ranges)


@pytest.mark.parametrize(
    ("request_of", "window", "explained"),
    [
        (ranged(17, 49, (0, 48)), (-1, -1), True),
        (ranged(16, 16, (0, 15)), (-1, -1), False),  # in one block
        (ranged(1, 49, (0, 48)), (-1, -1), False),  # nothing ahead of the query
        (ranged(1, 49, (0, 48)), (15, 0), True),  # keys before its window
        (ranged(1, 49, (0, 31)), (15, 0), False),  # the query is after the range
        (ranged(17, 49, (0, 48), causal=False), (-1, -1), False),  # nothing is taken out ahead
    ],
)
def test_blocks_are_left_out_where_a_range_leaves_the_block_of_a_query(request_of, window, explained):
    finding, case = known("vllm-flex-range-ahead", requests=(request_of,), window=window)
    assert finding.explains(case, wrong(0.5)) == explained


@pytest.mark.parametrize(("seq_len", "recycled", "explained"), [(17, False, True), (32, False, False), (32, True, True)])
def test_slots_are_unused_after_a_sequence_or_where_no_query_sees_them(seq_len, recycled, explained):
    requests = (Request(query_len=1, seq_len=seq_len, blocks=(0, 1), causal=True),)
    finding, case = known("aiter-unused-slots", requests=requests, recycled=recycled)
    assert finding.explains(case, wrong(float("nan"), kind="nan")) == explained
    assert not finding.explains(msgspec.structs.replace(case, finite_slots=True), wrong(float("nan"), kind="nan"))


DECODE, PREFILL = (Request(query_len=length, seq_len=32, blocks=(0, 1), causal=True) for length in (1, 2))


def test_decodes_alone_round_products():
    finding, case = known("aiter-chunked-rounded-products", requests=(DECODE, PREFILL))
    assert finding.explains(case, wrong(2.0, request=0))
    assert not finding.explains(case, wrong(2.0, request=1))


def test_products_are_rounded_and_their_sums_are_not():
    """Sums in 16 bits, as SGLang's were before 0.5.22, are another bug."""
    finding, case = known("sglang-decode-rounded-products")
    step = build(case)
    [write] = step.writes
    assert step.kv_cache is not None
    attn_reference.write_kv_cache(write.k, write.v, step.kv_cache, step.layer, write.slot_mapping)
    [request] = requests(step)
    products = (request.query[0] * request.key)[:, 0].half()  # of the first head
    for logits, explained in ((products.double().sum(1), True), (products.sum(1), False)):
        weights = logits.double().softmax(0)
        got = float(weights @ request.value[:, 0, 0])
        assert finding.explains(case, wrong(got)) == explained
        assert not finding.explains(case, wrong(got, kind="nan"))


def test_each_kernel_of_a_chunked_prefill_has_a_finding_of_its_window():
    """A decode is not explained by the finding of prefills where its own is repaired, and the other way around."""
    of_decodes, case = known("aiter-chunked-outside-window", requests=(DECODE, PREFILL))
    assert of_decodes.explains(case, wrong(float("nan"), request=0, kind="nan"))
    assert not of_decodes.explains(case, wrong(float("nan"), request=1, kind="nan"))
    of_prefills = FINDINGS["aiter-prefill-outside-window"]
    assert of_prefills.explains(case, wrong(float("nan"), request=1, kind="nan"))


@pytest.mark.parametrize(
    ("query_len", "seq_len", "earlier", "explained"),
    [
        (0, 1, ("contents",), True),
        (0, 1, ("same",), False),
        (0, 2, ("contents",), False),
        (1, 1, ("contents",), False),
        (0, 0, (), True),
    ],
)
def test_an_earlier_call_may_have_a_request_without_a_key(query_len, seq_len, earlier, explained):
    """An earlier call with other contents has half of the keys, and at least one for each query."""
    full = Request(query_len=1, seq_len=1, blocks=(0,), causal=True)
    request = Request(query_len=query_len, seq_len=seq_len, blocks=(0,) * seq_len, causal=True)
    finding, case = known("aiter-mha-lse-of-empty-requests", requests=(full, request), earlier=earlier)
    assert finding.explains(case, Verdict(kind="sanitizer", about="store of an address")) == explained


def wrong_logits(ratio: float = 0.0, kind: VerdictKind = "value", message: str = "") -> Verdict:
    return Verdict(kind=kind, about="index_logits", ratio=ratio, message=message)


@pytest.mark.parametrize(("ratio", "explained"), [(1.5, True), (195.0, True), (197.0, False), (1e5, False)])
def test_bfloat16_is_less_exact_by_2_to_the_14(ratio, explained):
    """The bound has 84 roundings of the stored case, which has 64 dims and 16 heads: 2^14 / 84 is 195."""
    finding, case = known("vllm-mqa-logits-bfloat16")
    assert finding.explains(case, wrong_logits(ratio)) == explained
    assert not finding.explains(case, wrong_logits(kind="nan"))


def test_blocks_of_one_slot_have_no_tiles_and_their_scales_after_each_key():
    for name in ("vllm-index-decode-tiles", "vllm-index-decode-drafts"):
        finding, case = known(name)
        assert case.cache is not None
        assert finding.explains(case, wrong_logits(1e5))
        case = msgspec.structs.replace(case, cache=msgspec.structs.replace(case.cache, block_size=1))
        assert not finding.explains(case, wrong_logits(1e5))


@pytest.mark.parametrize(
    ("name", "kind", "changes"),
    [
        ("aiter-mqa-logits-strided", "value", {"fused_qkv": False}),
        ("aiter-mqa-logits-stage1-stores", "guard", {"slack": 0}),
        ("aiter-mqa-logits-ragged-drafts", "nan", {"requests": {"query_len": 2}}),
        ("vllm-index-decode-drafts", "value", {"requests": {"query_len": 1}}),
        ("aiter-gluon-stride-of-blocks", "value", {"cache": {"planes": True}}),
        ("aiter-gluon-stride-of-blocks", "value", {"requests": {"query_len": 1}}),  # Triton's kernel
        ("aiter-gluon-power-of-two-heads", "raised", {"group_size": 4}),
        ("aiter-gluon-infinite-sink", "nan", {"scale": 1.0}),
        ("aiter-gluon-sparse-no-sink", "nan", {"sinks": "zero"}),
        ("aiter-gluon-prefill-sink-per-part", "value", {"requests": {"seq_len": 64}}),
        ("aiter-gluon-prefill-holes", "value", {"selected": "all"}),
        ("aiter-gluon-prefill-short-holes", "nan", {"selected": "all"}),
        ("aiter-gluon-prefill-no-sink", "nan", {"sinks": "zero"}),
        ("aiter-gluon-infinite-sink", "nan", {"requests": {"query_len": 1}}),
        ("aiter-gluon-hidden-tile", "value", {"selected": "some"}),
        ("aiter-gluon-slot-0", "nan", {"requests": {"blocks": (0,)}}),
        ("aiter-gluon-prefill-slot-0", "nan", {"finite_slots": True}),
        ("aiter-gluon-full-tile-slot-0", "nan", {"finite_slots": True}),
        ("aiter-gluon-mla-one-part", "value", {"requests": {"query_len": 2}}),
        ("aiter-gluon-tile-without-keys", "nan", {"values": Values("random", 0)}),
        ("aiter-gluon-negative-scales", "value", {"cache": {"scales": "tensor"}}),
    ],
)
def test_a_finding_explains_a_case_that_has_what_its_lines_need_alone(name, kind, changes):
    (finding, case), verdict = known(name), Verdict(kind=kind, about="out")
    assert finding.explains(case, verdict)
    if "cache" in changes:
        changes = {"cache": msgspec.structs.replace(case.cache, **changes["cache"])}
    if "requests" in changes:
        changes = {"requests": tuple(msgspec.structs.replace(each, **changes["requests"]) for each in case.requests)}
    assert not finding.explains(msgspec.structs.replace(case, **changes), verdict)


@pytest.mark.parametrize(("tensor", "explained"), [("Q_ptr", True), ("KV_ptr", False)])
def test_keys_that_are_dense_are_read_where_they_lie(tensor, explained):
    """AITER 0.1.7 reads past the keys of a range that begins inside of a tile: another bug."""
    finding, case = known("aiter-mqa-logits-strided")
    message = f"load at fp8_mqa_logits.py:96, program (3, 0, 0): 0 bytes past the memory of {tensor}"
    assert finding.explains(case, wrong_logits(kind="sanitizer", message=message)) == explained


@pytest.mark.parametrize(
    ("tensor", "queries", "is_explained"),
    [("block_tables_ptr", 2, True), ("key_cache_ptr", 2, False), ("block_tables_ptr", 1, False)],
)
def test_a_row_of_the_table_is_left_by_the_2d_kernel(tensor, queries, is_explained):
    finding, case = known("aiter-gluon-past-table-row")
    requests = tuple(msgspec.structs.replace(each, query_len=queries) for each in case.requests)
    message = f"KERNEL for gfx1250: 8 bytes at byte 8 of {tensor}, which has 12 bytes"
    verdict = Verdict(kind="sanitizer", message=message)
    assert finding.explains(msgspec.structs.replace(case, requests=requests), verdict) == is_explained


@pytest.mark.parametrize(
    ("window", "ranges", "is_explained"),
    [(0, ((0, 1),), True), (1, ((0, 1),), False), (0, ((0, 0),), False), (0, ((1, 5),), False), (0, (), False)],
    ids=["before the window", "inside it", "of earlier queries", "begins at the query", "no range"],
)
def test_a_range_is_beyond_the_window_of_a_query_that_it_holds(window, ranges, is_explained):
    finding, case = known("vllm-range-beyond-window", window=(window, 0))
    [request] = case.requests
    case = msgspec.structs.replace(case, requests=(msgspec.structs.replace(request, bidirectional_ranges=ranges),))
    assert finding.explains(case, wrong(2.0)) == is_explained


@pytest.mark.parametrize(
    ("query_lens", "slack", "verdict", "is_explained"),
    [
        ((0, 1), 0, wrong(2.0, request=1), True),
        ((1, 0), 0, wrong(2.0), False),
        ((1, 0), 0, Verdict(kind="guard", about="out"), True),
        ((1, 1), 0, wrong(2.0, request=1), False),
        ((0, 1), 1, wrong(2.0, request=1), False),
    ],
    ids=["after it", "before it", "one row after", "no empty request", "a bound of two queries"],
)
def test_an_empty_request_of_a_decode_moves_the_rows_after_it(query_lens, slack, verdict, is_explained):
    finding, case = known("aiter-decode-empty-request", slack=slack)
    requests = tuple(
        msgspec.structs.replace(each, query_len=n, seq_len=1) for each, n in zip(case.requests, query_lens, strict=True)
    )
    assert finding.explains(msgspec.structs.replace(case, requests=requests), verdict) == is_explained


@pytest.mark.parametrize(
    ("head_size", "of_float8", "of_16_bits"),
    [(64, False, False), (96, True, True), (128, False, False), (192, True, False), (256, False, False)],
)
def test_a_step_of_float8_takes_64_dims_of_a_part_of_a_head(head_size, of_float8, of_16_bits):
    finding, case = known("aiter-hip-head-sizes", head_size=head_size)
    assert case.cache is not None
    for dtype, is_explained in (("fp8_e4m3fnuz", of_float8), (None, of_16_bits)):
        cache = msgspec.structs.replace(case.cache, dtype=dtype)
        assert finding.explains(msgspec.structs.replace(case, cache=cache), wrong(2.0)) == is_explained
