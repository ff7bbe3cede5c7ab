"""`speed --before`: this project's kernels as another folder has them."""

import shutil
import sys

import attn_optimized
import pytest
from click.testing import CliRunner

from benchmarks.__main__ import cli
from benchmarks.speed import results
from benchmarks.speed.before import gains, load_before
from benchmarks.speed.clock import Spread
from benchmarks.speed.participants import BEFORE, OURS
from benchmarks.speed.peers import MissingPeerError
from benchmarks.speed.results import CaseResult, Result
from tests.pages import ROOT


@pytest.fixture
def earlier(tmp_path):
    """This project's package in another folder, as if a commit since had changed how a softmax step decays."""
    shutil.copytree(ROOT / "optimized", tmp_path / "earlier" / "optimized", ignore=shutil.ignore_patterns("__pycache__"))
    source = tmp_path / "earlier" / "optimized" / "attn_optimized" / "kernels" / "online_softmax.py"
    text = source.read_text(encoding="utf-8")
    assert "sums * decay + tl.sum" in text
    source.write_text(text.replace("sums * decay + tl.sum", "sums + tl.sum"), encoding="utf-8")
    return tmp_path / "earlier"


def test_another_folders_kernels_run_beside_todays(earlier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["speed", "--tiny", "--commit", "abc", "--drawn", "1", "--seed", "3", "--json", "run.json"]
    ended = CliRunner().invoke(cli, [*arguments, "--before", str(earlier)])
    assert ended.exit_code == 0, ended.output
    (case,) = results.read(tmp_path / "run.json").cases
    assert case.results[OURS].verdict == "measured"
    assert case.results[BEFORE].verdict == "wrong", "the kernels of that folder did not run"


def test_todays_package_stays_imported(earlier):
    before = load_before(earlier)
    assert before.paged_attention is not attn_optimized.paged_attention
    assert sys.modules["attn_optimized"] is attn_optimized
    assert sys.modules["attn_optimized.attention"].paged_attention is attn_optimized.paged_attention


def test_a_package_without_the_functions_is_refused(tmp_path):
    package = tmp_path / "optimized" / "attn_optimized"
    package.mkdir(parents=True)
    (package / "attention.py").write_text("paged_attention = None")
    (package / "cascade.py").write_text("")
    with pytest.raises(
        MissingPeerError, match=r"--before: got .*: module 'attn_optimized.attention' has no .*varlen_attention"
    ):
        load_before(tmp_path)


def test_gains_are_means_by_traffic_of_the_cases_that_both_ran():
    def case(name: str, traffic: str, **ms: float) -> CaseResult:
        times = {BEFORE: ms.get("before"), OURS: ms.get("now")}
        found = {
            who: Result(verdict="measured", time=Spread(time, time, time, 9)) if time else Result(verdict="failed")
            for who, time in times.items()
        }
        return CaseResult(name=name, flops=1.0, bytes=1.0, floor_ms=1.0, results=found, traffic=traffic)

    cases = [
        case("a", "decode", before=2.0, now=1.0),
        case("b", "decode", before=1.0, now=2.0),
        case("c", "decode", now=1.0),
        case("d", "prompts", before=3.0, now=2.0),
        case("e", "chunks", before=3.0),
    ]
    assert list(gains(cases)) == [
        "decode: time before / now 1.00 in 2 cases; 0.50 in b, 2.00 in a",
        "prompts: time before / now 1.50 in 1 cases; 1.50 in d, 1.50 in d",
    ]
