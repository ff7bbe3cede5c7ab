"""Targets of other kernels: they declare without their packages, and each of their findings replays where these are."""

import json
import shutil

import pytest
from attn_fuzz.cases import case_file
from attn_fuzz.run.executor import Executor
from attn_fuzz.targets import Target, registry

from tests.pages import PAGES, blocks

OTHERS = [name for name in registry.names() if name.startswith(("vllm-", "sglang-", "aiter-paged-"))]
TARGETS = {name: registry.load(name) for name in OTHERS}
FINDINGS = [(name, finding) for name, target in TARGETS.items() for finding in target.findings]
(EXAMPLE,) = (block for block in blocks(PAGES["docs/guide/foreign-kernels.md"]) if block.file)


def needs(target: Target) -> None:
    if reason := target.unavailable("cpu"):
        pytest.skip(reason)


@pytest.mark.parametrize("name", OTHERS)
def test_where_a_package_is_missing_the_target_says_what_to_install(name, monkeypatch, tmp_path, attn_parity):
    monkeypatch.setattr("importlib.util.find_spec", _finds_no(("vllm", "sglang", "aiter")))
    for package in ("VLLM", "SGLANG", "AITER"):
        monkeypatch.delenv(f"ATTN_PARITY_{package}", raising=False)
    run = attn_parity("fuzz", "--target", name, "--examples", 1, "--device", "cpu")
    assert run.code == 2
    assert "pip install --no-deps " in run.err


def _finds_no(packages):
    import importlib.util

    find_spec = importlib.util.find_spec
    return lambda name, *rest: None if name in packages else find_spec(name, *rest)


@pytest.mark.parametrize(("name", "finding"), FINDINGS, ids=[finding.name for _, finding in FINDINGS])
def test_every_finding_replays(name, finding, tmp_path):
    needs(TARGETS[name])
    case = case_file.load(finding.path)
    with Executor(case.target, "cpu", 120.0, tmp_path / "ahead.json") as executor:
        verdict = executor.run(case)
    assert finding.explains(case, verdict), verdict


@pytest.mark.parametrize("name", OTHERS)
def test_they_agree_beyond_what_is_known(name, attn_parity, tmp_path):
    needs(TARGETS[name])
    options = ("--examples", 40, "--seed", 5, "--workers", 1, "--corpus", "none", "--json", "run.json")
    run = attn_parity("fuzz", "--target", name, *options)
    assert run.code == 0, run.out
    assert sum(json.loads((tmp_path / "run.json").read_text())["known"].values()) < 30


def test_the_complete_target_of_the_guide_runs(attn_parity, tmp_path):
    needs(TARGETS["vllm-unified-attention"])
    assert len(EXAMPLE.text.splitlines()) <= 60
    (tmp_path / EXAMPLE.file).write_text(EXAMPLE.text)
    run = attn_parity(
        "fuzz", "--target", "vllm_target:TARGET", "--examples", 20, "--seed", 1, "--workers", 1, "--corpus", "none"
    )
    assert "20 examples" in run.out, run.err
    shutil.rmtree(tmp_path / "attn-parity-runs")
