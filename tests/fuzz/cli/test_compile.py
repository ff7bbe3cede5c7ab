"""`attn-parity compile`: what is over its budget is named, and pages that are not current are noticed."""

import csv
import functools
import hashlib
import io
import json
import os
import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import triton
from attn_amdgcn import load
from attn_parity import compile as compile_command
from attn_parity.binaries import budgets, executions, page
from attn_parity.binaries.architectures import ARCHITECTURES
from attn_parity.binaries.budgets import BudgetError, Budgets, Exceptions
from attn_parity.binaries.build import Beside, Outcome, OverLimit, build, in_processes
from attn_parity.binaries.executions import Execution, Executions
from attn_parity.binaries.kernarg import kernarg_of
from attn_parity.binaries.results import Results, Row, loads, updated
from attn_parity.binaries.shipped_calls import chosen, main_names

from tests.facts import GOOD
from tests.pages import ROOT

MERGE = ("compile", "--arch", "gfx942", "--only", "merge, fp32")
DECODE = ("gfx942", "decode")
BUDGETS = Budgets(vgpr_spills=0, sgpr_spills_in_loops=0, waves={"gfx942": 2})
SPILLS = Exceptions(architecture="gfx942", fact="vgpr_spills", triton=("3.9.0",), reason="planted", calls={"decode": 7})

RELEASES = ("3.6.0", "3.7.0", "3.7.1", "3.8.0", "3.9.0")
"""The releases of Triton that are tested: `tox.ini` has an environment for each, and the README names them."""


of_architecture = functools.cache(chosen)
"""Planning all launches takes a tenth of a second."""


def over(name="decode", architecture="gfx942", allowed=BUDGETS, version="3.9.0", **facts) -> list[str]:
    call = of_architecture(architecture)[name]
    return budgets.over(allowed, architecture, name, call, replace(GOOD, **facts), version)


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
    allowed = Budgets(vgpr_spills=0, sgpr_spills_in_loops=0, waves={"gfx942": 2}, exceptions=(SPILLS,))
    assert not over(allowed=allowed, vgpr_spills=7)
    assert "vgpr_spills is 8, at most 7" in over(allowed=allowed, vgpr_spills=8)[0]
    assert over("prefill", allowed=allowed, vgpr_spills=7)
    assert over(architecture="gfx950", allowed=allowed, vgpr_spills=7)
    assert over(allowed=allowed, vgpr_spills=7, version="3.6.0")
    assert over(allowed=allowed, vgpr_spills=7, version="3.9.1")


def test_exceptions_that_nobody_needs_are_told():
    allowed = Budgets(
        vgpr_spills=0,
        sgpr_spills_in_loops=0,
        waves={"gfx942": 2},
        exceptions=(SPILLS, Exceptions("gfx942", "waves", ("3.9.0",), "", {"gone": 1})),
    )
    names = {"gfx942": ["decode"]}
    told = budgets.unneeded(allowed, {("gfx942", "decode"): replace(GOOD, vgpr_spills=3)}, names, "3.9.0")
    assert told == [
        "gfx942 decode: vgpr_spills is 3, and 7 is allowed",
        "gfx942 gone: there is no such launch",
    ]
    assert not budgets.unneeded(allowed, {}, {}, "3.6.0")


def test_the_projects_budgets_are_of_launches_that_there_are():
    names = {architecture: list(chosen(architecture)) for architecture in ARCHITECTURES}
    for version in RELEASES:
        assert not budgets.unneeded(budgets.load(), {}, names, version)
    assert all(exception.reason for exception in budgets.load().exceptions)
    assert {exception.architecture for exception in budgets.load().exceptions} <= set(ARCHITECTURES)


def test_exceptions_are_of_the_releases_that_tox_installs():
    found = {release for exception in budgets.load().exceptions for release in exception.triton}
    assert found == set(RELEASES)
    assert tuple(sorted(set(re.findall(r"triton==(\S+)", (ROOT / "tox.ini").read_text())))) == RELEASES
    assert ", ".join(RELEASES[:-1]) + f" and {RELEASES[-1]}" in " ".join((ROOT / "README.md").read_text().split())


