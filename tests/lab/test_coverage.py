"""The coverage table counts what is drawn, notices what is not, and is the same whoever draws it."""

import os
import subprocess
import sys
from functools import cache
from itertools import combinations
from pathlib import Path

import hypothesis
import msgspec
import pytest
from attn_contract import AttentionType, Layout
from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import Cache, Case, Request
from attn_fuzz.cases.features import undefined
from attn_fuzz.run import shard
from attn_fuzz.run.shard import FuzzPlan
from attn_lab.commands import matrix
from attn_lab.matrix import coverage
from attn_lab.matrix.coverage import NAMES, Coverage

replace = msgspec.structs.replace
PLAN = FuzzPlan(target="triton", device="cpu", examples=3, seed=0, folder=Path())
DECODE = Case(
    target="triton",
    requests=(Request(query_len=1, seq_len=3, blocks=(0,), causal=True),),
    cache=Cache(layout=Layout.KV_FIRST_NHD, block_size=4, num_blocks=1),
)
CAPPED = replace(DECODE, logits_soft_cap=1.0)
CAPPED_ALIBI = replace(CAPPED, alibi_slopes=True)
CAPPED_WINDOW = replace(CAPPED, window=(1, 0))
ENCODER_WINDOW = Case(
    target="triton", attn_type=AttentionType.ENCODER, requests=(Request(query_len=3, seq_len=3),), window=(1, 0)
)


class InThisProcess:
    """Instead of worker processes, which would import everything first."""

    def __init__(self, *args):
        self.map = map

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    monkeypatch.setattr(coverage, "ProcessPoolExecutor", InThisProcess)


@pytest.fixture
def count(monkeypatch):
    """Coverage of given cases, as if two shards had drawn them."""

    def run(*cases: Case, sides: tuple[str, ...] = ()) -> Coverage:
        halves = [list(cases[::2]), list(cases[1::2])]
        monkeypatch.setattr(shard, "drawn", lambda plan: halves[plan.seed])
        return coverage.cover([PLAN, replace(PLAN, seed=1)], 2, sides)

    return run


def test_cover_counts_features_and_pairs_of_all_shards(count):
    counted = count(DECODE, CAPPED, CAPPED_WINDOW)
    assert counted.examples == 3
    always = ["decoder, causal", "decode", "float32", "KV_FIRST_NHD", "cache of the layer's dtype"]
    assert counted.single == {**dict.fromkeys(always, 3), "logits_soft_cap": 2, "window": 1}
    assert counted.pairs[("window", "logits_soft_cap")] == 1
    assert counted.pairs[("decode", "logits_soft_cap")] == 2
    assert counted.pairs[("decode", "KV_FIRST_NHD")] == 3
    assert sum(counted.pairs.values()) == 10 + 15 + 21
    assert counted.refused == {}


def test_a_side_refuses_a_feature_if_it_refuses_every_case_that_has_it(count):
    """For the reason that belongs to the feature: a case of two such features is refused for the first of them."""
    both = replace(CAPPED_ALIBI, window=(1, 0))
    cases = (CAPPED, CAPPED_WINDOW, ENCODER_WINDOW, both, both, both, CAPPED_ALIBI)
    expected = {
        "encoder": "encoder attention",
        "window": "a sliding window",
        "alibi_slopes": "ALiBi",
        "prefill": "encoder attention",
    }
    for drawn in (cases, cases[::-1]):
        refused = count(*drawn, sides=("triton", "triton-cascade")).refused
        assert refused == {"triton": {}, "triton-cascade": expected}


def coverage_of(*pairs: tuple[str, str]) -> Coverage:
    return Coverage(examples=1, single={}, pairs=dict.fromkeys(pairs, 1), refused={})


