"""`python -m attn_lab binaries run`: the code that ships runs on small cases, and what is wrong or other code is told."""

import functools
import re
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from attn_binaries import execution
from attn_binaries.build import Outcome, build
from attn_binaries.rows import Execution
from attn_binaries.shipped_calls import CALLS, ShippedCall, chosen, name_of_call
from attn_fuzz.emulated import compilation
from attn_lab.binaries import execute, executions
from attn_lab.binaries.results import DATA, Results, load

from tests.support.pages import ROOT

MERGE = ("binaries", "run", "--arch", "gfx942", "--only", "merge, fp32")
JOB = ("gfx942", "decode")


EMULATE = execute.emulate


def off_by_a_little(call, *arguments, **named) -> None:
    EMULATE(call, *arguments, **named)
    call.tensors["out_ptr"].mul_(1.001)


def call_named(name: str) -> ShippedCall:
    (found,) = (call for call in CALLS if call.name == name)
    return found


@pytest.mark.parametrize("name", ["decode, split", "cascade", "encoder", "RoPE and cache write", "merge"])
def test_every_launch_of_a_call_runs(name, monkeypatch):
    """The emulator is left out here, so the outputs are wrong, and each launch compiles in what the one that ships does."""
    ran, of_architecture = [], chosen("gfx942")

    def noted(calls, of_call: execution.Shipped) -> None:
        for call, (launch, like) in zip(calls, execution.cycle(of_call.launches.items()), strict=False):
            assert execute._compiled_in(call) == execute._compiled_in(like)
            ran.append(launch)

    monkeypatch.setattr(execution, "_run", noted)
    launches = {launch for launch in of_architecture if name_of_call(launch) == name}
    found = execute.execute(call_named(name), "gfx942", dict.fromkeys(launches, "none"))
    assert set(ran) == launches
    assert not any(one.agrees for one in found.values())


def test_what_agrees_says_how_closely():
    shipped, digests = call_named("merge, fp32"), dict(executions.calls_of(compiled("merge, fp32"))[0][2])
    found = execute.execute(shipped, "gfx942", digests)["merge, fp32"]
    assert found.agrees
    assert 0 < found.error < 1


@functools.cache
def compiled(name: str):
    return build([("gfx942", name)], 1).binaries


def test_other_code_than_what_ships_is_told():
    found = execute.execute(call_named("merge, fp32"), "gfx942", {"merge, fp32": "another digest"})
    assert found["merge, fp32"].verdict == "raised"
    assert "merge, fp32: a small case compiles to other code (its constants and types are the same" in found["merge, fp32"].why


def test_other_code_is_told_with_what_differs():
    ships = chosen("gfx942")
    words = execute._difference(ships["prefill"], ships["prefill, bf16 D256"])
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
    monkeypatch.setattr(execute, "emulate", off_by_a_little)
    monkeypatch.setattr(execute, "digest", lambda assembly, kernel: "the digest")
    found = execute.execute(call_named("merge, fp32"), "gfx942", {"merge, fp32": "the digest"})
    assert found["merge, fp32"].verdict == "value"
    assert found["merge, fp32"].error > 1


@pytest.mark.nightly
def test_calls_whose_process_fails_did_not_run_and_others_go_on():
    calls = [("gfx942", "no such call", (("no such call", ""),)), ("gfx942", "merge, fp32", (("merge, fp32", ""),))]
    ran, _ = executions.run(calls, 1)
    assert ran["gfx942", "no such call"].verdict == "not run"
    assert ran["gfx942", "merge, fp32"].verdict == "raised"


@dataclass(frozen=True)
class Compiled:
    """The fields of a binary that identify its code."""

    assembly: str
    name: str = "kernel"


@pytest.mark.parametrize(
    ("verdict", "assembly", "left"), [("agree", "s_endpgm", 0), ("agree", "s_nop 0", 1), ("raised", "s_endpgm", 1)]
)
def test_a_call_that_agreed_in_the_same_code_is_left_out(verdict, assembly, left):
    code = executions.calls_of({JOB: Compiled("s_endpgm")})[0][2][0][1]
    kept = Results("3.9.0", ran={JOB: Execution(verdict, 0.25, code=code[:8])})
    assert len(executions.calls_of({JOB: Compiled(assembly)}, kept)) == left


@pytest.mark.nightly
def test_a_second_run_goes_on(attn_lab, tmp_path, monkeypatch):
    """A launch that agrees is not run again."""
    monkeypatch.setattr("attn_parity.launches.build", lambda *arguments: Outcome(compiled("merge, fp32")))
    data, merge = tmp_path / DATA, ("gfx942", "merge, fp32")
    data.parent.mkdir(parents=True)
    kept = load(ROOT / DATA)
    del kept.ran[merge]
    kept.save(data)
    first, second = (attn_lab(*MERGE, "--workers", "1", "--write") for _ in range(2))
    assert (first.code, second.code) == (0, 0), first.out + second.out
    assert "1 of 1 launches agree" in first.out
    assert re.search(r"^merge, fp32 +agree +0\.\d\d", first.out, re.MULTILINE), first.out
    assert "1 calls agreed before" in second.err
    assert "0 of 0 launches agree" in second.out


def test_a_launch_is_compiled_with_an_option_and_judged(monkeypatch):
    """An option of the pipeline leaves a kernel without a loop as it is; a wrong output is one with any option."""
    shipped, digests = call_named("merge, fp32"), dict(executions.calls_of(compiled("merge, fp32"))[0][2])
    found = execute.execute(shipped, "gfx942", digests, "num_stages=4")["merge, fp32"]
    assert (found.agrees, found.why) == (True, "num_stages=4: the code that ships")
    call = chosen("gfx942")["decode"]
    other = execute._with_option(call, "wgp_cu_mode=cu")
    assert other.launch.options == call.launch.options | {"wgp_cu_mode": "cu"}
    assert other.launch.constants == call.launch.constants
    monkeypatch.setattr(execute, "emulate", off_by_a_little)
    assert execute.execute(shipped, "gfx942", digests, "waves_per_eu=2")["merge, fp32"].verdict == "value"