@pytest.mark.parametrize("release", RELEASES)
def test_a_spill_more_than_a_release_has_is_over_its_budget(release):
    """No launch is named twice: the last figure would count, and the first would allow nothing.

    The compiler gives one launch other code from run to run, by a fiftieth of its spills.
    """
    allowed = budgets.load()
    for exception in allowed.exceptions:
        if release in exception.triton and exception.fact == "vgpr_spills":
            for name, figure in exception.calls.items():
                most = int(figure) + int(figure) // 50
                assert not over(name, exception.architecture, allowed, release, vgpr_spills=most, waves=None)
                assert over(name, exception.architecture, allowed, release, vgpr_spills=most + 1, waves=None) == [
                    f"vgpr_spills is {most + 1}, at most {most} allowed"
                ]


@pytest.mark.parametrize(
    "text",
    [
        "vgpr_spills = 'many'\nsgpr_spills_in_loops = 0\nwaves = {}",
        "vgpr_spills = 0\nsgpr_spills_in_loops = 0\nwaves = {}\nlds = 2",
        "=",
        "vgpr_spills = 0\nsgpr_spills_in_loops = 0\nwaves = {gfx906 = 1}",
        "vgpr_spills = 0\nsgpr_spills_in_loops = 0\nwaves = {gfx942 = nan}",
        *(
            "vgpr_spills = 0\nsgpr_spills_in_loops = 0\nwaves = {}\n[[exceptions]]\nfact = 'waves'\nreason = 'planted'\n" + rest
            for rest in (
                "triton = ['3.9.0']\narchitecture = 'gfx906'\ncalls = {}",
                "triton = ['3.9.0']\narchitecture = 'gfx942'\ncalls = {merge = nan}",
                "triton = '3.9.0'\narchitecture = 'gfx942'\ncalls = {}",
                "triton = ['3.9']\narchitecture = 'gfx942'\ncalls = {}",
            )
        ),
    ],
)
def test_a_file_without_budgets_is_named(tmp_path, text):
    path = tmp_path / "budgets.toml"
    path.write_text(text)
    with pytest.raises(BudgetError, match=r"budgets\.toml"):
        budgets.load(path)


def test_a_budget_below_a_fact_is_1_and_names_call_and_fact(attn_parity, tmp_path):
    (tmp_path / "strict.toml").write_text("vgpr_spills = 0\nsgpr_spills_in_loops = 0\nwaves = {gfx942 = 99}\n")
    run = attn_parity(*MERGE, "--budgets", "strict.toml", "--json", "here.json")
    assert run.code == 1
    written = json.loads((tmp_path / "here.json").read_text())
    (row,) = written["binaries"]
    assert row["facts"]["vgprs"] > 0
    assert f"gfx942 merge, fp32: waves is {row['facts']['waves']:g}, at least 99 wanted" in run.out
    assert len(written["over"]) == 1


def test_saved_code_comes_with_what_it_takes_to_launch_it(attn_parity, tmp_path):
    """Arguments lie where the emulator's reader says: launches.json and attn_amdgcn read the metadata in ways of their own."""
    assert attn_parity("compile", "--arch", "gfx942,gfx1201", "--only", "merge, fp32", "--save", "code").code == 0
    launches = json.loads((tmp_path / "code" / "launches.json").read_text())["launches"]
    assert [launch["architecture"] for launch in launches] == ["gfx942", "gfx1201"]
    for launch in launches:
        kernel = load((tmp_path / "code" / launch["assembly"]).read_text())
        assert kernel.threads == launch["threads_per_block"]
        assert kernel.argument_bytes == launch["kernarg"]["bytes"]
        described = [(each["offset"], each["size"], each["kind"]) for each in launch["kernarg"]["arguments"]]
        assert described == [(each.offset, each.size, each.kind) for each in kernel.arguments]
    launch = launches[0]
    assert (tmp_path / "code" / launch["file"]).read_bytes().startswith(b"\x7fELF")
    call = chosen("gfx942")["merge, fp32"]
    names = [argument["name"] for argument in launch["arguments"]]
    passed = [name for name in call.launch.kernel.arg_names if name not in launch["constants"]]
    assert names == [*passed, "global_scratch", "profile_scratch"]
    out, tokens = launch["arguments"][0], launch["arguments"][names.index("num_tokens")]
    assert out["type"] == "*fp32"
    assert out["attributes"] == {"tt.divisibility": 16, "tt.pointer_range": 32}
    assert tokens["value"] == out["shape"][0]
    assert launch["grid"] == [*call.launch.grid, 1, 1][:3]
    for kind in ("file", "assembly"):
        assert launch["sha256"][kind] == hashlib.sha256((tmp_path / "code" / launch[kind]).read_bytes()).hexdigest()
    assert (launch["threads_per_block"], launch["dynamic_lds_bytes"]) == (
        64 * launch["num_warps"],
        launch["facts"]["lds_bytes"],
    )
    null = [argument["name"] for argument in launch["arguments"] if argument.get("may_be_null")]
    assert null == ["global_scratch", "profile_scratch"]


