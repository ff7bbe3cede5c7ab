"""A run writes over no case of an earlier run, and takes no name from a run beside it."""

import errno
import hashlib
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from attn_fuzz import outputs, report
from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import Case, Values
from attn_fuzz.corpus import files
from attn_fuzz.run.distinct import Entry
from attn_fuzz.verdict.verdict import Verdict
from attn_parity.commands.fuzz import keep_going
from attn_parity.commands.fuzz.failing import EarlyFiles

from tests.fuzz.report.reported import failure_of

replace = msgspec.structs.replace
WRONG = Verdict(kind="value", message="wrong")
TARGETS = """
import dataclasses

from planted import NAN, RAISES

OLD, NEW = (dataclasses.replace(target, name="mine") for target in (NAN, RAISES))
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.nightly
def test_runs_of_one_seed_on_a_target_that_changes_keep_the_files_of_both(attn_parity, tmp_path):
    (tmp_path / "mine.py").write_text(TARGETS)

    def files_after(target: str) -> dict[str, bytes]:
        options = ("--examples", 20, "--seed", 1, "--workers", 1, "--corpus", "none")
        assert attn_parity("fuzz", "--target", f"mine:{target}", *options).code == 1
        return contents(tmp_path / "attn-parity-runs")

    old, both = files_after("OLD"), files_after("NEW")
    assert {"mine-1.json", "mine-1.py", "mine-1-first.json"} == set(old)
    assert {"mine-1-2.json", "mine-1-2.py", "mine-1-first-2.json"} == set(both) - set(old)
    assert {name: both[name] for name in old} == old
    assert case_file.load(tmp_path / "attn-parity-runs" / "mine-1-2.json").target == "mine:NEW"
    assert files_after("OLD") == files_after("NEW") == both, "what is there already is not written again"


def test_a_script_that_has_lost_its_case_keeps_its_name(step_case, tmp_path):
    (tmp_path / "mine.py").write_text("import pdb")
    case, script = report.write(step_case, WRONG, tmp_path, "mine")
    assert (case.name, script.name) == ("mine-2.json", "mine-2.py")
    assert (tmp_path / "mine.py").read_text() == "import pdb"


def test_a_name_whose_script_is_no_text_is_not_taken(step_case, tmp_path):
    (tmp_path / "mine.py").write_bytes(b"\xff")
    (tmp_path / "mine-2.py").mkdir()
    assert report.write(step_case, WRONG, tmp_path, "mine")[0].name == "mine-3.json"


@pytest.fixture
def captured(step_case, tmp_path):
    """Makes a captured case whose file of tensors, called call-0.safetensors, holds this."""

    def make(data: bytes) -> Case:
        tensors = tmp_path / hashlib.sha256(data).hexdigest() / "call-0.safetensors"
        tensors.parent.mkdir(exist_ok=True)
        tensors.write_bytes(data)
        return replace(step_case, values=Values("captured", file=str(tensors), sha256=tensors.parent.name), writes=False)

    return make


def tensors_of(path: Path) -> bytes:
    return (path.parent / str(case_file.loads(path.read_text()).values.file)).read_bytes()


def test_captured_tensors_of_one_name_do_not_meet(captured, tmp_path):
    first, second, again = (report.save(captured(data), tmp_path / "runs", "mine") for data in (b"first", b"second", b"first"))
    assert first == again
    assert (tensors_of(first), tensors_of(second)) == (b"first", b"second")


def test_a_draft_is_written_over_by_whoever_saved_it(captured, step_case, tmp_path):
    report.save(captured(b"another"), tmp_path / "runs", "another")
    drafts = [EarlyFiles(), EarlyFiles()]
    for early in drafts:
        early.save_smallest(step_case, tmp_path / "runs", "mine")
    early, other = drafts
    assert early.smallest != other.smallest, "two runs of one seed find the same case"
    early.save_smallest(captured(b"call"), tmp_path / "runs", "mine")
    assert tensors_of(early.smallest) == b"call"
    early.drop_smallest()
    assert case_file.load(other.smallest) == step_case


def test_cases_that_are_written_at_once_get_names_of_their_own(step_case, tmp_path):
    cases = [replace(step_case, slack=slack) for slack in range(40)]
    with ThreadPoolExecutor(16) as pool:
        paths = list(pool.map(lambda case: report.save(case, tmp_path, "mine"), cases))
    assert [case_file.load(path) for path in paths] == cases
    assert set(tmp_path.iterdir()) == set(paths)


def test_one_case_that_is_written_at_once_is_written_once(step_case, tmp_path):
    with ThreadPoolExecutor(16) as pool:
        paths = {path for path, _ in pool.map(lambda _: report.write(step_case, WRONG, tmp_path, "mine"), range(40))}
    assert paths == {tmp_path / "mine.json"}
    assert set(contents(tmp_path)) == {"mine.json", "mine.py"}


CREATE = """
import sys
from pathlib import Path
from attn_fuzz import outputs
for number in range(200):
    print(int(outputs.create(Path(sys.argv[1], str(number)), sys.argv[2] * 1000)))
