"""The benchmark of latent attention, end to end on a CPU, and its errors."""

import os
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks.__main__ import cli
from benchmarks.latent.cases import CASES, ExpandedCase, LatentCase
from benchmarks.latent.command import values_to_try
from benchmarks.latent.page import FOLDER, PAGE
from benchmarks.latent.run import SCHEMA
from benchmarks.speed import results
from benchmarks.speed.clock import Spread
from benchmarks.speed.machine import Rates
from benchmarks.speed.participants import OURS, VLLM
from benchmarks.speed.results import CaseResult, Result, Run
from tests import processes

ROOT = Path(__file__).parent.parent.parent
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_a_tiny_run_measures_other_parameters_too(tmp_path):
    path = tmp_path / "latent.json"
    arguments = ["latent", "--tiny", "--only", "N=12,", "--try", "block_n=32,64", "--json", str(path), "--commit", "abc"]
    ended = processes.run(["-m", "benchmarks", *arguments], cwd=tmp_path, env={**os.environ, **ON_CPU})
    assert ended.returncode == 0, ended.stderr
    (case,) = results.read(path, SCHEMA).cases
    assert {name: result.verdict for name, result in case.results.items() if "vLLM" not in name} == {
        OURS: "measured",
        "block_n=32": "measured",
    }


def test_a_tiny_prefill_is_measured_beside_dense_attention(tmp_path):
    """V of flash attention is padded, and its padding is no part of what is checked."""
    path = tmp_path / "latent.json"
    arguments = ["latent", "--tiny", "--only", "192/128", "--json", str(path), "--commit", "abc"]
    ended = processes.run(["-m", "benchmarks", *arguments], cwd=tmp_path, env={**os.environ, **ON_CPU})
    assert ended.returncode == 0, ended.stderr
    (case,) = results.read(path, SCHEMA).cases
    assert {name: result.verdict for name, result in case.results.items()} == {OURS: "measured", "SDPA flash": "measured"}


def test_the_work_of_a_prefill_is_that_of_the_pairs_that_are_seen():
    case = ExpandedCase(name="", query_lens=(2, 3), num_heads=5, head_size=8, head_size_v=4)
    assert case.flops == 2 * (8 + 4) * 5 * (3 + 6)
    assert case.bytes == 2 * 5 * 5 * (8 + 8 + 4 + 4)


def test_values_of_a_name_that_is_given_twice_are_all_tried():
    tries = values_to_try(("block_n=32", "num_warps=4", "block_n=64,128"))
    assert tries == {"block_n": [32, 64, 128], "num_warps": [4]}


def test_the_floor_counts_each_key_once():
    case = LatentCase(name="", query_lens=(1, 2), seq_lens=(10, 20), num_heads=3, latent_size=8, rope_size=4)
    assert case.bytes == 2 * ((10 + 20) * 12 + 3 * 3 * (12 + 8))
    assert case.flops == 2 * (12 + 8) * 3 * (10 + 19 + 20)
    assert len({case.name for case in CASES}) == len(CASES)


def time(ms: float) -> Result:
    return Result(verdict="measured", error=1e-3, time=Spread(ms, 0.98 * ms, 1.02 * ms, 100), calls=1)


def test_the_page_says_what_was_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    FOLDER.mkdir(parents=True)
    found = {
        "both": {OURS: time(0.5), VLLM: time(1.0), "block_n=32": time(0.75)},
        "vLLM's alone": {OURS: Result(verdict="failed", why="OutOfResources"), VLLM: time(2.0)},
    }
    run = Run(
        schema=SCHEMA,
        of_value=True,
        machine="a GPU",
        versions={"vllm": "0.33"},
        command="python -m benchmarks latent",
        commit="abc",
        rates=Rates(read=4e12, copy=4e12, matmul_burst=8e14, matmul_sustained=5e14),
        cases=[CaseResult(name=name, flops=1e11, bytes=1e9, floor_ms=0.25, results=each) for name, each in found.items()],
    )
    results.write(run, FOLDER / "gpu.json")
    assert CliRunner().invoke(cli, ["page"]).exit_code == 0
    text = PAGE.read_text(encoding="utf-8")
    assert "vllm 0.33. Commit abc, `python -m benchmarks latent`." in text
    assert "| 4 TB/s | 4 TB/s | 800 TFLOP/s | 500 TFLOP/s |" in text
    assert "| both | 0.25 | 0.5 (50%) | 40% | 0.49-0.51 | 1 (2.00) |" in text
    assert "* both, block_n=32: 0.75 ms, 1.50 times as long as ours" in text
    assert "| vLLM's alone | 0.25 | failed |  |  | 2 |" in text
    assert CliRunner().invoke(cli, ["page", "--check"]).exit_code == 0
    PAGE.write_text(text.replace("40%", "80%"), encoding="utf-8")
    ended = CliRunner().invoke(cli, ["page", "--check"])
    assert ended.exit_code == 1
    assert "not current: docs/generated/performance-latent.md;" in ended.output


def test_a_run_of_other_cases_is_not_on_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    FOLDER.mkdir(parents=True)
    (FOLDER / "other.json").write_text(f'{{"schema": "{results.SCHEMA}"}}')
    ended = CliRunner().invoke(cli, ["page"])
    assert ended.exit_code == 2
    assert f"other.json: schema: got '{results.SCHEMA}', expected '{SCHEMA}'" in " ".join(ended.output.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "torch sees no GPU here; --tiny"),
        (("--tiny", "--only", "nothing like it"), "no case has 'nothing like it' in its name"),
        (("--tiny", "--json", "none/run.json"), "--json: the folder none does not exist"),
        (("--tiny", "--try", "block_q=16"), "got 'block_q=16', expected NAME=V,V"),
        (("--tiny", "--try", "block_n=a"), "got 'block_n=a', expected NAME=V,V"),
        (("--tiny", "--try", "block_n=32,33"), "'block_n=32,33': parameters.block_n: got 33, expected a power of two"),
        (("--tiny", "--try", "block_n=0"), "'block_n=0': parameters.block_n: got 0"),
        (("--tiny", "--try", "num_warps=3"), "'num_warps=3': parameters.num_warps: got 3, expected a power of two"),
    ],
)
def test_bad_arguments_are_named_before_any_work(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRITON_INTERPRET", os.environ["TRITON_INTERPRET"])  # the command changes it for its own process
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ended = CliRunner().invoke(cli, ["latent", *arguments])
    assert ended.exit_code in (1, 2)
    assert message in " ".join(ended.output.split())
