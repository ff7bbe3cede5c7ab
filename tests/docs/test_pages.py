"""Examples of pages are true: programs run and print the page's output, so do commands, and fragments compile."""

import ast
import importlib
import json
import shlex
import shutil
import tomllib

import pytest
from attn_parity import main
from attn_parity.console import results

from tests.support.mostly_nightly import mostly_nightly
from tests.support.pages import (
    PAGES,
    ROOT,
    blocks,
    commands,
    lines,
    printed,
    program,
    run_command,
    run_program,
    save_files,
    without_numbers,
)

SELECTIONS = {
    f"{name}:{command.line}": (command.text, output)
    for name, page in PAGES.items()
    for command, output in commands(page)
    if "attn-parity select " in command.text
}
FOLLOWED = [
    name
    for name, page in PAGES.items()
    if program(page) or any("attn-parity select " not in command.text for command, _ in commands(page))
]


SLOW = ("docs/guide/fuzz-your-kernel.md", "docs/guide/transformers.md")
"""Pages with several runs of the fuzzer or of the zoo, whose commands have tests of their own."""


@pytest.mark.parametrize("name", mostly_nightly(FOLLOWED, {*FOLLOWED} - {*SLOW}))
def test_a_page_is_followed_to_the_letter(name, tmp_path):
    page, folder = PAGES[name], tmp_path / "folder"
    shutil.copytree(ROOT / "examples", folder, ignore=shutil.ignore_patterns("__pycache__"))
    save_files(page, folder)
    if program(page):
        ended = run_program(page, folder)
        assert ended.returncode == 0, ended.stderr
        assert lines(ended.stdout) == lines(printed(page))
    for command, output in commands(page):
        if "attn-parity select " not in command.text:
            ended = run_command(command.text, folder)
            assert ended.returncode in (0, 1), ended.stderr
            found = iter(without_numbers(ended.stdout))
            assert [line for line in without_numbers(output) if line not in found] == [], ended.stdout


@pytest.mark.parametrize(("command", "output"), SELECTIONS.values(), ids=SELECTIONS)
def test_select_prints_what_is_shown(command, output, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(results, "width", 140)
    with pytest.raises(SystemExit) as end:
        main(shlex.split(command)[1:])
    assert end.value.code == int(" not supported: " in output)
    assert lines(capsys.readouterr().out) == lines(output)


@pytest.mark.parametrize("name", PAGES)
def test_every_block_is_of_its_language(name):
    for block in blocks(PAGES[name]):
        where = f"{name}:{block.line}"
        if block.language in ("python", "py"):
            assert not missing(ast.parse(block.text, where)), where
        elif block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "json":
            json.loads(block.text)
        else:
            assert block.language in ("", "diff"), f"{where}: no test knows what to do with {block.language}"


def missing(tree: ast.Module) -> list[str]:
    """Names that code imports from this project's packages, and that are not there."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return [
        f"{node.module}.{alias.name}"
        for node in imports
        if node.module and node.module.startswith("attn_")
        for alias in node.names
        if not _is_there(node.module, alias.name)
    ]


def _is_there(module: str, name: str) -> bool:
    if hasattr(importlib.import_module(module), name):
        return True
    try:
        importlib.import_module(f"{module}.{name}")
    except ImportError:
        return False
    return True


def test_an_import_that_leads_nowhere_is_found():
    tree = ast.parse("from attn_fuzz.targets import Target, Aim\nfrom attn_fuzz.run import shard")
    assert missing(tree) == ["attn_fuzz.targets.Aim"]


def test_blocks_are_told_apart():
    fenced = ("python\nprint(1)\n", "\n1\n", "python file.py\nx = 1\n", "\nattn-parity targets x\n", "\ny\n")
    page = "\n".join(f"```{text}```\n" for text in fenced)
    assert program(page) == "print(1)\n"
    assert printed(page) == "1\n"
    assert [block.file for block in blocks(page)] == ["", "", "file.py", "", ""]
    assert [(command.text, output) for command, output in commands(page)] == [("attn-parity targets x\n", "y\n")]
