"""A run writes over no case of an earlier run, and takes no name from a run beside it."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from attn_fuzz import outputs, report
from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import Values
from attn_fuzz.verdict.verdict import Verdict

replace = msgspec.structs.replace
WRONG = Verdict(kind="value", message="wrong")
TARGETS = """
import dataclasses

from planted import NAN, RAISES

OLD, NEW = (dataclasses.replace(target, name="mine") for target in (NAN, RAISES))
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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


def test_captured_tensors_of_one_name_do_not_meet(step_case, tmp_path):
    def captured(text: bytes) -> Path:
        tensors = tmp_path / hashlib.sha256(text).hexdigest() / "call-0.safetensors"
        tensors.parent.mkdir(exist_ok=True)
        tensors.write_bytes(text)
        values = Values("captured", file=str(tensors), sha256=tensors.parent.name)
        return report.save(replace(step_case, values=values, writes=False), tmp_path / "runs", "mine")

    first, second, again = captured(b"first"), captured(b"second"), captured(b"first")
    assert first == again
    for path, text in ((first, b"first"), (second, b"second")):
        assert (path.parent / case_file.loads(path.read_text()).values.file).read_bytes() == text


def test_cases_that_are_written_at_once_get_names_of_their_own(step_case, tmp_path):
    cases = [replace(step_case, slack=slack) for slack in range(40)]
    with ThreadPoolExecutor(16) as pool:
        paths = list(pool.map(lambda case: report.save(case, tmp_path, "mine"), cases))
    assert [case_file.load(path) for path in paths] == cases
    assert set(tmp_path.iterdir()) == set(paths)


@pytest.mark.parametrize("other", ["mine.json.partial", "mine.json"])
def test_a_name_that_another_process_has_is_not_taken(other, tmp_path):
    (tmp_path / other).write_text("another's")
    assert not outputs.write_once(tmp_path / "mine.json", "mine")
    assert contents(tmp_path) == {other: b"another's"}
