"""`attn-parity compile --run`: the code that ships runs on small cases, and what is wrong or other code is told."""

import json
import re
import shutil
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from attn_amdgcn.counts import CLASSES
from attn_fuzz.cases.case import Case
from attn_fuzz.emulated import compilation
from attn_parity.binaries import execution, executions, page
from attn_parity.binaries.budgets import Budgets
from attn_parity.binaries.executions import Execution, Executions
from attn_parity.binaries.results import Results, Row
from attn_parity.binaries.shipped_calls import CALLS, ShippedCall, chosen, name_of_call
from attn_parity.binaries.small_cases import small_cases

from tests.facts import GOOD
from tests.pages import ROOT

MERGE = ("compile", "--run", "--arch", "gfx942", "--only", "merge, fp32")
JOB = ("gfx942", "decode")
BUDGETS = Budgets(vgpr_spills=0, sgpr_spills_in_loops=0, waves={})


def call_named(name: str) -> ShippedCall:
    (found,) = (call for call in CALLS if call.name == name)
    return found


@pytest.mark.parametrize("shipped", CALLS, ids=lambda shipped: shipped.name)
def test_small_cases_are_ragged(shipped):
    random, signature = small_cases(shipped, queries=32, keys=64)
    assert random.rules.keys() - {"lse"} == signature.rules.keys() - {"lse"}
    for case in (random, signature):
        assert case.group_size == shipped.num_heads // shipped.num_kv_heads
        assert all(any(sizes) for sizes in zip(*([n % 16, n % 32, n % 64] for n in lengths(case)), strict=True))
        assert max(lengths(case)) > (64 if shipped.attn_type.reads_cache else 32)
    assert min(request.query_len for request in random.requests) == 0


def lengths(case: Case) -> list[int]:
    return [request.seq_len for request in case.requests]


@pytest.mark.parametrize("name", ["decode, split", "cascade", "encoder", "RoPE and cache write", "merge"])
def test_every_launch_of_a_call_runs(name, monkeypatch):
    """The emulator is left out here, so the outputs are wrong, and each launch compiles in what the one that ships does."""
    ran, of_architecture = [], chosen("gfx942")

    def noted(calls, of_call: execution.Shipped) -> None:
        for call, (launch, like) in zip(calls, execution.cycle(of_call.launches.items()), strict=False):
            assert execution._compiled_in(call) == execution._compiled_in(like)
            ran.append(launch)

    monkeypatch.setattr(execution, "_run", noted)
    launches = {launch for launch in of_architecture if name_of_call(launch) == name}
    found = execution.execute(call_named(name), "gfx942", dict.fromkeys(launches, "none"))
    assert set(ran) == launches
    assert not any(one.agrees for one in found.values())


def test_what_agrees_says_how_closely(attn_parity, tmp_path):
    run = attn_parity(*MERGE, "--workers", "1", "--json", "here.json")
    assert run.code == 0, run.out
    assert "1 of 1 launches agree" in run.out
    (one,) = json.loads((tmp_path / "here.json").read_text())["executions"]
    assert (one["architecture"], one["call"], one["verdict"]) == ("gfx942", "merge, fp32", "agree")
    assert 0 < one["error"] < 1
    counts = one["counts"]
    assert counts["vector"] > counts["global memory"] >= counts["global accesses"] > 0
    assert counts["matrix"] == counts["multiply-adds"] == 0
    instructions = sum(counts[name] for name in CLASSES)
    lines = counts["lines of 128"] / counts["least lines of 128"]
    assert re.search(rf"^merge, fp32 +agree +0\.\d\d +{instructions} +0 +{lines:.2f}", run.out, re.MULTILINE), run.out


def test_other_code_than_what_ships_is_told():
    found = execution.execute(call_named("merge, fp32"), "gfx942", {"merge, fp32": "another digest"})
    assert found["merge, fp32"].verdict == "raised"
    assert "merge, fp32: a small case compiles to other code (its constants and types are the same" in found["merge, fp32"].why


