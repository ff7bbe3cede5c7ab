"""Pages of docs/reference name what there is: every command, kind of failure, JSON schema, and name of the API."""

import importlib
import re
import runpy
import tomllib
from types import ModuleType
from typing import get_args

import attn_amdgcn
import attn_contract
import attn_optimized
import attn_reference
import click
import msgspec
from attn_fuzz.patches.source import patched_sources
from attn_fuzz.verdict.verdict import VerdictKind
from attn_lab.__main__ import lab
from attn_lab.zoo.known_bugs import KnownBug
from attn_parity import cli

from tests.support.json_schemas import OUTPUTS
from tests.support.pages import PAGES, ROOT, blocks

SOURCES = [
    path
    for folder in ("optimized", "fuzz", "binaries", "cli", "plugins", "lab", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
]


def test_every_command_is_described_and_every_option_there_is():
    page = PAGES["docs/reference/command-line.md"]
    options = {"--help", "--version"}
    for program, group in (("attn-parity", cli), ("python -m attn_lab", lab)):
        for name in group.words:
            command = group.get_command(click.Context(group), name)
            assert command is not None
            assert f"**`{program} {name}" in page
            of_group = command.commands.values() if isinstance(command, click.Group) else ()
            parameters = [parameter for each in (command, *of_group) for parameter in each.params]
            options |= {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
            assert all(option.help for option in parameters if isinstance(option, click.Option)), name
    assert set(re.findall(r"--[a-z][a-z-]*", page)) <= options


def test_every_kind_of_failure_is_described():
    table = PAGES["docs/reference/verdicts.md"].split("## Read a failure")[0]
    named = {kind for row in re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE) for kind in re.findall(r"`(\w+)`", row)}
    assert named == {*get_args(VerdictKind)} - {"agree", "refused"}


def test_every_schema_is_described():
    written = {schema for path in SOURCES for schema in re.findall(r'"(attn-parity\.[\w-]+/\d+)"', path.read_text())}
    page = PAGES["docs/reference/json-schemas.md"]
    assert set(re.findall(r"attn-parity\.[\w-]+/\d+", page)) == written
    assert all(f"| `{kind.__module__}.{kind.__name__}` |" in page for kind in OUTPUTS.values())


def test_the_mutant_on_its_page_applies():
    (block,) = (block for block in blocks(PAGES["docs/reference/mutants.md"]) if block.language == "toml")
    mutant = msgspec.convert(tomllib.loads(block.text), KnownBug)
    (patched,) = patched_sources(mutant.patches).values()
    assert patched.count("batch.max_query_len > 1") == 1


def test_every_name_of_the_python_api_is_there():
    sections = re.split(r"^## ", PAGES["docs/reference/python-api.md"], flags=re.MULTILINE)
    contract, sides = (section for section in sections if section.startswith(("`attn_contract`", "`attn_reference`")))
    for cell in re.findall(r"^\| (`.*?) \|", contract, flags=re.MULTILINE):
        assert all(hasattr(attn_contract, name) for name in names_in(cell)), cell
    for row in re.findall(r"^\| `.*$", sides, flags=re.MULTILINE):
        cell, *columns = (column.strip() for column in row.strip("|").split("|"))
        for package, answer in zip((attn_reference, attn_optimized), columns, strict=True):
            assert {hasattr(package, name) for name in names_in(cell)} == {answer.startswith("yes")}, (cell, package)
    (emulator,) = (section for section in sections if section.startswith("`attn_amdgcn`"))
    named = {name for cell in re.findall(r"^\| (`.*?) \|", emulator, flags=re.MULTILINE) for name in names_in(cell)}
    assert named == {*attn_amdgcn.__all__}


def test_every_module_of_the_python_api_has_a_page():
    named = set(re.findall(r"`(attn_\w+(?:\.[a-z_]\w*)*)", PAGES["docs/reference/python-api.md"]))
    named = {name for name in named if not name.startswith("attn_vllm")}  # their modules import vLLM, which is not there
    paged = set()
    for name in runpy.run_path(str(ROOT / "docs" / "api.py"))["MODULES"]:
        module = importlib.import_module(name)
        exported = [
            f"{name}.{each}" for each in getattr(module, "__all__", ()) if isinstance(getattr(module, each), ModuleType)
        ]
        paged |= {name, *exported}  # a module has a page for each module that it exports
    assert named <= paged


def names_in(cell: str) -> list[str]:
    """The names in backticks of a cell, without their arguments."""
    return re.findall(r"`(\w+)", cell)
