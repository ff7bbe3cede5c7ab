"""`python -m benchmarks binaries`: what stand-ins for vLLM and AITER pass is what is compiled, and what is wrong is told."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from attn_parity.binaries.facts import Facts
from click.testing import CliRunner

from benchmarks.__main__ import cli
from benchmarks.binaries import page
from benchmarks.binaries.results import Results, Row, read
from benchmarks.speed import peers
from benchmarks.speed.calls import FLOAT8_OF, attention_call
from benchmarks.speed.cases import CASES, Attention

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
CROSS, WINDOW = "cross-attention, 64 x 1 query on 1500, H20 D64", "decode, H64/HK8/D64 + sinks + window 128, 64 x 8k"
OURS, THEIRS, AMDS = "ours", "vLLM Triton", "AITER Triton"


@pytest.fixture
def folder(tmp_path) -> Path:
    ops = "vllm/v1/attention/ops"
    files = {
        f"{ops}/triton_unified_attention.py": VLLM,
        f"{ops}/triton_prefill_attention.py": VLLM_PREFILL,
        "aiter/ops/triton/unified_attention.py": AITER,
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def started(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    given = ["binaries", "--vllm", folder, "--aiter", folder, *arguments]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks", *map(str, given)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TRITON_CACHE_DIR": str(folder / "cache")}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def invoked(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["binaries", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


def test_what_a_wrapper_passes_is_what_is_compiled(folder):
    path = folder / "found.md"
    only = [option for name in (CROSS, WINDOW) for option in ("--only", name)]
    process = started(folder, "--arch", "gfx942", *only, "--workers", 1, "--page", path)
    output, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    results = read(path.with_suffix(".csv"))
    assert results.versions.keys() == {"Triton", "vLLM", "AITER"}
    found = {(row.case, row.whose): row for row in results.rows if row.kernel != "reduce_parts_kernel"}
    assert set(found) == {(case, whose) for case in (CROSS, WINDOW) for whose in (OURS, THEIRS, AMDS)}
    assert all((row.facts is None) == bool(row.why) for row in results.rows)
    for case in (CROSS, WINDOW):
        ours = found[case, OURS]
        assert ours.kernel == "attention_kernel"
        assert ours.facts
        assert ours.facts.matrix_instructions
    copy, picky = found[CROSS, THEIRS], found[CROSS, AMDS]
    assert (copy.kernel, copy.num_warps) == ("copy_kernel", 8), "as its wrapper does on ROCm"
    assert (picky.kernel, picky.num_warps) == ("picky_kernel", 1)
    assert copy.facts
    assert picky.facts
    assert (copy.facts.waves, picky.facts.waves) == (8, 3), "as many as AITER asks for"
    assert (found[WINDOW, THEIRS].kernel, found[WINDOW, THEIRS].why) == ("", "ValueError: are not for us")
    assert found[WINDOW, AMDS].kernel == "picky_kernel"
    assert "only wide ones" in found[WINDOW, AMDS].why
    assert "ValueError: are not for us" in output
    assert path.read_text() == page.text(results)


def test_a_signal_ends_it_with_what_was_found(folder):
    process = started(folder, "--arch", "gfx942", "--workers", "2", "--json", "found.json")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None and len(children.read_text().split()) < 3:  # two and multiprocessing's own
        time.sleep(0.05)
    process.terminate()
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted; so far: " in output
    assert json.loads((folder / "found.json").read_text())["versions"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--arch", "gfx9"), 2, "--arch: got gfx9, expected some of gfx90a"),
        (("--only", "cache write"), 2, "no case of attention has 'cache write' in its name"),
        (("--json", "none/found.json"), 2, "--json: the folder none does not exist"),
        (("--page", "found.csv"), 2, "--page: found.csv is where the facts go, beside a page such as found.md"),
        (("--page", "taken.md"), 2, "--page: taken.csv is a folder"),
        (("--aiter", "none"), 2, "--aiter: got none, expected a folder that holds the package `aiter`"),
        ((), 2, "vllm is left out: it is not installed, and no --vllm FOLDER was given; aiter is left out"),
        (("--check", "--page", "none.md"), 2, "none.csv"),
    ],
)
def test_bad_input_is_named(tmp_path, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    Path("taken.csv").mkdir()
    found = peers.importlib.util.find_spec
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None if name in ("vllm", "aiter") else found(name))
    ended, output = invoked(*arguments)
    assert ended == code
    assert words in output


def test_a_page_that_is_not_what_its_facts_make_is_noticed(tmp_path):
    eights = {field.name: 8 for field in dataclasses.fields(Facts)}
    facts = Facts(**eights | {"lds_bytes": 80 << 10, "lds_limit": 64 << 10, "widest_load": 16})
    row = Row("gfx942", CROSS, THEIRS, "copy_kernel")
    rows = (row.of(4, facts), row.without("CompilationError: at 1:2\n\n  no | way\n"))
    results = Results(triton="3.9", peers={THEIRS: "0.33"}, rows=rows)
    path = tmp_path / "page.md"
    path.with_suffix(".csv").write_text(results.csv())
    assert read(path.with_suffix(".csv")) == results
    path.write_text(page.text(results))
    assert "| copy: 80 KiB of LDS, of 64 | 4 | 8 | 8 | 8 | 8/8 | 80 | 8 | 8 | 16 |" in path.read_text()
    assert "| copy: CompilationError: no / way | " in path.read_text()
    assert invoked("--check", "--page", path) == (0, "")
    path.write_text(path.read_text().replace("80 KiB", "40 KiB"))
    assert invoked("--check", "--page", path)[0] == 1


def test_what_is_on_the_page_are_cases():
    assert set(page.CASES) <= {case.name for case in CASES if isinstance(case, Attention)}


def test_a_float8_cache_is_of_the_architectures_type():
    case = next(case for case in CASES if isinstance(case, Attention) and case.float8_cache)
    call = attention_call(case, torch.device("meta"), 1, FLOAT8_OF["gfx942"])
    assert call.kv_cache is not None
    assert call.kv_cache.dtype == call.layer.kv_cache_dtype == torch.float8_e4m3fnuz