def test_other_code_is_told_with_what_differs():
    ships = chosen("gfx942")
    words = execution._difference(ships["prefill"], ships["prefill, bf16 D256"])
    assert "head_size=128" in words
    assert "head_size=256" in words


@pytest.mark.parametrize(("other", "waits"), [("a", True), ("b", False)])
def test_one_source_is_compiled_once_at_a_time(other, waits, tmp_path, monkeypatch):
    monkeypatch.setattr(compilation.knobs.cache, "dir", str(tmp_path))
    is_inside = threading.Event()

    def alone(name: str) -> AbstractContextManager[None]:
        return compilation.alone(SimpleNamespace(hash=lambda: name), SimpleNamespace(hash=str))

    def compile_other() -> None:
        with alone(other):
            is_inside.set()

    thread = threading.Thread(target=compile_other)
    with alone("a"):
        thread.start()
        assert is_inside.wait(0.3 if waits else 60) is not waits
    assert is_inside.wait(60)
    thread.join()


def test_a_wrong_launch_does_not_agree(monkeypatch):
    """The code runs, and what it wrote is changed."""
    emulate = execution.emulate

    def off_by_a_little(call, *arguments, **named) -> None:
        emulate(call, *arguments, **named)
        call.tensors["out_ptr"].mul_(1.001)

    monkeypatch.setattr(execution, "emulate", off_by_a_little)
    monkeypatch.setattr(execution, "digest", lambda assembly, kernel: "the digest")
    found = execution.execute(call_named("merge, fp32"), "gfx942", {"merge, fp32": "the digest"})
    assert found["merge, fp32"].verdict == "value"
    assert found["merge, fp32"].error > 1


def test_calls_whose_process_fails_did_not_run_and_others_go_on():
    calls = [("gfx942", "no such call", (("no such call", ""),)), ("gfx942", "merge, fp32", (("merge, fp32", ""),))]
    ran = executions.run(calls, "3.9.0", 1)
    assert ran.found["gfx942", "no such call"].verdict == "not run"
    assert ran.found["gfx942", "merge, fp32"].verdict == "raised"


def test_an_interrupted_run_keeps_what_ran(monkeypatch):
    calls = [("gfx942", name, ((name, "digest"),)) for name in ("decode", "merge")]
    done = {calls[0]: {"decode": Execution("agree", 0.25)}}
    monkeypatch.setattr(executions, "in_processes", lambda *arguments, **named: (done, True))
    ran = executions.run(calls, "3.9.0", 1)
    assert ran.interrupted
    assert ran.found == {JOB: Execution("agree", 0.25, code="digest")}


def test_what_came_of_each_call_is_told_at_once(monkeypatch):
    calls = [("gfx942", name, ((name, "digest"),)) for name in ("decode", "merge")]

    def one_by_one(work, jobs, workers, report, **named):
        found = {}
        for job in jobs:
            found[job] = {job[1]: Execution("agree", 0.25)}
            report(found)
        return found, False

    monkeypatch.setattr(executions, "in_processes", one_by_one)
    told = []
    executions.run(calls, "3.9.0", 1, lambda done, ran: told.append((done, list(ran.found))))
    assert told == [(1, [JOB]), (2, [JOB, ("gfx942", "merge")])]


@dataclass(frozen=True)
class Compiled:
    """As much of a binary as says what its code is."""

    assembly: str
    name: str = "kernel"


@pytest.mark.parametrize(
    ("verdict", "assembly", "left"), [("agree", "s_endpgm", 0), ("agree", "s_nop 0", 1), ("raised", "s_endpgm", 1)]
)
def test_a_call_that_agreed_in_the_same_code_is_left_out(verdict, assembly, left):
    code = executions.calls_of({JOB: Compiled("s_endpgm")})[0][2][0][1]
    kept = Executions("3.9.0", {JOB: Execution(verdict, 0.25, code=code[:8])})
    assert len(executions.calls_of({JOB: Compiled(assembly)}, kept)) == left


