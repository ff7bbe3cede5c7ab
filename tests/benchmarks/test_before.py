"""`speed --before`: this project's kernels as another folder has them."""

import shutil
import sys

import attn_optimized
import pytest

from benchmarks.participants.attention import BEFORE, OURS
from benchmarks.participants.before import load_before
from benchmarks.speed import results
from tests.support.pages import ROOT


@pytest.fixture
def earlier(tmp_path):
    """This project's package in another folder, as if a commit since had changed how a softmax step decays."""
    shutil.copytree(ROOT / "optimized", tmp_path / "earlier" / "optimized", ignore=shutil.ignore_patterns("__pycache__"))
    source = tmp_path / "earlier" / "optimized" / "attn_optimized" / "kernels" / "online_softmax.py"
    text = source.read_text(encoding="utf-8")
    assert "sums * decay + tl.sum" in text
    source.write_text(text.replace("sums * decay + tl.sum", "sums + tl.sum"), encoding="utf-8")
    return tmp_path / "earlier"


def test_another_folders_kernels_run_beside_todays(earlier, tmp_path, monkeypatch, ended):
    monkeypatch.chdir(tmp_path)
    arguments = ["speed", "--tiny", "--commit", "abc", "--drawn", "1", "--seed", "3", "--json", "run.json"]
    code, printed = ended(*arguments, "--before", earlier)
    assert code == 0, printed
    (case,) = results.read(tmp_path / "run.json").cases
    assert case.results[OURS].verdict == "measured"
    assert case.results[BEFORE].verdict == "wrong", "the kernels of that folder did not run"


def test_todays_package_stays_imported(earlier):
    before = load_before(earlier)
    assert before.paged_attention is not attn_optimized.paged_attention
    assert sys.modules["attn_optimized"] is attn_optimized
    assert sys.modules["attn_optimized.attention"].paged_attention is attn_optimized.paged_attention
