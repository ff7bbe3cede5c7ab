"""`attn-parity compile`: what is compiled is shown, and a compiler that fails or hangs costs one launch."""

import json
import re
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from attn_binaries.build import Outcome, OutOfTime

from tests.support.facts import GOOD
from tests.support.json_schemas import check

MERGE = ("compile", "--arch", "gfx942", "--only", "merge, fp32")


@pytest.mark.parametrize(("error", "code"), [(None, 2), ("no such thing", 1)])
def test_the_limit_is_told_as_the_tools(error, code, attn_parity, monkeypatch):
    def planted(jobs, workers, report, launches, compile_seconds):
        assert compile_seconds == 7
        errors = {jobs[0]: OutOfTime("has no code after 7 s, see --compile-seconds")}
        return Outcome({}, errors | ({jobs[1]: error} if error else {}))

    monkeypatch.setattr("attn_parity.launches.build", planted)
    run = attn_parity("compile", "--only", "merge", "--arch", "gfx942", "--compile-seconds", "7")
    assert run.code == code
    assert re.search(r"^gfx942 merge.*: has no code after 7 s, see --compile-seconds$", run.out, re.MULTILINE)
    summary = f"0 wrong, {int(bool(error))} do not compile, 1 have no code after --compile-seconds"
    assert " ".join(run.out.split()).endswith(summary)


@pytest.mark.parametrize(
    ("fact", "words"),
    [
        ({"lost_addresses": 2}, "lost_addresses is 2, none allowed: the compiler made wrong code"),
        ({"lds_bytes": 65537}, "lds_bytes is 65537, at most 65536 there"),
    ],
)
def test_a_binary_that_cannot_be_right_is_told(fact, words, attn_parity, monkeypatch, tmp_path):
    def planted(jobs, *_):
        return Outcome(
            {jobs[0]: SimpleNamespace(name="merge", num_warps=4, facts=replace(GOOD, **fact), assembly="", hot_loop=None)}
        )

    monkeypatch.setattr("attn_parity.launches.build", planted)
    run = attn_parity(*MERGE, "--json", "here.json")
    assert run.code == 1
    assert f"gfx942 merge, fp32: {words}" in run.out
    assert json.loads((tmp_path / "here.json").read_text())["over"] == [f"gfx942 merge, fp32: {words}"]


def test_how_many_launches_there_are_is_told_and_then_how_long_they_take(attn_parity, monkeypatch):
    def planted(jobs, workers, report, launches, compile_seconds):
        monkeypatch.setattr("time.monotonic", lambda: begun + 30.0)
        report(30)
        return Outcome({}, dict.fromkeys(jobs, "no such thing"))

    begun = time.monotonic()
    monkeypatch.setattr("attn_parity.launches.build", planted)
    monkeypatch.setattr("time.monotonic", lambda: begun)
    run = attn_parity("compile", "--arch", "gfx942", "--workers", "3")
    jobs = int(re.search(r"^launches to compile: (\d+), 3 at once$", run.err, re.MULTILINE)[1])
    assert f"30 of {jobs} are compiled: about {(jobs - 30) / 60:.0f} minutes to go\n" in run.err


def test_launches_of_a_targets_drawn_calls_are_compiled_and_none_runs(attn_parity, tmp_path):
    run = attn_parity("compile", "triton-write", "--arch", "gfx942", "--examples", "5", "--json", "found.json")
    assert run.code == 0
    assert "gfx942: 5 drawn calls of triton-write@gfx942 launch " in run.out
    rows = check("compile", (tmp_path / "found.json").read_text())["binaries"]
    assert {row["kernel"] for row in rows} == {"write_kv_cache_kernel"}
    assert not any(row["loop"] for row in rows), "the kernel has no loop, although code of few lanes jumps back"
    assert all(row["facts"]["vgprs"] and row["architecture"] == "gfx942" for row in rows)
    assert len({row["code"] for row in rows}) == len(rows)
