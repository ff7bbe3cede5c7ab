"""Cases of latent attention, end to end on a CPU, and other launch parameters for them."""

import os
from dataclasses import replace
from pathlib import Path

import attn_optimized
import pytest
import torch

from benchmarks.measuring import check
from benchmarks.participants.attention import OURS, ours
from benchmarks.speed import results
from benchmarks.speed.command import values_to_try
from benchmarks.steps.calls import attention_call
from benchmarks.steps.latent import CASES, latent_case
from tests.support import processes

ROOT = Path(__file__).parent.parent.parent
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_a_tiny_run_measures_other_parameters_too(tmp_path):
    path = tmp_path / "latent.json"
    arguments = ["speed", "--tiny", "--only", "N=12,", "--try", "block_n=32,64", "--json", str(path), "--commit", "abc"]
    ended = processes.run(["-m", "benchmarks", *arguments], cwd=tmp_path, env={**os.environ, **ON_CPU})
    assert ended.returncode == 0, ended.stderr
    (case,) = results.read(path).cases
    assert {name: result.verdict for name, result in case.results.items() if "vLLM" not in name} == {
        OURS: "measured",
        "block_n=32": "measured",
        "block_n=64": "measured",
    }


def test_a_tiny_prefill_is_measured_beside_dense_attention(tmp_path):
    """V of flash attention is padded, and its padding is no part of what is checked."""
    path = tmp_path / "latent.json"
    arguments = ["speed", "--tiny", "--only", "192/128", "--json", str(path), "--commit", "abc"]
    ended = processes.run(["-m", "benchmarks", *arguments], cwd=tmp_path, env={**os.environ, **ON_CPU})
    assert ended.returncode == 0, ended.stderr
    (case,) = results.read(path).cases
    assert {name: result.verdict for name, result in case.results.items()} == {OURS: "measured", "SDPA flash": "measured"}


def test_the_work_of_a_prefill_is_that_of_the_pairs_that_are_seen():
    sizes = {"num_heads": 5, "num_kv_heads": 5, "head_size": 8, "head_size_v": 4}
    case = replace(CASES[-1], query_lens=(2, 3), seq_lens=(2, 3), **sizes)
    assert case.flops == 2 * (8 + 4) * 5 * (3 + 6)
    assert case.bytes == 2 * 5 * 5 * (8 + 8 + 4 + 4)


@pytest.mark.parametrize("case", CASES[2:7:2] + CASES[-4:], ids=lambda case: case.name)
def test_our_kernel_computes_what_is_expected(case):
    """Cases in bfloat16 and float8, with several rows, ragged requests, and expanded prompts."""
    call = attention_call(case.tiny(), torch.device("cpu"), seed=0)
    rows = check.sampled_rows(call)
    prepared = ours(attn_optimized, call)
    out = prepared.output(prepared.run())
    assert out.shape == (call.case.num_tokens, call.case.num_heads, call.case.head_size_v)
    assert check.relative_error(out, rows, check.expected_rows(call, rows)) < check.MAX_ERROR


def test_values_of_a_name_that_is_given_twice_are_all_tried():
    tries = values_to_try(("block_n=32", "num_warps=4", "block_n=64,128"))
    assert tries == {"block_n": [32, 64, 128], "num_warps": [4]}


def test_the_floor_counts_each_key_once():
    case = latent_case("", (1, 2), (10, 20), num_heads=3, latent=8, rope=4)
    assert case.bytes == 2 * ((10 + 20) * 12 + 3 * 3 * (12 + 8))
    assert case.flops == 2 * (12 + 8) * 3 * (10 + 19 + 20)
    assert len({case.name for case in CASES}) == len(CASES)
