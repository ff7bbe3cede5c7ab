"""Drawn calls of vLLM's Triton attention agree with a reference in float64, on any CPU, within a minute.

Copy this file to the tests of vLLM's repository. It needs `pip install 'attn-parity[cpu,fuzz]'`. It runs the repository's
files as they are, and imports nothing of vLLM. A bug that is known is no failure here. A kernel whose parameters changed is
skipped.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("attn_parity")

PACKAGE = "vllm"
FOLDERS = Path(__file__).absolute().parents
SOURCES = next((folder for folder in FOLDERS if (folder / PACKAGE).is_dir()), None)
TARGETS = ("vllm-unified-attention", "vllm-rocm-attention", "vllm-encoder-attention", "vllm-merge-attn-states")
MINUTES, MISFIT = "0.2", 3


@pytest.mark.skipif(SOURCES is None, reason="no folder above this file holds vllm")
@pytest.mark.parametrize("target", TARGETS)
def test_drawn_calls_agree_with_a_reference(target, tmp_path):
    options = [
        "--target",
        target,
        "--device",
        "cpu",
        "--examples",
        "30",
        "--minutes",
        MINUTES,
        "--seed",
        "0",
        "--json",
        "drift.json",
    ]
    command = [sys.executable, "-m", "attn_parity", "drift", PACKAGE, str(SOURCES), *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode in (0, 1, MISFIT), done.stderr
    change = json.loads((tmp_path / "drift.json").read_text())["changes"][target]
    if done.returncode == MISFIT:
        pytest.skip("; ".join(change["not_judged"]))
    assert change["failures"] == []