def test_hidden_arguments_are_described_and_a_wrong_number_is_refused():
    one = ".offset: {} .size: 8 .value_kind: {}\n"
    text = "\n\t.amdgpu_metadata\n" + one.format(0, "global_buffer") + one.format(8, "hidden_block_count_x")
    text += ".kernarg_segment_size: 16"
    assert kernarg_of(text, ["out"])["arguments"] == [
        {"name": "out", "offset": 0, "size": 8, "kind": "global_buffer"},
        {"name": "hidden_block_count_x", "offset": 8, "size": 8, "kind": "hidden_block_count_x"},
    ]
    with pytest.raises(ValueError, match="the metadata describe 1 arguments, and the kernel has 2: out, lse"):
        kernarg_of(text, ["out", "lse"])


def test_a_launch_that_does_not_compile_is_an_error_and_others_go_on():
    done = build([("gfx942", "no such launch"), ("gfx942", "merge, fp32")], 1)
    assert "no such launch" in done.errors["gfx942", "no such launch"]
    assert list(done.binaries) == [("gfx942", "merge, fp32")]


def planted(number: int) -> int:
    """A compiler that raises of 2, and dies of 4."""
    if number == 2:
        raise RuntimeError("no 2")
    if number == 4:
        os.abort()
    return number


def test_a_compiler_that_dies_costs_its_job_alone():
    done = []
    found, interrupted = in_processes(
        planted, [(number,) for number in range(8)], 2, lambda found: done.append(len(found)), interpreter=True
    )
    assert not interrupted
    assert found == {(number,): number for number in range(8)} | {(2,): "RuntimeError: no 2", (4,): "the process died"}
    assert done == list(range(1, 9))


def hung(folder: Path) -> int:
    """A compiler that starts another, as ptxas is started, and waits for it for ever."""
    process = subprocess.Popen(["sleep", "600"])
    folder.joinpath("pid").write_text(str(process.pid))
    return process.wait()


def test_a_compiler_that_hangs_is_ended_at_the_limit_with_what_it_started(tmp_path):
    found = Beside(hung).within(2, tmp_path)
    assert isinstance(found, OverLimit)
    assert found == "has no code after 2 s, the limit: see --limit"
    deadline = time.monotonic() + 5
    while Path(f"/proc/{tmp_path.joinpath('pid').read_text()}/stat").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_a_compiler_returns_raises_or_dies_of_is_known():
    beside = Beside(planted)
    assert [beside.within(60, number) for number in (1, 2, 3, 4)] == [1, "RuntimeError: no 2", 3, "the process died"]
    assert beside.ended


