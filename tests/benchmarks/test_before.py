"""`speed --before`: this project's kernels as another folder has them."""

import shutil
import sys

import attn_optimized
import pytest
from click.testing import CliRunner

from benchmarks.__main__ import cli
from benchmarks.speed import results
from benchmarks.speed.before import load_before
from benchmarks.speed.participants import BEFORE, OURS
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
