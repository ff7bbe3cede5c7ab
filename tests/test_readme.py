"""What the README shows is run: its kernel with a bug, its call of the ops, its mutant."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import torch
from attn_fuzz.zoo.mutants import Mutant, patched_source

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)


def test_the_kernel_with_a_bug(tmp_path):
    (tmp_path / "my_kernel.py").write_text(blocks("python")[0])
    result = run(
        "-c", "from attn_parity import main; main()", "fuzz", "--target", "my_kernel:TARGET", "--seed", "1", folder=tmp_path
    )
    assert result.returncode == 1, result.stderr
    assert "sinks=" in result.stdout
    script = run("attn-parity-runs/my-kernel-1.py", folder=tmp_path)
    assert script.returncode == 1, script.stdout + script.stderr
    assert script.stdout.startswith("out[")


def test_the_call_of_the_ops(tmp_path):
    check = "heads_first = (x.transpose(0, 1) for x in (q, k, v))\n"
    check += "expected = torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True, enable_gqa=True)\n"
    check += "torch.testing.assert_close(out, expected.transpose(0, 1), check_stride=False)\n"
    call, rope = blocks("python")[1:3]
    (tmp_path / "call.py").write_text(call + check + rope)
    result = run("call.py", folder=tmp_path)
    assert result.returncode == 0, result.stderr


def test_a_backend_is_selected_and_serves_a_step(tmp_path):
    check = """
print(selection.backend, selection.layout)
for rows in (slice(0, 3), slice(3, 5)):
    heads_first = (x[rows].transpose(0, 1).float() for x in (query, key, value))
    scores = torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True, enable_gqa=True)
    # a sink of 0 joins the denominator: compare directions
    directions = (torch.nn.functional.normalize(x.float(), dim=-1) for x in (output[rows].transpose(0, 1), scores))
    torch.testing.assert_close(*directions, atol=1e-2, rtol=0)
"""
    (tmp_path / "serve.py").write_text("".join(blocks("python")[3:5]) + check)
    environment = {**os.environ, "TRITON_INTERPRET": "0" if torch.cuda.is_available() else "1"}
    result = subprocess.run([sys.executable, "serve.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.stdout == "TRITON_ATTN BLOCKS_FIRST_NHD\n", result.stderr


def test_what_select_prints():
    command, printed = re.findall(r"\.venv/bin/attn-parity (select .*)\n```\n\n```\n(.*?)```", README, flags=re.DOTALL)[0]
    code = "from attn_parity import main; main()"
    result = subprocess.run([sys.executable, "-c", code, *command.split()], capture_output=True, text=True)
    assert [line.rstrip() for line in result.stdout.splitlines()] == printed.splitlines(), result.stderr


def test_the_mutant_applies():
    mutant = msgspec.convert(tomllib.loads(blocks("toml")[0]), Mutant)
    assert patched_source(mutant.patches[0].module, mutant.patches).count("batch.max_query_len > 1") == 1