@pytest.mark.parametrize(("error", "code"), [(None, 2), ("no such thing", 1)])
def test_the_limit_is_told_as_the_tools(error, code, attn_parity, monkeypatch):
    def planted(jobs, workers, report, drawn, limit):
        assert limit == 7
        errors = {jobs[0]: OverLimit("has no code after 7 s, the limit: see --limit")}
        return Outcome({}, errors | ({jobs[1]: error} if error else {}))

    monkeypatch.setattr("attn_parity.compile.build", planted)
    run = attn_parity("compile", "--drawn", "3", "--arch", "gfx942", "--limit", "7")
    assert run.code == code
    assert re.search(r"^gfx942 0\.0 .*: has no code after 7 s, the limit: see --limit$", run.out, re.MULTILINE)
    summary = f"0 do what no launch may, {int(bool(error))} do not compile, 1 have no code after --limit"
    assert " ".join(run.out.split()).endswith(summary)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda code: code.touch(), "Directory 'code' is a file"),
        (lambda code: (code / "launches.json").mkdir(parents=True), "--save: code/launches.json"),
    ],
    ids=["a file", "a folder in place of the file"],
)
def test_where_code_cannot_be_saved_nothing_is_compiled(make, words, attn_parity, tmp_path, monkeypatch):
    make(tmp_path / "code")
    monkeypatch.setattr(compile_command, "_built", lambda *_: pytest.fail("it was compiled first"))
    run = attn_parity(*MERGE, "--save", "code")
    assert run.code == 2
    assert words in run.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--arch", "gfx9"), "--arch: got gfx9, expected some of gfx90a"),
        (("--only", "nothing"), "--only: no launch is named so: nothing"),
        (("--check", "--main"), "--check is about all launches"),
        (("--check", "--save", "there"), "--check compiles and writes nothing"),
        (("--write", "--page", "facts.json"), "--page: facts.json is where the facts go"),
        (("--json", "no/here.json", "--main"), "--json: the folder no does not exist"),
        (("--check",), "docs/generated/binaries.md does not exist"),
        (("--drawn", "2", "--main"), "--drawn: leave out --only, --main"),
    ],
)
def test_bad_input_is_named(attn_parity, options, words):
    run = attn_parity("compile", *options)
    assert run.code == 2
    assert words in run.err


def test_launches_of_drawn_steps_compile(attn_parity):
    run = attn_parity("compile", "--drawn", "3", "--arch", "gfx942", "--json", "facts.json")
    assert run.code == 0, run.out + run.err
    assert re.search(r"^\d launches of 3 drawn steps, --seed 0, compiled with Triton \S+: \d spill registers, 0 do ", run.out)
    kernels = {row["kernel"] for row in json.loads(Path("facts.json").read_text())["binaries"]}
    assert {"attention_kernel", "write_kv_cache_kernel"} <= kernels


def test_a_drawn_launch_may_spill_and_must_fit(attn_parity, monkeypatch):
    """Encoders of 256 dims once needed more shared memory than an H200 has, and no shipped launch was one."""

    def planted(jobs, workers, report, drawn, limit):
        facts = [replace(GOOD, vgpr_spills=9), replace(GOOD, lds_bytes=65537)]
        made = [SimpleNamespace(name="attention_kernel", num_warps=4, facts=each, assembly="") for each in facts]
        return Outcome(dict(zip(jobs, made, strict=False)), {jobs[2]: "no such thing"})

    monkeypatch.setattr("attn_parity.compile.build", planted)
    run = attn_parity("compile", "--drawn", "3", "--arch", "gfx942")
    assert run.code == 1
    first, second, third, summary = run.out.splitlines()
    assert first.endswith("9 registers are spilled")
    assert second.endswith("lds_bytes is 65537, at most 65536 there")
    assert third.endswith("does not compile: no such thing")
    assert summary.endswith("1 spill registers, 1 do what no launch may, 1 do not compile")


FACTS = Results("3.9.0", (Row("gfx942", "a", "merge", 4, GOOD), Row("gfx942", "b", "merge", 4, GOOD)))
RAN = Executions("3.9.0", {("gfx942", "a"): Execution("agree", 0.5), ("gfx942", "b"): Execution("value", 2.5, "out is wrong")})


@pytest.mark.parametrize(
    ("column", "cell", "words"),
    [
        ("triton", "3.8.0", "lines of several versions of Triton: 3.9.0, 3.8.0"),
        ("kernel", "\x1b[2J", "a control character in '\\x1b[2J'"),
        ("architecture", "gfx1", "architecture: got 'gfx1', expected one of"),
        ("launch", "a", "gfx942 a is there twice"),
        ("num_warps", "-4", "num_warps: got '-4', expected a count"),
        ("vgprs", "1_0", "vgprs: got '1_0', expected a count"),
        ("lds_bytes", "", "lds_bytes: got '', expected a count"),
        ("code", "many", "code: got 'many', expected 8 hexadecimal digits or nothing"),
        ("waves", "nan", "waves: got 'nan', expected a count"),
        ("matrix_instructions", "9" * 5000, "matrix_instructions: got '999"),
    ],
)
def test_a_cell_that_no_compilation_wrote_is_named(column, cell, words):
    with pytest.raises(ValueError, match=re.escape(f"file: {words}")) as caught:
        loads(_with_cell(FACTS.csv(), column, cell), "file")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("column", "cell"),
    [("triton", "3"), ("launch", "a"), ("error", "nan"), ("error", "1.2.3"), ("why", "\x1b"), ("code", "many")],
)
def test_a_cell_that_no_execution_wrote_is_named(column, cell):
    assert executions.loads(RAN.csv(), "file") == RAN
    with pytest.raises(ValueError, match="file: "):
        executions.loads(_with_cell(RAN.csv(), column, cell), "file")


