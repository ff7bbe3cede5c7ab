"""The parts of `tox run -e nightly`: the oldest is next, an interrupted one goes on, and the page has what the JSON has."""

import importlib.util
import json
import shlex
import shutil
import sys
import time

import click
import pytest
from attn_lab.__main__ import lab
from attn_parity import cli

from tests import nightly

NOTED = json.loads(nightly.RESULTS.read_text(encoding="utf-8"))


def test_the_page_has_the_results():
    text = nightly.PAGE.read_text(encoding="utf-8")
    assert nightly.page(text, NOTED) == text
    assert NOTED.keys() <= nightly.PARTS.keys()


@pytest.mark.parametrize("name", NOTED)
def test_a_part_says_why_it_failed_and_one_that_passed_says_nothing(name):
    assert bool(NOTED[name].get("why")) == (NOTED[name]["result"] != "passed"), f"`why` of {name} in {nightly.RESULTS}"


def test_the_part_that_ended_longest_ago_is_next():
    ended = {name: {"ended": f"2026-11-{day:02}"} for day, name in enumerate(nightly.PARTS, 10)}
    names = [*nightly.PARTS]
    assert nightly.oldest(ended) == names[0]
    assert nightly.oldest({**ended, names[3]: {"ended": "2025-01-01"}}) == names[3]
    del ended[names[2]]
    assert nightly.oldest(ended) == names[2]


def check(line: str) -> None:
    """Fail if what a command line names is not there: a path of tests, a module, a command or an option."""
    match shlex.split(line):
        case ["pytest", *words]:
            assert all((nightly.ROOT / word).exists() for word in words if word.startswith("tests/"))
        case ["attn-parity", *words]:
            parse(cli, words)
        case ["python", "-m", "attn_lab", *words]:
            parse(lab, words)
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module)
        case _:
            pytest.fail("an unknown program")


def parse(command: click.Command | None, words: list[str]) -> None:
    name = None
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(click.Context(command), words)
    assert command
    command.make_context(name, words)


@pytest.mark.parametrize("name", nightly.PARTS)
def test_every_command_of_a_part_runs_what_is_there(name):
    for line in nightly.PARTS[name][0]():
        check(line)


@pytest.mark.parametrize(
    "line",
    [
        *("python -m attn_lab gone", "python -m attn_lab matrix page --gone", "python -m attn_lab zoo run --gone"),
        *("attn-parity gone", "attn-parity fuzz --gone", "python -m tests.gone", "pytest tests/gone.py"),
    ],
)
def test_a_command_that_is_gone_is_found(line):
    with pytest.raises((click.UsageError, AssertionError)):
        check(line)


def command(code: str) -> str:
    return shlex.join([sys.executable, "-c", code])


def test_an_interrupted_part_goes_on_after_the_command_that_ended_last(tmp_path):
    first = command(f"import pathlib; path = pathlib.Path({str(tmp_path / 'ran')!r}); path.open('a').write('.')")
    fails = command("raise SystemExit(3)")
    waits = command("import time; time.sleep(600)")
    started = time.monotonic()
    assert nightly.run("part", [first, waits], tmp_path, seconds=10) is None
    assert time.monotonic() - started < 60
    ended = nightly.run("part", [first, fails], tmp_path, seconds=60)
    assert ended is not None
    assert (tmp_path / "ran").read_text() == ".", "it ran once"
    assert ended["result"] == "1 of 2 commands failed: 'raise SystemExit(3)'"
    shutil.rmtree(tmp_path)
    again = nightly.run("part", [command("pass")], tmp_path, seconds=60)
    assert again is not None
    assert again["result"] == "passed"
    all_fail = nightly.run("part", [fails, "false a/long/name", "false b"], tmp_path, seconds=60)
    assert all_fail is not None
    assert all_fail["result"].startswith("3 of 3 commands failed: ")
    assert all_fail["result"].endswith("'raise SystemExit(3)'; false a/long/name; false b")


def test_a_part_of_an_unknown_name_is_refused(capsys):
    assert nightly.main(["nothing"]) == 2
    assert "got nothing, expected one of tests, zoo, " in capsys.readouterr().err
