"""The parts of `tox run -e nightly`: the oldest is next, an interrupted one goes on, and one whose files changed is red."""

import datetime
import importlib.util
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys

import click
import pytest
from attn_lab.__main__ import lab
from attn_lab.zoo import known_bugs
from attn_parity import cli

from tests import nightly

NOTED = json.loads(nightly.RESULTS.read_text(encoding="utf-8"))


def test_the_page_has_the_results():
    text = nightly.PAGE.read_text(encoding="utf-8")
    assert nightly.page(text, NOTED) == text
    assert NOTED.keys() <= nightly.PARTS.keys()


@pytest.mark.parametrize("name", NOTED)
def test_a_part_says_why_it_failed_and_one_that_passed_says_nothing(name):
    assert bool(NOTED[name].get("why")) == (NOTED[name].get("result") != "passed"), f"`why` of {name} in {nightly.RESULTS}"


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
    part = nightly.PARTS[name]
    for line in part.commands({}):
        check(line)
    for path in part.paths:
        assert (nightly.ROOT / path.removeprefix(":!")).exists(), path


def test_the_parts_take_six_hours_at_most():
    assert len(nightly.PARTS) <= 6
    assert sum(part.minutes for part in nightly.PARTS.values()) <= 6 * 60


def test_three_nights_look_for_each_mutant_once():
    last, names = {}, []
    for _ in range(3):
        names += re.findall(r"--only (\S+)", " ".join(nightly.PARTS["zoo"].commands(last)))
        last = {"third": nightly.next_third(last)}
    assert sorted(names) == sorted(path.stem for path in known_bugs.FOLDER.glob("*.toml"))
    assert nightly.next_third(last) == 0


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


WAITS = command("import time; time.sleep(600)")


@pytest.fixture
def interrupts():
    """Ctrl-C is heeded, also in tests that were started in the background."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("interrupts")
def test_an_interrupted_part_goes_on_after_the_command_that_ended_last(tmp_path):
    first = command(f"import pathlib; path = pathlib.Path({str(tmp_path / 'ran')!r}); path.open('a').write('.')")
    fails = command("raise SystemExit(3)")
    interrupts = command("import os, signal, time; os.kill(os.getppid(), signal.SIGINT); time.sleep(600)")
    assert nightly.run("part", [first, interrupts], tmp_path, seconds=300) is None
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


def test_a_part_that_takes_longer_than_its_minutes_has_failed(tmp_path):
    ended = nightly.run("part", [command("pass"), WAITS, WAITS + " "], tmp_path, seconds=6)
    assert ended is not None
    assert ended["result"] == "1 of 3 commands ended within 0 minutes"
    assert not [*tmp_path.iterdir()], "the next call begins anew"


@pytest.fixture
def history(tmp_path, monkeypatch):
    """A repository with a part `part` of the files in `kernel/`, and a function that runs git in it and returns the commit."""

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@localhost")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)
        return subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=tmp_path, text=True).strip()

    for name in ("kernel", "docs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("1")
    subprocess.run("git init --quiet && git add .", cwd=tmp_path, check=True, shell=True)
    part = nightly.Part(lambda last: iter(()), "nothing", 1, ("kernel",))
    monkeypatch.setattr(nightly, "PARTS", {"part": part})
    return tmp_path, git


TODAY = datetime.date(2026, 11, 30)


def red(folder, **ended) -> list[str]:
    return [*nightly.red({"part": ended} if ended else {}, TODAY, folder)]


def test_a_part_is_red_once_a_file_that_it_runs_has_changed(history):
    folder, git = history
    passed = {"ended": "2026-11-30 01:00", "commit": git("commit", "-m", "first"), "result": "passed"}
    assert red(folder, **passed) == []
    (folder / "docs" / "file").write_text("2")
    git("commit", "-am", "second")
    assert red(folder, **passed) == []
    assert red(folder, **{**passed, "ended": "2026-11-15 01:00"}) == ["nightly part part: green, and 15 days old"]
    (folder / "kernel" / "file").write_text("2")
    changed = f"nightly part part: red, 1 of its files changed after {passed['commit']}, at which it passed"
    assert red(folder, **passed) == [changed], "not committed yet"
    third = git("commit", "-am", "third")
    assert red(folder, **passed) == [changed]
    assert red(folder, **{**passed, "commit": f"{passed['commit']}..{third}"}) == [changed]
    assert red(folder, **{**passed, "commit": third}) == []


def test_a_part_that_failed_or_has_not_run_or_passed_elsewhere_is_red(history):
    folder, git = history
    git("commit", "-m", "first")
    assert red(folder) == ["nightly part part: red, has not run"]
    failed = {"ended": "2026-11-30 01:00", "commit": "HEAD", "result": "1 of 2 commands failed: false"}
    assert red(folder, **failed) == ["nightly part part: red, 1 of 2 commands failed: false"]
    elsewhere = red(folder, **{**failed, "result": "passed", "commit": "0123abcd"})
    assert elsewhere == ["nightly part part: red, it passed at 0123abcd, which this history has not"]


def test_without_a_history_no_part_is_red(history, tmp_path_factory, monkeypatch):
    folder, git = history
    git("commit", "-m", "first")
    git("commit", "--allow-empty", "-m", "second")
    shallow = tmp_path_factory.mktemp("clones") / "shallow"
    git("clone", "--depth=1", folder.as_uri(), str(shallow))
    assert red(folder)
    assert red(shallow) == red(shallow.parent) == red(folder / "docs") == []
    monkeypatch.setenv("PATH", "")
    assert red(folder) == []


def test_a_part_of_an_unknown_name_is_refused(capsys):
    assert nightly.main(["nothing"]) == 2
    assert "got nothing, expected one of tests, zoo, " in capsys.readouterr().err
