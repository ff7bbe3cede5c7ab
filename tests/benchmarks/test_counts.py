"""`python -m benchmarks counts`: what a stand-in for AITER launches runs and is counted, and what is wrong is told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from attn_amdgcn.counts import COUNTED
from click.testing import CliRunner

from benchmarks.__main__ import cli
from benchmarks.counts import page
from benchmarks.counts.results import Results, Row, read
from benchmarks.speed import peers
from benchmarks.speed.participants import AITER, OURS

ROOT = Path(__file__).parents[2]
CASE = "decode, 4 x 1k"
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


def invoked(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["counts", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


def test_launches_run_and_are_counted(tmp_path):
    """128 programs of one wave copy 256 bytes each: two lines of 128 by one load, and two by one store."""
    module = tmp_path / "aiter/ops/triton/unified_attention.py"
    module.parent.mkdir(parents=True)
    module.write_text(COPIES_Q)
    path = tmp_path / "found.md"
    options = ["--arch", "gfx942", "--only", CASE, "--workers", "1", "--aiter", str(tmp_path), "--page", str(path)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks", "counts", *options],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    results = read(path.with_suffix(".csv"))
    assert path.read_text() == page.text(results)
    assert results.versions.keys() == {"Triton", "AITER"}
    attention, reduce, copy = results.rows
    assert (attention.whose, reduce.whose, copy.whose) == (OURS, OURS, AITER)
    assert attention.why == reduce.why == ""
    assert attention.counts["multiply-adds"] >= attention.needed == 2 * 4 * 1024 * 32 * 128
    assert (copy.kernel, copy.programs, copy.num_warps) == ("copy_kernel", 128, 1)
    assert (copy.counts["global accesses"], copy.counts["lines of 128"], copy.counts["least lines of 128"]) == (256, 512, 512)
    assert copy.why.startswith("wrong: relative error")
    assert done.returncode == 1, done.stderr
    assert "2 counted, 1 not counted or wrong: Triton" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--arch", "gfx9"), 2, "--arch: got gfx9, expected some of gfx90a"),
        (("--arch", "gfx942,sm90"), 2, "got sm90, and there is an emulator for AMD's alone"),
        (("--only", "cache write"), 2, "no case of attention has 'cache write' in its name"),
        (("--json", "none/found.json"), 2, "--json: the folder none does not exist"),
        (("--page", "none/found.md"), 2, "none"),
        (("--page", "found.csv"), 2, "--page: found.csv is where the facts go, beside a page such as found.md"),
        (("--page", "taken.md"), 2, "--page: taken.csv is a folder"),
        (("--aiter", "none"), 2, "--aiter: got none, expected a folder that holds the package `aiter`"),
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


def test_a_page_that_is_not_what_its_counts_make_is_noticed(tmp_path):
    found = dict.fromkeys(COUNTED, 1500) | {"matrix": 12, "multiply-adds": 10**9, "LDS conflicts": 750}
    rows = (
        Row("gfx942", CASE, AITER, "copy_kernel", 4, 2, 5 * 10**8, found),
        Row("gfx942", CASE, OURS).without("Error: a\n b"),
    )
    results = Results(triton="3.9", peers={AITER: "0.1"}, rows=rows)
    path = tmp_path / "page.md"
    path.with_suffix(".csv").write_text(results.csv())
    assert read(path.with_suffix(".csv")) == results
    path.write_text(page.text(results))
    line = "| copy | 4 x 2 | 12.0k | 12 | 1.50k | 1.50k | 1.50k | 1.50k | 6.00k | 2.00 | 1.50k | 1.00 | 0.50 | 100% |"
    assert line in path.read_text()
    assert f"| {CASE} | {OURS} | Error: a b |  |" in path.read_text()
    assert invoked("--check", "--page", path) == (0, "")
    path.write_text(path.read_text().replace("6.00k", "7.00k"))
    assert invoked("--check", "--page", path)[0] == 1
