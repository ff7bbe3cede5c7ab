"""Records that `--json` writes have the fields of their types, and no others."""

import click
import pytest
from attn_parity import cli

from tests.support.json_schemas import OUTPUTS, check
from tests.support.pages import ROOT


def test_a_run_with_nan_fits_its_schema(attn_parity, tmp_path):
    arguments = ("--target", "planted:NAN", "--examples", 5, "--seed", 1, "--workers", 1, "--corpus", "none")
    assert attn_parity("fuzz", *arguments, "--json", "run.json").code == 1
    assert check("fuzz", (tmp_path / "run.json").read_text())["failures"]


@pytest.mark.parametrize(
    ("file", "arch", "code"),
    [
        ("gemma-3.json", "gfx942", 0),
        ("dflash.json", "gfx942", 0),
        ("deepseek-v3.2", "gfx942", 0),
        ("deepseek-v3.2", "gfx90a", 1),
    ],
)
def test_a_selection_fits_its_schema(file, arch, code, attn_parity, tmp_path):
    options = ("--arch", arch, "--aiter", "2026-08", "--json", "selected.json")
    assert attn_parity("select", ROOT / "examples" / "models" / file, *options).code == code
    check("select", (tmp_path / "selected.json").read_text())


def test_every_command_that_writes_json_has_a_type():
    commands = {name: cli.get_command(click.Context(cli), name) for name in cli.words}
    writes = {name for name, command in commands.items() if command and any("--json" in each.opts for each in command.params)}
    assert {*writes, "fuzz-runs"} == set(OUTPUTS)