def _with_cell(text: str, column: str, cell: str) -> str:
    """The text of a CSV file with another cell in its last line."""
    head, *lines = csv.reader(io.StringIO(text))
    lines[-1][head.index(column)] = cell
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows([head, *lines])
    return written.getvalue()


@pytest.mark.parametrize("options", [("--write",), ("--write", "--only", "decode"), ("--write", "--run"), ("--check",)])
def test_a_wrong_file_beside_the_page_is_refused_before_anything_is_compiled(options, attn_parity, tmp_path):
    (tmp_path / "binaries.md").write_text("page")
    (tmp_path / "binaries.csv").write_text(FACTS.csv())
    (tmp_path / "binaries-run.csv").write_text(_with_cell(RAN.csv(), "error", "much"))
    run = attn_parity("compile", *options, "--page", "binaries.md")
    assert (run.code, run.out) == (2, "")
    assert run.err == "attn-parity: binaries-run.csv: error: got 'much', expected a ratio\n"
    assert (tmp_path / "binaries.csv").read_text() == FACTS.csv()
    assert (tmp_path / "binaries.md").read_text() == "page"


def test_what_came_of_other_launches_is_kept():
    def row(call: str, spills: int) -> Row:
        return Row("gfx942", call, "merge", 4, replace(GOOD, vgpr_spills=spills))

    kept, found = Results("3.9.0", (row("a", 1), row("gone", 1), row("c", 1))), Results("3.9.0", (row("d", 2), row("a", 2)))
    whole = updated(kept, found, {"gfx942": ["a", "b", "c", "d"]})
    assert [(each.call, each.facts.vgpr_spills) for each in whole.binaries] == [("a", 2), ("c", 1), ("d", 2)]


def test_a_page_that_is_not_what_its_facts_make_is_noticed(attn_parity, tmp_path):
    facts = replace(GOOD, waves=16, fused_multiply_adds=0)
    rows = [
        Row(name, call, "merge", 4, replace(facts, lds_limit=architecture.lds_limit))
        for name, architecture in ARCHITECTURES.items()
        for call in chosen(name)
    ]
    path, data = tmp_path / "binaries.md", tmp_path / "binaries.csv"

    def write(results: Results) -> None:
        path.write_text(page.text(results, budgets.load(), main_names(), Executions(results.triton)))
        data.write_text(results.csv())

    def wrong() -> list[str]:
        run = attn_parity("compile", "--check", "--page", path)
        assert run.code == int(run.out != "0 wrong\n")
        return run.out.splitlines()[:-1]

    write(Results(triton.__version__, tuple(rows)))
    assert loads(data.read_text(), "").binaries == tuple(rows)
    assert wrong() == []
    path.write_text(path.read_text().replace("| 128, 16 |", "| 64, 16 |", 1))
    assert "is not what" in wrong()[0]
    write(Results(triton.__version__, tuple(rows[1:])))
    assert wrong() == [f"{rows[0].architecture} {rows[0].call}: a launch without facts"]
    spilling = [replace(row, facts=replace(row.facts, vgpr_spills=9)) for row in rows if (row.architecture, row.call) == DECODE]
    write(Results(triton.__version__, (*(row for row in rows if (row.architecture, row.call) != DECODE), *spilling)))
    assert wrong() == ["gfx942 decode: vgpr_spills is 9, at most 0 allowed"]
    data.write_text("{}")
    assert attn_parity("compile", "--check", "--page", path).code == 2
