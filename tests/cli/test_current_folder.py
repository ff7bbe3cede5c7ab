"""Nothing runs from the current folder but a module that a person named, and the modules beside it that this one imports."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from attn_fuzz import current_folder
from attn_fuzz.emulated import compiler
from attn_fuzz.emulated.jobs import Job
from attn_fuzz.targets import registry

from tests.support.pages import ROOT

POISON = """
import importlib, os, pathlib, sys

folder = pathlib.Path(os.environ["POISONED"])


def poison(name):
    (folder / f"{name}.py").write_text(f"open({str(folder / 'executed')!r}, 'a').write({name!r} + chr(10))")


class Poisoner:
    '''A module that is found nowhere gets a file in the folder, and is looked for again.'''
    busy = False

    def find_spec(self, name, path=None, target=None):
        if path is not None or Poisoner.busy:
            return None
        Poisoner.busy = True
        try:
            poison(name)
            importlib.invalidate_caches()
            return next((spec for each in sys.meta_path if each is not self and (spec := each.find_spec(name, None))), None)
        finally:
            Poisoner.busy = False


sys.meta_path.append(Poisoner())
"""
"""The `sitecustomize` of every process of a command: it knows all names that the command's imports look for."""
COMMANDS = f"""
import os, sys
sys.path[:] = [entry for entry in sys.path if entry]  # a command is a script of another folder
from attn_parity import main
for command in (
    "select {ROOT}/tests/cli/configs/gpt-oss-120b.json",
    "fuzz --target reference-fp32 --examples 2 --corpus none --seed 1 --workers 1",
    "targets", "doctor",
    "replay {ROOT}/fuzz/attn_fuzz/corpus/vllm-945.json", "show {ROOT}/fuzz/attn_fuzz/corpus/vllm-945.json",
):
    try:
        main(command.split())
    except SystemExit as end:
        assert end.code == 0, (command, end.code)
"""


def poisoned(folder: Path, *command: str, python_path: str = "") -> subprocess.CompletedProcess[str]:
    """Run Python in a folder in which whatever its processes look for in vain lies as a file. `executed` has what ran."""
    site = folder.parent / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(POISON)
    environment = {**os.environ, "POISONED": str(folder), "PYTHONPATH": python_path + str(site)}
    return subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.nightly
def test_no_module_of_the_current_folder_runs(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in sys.stdlib_module_names:
        (folder / f"{name}.py").write_text("open('executed', 'a').write(__name__ + chr(10))")
    done = poisoned(folder, "-P", "-c", COMMANDS)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {"pydot", "opt_einsum", "pynvml"} <= {path.stem for path in folder.glob("*.py")}
    assert not (folder / "executed").exists(), (folder / "executed").read_text()


@pytest.mark.parametrize(
    ("how", "python_path"),
    [
        pytest.param(("-m", "attn_parity"), "", id="as a module"),
        pytest.param(
            ("-c", "from attn_parity import main; main()"),
            os.pathsep,
            id="with an empty entry of PYTHONPATH",
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_a_folder_that_python_put_on_the_path_is_taken_off(tmp_path, how, python_path):
    folder = tmp_path / "model"
    folder.mkdir()
    config = str(ROOT / "tests/cli/configs/gpt-oss-120b.json")
    if how[0] == "-c":
        how = ("-P", *how)
    done = poisoned(folder, *how, "select", config, python_path=python_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (folder / "pydot.py").exists()
    assert not (folder / "executed").exists(), (folder / "executed").read_text()


@pytest.mark.parametrize("entries", [":/x:", "::", ":/x", "/x:.", ":.:"])
def test_any_number_of_empty_entries_is_taken_off(entries, tmp_path):
    program = "import os, sys, attn_parity; print(os.getcwd() in sys.path, os.environ['PYTHONPATH'])"
    ended = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        check=False,
        env={**os.environ, "PYTHONPATH": entries},
        text=True,
    )
    named = [entry for entry in entries.split(":") if entry]
    assert ended.stdout.split() == [str("." in named), *filter(None, [":".join(named)])]


NAMED = """
from attn_fuzz.targets.reference import REFERENCE_FP32 as TARGET

def later():
    import beside_a_named_one
    return beside_a_named_one.NUMBER
"""


def test_a_named_module_imports_those_beside_it_at_any_time(tmp_path, monkeypatch):
    (tmp_path / "named_by_a_person.py").write_text(NAMED)
    (tmp_path / "beside_a_named_one.py").write_text("NUMBER = 3")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("named_by_a_person")
    registry.load("named_by_a_person:TARGET")
    monkeypatch.chdir("/")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("beside_a_named_one")
    assert importlib.import_module("named_by_a_person").later() == 3
    assert str(tmp_path) not in sys.path


def test_the_compiler_process_finds_what_was_named(tmp_path, monkeypatch):
    (tmp_path / "kernels_of_a_person.py").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(compiler.CompilerError, match="No module named 'kernels_of_a_person'"):
        compiler.ready(Job("kernels_of_a_person", "kernel", "gfx942", {}))
    current_folder.admit("kernels_of_a_person:TARGET")
    with pytest.raises(compiler.CompilerError, match="has no attribute 'missing'"):
        compiler.ready(Job("kernels_of_a_person", "missing", "gfx942", {}))
