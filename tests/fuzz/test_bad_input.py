"""Whatever a command is given that it cannot use: one line that says what was wrong, exit 2, and nothing left behind."""

import json
import subprocess
import sys

import pytest
import torch
from attn_fuzz import case as case_file
from attn_fuzz.executor import Executor

NOTE = "no GPU in use: Triton interprets the kernels on the CPU"

MUTANT = """
name = "planted"
origin = "planted"
class = "planted"
what = "planted"
trigger = "planted"
target = "reference-fp32"

[[patch]]
module = "attn_reference.attention"
find = "def attend("
replace = "def attend_not("
"""


@pytest.fixture
def refused(attn_parity, tmp_path):
    """Asserts that a command is refused, with `names` in its one line."""

    def run(*arguments: object, names: str) -> None:
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        ended = attn_parity(*arguments)
        lines = [line for line in ended.err.splitlines() if line and line != NOTE]
        assert ended.code == 2
        assert len(lines) == 1, ended.err
        assert lines[0].startswith("attn-parity: ")
        assert names in lines[0]
        assert "Traceback" not in ended.err
        after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        assert after == before

    return run


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--target", "nobody"], "'nobody'"),
        (["--target", ""], "target"),
        (["--target", "planted:NOBODY"], "NOBODY"),
        (["--target", "planted:NO_TARGET"], "it is a str"),
        (["--target", "no_such_module:TARGET"], "no_such_module"),
        (["--target", "broken:TARGET"], "SyntaxError"),
        (["--target", "quits:TARGET"], "quits"),
        (["--target", ":"], "target"),
        (["--profile", "weekly"], "weekly"),
        (["--examples", "0"], "--examples"),
        (["--examples", "-3"], "--examples"),
        (["--examples", "many"], "--examples"),
        (["--seed", "-1"], "--seed"),
        (["--workers", "0"], "--workers"),
        (["--limit", "0"], "--limit"),
        (["--limit", "-1"], "--limit"),
        (["--limit", "nan"], "--limit"),
        (["--limit", "inf"], "--limit"),
        (["--minutes", "0"], "--minutes"),
        (["--minutes", "nan"], "--minutes"),
        (["--device", "tpu"], "tpu"),
        (["--json", "missing/run.json"], "missing"),
        (["--json", "folder"], "folder"),
        (["--report", "a_file"], "a_file"),
        (["--report", "a_file/runs"], "a_file"),
        (["--nonsense"], "--nonsense"),
        (["extra"], "extra"),
    ],
    ids=str,
)  # fmt: skip
def test_fuzz_refuses(arguments, names, refused, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a_file").write_text("")
    (tmp_path / "broken.py").write_text("TARGET = (")
    (tmp_path / "quits.py").write_text("import sys\nsys.exit(0)")
    refused("fuzz", "--target", "reference-fp32", "--examples", 1, *arguments, names=names)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", [["fuzz"], ["replay", "case.json"], ["zoo"]], ids=" ".join)
def test_a_gpu_that_is_not_there_is_refused(command, refused, step_case, tmp_path):
    (tmp_path / "case.json").write_text(case_file.dumps(step_case))
    refused(*command, "--device", "cuda", names="no GPU")


def edits():
    yield "another schema", {"schema": "attn-parity.fuzz/1"}, "schema"
    yield "another version", {"schema": "attn-parity.case/99"}, "attn-parity.case/99"
    yield "no schema", {"schema": None}, "schema"
    yield "an unknown field", {"num_kv_head": 1}, "num_kv_head"
    yield "a count below 0", {"slack": -1}, "slack"
    yield "a text for a number", {"num_kv_heads": "two"}, "num_kv_heads"
    yield "a number for a list", {"requests": 3}, "requests"
    yield "a window of one", {"window": [1]}, "window"
    yield "a window below -1", {"window": [-2, 0]}, "window"
    yield "no target", {"target": None}, "target"
    yield "an unknown target", {"target": "nobody"}, "nobody"
    yield "an unknown type", {"attn_type": "sideways"}, "attn_type"
    yield "an unknown dtype", {"dtype": "float8"}, "dtype"
    yield "a size beyond the target", {"head_size": 24}, "head_size 24"
    yield "a huge count", {"rows_past": 1 << 40}, "rows_past"
    yield "huge tensors", {"num_kv_heads": 1 << 20, "group_size": 1}, "elements"
    yield "a scale past the numbers", {"scale": 1e300}, "scale"
    yield "a seed below 0", {"values": {"seed": -1}}, "seed"
    yield "cross-attention that is causal", {"attn_type": "encoder_decoder"}, "causal"
    yield "a block past the cache", {"cache": {"layout": "KV_FIRST_NHD", "block_size": 4, "num_blocks": 2}}, "blocks"
    yield "a slot written twice", {"requests": [{"query_len": 1, "seq_len": 1, "blocks": [0]}] * 2}, "slot"


@pytest.mark.parametrize(("changes", "names"), [edit[1:] for edit in edits()], ids=[edit[0] for edit in edits()])
def test_replay_refuses_a_case_edited_into_nonsense(changes, names, refused, step_case, tmp_path):
    fields = json.loads(case_file.dumps(step_case)) | {"head_size": 16} | changes
    (tmp_path / "case.json").write_text(json.dumps(fields))
    refused("replay", "case.json", names=names)


@pytest.mark.parametrize(
    ("contents", "names"),
    [
        (b"", "case.json"),
        (b"{", "case.json"),
        (b"[]", "schema"),
        (b"null", "schema"),
        (bytes(range(256)), "case.json"),
        (b"\xff\xfe\x00", "case.json"),
        (b"[" * 100_000, "case.json"),
        (b'{"schema": "attn-parity.case/1", "target": "t", "scale": NaN}', "case.json"),
        (b'{"schema": "attn-parity.case/1", "target": "\xff"}', "case.json"),
    ],
    ids=["empty", "cut", "a list", "null", "all bytes", "no UTF-8", "deep", "NaN", "a text of no UTF-8"],
)
def test_replay_refuses_what_is_no_case(contents, names, refused, tmp_path):
    (tmp_path / "case.json").write_bytes(contents)
    refused("replay", "case.json", names=names)


def test_replay_refuses_a_missing_file_a_folder_and_nothing(refused, tmp_path):
    refused("replay", "missing.json", names="missing.json")
    refused("replay", tmp_path, names=str(tmp_path))
    refused("replay", names="FILES")


def test_replay_runs_nothing_when_one_of_its_files_is_bad(refused, attn_parity, step_case, tmp_path, monkeypatch):
    monkeypatch.setattr(Executor, "run", None)
    (tmp_path / "good.json").write_text(case_file.dumps(step_case).replace('"head_size": 8', '"head_size": 16'))
    refused("replay", "good.json", "missing.json", names="missing.json")


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ('name = "planted"', "name = planted", "planted.toml"),
        ('what = "planted"', "", "what"),
        ('what = "planted"', "what = 3", "what"),
        ('what = "planted"', 'what = "planted"\nwhy = "planted"', "why"),
        ("def attend(", "nowhere to be found", "0 times"),
        ('find = "def attend("', 'find = "return"', "times, expected once"),
        ('find = "def attend("', 'find = ""', "find"),
        ("attn_reference.attention", "attn_reference.nothing", "attn_reference.nothing"),
        ("attn_reference.attention", "nothing.at.all", "nothing.at.all"),
        ("attn_reference.attention", "", "module"),
        (MUTANT[MUTANT.index("[[patch]]") :], "", "patch"),
        (MUTANT[MUTANT.index("[[patch]]") :], "patch = []", "[[patch]]"),
        ("reference-fp32", "nobody", "nobody"),
    ],
    ids=[
        "no TOML",
        "a field missing",
        "a field of another type",
        "an unknown field",
        "find stands nowhere",
        "find stands often",
        "an empty find",
        "no such module",
        "no such package",
        "no module",
        "no patch",
        "empty patches",
        "unknown target",
    ],
)
def test_zoo_refuses_a_mutant(old, new, names, refused, tmp_path):
    assert old in MUTANT
    folder = tmp_path / "animals"
    folder.mkdir()
    (folder / "planted.toml").write_text(MUTANT.replace(old, new))
    refused("zoo", "--dir", "animals", "--examples", 1, names=names)


def test_zoo_refuses_names_and_folders_that_hold_nothing(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "animals").mkdir()
    (tmp_path / "animals" / "planted.toml").write_bytes(b"\xff")
    refused("zoo", "--only", "nobody", names="nobody")
    refused("zoo", "--dir", "empty", names="empty")
    refused("zoo", "--dir", "missing", names="missing")
    refused("zoo", "--dir", "animals/planted.toml", names="planted.toml")
    refused("zoo", "--dir", "animals", names="planted.toml")
    refused("zoo", "--examples", 0, names="--examples")
    refused("zoo", "--json", "missing/zoo.json", names="missing")


def test_an_unknown_command_is_refused(refused):
    refused("fuz", names="fuz")


def test_a_process_of_its_own_says_the_same(tmp_path, child_environment):
    command = [sys.executable, "-c", "from attn_fuzz.cli import main; main()", "replay", "missing.json"]
    ended = subprocess.run(command, cwd=tmp_path, env=child_environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    assert "missing.json" in ended.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
