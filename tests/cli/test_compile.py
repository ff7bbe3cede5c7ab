"""`attn-parity compile`: what is compiled is shown and saved, and a compiler that fails or hangs costs one launch."""

import hashlib
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from attn_amdgcn import load
from attn_binaries.build import Outcome, OutOfTime
from attn_binaries.shipped_calls import chosen
from attn_parity.commands import compile as compile_command

from tests.support.facts import GOOD
from tests.support.json_schemas import check

MERGE = ("compile", "--arch", "gfx942", "--only", "merge, fp32")


def test_saved_code_comes_with_what_it_takes_to_launch_it(attn_parity, tmp_path):
    """Arguments lie where the emulator's reader says: launches.json and attn_amdgcn read the metadata in ways of their own."""
    compiled = attn_parity("compile", "--arch", "gfx942,gfx1201", "--only", "merge, fp32", "--save", "code", "--workers", 1)
    assert compiled.code == 0
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
    monkeypatch.setattr(compile_command, "built", lambda *_: pytest.fail("it was compiled first"))
    run = attn_parity(*MERGE, "--save", "code")
    assert run.code == 2
    assert words in run.err


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


def test_launches_of_a_targets_drawn_calls_are_compiled_and_none_runs(attn_parity, tmp_path):
    run = attn_parity("compile", "triton-write", "--arch", "gfx942", "--examples", "5", "--json", "found.json")
    assert run.code == 0
    assert "gfx942: 5 drawn calls of triton-write@gfx942 launch " in run.out
    rows = check("compile", (tmp_path / "found.json").read_text())["binaries"]
    assert {row["kernel"] for row in rows} == {"write_kv_cache_kernel"}
    assert not any(row["loop"] for row in rows), "the kernel has no loop, although code of few lanes jumps back"
    assert all(row["facts"]["vgprs"] and row["architecture"] == "gfx942" for row in rows)
    assert len({row["code"] for row in rows}) == len(rows)
