"""`python -m benchmarks` refuses wrong arguments before any work, in one line that names them, with exit code 2."""

import importlib.util
import os
import shlex

import pytest
import torch


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("speed", "torch sees no GPU here; --tiny"),
        ("speed --tiny --only 'nothing like it'", "no case has 'nothing like it' in its name"),
        ("speed --tiny --json none/run.json", "--json: the folder none does not exist"),
        ("speed --tiny --vllm none", "--vllm: got none, expected a folder that holds the package `vllm`"),
        ("speed --tiny --budget 0", "--budget"),
        ("speed --tiny --drawn 3", "--drawn and --seed go together"),
        ("speed --tiny --seed 3", "--drawn and --seed go together"),
        ("speed --tiny --class peers", "--class"),
        ("speed --tiny --class rows --drawn 3 --seed 1", "--class rows: its cases are fixed"),
        ("speed --tiny --write", "--tiny: its results have no value"),
        ("speed --page", "performance.json"),
        ("speed --tiny --before .", "--before: got ., expected a folder that holds optimized/attn_optimized"),
        ("speed --tiny --try block_q=16", "got 'block_q=16', expected NAME=V,V"),
        ("speed --tiny --try block_n=a", "got 'block_n=a', expected NAME=V,V"),
        ("speed --tiny --try block_n=32,33", "'block_n=32,33': parameters.block_n: got 33, expected a power of two"),
        ("speed --tiny --try num_warps=3", "'num_warps=3': parameters.num_warps: got 3, expected a power of two"),
        ("tune --seed 1", "torch sees no GPU here; --arch NAME derives from binaries, --tiny"),
        ("tune --seed 1 --tiny --write", "--tiny: its results have no value"),
        ("tune --seed 1 --tiny --arch gfx942", "--tiny: its results have no value"),
        ("tune --seed 1 --arch gfx000", "--arch: got 'gfx000', expected one of gfx90a, gfx942"),
        ("tune --seed 1 --arch sm90", "--arch: got 'sm90', expected one of gfx90a, gfx942"),
        ("tune --seed 1 --arch gfx942 --drawn 3 --only none", "no class of 3 drawn steps has 'none' in its name, such as"),
        ("tune --seed 1 --arch gfx942 --json none/tune.json", "--json: the folder none does not exist"),
        ("tune --seed 1 --tiny --budget 0", "--budget"),
        ("tune --seed 1 --tiny --workers 0", "--workers"),
    ],
)
def test_bad_arguments_are_named_before_any_work(tmp_path, monkeypatch, ended, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRITON_INTERPRET", os.environ["TRITON_INTERPRET"])  # commands change it for their own process
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *of: None if name in ("vllm", "aiter") else find(name, *of))
    code, printed = ended(*shlex.split(arguments))
    assert code == 2
    assert message in printed
    assert not list(tmp_path.iterdir())
