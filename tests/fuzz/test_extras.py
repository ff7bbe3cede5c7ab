"""What each command needs installed: some run without the extra `fuzz`, the others name it in one line."""

import subprocess
import sys

import pytest
from attn_fuzz.targets import registry

WITHOUT_THE_EXTRA = """
import sys
for package in ("hypothesis", "msgspec", "safetensors"):
    sys.modules[package] = None  # an import of it raises ModuleNotFoundError
from attn_parity import main
main()
"""
INSTALL = "pip install 'attn-parity[fuzz]'"


def without_the_extra(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", WITHOUT_THE_EXTRA, *arguments], capture_output=True, text=True)


def test_select_serves_a_layer_and_names_known_bugs():
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
    assert run.stdout.split() == registry.names()
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
    [["fuzz"], ["replay", "case.json"], ["show", "case.json"], ["zoo"], ["matrix"], ["doctor", "--full"], ["compile", "--run"]],
)
def test_what_needs_the_extra_names_it_in_one_line(arguments):
    run = without_the_extra(*arguments)
    assert run.returncode == 2, run.stderr
    (line,) = [line for line in run.stderr.splitlines() if "no GPU" not in line]
    assert line.startswith("attn-parity: this needs ")
    assert line.endswith(f"which is missing: {INSTALL}")


def test_every_command_listed_by_help_is_one(attn_parity):
    from attn_parity import COMMANDS, cli

    for name in COMMANDS:
        command = cli.get_command(None, name)
        assert command is not None
        assert command.name == name
