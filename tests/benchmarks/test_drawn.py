"""Drawn cases are legal, follow from their seed, and cover what they are drawn from."""

from collections import Counter

import msgspec
import pytest
import torch

from benchmarks.steps.calls import attention_call
from benchmarks.steps.drawn import LAYOUTS, MAX_CACHE_BYTES, draw_cases
from benchmarks.steps.models import Model, models
from benchmarks.steps.traffic import MAX_TOKENS, MIN_TOKENS, TRAFFIC

CASES = draw_cases(400, seed=0)


def test_a_case_follows_from_the_seed_and_its_number_alone():
    assert draw_cases(20, seed=0) == CASES[:20]
    assert draw_cases(20, seed=1) != CASES[:20]


def test_each_kind_of_traffic_comes_in_turn():
    assert Counter(case.traffic for case in CASES) == dict.fromkeys(TRAFFIC, len(CASES) // len(TRAFFIC))


@pytest.mark.parametrize("case", CASES[:60], ids=lambda case: case.name)
def test_a_case_is_a_legal_call(case):
    """Layers and batches check themselves when they are made."""
    call = attention_call(case, torch.device("meta"), seed=0)
    assert call.layer.num_heads == case.num_heads


def test_lengths_are_within_their_limits():
    for case in CASES:
        assert len(case.query_lens) == len(case.seq_lens)
        for query_len, seq_len in zip(case.query_lens, case.seq_lens, strict=True):
            assert 1 <= query_len <= seq_len
            assert MIN_TOKENS <= seq_len <= MAX_TOKENS + max(case.query_lens) + case.common_prefix_len
        bytes_per_key = 2 * case.num_kv_heads * case.head_size * (1 if case.float8_cache else 2)
        assert sum(case.seq_lens) * bytes_per_key <= MAX_CACHE_BYTES or len(case.seq_lens) == 1


def test_what_can_be_drawn_is_drawn():
    assert {case.layout for case in CASES} == set(LAYOUTS)
    assert {case.head_size for case in CASES} == {model.head_size for model in models()}
    for name in ("window", "chunked_local", "logits_soft_cap"):
        assert {getattr(case, name) for case in CASES} == {getattr(kind, name) for model in models() for kind in model.layers}
    assert {case.sinks for case in CASES} == {case.float8_cache for case in CASES} == {False, True}


@pytest.mark.parametrize(
    ("heads", "kv_heads", "ranks"),
    [(32, 8, (1, 2, 4)), (64, 8, (1, 2, 4, 8)), (28, 4, (1, 2)), (71, 1, (1,)), (48, 1, (1, 2, 4)), (14, 2, (1,))],
)
def test_ranks_have_whole_heads(heads, kv_heads, ranks):
    model = Model(name="made up", num_heads=heads, num_kv_heads=kv_heads, head_size=64)
    assert model.ranks == ranks
    for n in ranks:
        of_a_rank = model.heads_of_a_rank(n)
        assert of_a_rank == (heads // n, max(1, kv_heads // n))
        assert of_a_rank[0] % of_a_rank[1] == 0


def test_a_misspelt_field_of_a_model_is_refused():
    with pytest.raises(msgspec.ValidationError, match="windows"):
        msgspec.convert({"name": "a", "num_heads": 1, "num_kv_heads": 1, "head_size": 1, "layers": [{"windows": 1}]}, Model)
