"""AITER's own kernel as a target: it loads without a GPU, leaves no trace in this process, and its findings replay."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from attn_contract import AttentionType
from attn_fuzz.cases.tensors import build
from attn_fuzz.findings.aiter.unified import SPLIT_KEYS
from attn_fuzz.targets.packages.aiter import unified
from attn_fuzz.targets.packages.aiter.backends import BACKEND_AITER_FA, BACKEND_AITER_UNIFIED
from attn_fuzz.targets.packages.aiter.unified import AITER_UNIFIED_ATTENTION
from attn_fuzz.targets.triton import TRITON
from attn_optimized.aiter_adapter import Aiter, find_aiter

needs_aiter = pytest.mark.skipif(find_aiter().missing is not None, reason="needs AMD's AITER: tox run -e others")


def test_where_it_is_missing_the_target_says_what_to_install(attn_parity, monkeypatch):
    monkeypatch.setattr("attn_optimized.aiter_adapter.find_aiter", lambda: Aiter(missing="no AITER: install it"))
    run = attn_parity("fuzz", "--target", "aiter-unified-attention", "--examples", 1, "--device", "cpu")
    assert run.code == 2
    assert "no AITER: install it" in run.err
    assert "no AITER: install it" in attn_parity("doctor").out


def test_a_step_of_more_heads_than_rows_of_a_tile_has_events(step_case):
    for group_size in (1, 16, 17, 33):
        step = build(msgspec.structs.replace(step_case, group_size=group_size, requests=step_case.requests[:0]), "cpu")
        assert list(AITER_UNIFIED_ATTENTION.events(step)) == []


def test_a_gpu_excludes_cases_by_its_own_aiter(step_case, monkeypatch):
    devices = []
    monkeypatch.setattr(unified, "_float8", lambda device: ("fp8_e4m3fn", ()))
    declared = unified._declared
    monkeypatch.setattr(unified, "_declared", lambda device: devices.append(device) or declared(device))
    cache = msgspec.structs.replace(step_case.cache, block_size=48)
    AITER_UNIFIED_ATTENTION.support("cuda").exclude(msgspec.structs.replace(step_case, cache=cache))
    assert devices == ["cuda"]


@pytest.mark.parametrize(("attn_type", "paths"), [(AttentionType.DECODER, []), (AttentionType.ENCODER_DECODER, ["split"])])
def test_the_backend_counts_the_paths_of_the_kernel_that_serves_a_layer(attn_type, paths, step_case):
    """AITER's kernel does not split these keys yet. This project's kernels do, and serve all but decoders."""
    blocks = tuple(range(SPLIT_KEYS // 4))
    request = msgspec.structs.replace(step_case.requests[0], seq_len=SPLIT_KEYS, blocks=blocks)
    cache = msgspec.structs.replace(step_case.cache, num_blocks=len(blocks))
    step = build(msgspec.structs.replace(step_case, attn_type=attn_type, requests=(request,), cache=cache), "cpu")
    assert list(TRITON.events(step)) == ["split"]
    assert list(BACKEND_AITER_UNIFIED.events(step)) == paths
    assert list(BACKEND_AITER_FA.events(step)) == []


@needs_aiter
def test_doctor_says_what_its_signatures_declare(attn_parity):
    out = " ".join(attn_parity("doctor").out.split())
    assert "AITER, unified sinks yes" in out
    assert "AITER, prefill sinks flash_attn_varlen_func of AITER 0.1.7.post2.dev18 has no argument `sink_ptr`" in out


@needs_aiter
def test_it_agrees_beyond_what_is_known(attn_parity, tmp_path):
    run = attn_parity(
        "fuzz", "--target", "aiter-unified-attention", "--examples", 120, "--seed", 5, "--workers", 2, "--json", "run.json"
    )
    result = json.loads((tmp_path / "run.json").read_text())
    assert run.code == 0, run.out
    assert result["events"]["split"] > 0
    assert sum(result["known"].values()) < 60


IN_A_PROCESS_OF_ITS_OWN = """
import sys

import torch
from attn_fuzz.interpreted import interpreter

interpreter.install()
from attn_fuzz.interpreted.aiter import interpreted
from attn_optimized.aiter_adapter import find_aiter

aiter = interpreted(find_aiter())
print([name for name in sys.modules if name.split(".")[0] == "aiter"])
q, cache, one = torch.zeros(1, 1, 80), torch.zeros(2, 40, 16, 1, 80), torch.ones(1, dtype=torch.int32)
aiter.call(
    "unified_attention", q=q, k=cache[0], v=cache[1], out=q.clone(), cu_seqlens_q=torch.tensor([0, 1], dtype=torch.int32),
    max_seqlen_q=1, seqused_k=one, max_seqlen_k=int(sys.argv[1]), softmax_scale=1.0, causal=True, window_size=(-1, -1),
    block_table=torch.zeros(1, 40, dtype=torch.int32), softcap=0.0, q_descale=None, k_descale=None, v_descale=None,
)
print("it ran")
"""


def run_alone(argument: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", IN_A_PROCESS_OF_ITS_OWN, argument]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[1], check=False)


@needs_aiter
def test_loading_it_leaves_no_module_behind():
    assert run_alone("1").stdout.splitlines() == ["[]", "it ran"]


@needs_aiter
def test_a_padded_head_does_not_compile_where_keys_are_split():
    """The reason why UNIFIED_HEAD_SIZES are powers of two. When this fails, AITER is repaired: allow other sizes."""
    ended = run_alone("513")
    assert "it ran" not in ended.stdout
    assert "offs_d" in ended.stderr
