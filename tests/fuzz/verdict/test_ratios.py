"""Elements are counted by how much of their bound they need, per dtype and phase; and a picture shows every row and head."""

from collections import Counter

import msgspec
import pytest
import torch
from attn_fuzz.cases import tensors
from attn_fuzz.cases.case import Request
from attn_fuzz.cases.features import features, phase
from attn_fuzz.run.case.trial import try_case
from attn_fuzz.verdict import judge, ratios
from attn_fuzz.verdict.rounding import Rounding
from planted import FLASH, UNOWNED_ROWS

replace = msgspec.structs.replace


def test_bins_are_quarters_of_a_factor_of_2():
    ratio = torch.tensor([[0.0, 2.0**-21, 2.0**-20, 0.9999, 1.0, 1.18, 1.9999, 2.0, torch.inf, torch.nan], [0.5] * 10])
    (counts,) = ratios.count(ratio, torch.tensor([0, 1]), 1)
    at = {i: n for i, n in enumerate(counts) if n}
    assert len(counts) == ratios.NUM_BINS == 86
    assert at == {0: 2, 1: 1, ratios.BROKEN - 1: 1, ratios.BROKEN: 2, ratios.NUM_BINS - 2: 1, ratios.NUM_BINS - 1: 3}


def test_counts_of_one_name_are_added():
    assert ratios.added({"a": [1, 2]}, {"a": [3, 4], "b": [5, 6]}) == {"a": [4, 6], "b": [5, 6]}


@pytest.mark.parametrize(
    ("query_len", "seq_len", "expected"),
    [(1, 9, "decode"), (1, 1, "decode"), (8, 9, "multi-token decode"), (9, 10, "extend"), (2, 2, "prefill"), (3, 2, "prefill")],
)
def test_the_phase_of_a_request(step_case, query_len, seq_len, expected):
    assert phase(step_case, Request(query_len, seq_len)) == expected


def test_a_run_counts_each_element_once_by_dtype_and_phase(step_case):
    case = replace(step_case, lse=True, values=replace(step_case.values, kind="random"))
    counts = try_case(case, FLASH, "cpu").ratios
    elements = {name: sum(bins) for name, bins in counts.items()}
    assert elements == {
        "out float32 multi-token decode": 2 * case.head_size,
        "out float32 prefill": 3 * case.head_size,
        "lse float32 multi-token decode": 2,
        "lse float32 prefill": 3,
    }
    assert all(sum(bins[ratios.BROKEN :]) == 0 for bins in counts.values())


def test_a_quantized_output_is_counted_apart(step_case):
    case = replace(step_case, output_dtype="fp8_e4m3fn", lse=True, values=replace(step_case.values, kind="random"))
    counts = try_case(case, FLASH, "cpu").ratios
    assert {name.rpartition(" ")[0] for name in counts if name.endswith("prefill")} == {"out fp8_e4m3fn", "lse float32"}


def test_a_bitwise_comparison_has_no_bound_to_count(step_case):
    step = tensors.build(step_case)
    judgement = judge.judge(step_case, step, Rounding(keys_per_tile=4, exact_division=True))
    assert judgement.kind == "unwritten"
    assert ratios.counts(step_case, judgement) == {}


def test_a_picture_tells_what_is_wrong_with_a_row(step_case):
    case = replace(step_case, group_size=2, unowned_rows=2)
    step = tensors.build(case)
    step.out[:5] = 1000.0
    step.out[1, 0, 3] = torch.nan
    step.out[6] = 0
    step.out[3] = tensors.build(case).out[3]
    picture = ratios.pictures(case, step, judge.judge(case, step, Rounding(keys_per_tile=4)))["out"]
    rows = [list(picture[2 * row : 2 * row + 2]) for row in range(7)]
    far = ratios.NUM_BINS - 1
    assert rows == [
        [far, far],
        [ratios.NOT_FINITE, far],
        [far, far],
        [ratios.UNWRITTEN] * 2,
        [far, far],
        [ratios.UNOWNED] * 2,
        [ratios.STRAY] * 2,
    ]


def test_a_row_without_keys_whose_lse_is_right_is_no_fault(step_case):
    nothing = replace(step_case, requests=(Request(2, 0),), lse=True)
    assert try_case(nothing, FLASH, "cpu").pictures == {"out": bytes(2), "lse": bytes(2)}


def test_a_stray_write_is_in_the_picture(step_case):
    verdict = try_case(replace(step_case, unowned_rows=1), UNOWNED_ROWS, "cpu")
    assert verdict.kind == "guard"
    assert verdict.pictures["out"][5] == ratios.STRAY


def test_no_rows_no_picture(step_case):
    assert try_case(replace(step_case, requests=()), FLASH, "cpu").pictures == {"out": b""}


def test_a_shard_tells_its_counts(fuzz_here):
    progress, cases = fuzz_here("planted:FLASH", examples=20)
    assert progress.features == Counter(name for case in cases for name in features(case))
    assert {name.split(" ")[0] for name in progress.ratios} == {"out", "lse"}
    top = max(bin for counts in progress.ratios.values() for bin, n in enumerate(counts) if n)
    assert ratios.EDGES[top - 1] <= progress.ratio < ratios.EDGES[top]
