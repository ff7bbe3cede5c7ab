"""`python -m benchmarks peers`: what stand-ins for vLLM and AITER pass is what is compiled, run and counted."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks.peers.results import Row
from benchmarks.steps.calls import attention_call, float8_of
from benchmarks.steps.cases import CASES, Attention
from tests.support import processes

ROOT = Path(__file__).parents[2]
VLLM = """
from vllm.platforms import current_platform
from vllm.triton_utils import tl, triton

MAX_3D_QUERY_LEN = 8

@triton.jit
def copy_kernel(out_ptr, q_ptr, stride, SIZE: tl.constexpr):
    place = tl.program_id(0) * stride + tl.arange(0, SIZE)
    tl.store(out_ptr + place, tl.load(q_ptr + place))

def unified_attention(q, out, window_size, **rest):
    if window_size[0] >= 0:
        raise ValueError("windows\\nare not for us")
    copy_kernel[(q.shape[0],)](out, q, q.stride(0), SIZE=1024, num_warps=8 if current_platform.is_rocm() else 2)
"""
VLLM_PREFILL = """
def context_attention_fwd(**rest): ...
"""
AITER = """
import triton
import triton.language as tl
from aiter.ops.triton.utils._triton.arch_info import get_arch
from aiter.ops.triton.utils.device_info import get_num_sms

def select_2d_config():
    return {"num_warps": 1, "waves_per_eu": 3}

select_3d_config = select_2d_config

@triton.heuristics({"WIDE": lambda values: values["SIZE"] > 512})
@triton.jit
def picky_kernel(out_ptr, q_ptr, SIZE: tl.constexpr, WIDE: tl.constexpr):
    tl.static_assert(WIDE, "only wide ones")
    place = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(out_ptr + place, tl.load(q_ptr + place))

def unified_attention(q, out, window_size, **rest):
    size = 64 if window_size[0] >= 0 else get_num_sms() // 304 * 1024
    picky_kernel[(4,)](out_ptr=out, q_ptr=q, SIZE=size, **select_2d_config())
"""
COPIES_Q = """
import triton
import triton.language as tl

@triton.jit
def copy_kernel(out_ptr, q_ptr, row_stride, SIZE: tl.constexpr):
    place = tl.program_id(0) * row_stride + tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    tl.store(out_ptr + place, tl.load(q_ptr + place))

def select_2d_config(): ...

select_3d_config = select_2d_config

def unified_attention(q, out, **rest):
    copy_kernel[lambda named: (len(named["q_ptr"]), q.shape[1])](out, q, q.stride(0), SIZE=q.shape[2], num_warps=1)
"""
CROSS, WINDOW = "cross-attention, 64 x 1 query on 1500, H20 D64", "decode, H64/HK8/D64 + sinks + window 128, 64 x 8k"
OURS, THEIRS, AMDS = "ours", "vLLM Triton", "AITER Triton"
SMALL = "decode, 4 x 1k"


@pytest.fixture
def folder(tmp_path) -> Path:
    ops = "vllm/v1/attention/ops"
    files = {
        f"{ops}/triton_unified_attention.py": VLLM,
        f"{ops}/triton_prefill_attention.py": VLLM_PREFILL,
        f"{ops}/triton_decode_attention.py": "def decode_attention_fwd(): ...",
        f"{ops}/triton_reshape_and_cache_flash.py": "def triton_reshape_and_cache_flash(): ...",
        "aiter/ops/triton/unified_attention.py": AITER,
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def command_in(folder: Path, *arguments: object) -> tuple[list[str], dict[str, str]]:
    """A command and its environment."""
    given = ["-m", "benchmarks", "peers", "--vllm", folder, "--aiter", folder, "--json", folder / "found.json", *arguments]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TRITON_CACHE_DIR": str(folder / "cache")}
    return [*map(str, given)], os.environ | environment


def run_in(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Processes that the command starts compile."""
    given, env = command_in(folder, *arguments)
    return processes.run(given, cwd=folder, env=env)


def found(folder: Path) -> list[Row]:
    return [Row(**row) for row in json.loads((folder / "found.json").read_text())["rows"]]


@pytest.mark.nightly
def test_what_a_wrapper_passes_is_what_is_compiled(folder):
    only = [option for name in (CROSS, WINDOW) for option in ("--only", name)]
    run = run_in(folder, "binaries", "--arch", "gfx942", *only, "--workers", 1)
    assert run.returncode == 0, run.stderr
    rows = {(row.case, row.whose): row for row in found(folder) if row.kernel != "reduce_parts_kernel"}
    assert set(rows) == {(case, whose) for case in (CROSS, WINDOW) for whose in (OURS, THEIRS, AMDS)}
    assert all((not row.facts) == bool(row.why) for row in rows.values())
    for case in (CROSS, WINDOW):
        assert rows[case, OURS].kernel == "attention_kernel"
        assert rows[case, OURS].facts["matrix_instructions"]
    copy, picky = rows[CROSS, THEIRS], rows[CROSS, AMDS]
    assert (copy.kernel, copy.facts["num_warps"]) == ("copy_kernel", 8), "as its wrapper does on ROCm"
    assert (picky.kernel, picky.facts["num_warps"]) == ("picky_kernel", 1)
    assert (copy.facts["waves"], picky.facts["waves"]) == (8, 3), "as many as AITER asks for"
    assert (rows[WINDOW, THEIRS].kernel, rows[WINDOW, THEIRS].why) == ("", "ValueError: are not for us")
    assert rows[WINDOW, AMDS].kernel == "picky_kernel"
    assert "only wide ones" in rows[WINDOW, AMDS].why
    assert "ValueError: are not for us" in run.stdout


@pytest.mark.nightly
def test_launches_run_and_are_counted(folder):
    """128 programs of one wave copy 256 bytes each: two lines of 128 by one load, and two by one store."""
    (folder / "aiter/ops/triton/unified_attention.py").write_text(COPIES_Q)
    (folder / "vllm/v1/attention/ops/triton_unified_attention.py").write_text(VLLM.replace("window_size[0] >= 0", "True"))
    run = run_in(folder, "counts", "--arch", "gfx942", "--only", SMALL, "--workers", 1)
    assert run.returncode == 1, run.stderr
    attention, reduce, _, copy = found(folder)
    assert attention.why == reduce.why == ""
    assert attention.facts["multiply-adds"] >= attention.facts["needed"] == 2 * 4 * 1024 * 32 * 128
    assert (copy.kernel, copy.facts["programs"], copy.facts["num_warps"]) == ("copy_kernel", 128, 1)
    assert [copy.facts[name] for name in ("global accesses", "lines of 128", "least lines of 128")] == [256, 512, 512]
    assert copy.why.startswith("wrong: relative error")
    assert "counts: 2 rows, and 2 without facts or wrong: Triton" in run.stdout


def test_a_signal_ends_it_with_what_was_found(folder):
    arguments, env = command_in(folder, "binaries", "--arch", "gfx942", "--workers", 2)
    run = processes.signalled(arguments, lambda found: len(found) >= 4, signal.SIGTERM, cwd=folder, env=env)
    assert run.returncode == 130, run.stderr
    assert "interrupted; so far: " in run.stdout
    assert json.loads((folder / "found.json").read_text())["triton"]


def test_a_float8_cache_is_of_the_architectures_type():
    case = next(case for case in CASES if isinstance(case, Attention) and case.float8_cache)
    call = attention_call(case, torch.device("meta"), 1, float8_of("gfx942"))
    assert call.kv_cache is not None
    assert call.kv_cache.dtype == call.layer.kv_cache_dtype == torch.float8_e4m3fnuz
