"""The page of what ran on the emulator: rows of runs' JSONs, and what is refused."""

import json
import shutil

import msgspec
import pytest
from attn_fuzz.errors import InputError
from click.testing import CliRunner

from benchmarks.emulation import runs, settled
from benchmarks.emulation.runs import Kept, Run
from benchmarks.emulation.speeds import Speed, Speeds
from tests.processes import ROOT

RECORD = {
    "schema": "attn-parity.fuzz/1",
    "target": "triton@gfx950",
    "versions": {"triton": "3.6.0"},
    "seed": 16,
    "examples": 2000,
    "replayed": 107,
    "known": {},
    "failures": [],
    "interrupted": False,
    "error": None,
    "events": {"split": 70},
    "max_ratio": 0.913,
}


@pytest.fixture
def read(tmp_path):
    def run(**fields: object) -> Run:
        path = tmp_path / "run.json"
        path.write_text(json.dumps(RECORD | fields))
        return runs.read(path)

    return run


@pytest.mark.parametrize(
    ("fields", "row"),
    [
        ({}, "| gfx950 | `triton@gfx950` | 3.6.0 | 16 | 2000 | 70 | 107 | all agree | 0.91 |"),
        (
            {"target": "vllm-unified-attention@gfx942", "known": {"a": 2, "b": 1}},
            "| gfx942 | `vllm-unified-attention@gfx942` | 3.6.0 | 16 | 2000 | 70 | 107 | nothing new, 3 known | 0.91 |",
        ),
        (
            {"failures": [{}], "known": {"a": 2}},
            "| gfx950 | `triton@gfx950` | 3.6.0 | 16 | 2000 | 70 | 107 | 1 failing | 0.91 |",
        ),
        (
            {"error": "died", "max_ratio": None},
            "| gfx950 | `triton@gfx950` | 3.6.0 | 16 | 2000 | 70 | 107 | interrupted: all agree |  |",
        ),
    ],
)
def test_a_run_is_a_row(read, fields, row):
    assert row in runs.text(Kept((read(**fields),))).splitlines()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"target": "triton"}, "target triton is not emulated"),
        ({"schema": "attn-parity.hunt/1"}, "expected 'attn-parity.fuzz/1'"),
    ],
)
def test_what_is_no_run_on_the_emulator_is_refused(read, fields, words):
    with pytest.raises(InputError, match=words):
        read(**fields)


def test_a_run_without_a_split_case_says_so_and_an_older_one_says_nothing(read):
    counted, older = read(events={}), msgspec.structs.replace(read(seed=17), split=None)
    page = runs.text(Kept((counted, older))).splitlines()
    assert "| gfx950 | `triton@gfx950` | 3.6.0 | 16 | 2000 | 0 | 107 | all agree | 0.91 |" in page
    assert "| gfx950 | `triton@gfx950` | 3.6.0 | 17 | 2000 |  | 107 | all agree | 0.91 |" in page


def test_a_run_replaces_one_of_its_target_triton_and_seed(read):
    old, other, new = read(seed=2, examples=5), read(versions={"triton": "3.9.0"}), read(seed=2)
    assert runs.updated([old, other], [new]) == (new, other)
    assert runs.updated([old], [read(seed=3)]) == (old, read(seed=3))


def test_the_page_says_how_fast_launches_ran():
    row = Speed("gfx942", "decode", 14_000, 0.05, 0.1)
    assert "| gfx942 | decode | 14,000 | 0.28 | 0.14 |" in runs.text(Kept(speeds=Speeds("a machine", (row,)))).splitlines()


def test_runs_are_kept_and_a_page_that_is_not_current_is_noticed(read, tmp_path, monkeypatch):
    read()
    monkeypatch.chdir(tmp_path)
    settled.PAGE.parent.mkdir(parents=True)
    for name in ("emulation.json", "options.json"):
        shutil.copy(ROOT / settled.PAGE.with_name(name), settled.PAGE.with_name(name))
    assert CliRunner().invoke(runs.emulated, ["run.json"]).exit_code == 0
    assert settled.settle(checks=True) == 0
    runs.DATA.write_bytes(msgspec.json.encode(Kept(runs.load().runs * 2)))
    assert settled.settle(checks=True) == 1
