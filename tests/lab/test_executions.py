"""`python -m attn_lab binaries run`: the code that ships runs on small cases, and what is wrong or other code is told."""

import functools
import re
import threading
from contextlib import AbstractContextManager
from types import SimpleNamespace

import pytest
from attn_binaries import execution
from attn_binaries.build import Outcome, build
from attn_binaries.shipped_calls import CALLS, ShippedCall, chosen, name_of_call
from attn_fuzz.emulated import compilation
from attn_lab.binaries import execute, executions

MERGE = ("binaries", "run", "--arch", "gfx942", "--only", "merge, fp32")


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


@pytest.mark.nightly
def test_what_agrees_is_said_by_launch(attn_lab, monkeypatch):
    monkeypatch.setattr("attn_parity.launches.build", lambda *arguments: Outcome(compiled("merge, fp32")))
    run = attn_lab(*MERGE, "--workers", "1")
    assert run.code == 0, run.out
    assert "1 of 1 launches agree" in run.out
    assert re.search(r"^merge, fp32 +agree +0\.\d\d", run.out, re.MULTILINE), run.out


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
