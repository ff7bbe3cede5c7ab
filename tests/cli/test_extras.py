"""The packages that each command and each import needs: some run without an extra, the others name it in one line."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import attn_fuzz
import pytest
from attn_fuzz import extras
from attn_fuzz.targets import registry
from attn_parity import cli

from tests.support import processes
from tests.support.pages import PAGES, ROOT

BLOCKED = """
import sys
for name in list(sys.modules):  # the process may be a fork of one that has imported them; op schemas are registered once
    package = name.partition(".")[0]
    if package in {modules} or package.startswith("attn_") and package != "attn_contract":
        del sys.modules[name]
for package in {modules}:
    sys.modules[package] = None  # an import of it raises ModuleNotFoundError
{program}
"""
MAIN = "from attn_parity import main\nmain()"
IMPORTS = """
import importlib, json, os, sys
import torch
asked = json.loads(sys.argv[1])
for modules in asked["missing"]:
    if os.fork():  # torch is imported once
        os.wait()
        continue
    for module in modules:
        sys.modules[module] = None
    for name in asked["imported"]:
        module, _, attribute = name.partition(":")
        try:
            found = importlib.import_module(module)
            attribute and getattr(found, attribute)
        except ModuleNotFoundError as error:
            print(json.dumps([name, error.name, str(error)]), flush=True)
    os._exit(0)
"""
ALL = tuple(module for modules in extras.MODULES.values() for module in modules)
INSTALL = "pip install 'attn-parity[fuzz]'"
ARGUMENTS = {
    "replay": ["case.json"],
    "show": ["case.json"],
    "select": ["--heads", "8", "--head-size", "64"],
}
"""The arguments that a command needs."""
NO_EXTRA = ("vllm",)
"""vLLM is no extra."""
OF_THE_USER = ("pytest",)
"""The packages that call this project, and so are installed."""


def blocked(modules: tuple[str, ...], program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return processes.run(["-c", BLOCKED.format(modules=modules, program=program), *arguments], cwd=Path.cwd())


def without_the_extra(*arguments: str) -> subprocess.CompletedProcess[str]:
    return blocked(extras.MODULES["fuzz"], MAIN, *arguments)


def test_every_extra_is_known():
    """A new extra fails here until its modules are named. `dev` is for tests, and AITER is found on disk."""
    written = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras.MODULES) == set(written) - {"dev", "aiter"}


def test_what_ships_imports_nothing_that_only_dev_installs():
    """CI runs all checks where `dev` is installed: an import that no other extra installs would be missed elsewhere."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    always = {re.split(r"[^\w-]", requirement)[0] for requirement in project["project"]["dependencies"]}
    known = {*sys.stdlib_module_names, *always, *ALL, *NO_EXTRA, *OF_THE_USER, *(Path(package).name for package in packages)}
    for package in packages:
        for path in (ROOT / package).rglob("*.py"):
            imported = {name for node in ast.walk(ast.parse(path.read_text())) for name in modules(node)}
            assert imported <= known, (path, imported - known)


def modules(node: ast.AST) -> list[str]:
    """The top-level packages that a statement imports."""
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    if isinstance(node, ast.ImportFrom) and not node.level and node.module:
        names = [node.module]
    return [name.partition(".")[0] for name in names]


def test_a_recording_names_no_extra_that_would_not_help(monkeypatch, tmp_path):
    monkeypatch.setenv("ATTN_PARITY_RECORDING", str(tmp_path))
    run = blocked(("vllm",), "import attn_vllm_recording\nattn_vllm_recording.register()")
    assert "vllm" in run.stderr.splitlines()[-1]
    assert INSTALL not in run.stderr


@pytest.mark.parametrize("command", cli.words)
def test_a_command_without_any_extra_runs_or_names_one(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = blocked(ALL, MAIN, command, *ARGUMENTS.get(command, []))
    if run.returncode != 0:
        assert run.returncode == 2, run.stderr
        line = run.stderr.splitlines()[-1]
        assert re.fullmatch(r"attn-parity: this needs \w+, which is missing: pip install 'attn-parity\[\w+\]'.*", line)


@pytest.mark.nightly
def test_an_import_without_an_extra_names_it():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    page = PAGES["docs/reference/python-api.md"]
    documented = [re.sub(r"\.(?=[A-Z])", ":", name) for name in re.findall(r"`(attn_\w+(?:\.\w+)+)", page)]
    names = [Path(package).name for package in packages] + [f"attn_fuzz:{name}" for name in attn_fuzz.__all__] + documented
    asked = {"missing": [ALL, *extras.MODULES.values()], "imported": names}
    run = subprocess.run([sys.executable, "-c", IMPORTS, json.dumps(asked)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    said = [json.loads(line) for line in run.stdout.splitlines() if line.startswith('["attn_')]  # others print, too
    assert {missing for _, missing, _ in said} >= {"hypothesis", "yaml", "triton", "transformers"}
    for name, missing, message in said:
        if missing.split(".")[0] not in NO_EXTRA:
            assert "pip install 'attn-parity[" in message, (name, missing, message)


def test_the_pytest_plugin_names_the_extra(tmp_path):
    code = "import pytest\nsys.exit(pytest.main(['-p', 'no:cacheprovider', '--attn-target', 'triton']))"
    run = processes.run(["-c", BLOCKED.format(modules=("msgspec",), program=code)], cwd=tmp_path)
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert run.stderr.strip() == f"ERROR: --attn-target: this needs msgspec, which is missing: {INSTALL}"


def test_select_serves_a_layer_and_names_findings():
    layer = ["--heads", "16", "--head-size", "64", "--sinks", "--logits-soft-cap", "50"]
    run = without_the_extra("select", *layer, "--arch", "gfx942", "--aiter", "2026-08")
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("one layer on gfx942, AITER 2026-08")
    assert "aiter-soft-cap-overflow" in run.stdout


def test_select_reads_a_model_file(tmp_path):
    layer = '{"num_heads": 16, "num_kv_heads": 16, "head_size": 64, "dtype": "float16", "block_size": 16}'
    (tmp_path / "model.json").write_text(f'{{"schema": "attn-parity.model/1", "model": "m", "layers": {{"decoder": {layer}}}}}')
    run = without_the_extra("select", str(tmp_path / "model.json"), "--arch", "sm90", "--json", str(tmp_path / "selected.json"))
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "selected.json").is_file()


def test_doctor_says_what_is_missing():
    run = without_the_extra("doctor")
    assert run.returncode == 0, run.stderr
    assert "torch" in run.stdout


def test_targets_lists_names_and_names_the_extra():
    run = without_the_extra("targets")
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == sorted(registry.ours())
    assert run.stderr == f"to see what each supports: {INSTALL}\n"


def test_the_module_is_the_command():
    run = subprocess.run([sys.executable, "-m", "attn_parity", "--version"], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, without_the_extra("--version").stdout, "")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["select", "--help"]])
def test_help_needs_no_extra(arguments):
    run = without_the_extra(*arguments)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [["fuzz"], ["replay", "case.json"], ["show", "case.json"], ["doctor", "--full"]],
)
def test_what_needs_the_extra_names_it_in_one_line(arguments):
    run = without_the_extra(*arguments)
    assert run.returncode == 2, run.stderr
    (line,) = [line for line in run.stderr.splitlines() if "no GPU" not in line]
    assert line.startswith("attn-parity: this needs ")
    assert line.endswith(f"which is missing: {INSTALL}")