def test_a_defined_pair_that_was_never_drawn_is_missing_and_an_undefined_one_that_was_is_impossible():
    defined = [pair for pair in combinations(NAMES, 2) if not undefined(*pair)]
    assert coverage.missing(coverage_of(*defined)) == []
    assert coverage.impossible(coverage_of(*defined)) == []
    window_and_sinks, planes_of_content = ("window", "sinks"), ("CONTENT_PACKED", "K and V planes")
    without = coverage_of(*(pair for pair in defined if pair != window_and_sinks))
    assert coverage.missing(without) == [window_and_sinks]
    assert coverage.impossible(coverage_of(*defined, planes_of_content)) == [planes_of_content]
    assert coverage.missing(coverage_of(*defined, planes_of_content)) == []


@pytest.mark.nightly
def test_what_is_counted_is_what_a_fuzz_run_draws(fuzz_here):
    plan = replace(PLAN, target="planted:FLASH", examples=20, seed=7)
    _, ran = fuzz_here("planted:FLASH", examples=20, seed=7)
    assert shard.drawn(plan) == ran


DRAW = """
import pathlib, sys
import numbers_of_others
from attn_fuzz.cases import case_file
from attn_fuzz.run import shard
plan = shard.FuzzPlan(target="triton", device="cpu", examples=60, seed=0, folder=pathlib.Path())
sys.stdout.write("".join(map(case_file.dumps, shard.drawn(plan))))
"""


@pytest.mark.nightly
def test_neither_hashes_nor_other_modules_change_what_is_drawn(tmp_path, child_environment):
    """Hypothesis mixes in numbers from the source of whatever is loaded; a seed would mean other cases after every edit.

    Here all modules of the tests are loaded. The other process has a seed of hashes of its own, and another module.
    """
    (tmp_path / "numbers_of_others.py").write_text("NUMBERS = (102, 345, 12345, 0.125)")
    environment = child_environment | {"PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"}
    command = [sys.executable, "-c", DRAW]
    drawn = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert drawn == "".join(map(case_file.dumps, shard.drawn(replace(PLAN, examples=60))))


@pytest.fixture(scope="module")
def drawn_once():
    """`shard.drawn`, which draws for a plan once: test_run.py says that it draws the same whenever it is asked."""
    return cache(shard.drawn)


@pytest.fixture
def page(attn_lab, drawn_once, tmp_path, monkeypatch) -> Path:
    """A page of few cases, on which pairs are never drawn."""
    monkeypatch.setattr(shard, "drawn", drawn_once)
    monkeypatch.setattr(matrix, "PROFILES", {"ci": 20, "nightly": 60})
    monkeypatch.setattr(coverage, "missing", lambda drawn: [])
    (tmp_path / "docs" / "generated").mkdir(parents=True)
    assert attn_lab("matrix", "page").code == 0
    return tmp_path / "docs" / "generated" / "coverage.md"


def test_a_pair_that_is_never_drawn_or_called_undefined_is_named(attn_lab, page, monkeypatch):
    monkeypatch.setattr(coverage, "missing", lambda drawn: [("window", "sinks")])
    monkeypatch.setattr(coverage, "impossible", lambda drawn: [("encoder", "slot -1")])
    run = attn_lab("matrix", "page", "--check")
    assert run.code == 1
    assert "never drawn together: window and sinks" in run.out
    assert "drawn together, though undefined: encoder and slot -1" in run.out


def test_a_pair_that_a_further_seed_draws_is_not_named(attn_lab, page, monkeypatch):
    missing = iter(([("window", "sinks"), ("encoder", "slot -1")], [("encoder", "slot -1")], []))
    monkeypatch.setattr(coverage, "missing", lambda drawn: next(missing))
    run = attn_lab("matrix", "page", "--check", "--only", "coverage")
    assert run.code == 0
    assert "--seed 2" in run.err


def test_a_page_of_another_hypothesis_is_refused_before_anything_is_drawn(attn_lab, page, monkeypatch):
    page.write_text(page.read_text().replace(hypothesis.__version__, "1.2.3", 1))
    monkeypatch.setattr(shard, "drawn", lambda plan: pytest.fail("it drew"))
    run = attn_lab("matrix", "page", "--check")
    assert run.code == 2
    assert "Hypothesis 1.2.3" in run.err
    assert hypothesis.__version__ in run.err
    assert "hypothesis==1.2.3" in run.err
