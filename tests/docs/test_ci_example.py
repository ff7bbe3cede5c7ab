"""The workflow of docs/guide/ci.md: its commands are commands with such options, and it uploads what they write."""

import re
import shlex
import shutil
from pathlib import Path

import click
import pytest
import yaml
from attn_parity import cli, main

from tests.support.pages import ROOT

WORKFLOW = yaml.safe_load((ROOT / "examples" / "github-actions.yml").read_text())
STEPS = {step.get("name", step.get("uses")): step for step in WORKFLOW["jobs"]["fuzz"]["steps"]}
EITHER = re.compile(r"\$\{\{ [^}]* && '([^']*)' \|\| '([^']*)' \}\}")


def commands(number: int) -> list[list[str]]:
    """The words of each command of the workflow. Where it has an alternative, the first or the second one."""
    lines = [line for step in STEPS.values() for line in step.get("run", "").splitlines()]
    return [shlex.split(EITHER.sub(lambda match: match[number], line)) for line in lines]


@pytest.mark.parametrize("number", [1, 2])
def test_every_command_is_one(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for program, *words in commands(number):
        assert program in ("pip", "attn-parity")
        if program == "attn-parity":
            command = cli.get_command(click.Context(cli), words[0])
            assert command is not None, words
            command.make_context(words[0], words[1:])  # raises what is wrong with the options


def test_an_option_that_is_none_is_found():
    command = cli.get_command(click.Context(cli), "fuzz")
    assert command is not None
    with pytest.raises(click.NoSuchOption):
        command.make_context("fuzz", ["--tarket", "my_target:TARGET"])


def test_the_wheel_is_of_this_version():
    (version,) = re.findall(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert f"attn_parity-{version}-py3-none-any.whl" in STEPS["Install"]["run"]


def test_torch_is_the_build_for_cpus():
    """The public index has torch for CUDA only. pip ranks 2.13.0+cpu of another index above it, and no other version."""
    (variable,) = re.findall(r"\$\{\{ vars\.(\w+) \}\}", STEPS["Install"]["env"]["PIP_EXTRA_INDEX_URL"])
    assert "pip install torch==2.13.0\n" in STEPS["Install"]["run"]
    assert f"`{variable}`" in (ROOT / "docs" / "guide" / "ci.md").read_text()


def test_the_job_uploads_the_files_that_the_run_writes(tmp_path, monkeypatch):
    for name in ("my_target.py", "my_unified_attention.py"):
        shutil.copy(ROOT / "examples" / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (words,) = (words for program, *words in commands(2) if program == "attn-parity")
    with pytest.raises(SystemExit) as end:
        main([*words, "--corpus", "none", "--examples", "2", "--workers", "1"])
    assert end.value.code == 0
    uploaded = Path(STEPS["Upload the report"]["with"]["path"])
    assert {path.suffix for path in uploaded.iterdir()} == {".html"}
    kept = {STEPS[name]["with"]["path"] for name in ("Failures of earlier runs", "Keep failures for the next run")}
    assert kept == {words[words.index("--database") + 1]}
    assert Path(*kept).is_dir()
