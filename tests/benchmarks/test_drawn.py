"""Drawn cases are legal, follow from their seed, and cover what they are drawn from; their page says what was measured."""

from collections import Counter
from pathlib import Path

import msgspec
import pytest
import torch
from click.testing import CliRunner

from benchmarks.__main__ import cli
from benchmarks.speed import drawn_page, results
from benchmarks.speed.calls import attention_call
from benchmarks.speed.clock import Spread
from benchmarks.speed.drawn import LAYOUTS, MOST_CACHE_BYTES, draw_cases
from benchmarks.speed.machine import Rates
from benchmarks.speed.models import Model, models
from benchmarks.speed.participants import AITER, OURS, VLLM
from benchmarks.speed.results import CaseResult, Result, Run
from benchmarks.speed.traffic import LONGEST, SHORTEST, TRAFFIC

CASES = draw_cases(400, seed=0)


def test_a_case_follows_from_the_seed_and_its_number_alone():
    assert draw_cases(20, seed=0) == CASES[:20]
    assert draw_cases(20, seed=1) != CASES[:20]


def test_names_are_unique():
    assert len({case.name for case in CASES}) == len(CASES)


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
            assert SHORTEST <= seq_len <= LONGEST + max(case.query_lens) + case.common_prefix_len
        bytes_per_key = 2 * case.num_kv_heads * case.head_size * (1 if case.float8_cache else 2)
        assert sum(case.seq_lens) * bytes_per_key <= MOST_CACHE_BYTES or len(case.seq_lens) == 1


def test_what_can_be_drawn_is_drawn():
    assert {case.layout for case in CASES} == set(LAYOUTS)
    assert {case.head_size for case in CASES} == {model.head_size for model in models()}
    for name in ("window", "chunked_local", "logits_soft_cap"):
        assert {getattr(case, name) for case in CASES} == {getattr(kind, name) for model in models() for kind in model.layers}
    assert {case.sinks for case in CASES} == {case.float8_cache for case in CASES} == {False, True}


def test_there_are_many_models_and_each_is_there_once():
    names = [model.name for model in models()]
    assert len(set(names)) == len(names) >= 40


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


@pytest.mark.parametrize("options", [["--drawn", "3"], ["--seed", "3"]])
def test_a_number_needs_a_seed(options):
    ended = CliRunner().invoke(cli, ["speed", "--tiny", *options])
    assert ended.exit_code == 2
    assert "--drawn and --seed go together" in ended.output


def time(ms: float) -> Result:
    return Result(verdict="measured", error=1e-3, time=Spread(ms, 0.98 * ms, 1.02 * ms, 100), calls=1)


def case(name: str, traffic: str, floor_ms: float, **found: Result) -> CaseResult:
    return CaseResult(name=name, traffic=traffic, flops=1e9, bytes=2e9, floor_ms=floor_ms, results=found)


@pytest.fixture
def docs(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    drawn_page.FOLDER.mkdir(parents=True)
    run = Run(
        of_value=True,
        machine="a GPU",
        versions={"torch": "2.11.0"},
        command="python -m benchmarks speed --drawn 4 --seed 7",
        commit="abc",
        rates=Rates(read=4.5e12, copy=4e12, matmul_burst=8e14, matmul_sustained=6e14),
        cases=[
            case("0 decode: near the floor", "decode", 0.9, **{OURS: time(1.0), VLLM: time(2.0)}),
            case("5 decode: behind", "decode", 0.4, **{OURS: time(1.0), VLLM: time(0.9), AITER: time(0.5)}),
            case("10 decode: within the spread", "decode", 0.5, **{OURS: time(1.0), AITER: time(0.99)}),
            case("15 decode: small", "decode", 0.001, **{OURS: time(0.01)}),
        ],
        unmeasured=["20 decode: left out"],
    )
    results.write(run, drawn_page.FOLDER / "gpu.json")
    return tmp_path


def test_the_page_says_who_is_faster_and_by_how_much(docs):
    assert CliRunner().invoke(cli, ["page"]).exit_code == 0
    text = drawn_page.PAGE.read_text()
    assert "| decode | 3 | 50% | 40% | 40% | 1 | 2.00x | 1.45 (2) | 0.74 (2) |" in text
    assert "| small | 1 | 10% |" in text
    assert "* 5 decode: behind: 2.00x" in text
    assert "within the spread: " not in text
    assert "No time was left for 1 of 5 cases." in text
    first = text.index("### The 10 furthest")
    assert text.index("5 decode: behind", first) < text.index("10 decode", first) < text.index("0 decode: near", first)


def test_a_page_that_is_not_current_is_noticed(docs):
    CliRunner().invoke(cli, ["page"])
    assert CliRunner().invoke(cli, ["page", "--check"]).exit_code == 0
    drawn_page.PAGE.write_text("another")
    assert CliRunner().invoke(cli, ["page", "--check"]).exit_code == 1
