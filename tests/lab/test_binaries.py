"""`python -m attn_lab binaries`: what is over its budget is named."""

import functools
import re
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import msgspec
import pytest
from attn_binaries.build import Outcome
from attn_binaries.shipped_calls import chosen
from attn_lab.binaries import budgets, drawn_calls
from attn_lab.binaries.budgets import Budgets, Exceptions

from tests.support.facts import GOOD
from tests.support.pages import ROOT

BUDGETS = Budgets(vgpr_spills=0, sgpr_spills_in_loops=0, waves={"gfx942": 2})
SPILLS = Exceptions(architecture="gfx942", fact="vgpr_spills", figure=7, reason="planted", calls=("decode",), triton=("3.9.0",))

RELEASES = ("3.6.0", "3.7.0", "3.7.1", "3.8.0", "3.9.0")
"""The releases of Triton that are tested: `tox.ini` has an environment for each."""


of_architecture = functools.cache(chosen)
"""Planning all launches takes a tenth of a second."""


def over(name="decode", architecture="gfx942", allowed=BUDGETS, version="3.9.0", **facts) -> list[str]:
    call = of_architecture(architecture)[name]
    return budgets.over(allowed, architecture, name, call, replace(GOOD, **facts), version)


def with_exceptions(*exceptions: Exceptions) -> Budgets:
    return msgspec.structs.replace(BUDGETS, exceptions=exceptions)


def test_what_is_within_budget_is_fine():
    assert over() == []
    assert over("merge", matrix_instructions=0) == []
    assert over(architecture="sm90", vgpr_spills=None, waves=None) == []


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"vgpr_spills": 1}, "vgpr_spills is 1, at most 0"),
        ({"sgpr_spills_in_loops": 1}, "sgpr_spills_in_loops is 1, at most 0"),
        ({"lost_addresses": 2}, "lost_addresses is 2, none allowed"),
        ({"waves": 1}, "waves is 1, at least 2"),
        ({"lds_bytes": 65537}, "lds_bytes is 65537, at most 65536"),
        ({"tf32_instructions": 4}, "tf32_instructions is 4"),
        ({"narrow_products": 2}, "narrow_products is 2"),
        ({"matrix_instructions": 0}, "matrix_instructions is 0"),
        ({"name": "RoPE and cache write"}, "fused_multiply_adds is 50"),
    ],
)
def test_each_fact_has_a_budget(facts, words):
    (sentence,) = over(**facts)
    assert words in sentence


def test_float32_has_a_matrix_unit_on_cdna_alone():
    assert over("prefill, fp32 D128", matrix_instructions=0)
    assert not over("prefill, fp32 D128", "gfx1201", matrix_instructions=0)


def test_an_exception_is_of_one_launch_architecture_and_version():
    allowed = with_exceptions(SPILLS)
    assert not over(allowed=allowed, vgpr_spills=7)
    assert "vgpr_spills is 8, at most 7" in over(allowed=allowed, vgpr_spills=8)[0]
    assert over("prefill", allowed=allowed, vgpr_spills=7)
    assert over(architecture="gfx950", allowed=allowed, vgpr_spills=7)
    assert over(allowed=allowed, vgpr_spills=7, version="3.6.0")
    assert over(allowed=allowed, vgpr_spills=7, version="3.9.1")


def test_an_exception_without_releases_is_of_all():
    allowed = with_exceptions(msgspec.structs.replace(SPILLS, triton=()))
    assert not over(allowed=allowed, vgpr_spills=7, version="3.6.0")
    assert over(allowed=allowed, vgpr_spills=8, version="3.6.0")


@pytest.mark.parametrize("exception", budgets.load().exceptions, ids=lambda each: f"{each.architecture} {each.fact}")
def test_the_projects_exceptions_are_of_launches_and_of_releases_that_there_are(exception):
    assert exception.reason
    assert {*exception.calls} <= of_architecture(exception.architecture).keys()
    assert {*exception.triton} <= {*RELEASES}


def test_no_launch_is_named_twice_in_the_projects_exceptions():
    """The first figure would count."""
    named = Counter(
        (one.architecture, one.fact, name, release)
        for one in budgets.load().exceptions
        for name in one.calls
        for release in one.triton or RELEASES
    )
    assert named.most_common(1)[0][1] == 1


def test_tox_installs_the_releases():
    assert tuple(sorted(set(re.findall(r"triton==(\S+)", (ROOT / "tox.ini").read_text())))) == RELEASES


def test_a_launch_may_spill_a_fiftieth_more_than_its_exception_says():
    """The compiler gives one launch other code from run to run."""
    allowed = with_exceptions(msgspec.structs.replace(SPILLS, figure=515))
    assert not over(allowed=allowed, vgpr_spills=525)
    assert "vgpr_spills is 526, at most 525 allowed" in over(allowed=allowed, vgpr_spills=526)[0]


def of_drawn(jobs, workers, report, launches, compile_seconds) -> Outcome:
    """The first launch spills, the second has more LDS than there is, and the third does not compile."""
    facts = [replace(GOOD, vgpr_spills=9), replace(GOOD, lds_bytes=65537)]
    made = [SimpleNamespace(name="attention_kernel", num_warps=4, facts=each, assembly="", hot_loop=None) for each in facts]
    return Outcome(dict(zip(jobs, made, strict=False)), {jobs[2]: "no such thing"})


def test_each_kernel_of_an_index_layer_is_drawn():
    launches = drawn_calls.all_of("gfx942", 0, len(drawn_calls.TARGETS))
    kernels = {call.launch.kernel.__name__ for name, call in launches.items() if " index " in name}
    assert kernels == {"write_index_cache_kernel", "index_logits_kernel", "select_units_kernel"}


def test_a_drawn_launch_may_spill_and_must_fit(attn_lab, monkeypatch):
    """Encoders of 256 dims once needed more shared memory than an H200 has, and no shipped launch was one."""
    monkeypatch.setattr("attn_parity.launches.build", of_drawn)
    run = attn_lab("binaries", "drawn", "3", "--arch", "gfx942")
    assert run.code == 1
    first, second, third, summary = run.out.splitlines()
    assert first.endswith("9 registers are spilled")
    assert second.endswith("lds_bytes is 65537, at most 65536 there")
    assert third.endswith("does not compile: no such thing")
    assert summary.endswith("1 spill registers, 1 do what no launch may, 1 do not compile")


@pytest.mark.nightly
def test_what_is_over_its_budget_is_1_and_names_call_and_fact(attn_lab, monkeypatch):
    strict = Budgets(vgpr_spills=0, sgpr_spills_in_loops=0, waves={"gfx942": 99})
    monkeypatch.setattr(budgets, "load", lambda: strict)
    run = attn_lab("binaries", "compile", "--arch", "gfx942", "--only", "merge, fp32")
    assert run.code == 1
    assert re.search(r"^gfx942 merge, fp32: waves is \d+, at least 99 wanted$", run.out, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("run", "--option", "num_stages"), "--option: got 'num_stages', expected NAME=VALUE"),
        (("run", "--arch", "sm90"), "there is an emulator for AMD's architectures only"),
    ],
)
def test_bad_input_is_named(attn_lab, options, words):
    run = attn_lab("binaries", *options)
    assert run.code == 2
    assert words in run.err
