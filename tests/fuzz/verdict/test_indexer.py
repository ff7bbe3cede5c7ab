"""The judge of an index layer: what it finds, and that a tie or a rounding is no fault."""

import random
from typing import Any

import pytest
import torch
from attn_contract import Batch, Indexer, IndexScore
from attn_fuzz.verdict.indexer import index_oracle, wrong_logits, wrong_selection
from attn_reference import index_logits, select

from tests.support.calls import one_request

INF = torch.inf


def indexer(**fields: Any) -> Indexer:
    return Indexer(**{"num_heads": 1, "head_size": 8, "top_k": 2, **fields})


def step(query_len: int, seq_len: int) -> Batch:
    return one_request(query_len, seq_len, causal=True, block_table=torch.tensor([[0]], dtype=torch.int32))


def verdict(selected: list[int], logits: list[float], bound: list[float] | None = None, /, **fields: Any) -> str | None:
    """Of the only row of a request that sees all units."""
    made = indexer(**fields)
    given = None if bound is None else torch.tensor(bound, dtype=torch.float64)[None, None]
    entries = torch.tensor(selected, dtype=torch.int32)[None, None]
    seq_len = len(logits) * made.selection_unit
    return wrong_selection(entries, torch.tensor(logits)[None, None], made, step(1, seq_len), given)


@pytest.mark.parametrize("selected", [[0, 2], [2, 0], [-1, 2, -1, 0]])
def test_order_and_holes_mean_nothing(selected: list[int]) -> None:
    assert verdict(selected, [4.0, 1.0, 3.0]) is None


@pytest.mark.parametrize(
    ("selected", "message"),
    [
        ([0, 1], "unit 1 is selected with the logit 1, and unit 2 is not with 3"),
        ([0, 0], "unit 0 is selected twice"),
        ([0], "1 units are selected, expected 2"),
        ([0, 2, 1], "3 units are selected, expected 2"),
        ([0, 3], "unit 3 is selected, which the row does not see"),
        ([-1, -1], "0 units are selected, expected 2"),
    ],
)
def test_a_wrong_set_is_named(selected: list[int], message: str) -> None:
    assert message in str(verdict(selected, [4.0, 1.0, 3.0]))


def test_ties_are_free_and_one_ulp_is_no_tie() -> None:
    for pair in ([0, 1], [0, 2], [0, 3]):
        assert verdict(pair, [4.0, 3.0, 3.0, 3.0]) is None
        assert verdict(pair, [0.0, -0.0, 0.0, -0.0]) is None
    assert "unit 1 is selected" in str(verdict([1, 2], [4.0, 3.0, 3.0, 3.0]))
    above = float(torch.nextafter(torch.tensor(3.0), torch.tensor(INF)))
    assert verdict([0, 2], [4.0, 3.0, above]) is None
    assert "unit 1 is selected" in str(verdict([0, 1], [4.0, 3.0, above]))


def test_logits_within_the_bound_may_change_places() -> None:
    logits, near = [4.0, 3.0, 3.25], [0.125] * 3
    assert verdict([0, 1], logits, near) is None
    assert "unit 1 is selected" in str(verdict([0, 1], logits, [0.0625] * 3))
    # one of the two alone moves far enough
    assert verdict([0, 1], logits, [0.0, 0.25, 0.0]) is None


def test_a_forced_unit_that_is_not_selected_is_named() -> None:
    logits = [0.0, 5.0, 9.0, 8.0, 1.0]
    forced = {"top_k": 3, "first_units": 1, "last_units": 1}
    assert verdict([4, 2, 0], logits, None, **forced) is None
    assert "unit 4 is not selected, which is one of the first 1 or last 1" in str(verdict([0, 2, 3], logits, None, **forced))
    assert "unit 3 is selected with the logit 8" in str(verdict([0, 3, 4], logits, None, **forced))


def test_the_open_unit_must_be_selected() -> None:
    made = indexer(selection_unit=4, key_unit=4, top_k=1)
    logits = torch.tensor([[[5.0, 1.0, 7.0]]])
    row = step(1, 10)  # at position 9 in unit 2, whose key is not there yet
    assert wrong_selection(torch.tensor([[[0, 2]]]), logits, made, row) is None
    assert "open unit 2 is not selected" in str(wrong_selection(torch.tensor([[[0, -1]]]), logits, made, row))
    assert "unit 1 is selected" in str(wrong_selection(torch.tensor([[[1, 2]]]), logits, made, row))
    assert wrong_selection(torch.tensor([[[2, -1]]]), logits, made, step(1, 12)) is None


