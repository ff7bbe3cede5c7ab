"""The recipes of docs/guide/foreign-kernels.md: they name the first commit, or the first release, with which a case fails."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from attn_contract import Layout
from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import Cache, Case, Request

from tests.support.pages import PAGES, ROOT, blocks

TARGET = """
import dataclasses

from attn_fuzz.errors import LimitError
from attn_fuzz.targets.reference import REFERENCE_FP32
from toy_kernel import shift


def attention(q, k, v, kv_cache, layer, batch, *, out, lse):
    if shift is None:
        raise LimitError("a parameter is gone", "another adapter")
    REFERENCE_FP32.attention(q, k, v, kv_cache, layer, batch, out=out, lse=lse)
    out[: int(batch.query_start_loc[-1])] += shift


TARGET = dataclasses.replace(REFERENCE_FP32, name="toy", attention=attention, refuses=False)
"""
KERNELS = ("shift = 0 ", "shift = 0", "shift = 0\n", "shift = =", "shift = None", "shift = 1", "shift = 1 ")
"""The kernel of each commit: some are of one size, so that compiled Python of one could be taken for another's. The fourth does
not import, the adapter does not fit the fifth, and the sixth is the first wrong one."""
LAST_RIGHT, FIRST_WRONG = 2, 5
STAND_IN = """#!/bin/sh
case "$(cat "${PYTHONPATH:-.}/toy_kernel.py")" in *1*) exit 1 ;; *"= ="*) exit 2 ;; *None*) exit 3 ;; esac
"""
"""An `attn-parity` that starts at once and has the exit codes of `replay`."""
COMMAND = f'#!/bin/sh\nexec {sys.executable} -m attn_parity "$@"\n'
EITHER = pytest.mark.parametrize(
    "replay", [pytest.param(STAND_IN, id="stand-in"), pytest.param(COMMAND, id="command", marks=pytest.mark.nightly)]
)
CASE = Case(
    target="toy_target:TARGET",
    head_size=16,
    requests=(Request(query_len=2, seq_len=7, blocks=(2, 0), causal=True),),
    cache=Cache(layout=Layout.KV_FIRST_NHD, block_size=4, num_blocks=4),
)


def git(folder: Path, *arguments: str) -> str:
    names = ("-c", "user.name=Toy", "-c", "user.email=toy@example.org")
    ended = subprocess.run(["git", *names, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return ended.stdout.strip()


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """The script and a case in a folder, and an empty folder whose commands are found first."""
    shutil.copy(ROOT / "examples" / "bisect.sh", tmp_path)
    case_file.save(tmp_path / "case.json", CASE)
    (tmp_path / "commands").mkdir()
    return {**os.environ, "PATH": f"{tmp_path / 'commands'}{os.pathsep}{os.environ['PATH']}"}


def write_command(folder: Path, name: str, text: str) -> None:
    (folder / "commands" / name).write_text(text)
    (folder / "commands" / name).chmod(0o755)


def recipe(program: str) -> str:
    """The lines of the page's block that has a program in it."""
    page = PAGES["docs/guide/foreign-kernels.md"]
    (text,) = (block.text for block in blocks(page) if not block.language and program in block.text)
    return text


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
@EITHER
def test_the_commits_that_may_be_the_first_bad_one_are_named(replay, tmp_path, environment):
    write_command(tmp_path, "attn-parity", replay)
    repository = tmp_path / "kernels"
    repository.mkdir()
    git(repository, "init", "--quiet")
    (repository / "toy_target.py").write_text(TARGET)
    for number, kernel in enumerate(KERNELS):
        (repository / "toy_kernel.py").write_text(kernel + "\n")
        git(repository, "add", ".")
        git(repository, "commit", "--quiet", "--message", f"commit {number}")
        git(repository, "tag", f"at-{number}")
    lines = recipe("git bisect").replace("~/kernels", ".").replace("~/", "../").replace("my_target", "toy_target")
    lines = lines.replace("v1.2", "at-0").replace("main", f"at-{len(KERNELS) - 1}")
    done = subprocess.run(["sh", "-c", lines], cwd=repository, env=environment, capture_output=True, text=True)
    _, candidates = done.stdout.split("The first bad commit could be any of:\n")
    commits = re.findall(r"^[0-9a-f]{40}$", candidates, flags=re.MULTILINE)
    assert {*commits} == {git(repository, "rev-parse", f"at-{number}") for number in range(LAST_RIGHT + 1, FIRST_WRONG + 1)}


@EITHER
def test_the_first_bad_release_is_named(replay, tmp_path, environment):
    """A release has its kernel in a wheel. That of the second has no verdict, and the loop goes on."""
    write_command(tmp_path, "attn-parity", replay)
    write_command(tmp_path, "pip", COMMAND.replace("attn_parity", "pip"))
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    numbers = {"0.31.0": 0, "0.32.0": 4, "0.33.0": 5, "0.34.0": 6}
    for release, number in numbers.items():
        info = f"toy_kernel-{release}.dist-info"
        contents = {
            "toy_kernel.py": KERNELS[number],
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: toy-kernel\nVersion: {release}\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": "",
        }
        with zipfile.ZipFile(wheels / f"toy_kernel-{release}-py3-none-any.whl", "w") as wheel:
            for name, text in contents.items():
                wheel.writestr(name, text)
    (tmp_path / "toy_target.py").write_text(TARGET)
    lines = recipe("sh bisect.sh").replace("0.31.0 0.32.0 0.33.0", " ".join(numbers))
    lines = lines.replace("vllm==", "toy-kernel==").replace("vllm-unified-attention", "toy_target:TARGET")
    environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(["sh", "-c", lines], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "the first bad release: 0.33.0", done.stderr


@pytest.mark.parametrize(("replayed", "told"), [(0, 0), (1, 1), (2, 125), (3, 125), (130, 130)])
def test_no_verdict_skips_a_commit_and_an_interrupt_ends_the_search(replayed, told, tmp_path, environment):
    """git ends a search by a code above 127."""
    write_command(tmp_path, "attn-parity", f"#!/bin/sh\nexit {replayed}\n")
    done = subprocess.run(["sh", "bisect.sh", "case.json", "toy_target:TARGET"], cwd=tmp_path, env=environment)
    assert done.returncode == told
