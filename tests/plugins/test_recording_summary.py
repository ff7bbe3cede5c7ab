"""The summary of a recording's folder, in which anybody may have written: files as processes write them, and hostile ones."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from attn_vllm_recording import VARIABLE
from attn_vllm_recording.__main__ import main
from attn_vllm_recording.summary import SCHEMA, FolderError, Summary

from tests.support.malformed import KNOWN_FIELDS_DRAWS, damage, make_no_file, run_in_fork

FOUND = {
    "index": 3,
    "function": "TRITON_ATTN layer.0",
    "wrong": True,
    "message": "out: got 1",
    "case": "call-3.json",
    "error": None,
}
STATE = {
    "schema": SCHEMA,
    "host": "host",
    "pid": 7,
    "program": "vllm serve",
    "every": 2,
    "most": 1000,
    "layers": {"TRITON_ATTN": 4},
    "calls_by_backend": {"TRITON_ATTN": 9},
    "calls": 9,
    "judged": 4,
    "wrong": 0,
    "ratio": 0.5,
    "not_judged": {"MLA": 1},
    "found": [],
    "reads": 0,
    "wrong_reads": 0,
    "not_seen": {},
    "faults": [],
}
RIGHT = "judged (every 2), 0 wrong, largest error 0.5 of its bound"


def wrote(folder: Path, process: str, **changes: object) -> Path:
    """The file of a process."""
    path = folder / process / "recording.json"
    path.parent.mkdir()
    path.write_text(json.dumps(STATE | changes))
    return path


def test_processes_are_summed_up(tmp_path):
    wrote(tmp_path, "a")
    wrote(tmp_path, "b", wrong=1, found=[FOUND])
    wrote(tmp_path, "front", layers={}, calls_by_backend={}, calls=0, judged=0, not_judged={})
    (tmp_path / "no-file-yet").mkdir()
    summary = Summary.of(tmp_path)
    assert summary.exit_code == 1
    assert summary.lines() == [
        "2 of 3 processes made 18 calls (TRITON_ATTN 18), 8 judged (every 2), 1 wrong, largest error 0.5 of its bound",
        "not judged:",
        "      2  MLA",
        f"wrong: call 3 of TRITON_ATTN layer.0: {tmp_path}/b/call-3.json",
        "    out: got 1",
    ]


def test_the_summary_of_many_entries_is_short(tmp_path):
    right = FOUND | {"wrong": False}
    reasons = {f"reason {i}": 1 for i in range(1000)}
    many = {"found": [*[right] * 500, *[FOUND] * 500], "faults": ["block 3"] * 1000, "not_judged": reasons, "not_seen": reasons}
    wrote(tmp_path, "a", wrong=1, **many)
    lines = Summary.of(tmp_path).lines()
    assert len(lines) < 200
    assert {"and 980 more wrong blocks", "and 480 more wrong calls", "and 980 more reasons"} <= {*lines}
    assert lines.index("and 480 more wrong calls") < lines.index("and 480 more calls that are not judged")


def test_nobody_reads_the_summary(tmp_path):
    wrote(tmp_path, "a")
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run([sys.executable, "-m", "attn_vllm_recording", tmp_path], stdout=writer, check=False)
    assert ran.returncode == 0


def test_a_process_of_which_nothing_was_judged_is_named_beside_others(tmp_path):
    wrote(tmp_path, "a")
    wrote(tmp_path, "b", judged=0, not_judged={"it was captured in a CUDA graph": 9})
    summary = Summary.of(tmp_path)
    assert summary.exit_code == 0
    assert "NO CALL WAS JUDGED of b, which made 9 calls" in summary.lines()


def test_a_folder_without_a_recording_says_so_loudly(tmp_path):
    def summed(folder):
        ran = subprocess.run([sys.executable, "-m", "attn_vllm_recording", folder], capture_output=True, text=True, check=False)
        assert ran.returncode == 2
        return ran.stdout + ran.stderr

    (tmp_path / "empty").mkdir()
    assert "NO CALL WAS JUDGED: no process has loaded the recording" in summed(tmp_path / "empty")
    assert f"there is no such folder. no process has loaded the recording: was {VARIABLE} set" in summed(tmp_path / "none")
    wrote(tmp_path, "a").write_text("[]")
    assert "NO CALL WAS JUDGED: no file of the folder is one of a recording\nleft out: " in summed(tmp_path)
    with pytest.raises(FolderError):
        Summary.of(tmp_path / "\0")


def without(field: str) -> str:
    return json.dumps({name: value for name, value in STATE.items() if name != field})


def with_found(**changes: object) -> str:
    return json.dumps(STATE | {"found": [FOUND | changes]})


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[" * 5000, "nested more than"),
        ("[]", "schema: got nothing"),
        ('{"schema": "attn-parity.vllm-recording/0"}', "schema: got 'attn-parity.vllm-recording/0'"),
        *((without(field), f"{field}: not what") for field in ("every", "calls", "ratio", "layers", "not_judged", "found")),
        (json.dumps(STATE | {"calls": "9"}), "calls: not what"),
        (json.dumps(STATE | {"calls": True}), "calls: not what"),
        (json.dumps(STATE | {"judged": -1}), "judged: not what"),
        (json.dumps(STATE | {"judged": 10**300}), "judged: not what"),
        (json.dumps(STATE | {"judged": 10}), "0 wrong of 10 judged of 9 calls"),
        (json.dumps(STATE | {"wrong": 5}), "5 wrong of 4 judged"),
        (json.dumps(STATE | {"ratio": float("nan")}), "NaN is not a finite number"),
        (with_found(case="/etc/passwd"), "found: not what"),
        (with_found(case="../other/call-1.json"), "found: not what"),
        (json.dumps(STATE).replace('"pid"', '"host"'), "'host' is there twice"),
        (json.dumps(STATE | {"program": "x" * (1 << 24)}), "larger than"),
    ],
    ids=lambda text: text[:40],
)
def test_a_file_that_no_process_wrote_is_named_and_left_out(content, why, tmp_path):
    wrote(tmp_path, "a")
    wrote(tmp_path, "b").write_text(content)
    summary = Summary.of(tmp_path)
    first, left_out = summary.lines()[:2]
    assert first.startswith("1 of 1 processes made 9 calls")
    assert RIGHT in first
    assert left_out.startswith(f"left out: {tmp_path}/b/recording.json: ")
    assert why in left_out
    assert len(left_out) < 500
    assert summary.exit_code == 2, "what it held is not known"
    wrote(tmp_path, "c", wrong=1)
    assert Summary.of(tmp_path).exit_code == 1


@pytest.mark.parametrize("kind", ["pipe", "endless", "nowhere", "loop", "folder"])
def test_a_path_that_is_no_file_is_named_and_left_out(kind, tmp_path):
    wrote(tmp_path, "a")
    path = wrote(tmp_path, "b")
    path.unlink()
    make_no_file(path, kind)
    summary = Summary.of(tmp_path)
    assert summary.lines()[1].startswith(f"left out: {path}: ")
    assert summary.exit_code == 2


def test_wrong_blocks_are_an_exit_code_of_one(tmp_path):
    wrote(tmp_path, "a", reads=7, wrong_reads=1, faults=["stale block: layer 0"], not_seen={"a connector": 2})
    summary = Summary.of(tmp_path)
    assert summary.exit_code == 1
    assert summary.lines()[-4:] == [
        "blocks: 7 rows of steps compared with what was written, 1 wrong",
        "blocks not compared with what was written:",
        "      2  a connector",
        "wrong blocks: a: stale block: layer 0",
    ]


def test_texts_of_files_reach_the_terminal_as_printable_lines(tmp_path):
    hostile = "\x1b[2J\rall right\n0 wrong\u202e" + "x" * 5000
    found = FOUND | {"function": hostile, "message": hostile, "error": hostile, "case": "\x1b[2J.json"}
    state = {"calls_by_backend": {hostile: 9}, "not_judged": {hostile: 2}, "layers": {hostile: 1}}
    wrote(tmp_path, "\x1b[31m", found=[found], wrong=1, **state)
    wrote(tmp_path, "\x1b[32m").write_text(json.dumps({"schema": hostile}))
    lines = Summary.of(tmp_path).lines()
    assert len(lines) == 7
    for line in lines:
        assert line.isprintable()
        assert len(line) < 1500


def test_malformed_files_are_left_out_by_name(tmp_path, request):
    wrong = []
    for seed in request.config.getoption("--malformed"):
        rng, folder = random.Random(seed), tmp_path / str(seed)
        (folder / "calls").mkdir(parents=True)
        damage(rng, wrote(folder / "calls", "process", wrong=1, found=[FOUND]), KNOWN_FIELDS_DRAWS)
        ended = run_in_fork(lambda arguments: main.main(arguments, "attn_vllm_recording"), ["calls"], folder)
        lines = ended.out.splitlines()
        is_told = lines and all(line.isprintable() and len(line) < 2000 for line in lines) and not ended.err
        if ended.code != 2 or not is_told or "NO CALL WAS JUDGED" not in ended.out:
            wrong.append(f"{seed}: exit {ended.code}, {ended.out[-300:]!r}, {ended.err[-600:]!r}")
        if ended.took_too_much:
            wrong.append(f"{seed}: {ended.seconds:.1f} s, {ended.mebibytes:.0f} MiB")
    assert not wrong, "\n".join(wrong)
