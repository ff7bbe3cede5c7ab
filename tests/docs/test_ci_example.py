"""The workflow of docs/guide/ci.md: its commands are commands with such options, and it uploads what they write."""

import re
import shlex
import shutil
from pathlib import Path

import click
import pytest
import yaml
from attn_fuzz import foreign
from attn_fuzz.targets import registry
from attn_parity import cli, main

from tests.support import processes
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


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.yml")), ids=lambda file: file.name)
def test_the_wheel_is_of_this_version(file):
    (version,) = re.findall(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert f"attn_parity-{version}-py3-none-any.whl" in file.read_text()


def test_the_nightly_jobs_make_the_same_call():
    """One that `drift` takes, of a folder that is there, and what it writes is kept for the next night."""
    actions, buildkite = (
        yaml.safe_load((ROOT / "examples" / f"drift-{name}.yml").read_text()) for name in ("github-actions", "buildkite")
    )
    steps, [step] = actions["jobs"]["drift"]["steps"], buildkite["steps"]
    lines = [each.get("run", "") for each in steps] + step["commands"]
    calls = [line.partition("attn-parity drift ")[2].split() for line in lines if "attn-parity drift " in line]
    words = [
        [{"$PACKAGE": actions["env"]["PACKAGE"], "$SOURCES": actions["env"]["SOURCES"]}.get(word, word) for word in call]
        for call in calls
    ]
    assert words[0] == words[1]
    command = cli.get_command(click.Context(cli), "drift")
    assert command is not None
    command.make_context("drift", words[0])
    assert {each["with"]["path"] for each in steps if "path" in each.get("with", {})} == {"attn-parity-runs"}
    assert step["artifact_paths"] == ["attn-parity-runs/**/*"]


EXP = ("tl.exp(p_lse", "0.5 * tl.exp(p_lse")
VLLM_MERGE = "v1/attention/ops/triton_merge_attn_states.py"
SGLANG_MERGE = "kernels/ops/attention/merge_state.py"


@pytest.mark.parametrize(
    ("package", "file", "change", "outcome"),
    [
        ("vllm", VLLM_MERGE, ("", ""), "passed"),
        ("vllm", VLLM_MERGE, EXP, "failed"),
        ("vllm", VLLM_MERGE, ("output_lse: torch", "lse: torch"), "skipped"),
        ("sglang", SGLANG_MERGE, ("", ""), "passed"),
        ("sglang", SGLANG_MERGE, EXP, "failed"),
    ],
)
def test_the_test_for_a_packages_repository(package, file, change, outcome, tmp_path):
    """It passes on the package's files, fails on a wrong kernel, and skips one whose parameters changed."""
    if reason := registry.packages()[package].missing():
        pytest.skip(reason)
    source, copy = foreign.sources(package) / file, tmp_path / package / file
    shutil.copytree(source.parent, copy.parent)
    copy.write_text(source.read_text().replace(*change))
    test = tmp_path / f"test_{package}_attention.py"
    # on a busy machine a minute may end before the first case
    test.write_text((ROOT / "examples" / test.name).read_text().replace('MISFIT = "0.2"', 'MISFIT = "9"'))
    ran = processes.run(["-m", "pytest", "-q", "-p", "no:cacheprovider", test, "-k", "merge"], cwd=tmp_path)
    assert f"1 {outcome}" in ran.stdout, ran.stdout


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