def test_rows_before_the_sequence_select_nothing() -> None:
    logits = torch.zeros(1, 3, 1)
    entries = torch.tensor([[[-1], [-1], [0]]])
    assert wrong_selection(entries, logits, indexer(), step(3, 1)) is None
    assert "unit 0 is selected, which the row does not see" in str(
        wrong_selection(torch.tensor([[[0], [-1], [0]]]), logits, indexer(), step(3, 1))
    )


def in_float32(q: torch.Tensor, weights: torch.Tensor | None, keys: torch.Tensor, order: list[int]) -> torch.Tensor:
    """Logits of one request in float32, whose sums run over dims and heads in an order of their own."""
    products = torch.zeros(len(q), q.shape[1], len(keys))
    for dim in order:
        products += q[:, :, dim, None] * keys[:, dim]
    if weights is None:
        return products.amax(1)
    logits = torch.zeros(len(q), len(keys))
    for head in range(q.shape[1]):
        logits += products[:, head].relu() * weights[:, head, None]
    return logits


@pytest.mark.parametrize("score", IndexScore)
@pytest.mark.parametrize("seed", range(12))
def test_float32_stays_within_the_bound(score: IndexScore, seed: int) -> None:
    """Also where a logit is the small rest of large terms; and what is selected by such logits is right end to end."""
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    made = indexer(num_heads=8, head_size=16, score=score, top_k=5)
    q, keys = torch.randn(3, 8, 16, generator=generator), torch.randn(20, 16, generator=generator)
    if seed % 3 == 0:
        keys = keys[:1] * (1 + torch.randint(0, 3, (20, 1), generator=generator) * 2.0**-23)
    weights = torch.randn(3, 8, generator=generator) * 10 ** rng.randint(-3, 3)
    given = weights if score is IndexScore.SUM_RELU else None
    order = rng.sample(range(16), 16)
    got = in_float32(q, given, keys, order)
    batch = step(3, 20)
    oracle = index_oracle(q, given, keys[None], made, batch)
    assert wrong_logits(oracle, got[None], made, batch) is None
    assert wrong_selection(select(got[None], made, batch), oracle.logits, made, batch, oracle.bound) is None


def test_the_bound_is_narrow() -> None:
    """A logit that bfloat16 has rounded is far outside."""
    generator = torch.Generator().manual_seed(0)
    made = indexer(num_heads=8, head_size=16)
    q, keys, weights = (torch.randn(shape, generator=generator) for shape in ((1, 8, 16), (1, 20, 16), (1, 8)))
    batch = step(1, 20)
    oracle = index_oracle(q, weights, keys, made, batch)
    right = index_logits(q, weights, keys, made, batch)
    assert wrong_logits(oracle, right, made, batch) is None
    wrong = wrong_logits(oracle, right.bfloat16(), made, batch)
    assert wrong is not None
    assert wrong.kind == "value"
    assert "at row 0, selection 0: got" in wrong.message
    assert 1 < wrong.ratio < 2.0**15 / (16 + 8 + 4)


def test_an_infinite_logit_or_none_is_no_value_and_the_ratio_is_of_the_others() -> None:
    made, batch = indexer(), step(1, 2)
    q, keys, weights = torch.ones(1, 1, 8), torch.ones(1, 2, 8), torch.ones(1, 1)
    oracle = index_oracle(q, weights, keys, made, batch)
    right = index_logits(q, weights, keys, made, batch)
    for factors, ratio in (([torch.nan, 1.0], 0.0), ([-torch.inf, 2.0], float(8 / oracle.bound[0, 0, 0]))):
        wrong = wrong_logits(oracle, right * torch.tensor(factors), made, batch)
        assert wrong is not None
        assert (wrong.kind, wrong.ratio) == ("nan", ratio)


def test_logits_that_a_row_does_not_see_may_be_anything() -> None:
    made, batch = indexer(), step(2, 4)
    q, keys, weights = torch.ones(2, 1, 8), torch.ones(1, 4, 8), torch.ones(2, 1)
    oracle = index_oracle(q, weights, keys, made, batch)
    got = index_logits(q, weights, keys, made, batch)
    got[0, 0, 3] = torch.nan
    assert wrong_logits(oracle, got, made, batch) is None
    got[0, 1, 3] = -torch.inf
    assert "unit 3 at row 1" in str(wrong_logits(oracle, got, made, batch))