"""


def test_of_two_processes_one_creates_a_file(tmp_path):
    processes = [
        subprocess.Popen([sys.executable, "-c", CREATE, str(tmp_path), text], stdout=subprocess.PIPE, text=True)
        for text in "ab"
    ]
    (first, _), (second, _) = [process.communicate(timeout=60) for process in processes]
    made = list(zip(map(int, first.split()), map(int, second.split()), strict=True))
    assert len(made) == 200
    assert all(by_first + by_second == 1 for by_first, by_second in made)
    assert contents(tmp_path) == {str(n): (b"a" if by_first else b"b") * 1000 for n, (by_first, _) in enumerate(made)}


def test_a_run_that_keeps_going_deletes_no_file_of_an_earlier_one(step_case, tmp_path):
    """The earlier run of this seed found the same case first, and what it shrinks to had a cause of its own then."""
    failure = failure_of(step_case, WRONG, minimal=False)

    def dropped_after(folder: Path) -> set[str]:
        entry = Entry("mine", ("value", ""), 1, 1, failure, is_open=True)
        files_of = keep_going.Files(folder, {"mine": "mine-1"}, frozenset(folder.iterdir()))
        files_of.changed(entry)
        assert len(contents(folder)) == 2
        files_of.dropped(entry)
        return set(contents(folder))

    assert dropped_after(tmp_path) == set()
    report.save(step_case, tmp_path, "mine-1-value-1-first")
    assert dropped_after(tmp_path) == {"mine-1-value-1-first.json"}


@pytest.fixture(params=["links", "no links"])
def file_system(request, monkeypatch):
    def refused(path: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if request.param == "no links":
        monkeypatch.setattr(Path, "hardlink_to", refused)


@pytest.mark.usefixtures("file_system")
def test_a_name_that_is_taken_after_the_look_is_not_written_over(monkeypatch, tmp_path):
    path = tmp_path / "mine.json"
    assert outputs.create(path, "mine")
    monkeypatch.setattr("os.path.lexists", lambda path: False)
    assert not outputs.create(path, "another's")
    assert contents(tmp_path) == {"mine.json": b"mine"}


def test_files_that_a_killed_process_has_left_take_no_name(step_case, tmp_path):
    killed = """
import os, sys
from pathlib import Path
from attn_fuzz import outputs
Path.hardlink_to = Path.replace = lambda *paths: os.abort()
getattr(outputs, sys.argv[1])(Path(sys.argv[2]), "cut")
"""
    for function in ("create", "write"):
        ended = subprocess.run([sys.executable, "-c", killed, function, str(tmp_path / "mine.json")], check=False)
        assert ended.returncode == -signal.SIGABRT
    left = set(tmp_path.iterdir())
    assert {path.suffix for path in left} == {".partial"}
    assert report.write(step_case, WRONG, tmp_path, "mine")[0] == tmp_path / "mine.json"
    assert files.load(tmp_path) == {"mine": step_case}
    assert left < set(tmp_path.iterdir()), "another process may be writing them"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="writes to /dev/full")
def test_a_full_disk_takes_no_name_and_loses_no_smaller_case(full_for, step_case, tmp_path):
    early = EarlyFiles()
    early.save_smallest(step_case, tmp_path, "small")
    full_for("mine.json", "small.json")
    with pytest.raises(OSError, match=r"No space left on device: .*mine\.json"):
        report.save(step_case, tmp_path, "mine")
    early.save_smallest(replace(step_case, slack=1), tmp_path, "small")
    assert contents(tmp_path).keys() == {"small.json"}
    assert case_file.load(tmp_path / "small.json") == step_case