def test_a_call_is_left_out_only_if_all_of_its_launches_agreed():
    binaries = {JOB: Compiled("s_endpgm"), ("gfx942", "decode, reduction"): Compiled("s_endpgm")}
    code = executions.calls_of(binaries)[0][2][0][1][:8]
    kept = Executions("3.9.0", {JOB: Execution("agree", 0.25, code=code)})
    assert len(executions.calls_of(binaries, kept)) == 1


def test_a_second_run_goes_on(attn_parity, tmp_path):
    """What agrees is not run again, and a launch whose code is not that of its line is."""
    shutil.copy(ROOT / "docs/generated/binaries.csv", tmp_path / "here.csv")
    first, second = (attn_parity(*MERGE, "--workers", "1", "--write", "--page", "here.md") for _ in range(2))
    kept = (tmp_path / "here-run.csv").read_text()
    assert (first.code, second.code) == (0, 0), first.out + second.out
    assert "1 of 1 launches agree" in first.out
    assert "1 calls agreed before" in second.err
    assert "0 of 0 launches agree" in second.out
    (tmp_path / "here-run.csv").write_text(re.sub(r"\w{8}$", "0" * 8, kept, flags=re.MULTILINE))
    third = attn_parity(*MERGE, "--workers", "1", "--write", "--page", "here.md")
    assert "1 of 1 launches agree" in third.out
    assert (tmp_path / "here-run.csv").read_text() == kept


def test_executions_are_kept():
    wrong = Execution("raised", 0, 'a "fault", and why')
    found = {JOB: Execution("agree", 0.25, "", "01234567"), ("gfx1201", "decode"): wrong}
    kept = Executions("3.9.0", found)
    assert executions.loads(kept.csv(), "").found == found
    assert kept.wrong == ['gfx1201 decode: raised: a "fault", and why']
    with pytest.raises(ValueError, match=r"x\.csv"):
        executions.loads("triton\n", "x.csv")


def test_the_page_says_what_came_of_launches():
    names = ("gfx942", "gfx1201", "gfx950", "sm90")
    rows = tuple(Row(name, "decode", "attention_kernel", 4, GOOD, "c0de") for name in names)
    wrong = Execution("value", 3, "out of request 0 at row 1", "01d")
    ran = Executions("3.9.0", {JOB: Execution("agree", 0.25, "", "c0de"), ("gfx1201", "decode"): wrong})
    lines = page.text(Results("3.9.0", rows), BUDGETS, ["decode"], ran).splitlines()
    assert "| `gfx942` | 1 | 1 | 0 | 0 | 1 | 0.25 |" in lines
    assert "| `gfx1201` | 1 | 0 | 1 | 0 | 0 | 0 |" in lines
    assert "| `gfx950` | 1 | 0 | 0 | 1 | 0 | 0 |" in lines
    assert "- gfx1201 decode: value: out of request 0 at row 1" in lines
    assert "| decode | 128, 2; 0.25 | 128, 2; value | 128, 2 | 128, 2 |" in lines


def test_executions_of_other_launches_are_told():
    names = {"gfx942": ["decode"]}
    assert executions.differences(Executions("3.9.0", {JOB: Execution("agree", 0)}), "3.9.0", names) == []
    stale = Executions("3.8.0", {("gfx942", "gone"): Execution("agree", 0)})
    told = executions.differences(stale, "3.9.0", names)
    assert told == [
        "gfx942 gone: an execution without a launch",
        "launches were run with Triton 3.8.0, and compiled with 3.9.0",
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--arch", "sm90"), "--run: there is an emulator for AMD's architectures only"),
        (("--check",), "--check compiles and writes nothing"),
        (("--write", "--arch", "gfx942", "--only", "merge, fp32"), "--page: the folder docs/generated does not exist"),
        (("--write", "--arch", "gfx942", "--only", "merge, fp32", "--page", "here.md"), "here.csv does not exist"),
    ],
)
def test_bad_input_is_named(attn_parity, options, words):
    run = attn_parity("compile", "--run", *options)
    assert run.code == 2
    assert words in run.err
