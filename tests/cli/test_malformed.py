"""Malformed files, drawn from a seed, to every command that reads one: one line, exit 2, within 2 s and 64 MiB of its own.

Importing torch takes the rest of the 300 MB that a command may have. Each input is read by a fork of this process, in which
everything is imported already. `--malformed 0:200` draws 200 inputs, as `tox run -e nightly -- faults` does.
"""

import random
import resource
from functools import partial
from pathlib import Path
from typing import NamedTuple

import attn_lab.commands.zoo  # noqa: F401
import pytest
from attn_fuzz.targets import registry
from attn_lab.__main__ import lab
from attn_parity import cli, main

from tests.support.malformed import (
    CONFIG_DRAWS,
    JSON_DRAWS,
    NO_FILES,
    TOML_DRAWS,
    make_no_file,
    run_in_fork,
)

ROOT = Path(__file__).parents[2]
NOTE = "no GPU in use: Triton interprets the kernels on the CPU"


class Reader(NamedTuple):
    """A command that reads a file.

    Attributes:
        arguments: of the command, with {} for the file.
        valid: a file that it would take.
        name: of the malformed file.
        says_anything: True if any value of a field is an answer, as in a model's config, whose other fields are not read.
    """

    arguments: str
    valid: Path
    name: str
    says_anything: bool = False


CASE = ROOT / "fuzz/attn_fuzz/corpus/vllm-945.json"
MUTANT = ROOT / "lab/attn_lab/zoo/bugs/vllm-945.toml"
PAGES = ROOT / "docs/generated"
JSON_READERS = (
    Reader("replay {}", CASE, "case.json"),
    Reader("show --no-run {}", CASE, "case.json"),
    Reader("fuzz --target reference-fp32 --corpus {}", CASE, "case.json"),
    Reader("select {}", ROOT / "examples/models/gpt-oss-120b.json", "model.json"),
    Reader("select {}", ROOT / "tests/cli/configs/gpt-oss-120b.json", "config.json", says_anything=True),
    Reader("zoo page", PAGES / "zoo.json", "docs/generated/zoo.json"),
)
TOML_READERS = (Reader("zoo run --dir zoo", MUTANT, "zoo/mutant.toml"),)


def draw(seed: int, folder: Path) -> str:
    """Make a malformed file in the folder, and return the command that reads it."""
    rng = random.Random(seed)
    readers, draws = rng.choice(((JSON_READERS, JSON_DRAWS), (TOML_READERS, TOML_DRAWS)))
    reader = rng.choice(readers)
    path = folder / reader.name
    path.parent.mkdir(parents=True, exist_ok=True)
    if rng.random() < 0.15:
        make_no_file(path, rng.choice(NO_FILES))
    else:
        draws = CONFIG_DRAWS if reader.says_anything else draws
        path.write_bytes(rng.choice(draws)(rng, reader.valid.read_text()))
    return reader.arguments.format(reader.name)


@pytest.fixture(scope="module", autouse=True)
def warm():
    """Imported and loaded before the first fork."""
    registry.usable("reference-fp32", "cpu")
    resource.getrusage(resource.RUSAGE_SELF)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_malformed_file_is_refused_in_one_line(tmp_path, request):
    wrong = []
    for seed in request.config.getoption("--malformed"):
        folder = tmp_path / str(seed)
        folder.mkdir()
        arguments = draw(seed, folder)
        commands = lab if arguments.startswith("zoo") else cli
        ended = run_in_fork(partial(main, commands=commands), arguments.split(), folder)
        lines = [line for line in ended.err.splitlines() if line and line != NOTE]
        is_one = len(lines) == 1 and lines[0].startswith("attn-parity: ") and lines[0].isprintable() and len(lines[0]) < 2000
        if ended.code != 2 or ended.out or not is_one:
            wrong.append(f"{seed}: {arguments}: exit {ended.code}, {ended.out[:200]!r}, {ended.err[-600:]!r}")
        if ended.took_too_much:
            wrong.append(f"{seed}: {arguments}: {ended.seconds:.1f} s, {ended.mebibytes:.0f} MiB")
    assert not wrong, "\n".join(wrong)
