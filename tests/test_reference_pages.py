"""Pages of docs/reference name what there is: every command, every kind of failure, every JSON schema, every mutant's field."""

import re
import tomllib
from typing import get_args

import click
import msgspec
from attn_fuzz.verdict.verdict import Kind
from attn_fuzz.zoo.mutants import Mutant, patched_source
from attn_parity import cli

from tests.pages import PAGES, ROOT, blocks

SOURCES = [path for folder in ("optimized", "fuzz", "cli", "benchmarks") for path in (ROOT / folder).rglob("*.py")]


def test_every_command_is_described_and_every_option_there_is():
    page = PAGES["docs/reference/command-line.md"]
    options = {"--help"}
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        assert f"**`attn-parity {name}" in page
        options |= {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert set(re.findall(r"--[a-z][a-z-]*", page)) <= options


def test_every_kind_of_failure_is_described():
    table = PAGES["docs/reference/verdicts.md"].split("## Read a failure")[0]
    named = {kind for row in re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE) for kind in re.findall(r"`(\w+)`", row)}
    assert named == {*get_args(Kind)} - {"agree", "refused"}


def test_every_schema_is_described():
    written = {schema for path in SOURCES for schema in re.findall(r'"(attn-parity\.[\w-]+/\d+)"', path.read_text())}
    assert set(re.findall(r"attn-parity\.[\w-]+/\d+", PAGES["docs/reference/json-schemas.md"])) == written


def test_the_mutant_on_its_page_applies():
    (block,) = (block for block in blocks(PAGES["docs/reference/mutants.md"]) if block.language == "toml")
    mutant = msgspec.convert(tomllib.loads(block.text), Mutant)
    assert patched_source(mutant.patches[0].module, mutant.patches).count("batch.max_query_len > 1") == 1
