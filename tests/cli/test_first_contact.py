"""The report on a new machine: every section is there, an error is a result, and nothing written is lost."""

import pytest
from attn_binaries import shipped_calls
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.targets import registry
from attn_parity.commands.doctor import sections

from tests.support.json_schemas import check


@pytest.fixture
def full(attn_parity, monkeypatch, tmp_path):
    """Runs `doctor --full` with sections by name: the exit code, the file, and what is printed."""

    def run(**work):
        monkeypatch.setattr(sections, "sections", lambda device, **options: iter(work.items()))
        ended = attn_parity("doctor", "--full", "--json", "here.json")
        return ended.code, check("doctor", (tmp_path / "here.json").read_text()), ended.out

    return run


def test_a_machine_without_a_gpu_compiles_for_all_and_fuzzes_every_target(tmp_path):
    names = [name for name, _ in sections.sections("cpu", examples=1, workers=1, seed=0, folder=tmp_path)]
    assert names[:2] == ["machine", "aiter"]
    assert [name for name in names if name.startswith("compile")] == [f"compile {a}" for a in sections.OF_AMD]
    assert [name.removeprefix("fuzz ") for name in names if name.startswith("fuzz")] == registry.battery()
    assert len([name for name in names if name.startswith("time")]) == 3


def test_all_right_is_0(full):
    code, written, _ = full(machine=lambda: sections.machine("cpu"))
    assert code == 0
    assert written["sections"]["machine"]["packages"]["torch"]


def test_an_error_is_a_result_and_the_next_section_is_done(full):
    def broken():
        raise RuntimeError("HIP error: no binary for this GPU")

    code, written, printed = full(broken=broken, machine=lambda: sections.machine("cpu"))
    assert code == 1
    assert written["sections"]["broken"]["error"] == "RuntimeError: HIP error: no binary for this GPU"
    assert "cores" in written["sections"]["machine"]
    assert "no binary for this GPU" in printed


def test_an_interrupted_report_keeps_what_it_has(full):
    def interrupted():
        raise KeyboardInterrupt

    work = {"machine": lambda: sections.machine("cpu"), "long": interrupted, "never": lambda: pytest.fail("went on")}
    code, written, _ = full(**work)
    assert code == 130
    assert list(written["sections"]) == ["machine"]


def test_interrupted_fuzzing_ends_the_report_too(full):
    result = {"examples": 3, "failures": [], "max_ratio": 0.5, "interrupted": True}
    code, written, _ = full(fuzz=lambda: dict(result), never=lambda: pytest.fail("went on"))
    assert code == 130
    assert written["sections"]["fuzz"]["examples"] == 3


def test_a_failing_target_is_in_the_report_with_its_case(full, tmp_path):
    plan = FuzzPlan(target="planted:NO_SINKS", device="cpu", examples=200, seed=0, folder=tmp_path)
    code, written, _ = full(fuzz=lambda: sections.fuzzed(plan, 1))
    assert code == 1
    (failure,) = written["sections"]["fuzz"]["failures"]
    assert failure["case"]["sinks"]


def test_variants_are_told_in_a_line(full):
    shipped, other = ({"num_stages": n, "error": 0.4, "times": {"ms": 1 + 0.5 / n}} for n in (1, 2))
    spills = {"num_stages": 2, "why_not": "12 registers are spilled"}
    code, _, printed = full(
        both=lambda: {"shipped": shipped, "other": other}, one=lambda: {"shipped": shipped, "other": spills}
    )
    assert code == 0
    assert "1.500 ms with 1, 1.250 ms with 2, largest error 0.40 of its bound" in printed
    assert "2 not timed: 12 registers are spilled" in printed


@pytest.mark.nightly
def test_compiled_says_what_the_compiler_says(monkeypatch):
    asked = []
    monkeypatch.setattr(shipped_calls, "chosen", lambda *names, **which: asked.append((names, which)) or ["decode", "merge"])
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # which it must not inherit
    assert sections.compiled("gfx942", 1)["kernels"]["decode"]["vgprs"]
    assert asked == [(("gfx942",), {"main": True})]
    assert "a compute unit of gfx1036" in sections.compiled("gfx1036", 2)["unavailable"]
