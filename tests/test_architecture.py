"""An oracle that shares code with what it judges proves nothing: the two sides never import each other."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import ROOT, SOURCES


@pytest.fixture
def copy(tmp_path) -> Path:
    """The repository's packages and configuration, in a place where they may be changed."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for source in (*SOURCES, "benchmarks"):
        shutil.copytree(ROOT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def lint_imports(root: Path) -> subprocess.CompletedProcess:
    paths = os.pathsep.join(str(root / source) for source in SOURCES)
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)


def test_imports_point_one_way(copy):
    result = lint_imports(copy)
    assert result.returncode == 0, result.stdout + result.stderr


THE_OTHER_WAY = [
    ("reference/attn_reference/attention.py", "import attn_optimized"),
    ("reference/attn_reference/kv_cache.py", "from attn_optimized.strides import kv_cache_strides"),
    ("optimized/attn_optimized/attention.py", "from attn_reference.attention import visible"),
    ("optimized/attn_optimized/launch/plan.py", "import attn_fuzz"),
    ("fuzz/attn_fuzz/targets/registry.py", "import attn_parity"),
    ("plugins/attn_vllm/layer.py", "import attn_parity"),
    ("contract/attn_contract/ops.py", "import attn_reference"),
    ("plugins/attn_vllm/layer.py", "import attn_fuzz"),
    ("plugins/attn_transformers/masks.py", "import attn_parity"),
    ("fuzz/attn_fuzz/verdict/live.py", "import attn_transformers"),
    ("fuzz/attn_fuzz/verdict/live.py", "import attn_vllm_recording"),
    ("plugins/attn_vllm/layer.py", "import attn_vllm_recording"),
    ("plugins/attn_vllm_recording/summary.py", "import attn_parity"),
    ("optimized/attn_optimized/attention.py", "import attn_amdgcn"),
    ("cli/attn_parity/cpus.py", "import attn_lab"),
    ("lab/attn_lab/results_file.py", "import benchmarks.options"),
    ("benchmarks/steps/cases.py", "import benchmarks.speed.run"),
    ("benchmarks/participants/rows.py", "import benchmarks.speed.run"),
]
FROM_ABOVE = [
    ("cases", "verdict"),
    ("verdict", "findings"),
    ("findings", "targets"),
    ("targets", "run"),
    ("strategies", "run"),
    ("run", "report"),
    ("run.case", "run.shard"),
    ("run.case", "run.processes"),
    ("run", "explain"),
    ("patches", "run"),
]
"""A package of `attn_fuzz`, and one above it."""


def test_imports_the_other_way_and_from_packages_above_are_found(copy):
    """Also inside a function, where they would run only when called. One run finds all: each takes seconds."""
    planted, expected = list(THE_OTHER_WAY), set()
    for module, line in THE_OTHER_WAY:
        expected.add(f"{Path(module).parts[1]} is not allowed to import {line.split()[1].split('.')[0]}")
    for below, above in FROM_ABOVE:
        planted.append((f"fuzz/attn_fuzz/{below.replace('.', '/')}/__init__.py", f"import attn_fuzz.{above}"))
        expected.add(f"attn_fuzz.{below} is not allowed to import attn_fuzz.{above}")
    for number, (module, line) in enumerate(planted):
        with (copy / module).open("a") as file:
            file.write(f"\n\ndef planted_{number}():\n    {line}\n")
    result = lint_imports(copy)
    assert result.returncode == 1, result.stdout + result.stderr
    assert {message for message in expected if message not in result.stdout} == set()


def test_an_import_brings_no_aiter_no_vllm_and_no_gpu():
    """AITER's import may compile kernels, and a process that has touched a GPU cannot fork."""
    modules = "attn_contract, attn_reference, attn_optimized.backends, attn_optimized.selector, attn_optimized.aiter_adapter"
    code = (
        f"import sys, torch, {modules}\n"
        "assert not torch.cuda.is_initialized()\n"
        "above = ('aiter', 'vllm', 'attn_fuzz', 'attn_parity', 'hypothesis')\n"
        "print([name for name in sys.modules if name.split('.')[0] in above])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stdout + result.stderr
