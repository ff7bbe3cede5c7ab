"""Saved code runs, what it reads and writes is saved, and a file that contradicts another one is named."""

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import triton
from attn_amdgcn.instructions import forms
from attn_binaries import run_folder
from attn_binaries.comparison import compared
from attn_binaries.run_folder import GUARD_BYTES
from attn_binaries.saved import SavedFileError, SavedLaunch, read
from attn_binaries.saved_checks import check_plan, checked_program
from attn_binaries.saved_execution import Emulated, emulate_saved
from attn_binaries.shipped_calls import chosen

from tests.binaries.conftest import NAME, RANDOM, WRITE, change, replace_instruction
from tests.support.pages import ROOT

HEADERS = Path(triton.__file__).parent / "backends" / "amd" / "include"


def launch_of(folder: Path) -> SavedLaunch:
    return read(folder / "launches.json")["gfx942", NAME]


def test_a_folder_has_all_that_a_launch_needs(saved):
    launch, described = launch_of(saved), run_folder.read(saved / "emulated" / RANDOM)
    case = [described.call, described.case, described.folder]
    assert case == [NAME, "random", RANDOM]
    assert (saved / described.code).read_bytes().startswith(b"\x7fELF")
    assert described.threads_per_block == launch.threads_per_block
    places = {argument.name: argument for argument in described.arguments}
    assert [*places] == [argument.name for argument in launch.arguments]
    out = next(tensor for tensor in described.tensors if tensor.name == "out_ptr")
    assert (places["out_ptr"].buffer, places["out_ptr"].byte) == (out.buffer, out.byte)
    assert int.from_bytes(bytes.fromhex(places["num_tokens"].bytes), "little") == out.shape[0]
    assert (places["global_scratch"].buffer, places["global_scratch"].bytes) == (None, "00" * 8)
    before, after = ((saved / "emulated" / RANDOM / name / "out_ptr.bin").read_bytes() for name in ("before", "after"))
    assert before[:GUARD_BYTES] == after[:GUARD_BYTES]
    assert before[-GUARD_BYTES:] == after[-GUARD_BYTES:]
    assert before != after
    assert set(described.inexact) == {"v_exp_f32", "v_log_f32", "v_rcp_f32"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"threads_per_block": 64}, "threads_per_block: launches.json has 64, and gfx942-merge-fp32.s has 256"),
        ({"name": "other_kernel"}, "name: launches.json has other_kernel"),
        ({"kernarg.bytes": 8}, "kernarg.bytes: launches.json has 8"),
        ({"kernarg.arguments.1.offset": 12}, "kernarg.arguments: launches.json has"),
        ({"arguments": list.reverse}, "arguments: launches.json has"),
        ({"kernarg": None}, "kernarg: got null"),
    ],
)
def test_what_contradicts_the_assembly_is_named(saved, changes, words):
    change(saved, changes)
    with pytest.raises(SavedFileError, match=words):
        checked_program(saved, launch_of(saved))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"constants.HEAD_SIZE": 64}, "HEAD_SIZE was saved as 64, and is 128 here"),
        ({"constants.OLD": 1}, "OLD was saved as 1, and is no constant here"),
        ({"arguments.0.type": "*bf16"}, r"out_ptr was saved as \*bf16, and is \*fp32 here"),
        ({"arguments.0.name": "old_ptr"}, "old_ptr was saved as .*, and is no argument here"),
        ({"arguments.-1.may_be_null": False}, "profile_scratch was saved as .*, and is no argument"),
    ],
)
def test_code_that_is_not_planned_here_is_named(saved, changes, words):
    like = chosen("gfx942")[NAME]
    check_plan(launch_of(saved), like)
    change(saved, changes)
    with pytest.raises(SavedFileError, match=words):
        check_plan(launch_of(saved), like)


def emulated_with(saved: Path, folder: Path, new: str, old: str = "v_exp_f32") -> list[Emulated]:
    """Run the saved launch with another instruction in the place of an old one."""
    replace_instruction(saved, new, old)
    return emulate_saved(saved / "launches.json", folder, "gfx942", NAME, (NAME,), 60)


def test_the_saved_code_is_what_runs(saved, tmp_path):
    found = emulated_with(saved, tmp_path / "wrong", "v_log_f32")
    assert [(one.case, one.execution.verdict) for one in found] == [("random", "nan"), ("signature", "nan")]
    launch, differences = compared(saved / "emulated" / RANDOM, tmp_path / "wrong" / RANDOM)
    assert launch.case == "random"
    assert "out_ptr" in {one.where for one in differences}


def test_a_launch_that_does_not_come_to_its_end_has_no_folder(saved):
    found = emulated_with(saved, saved / "emulated", "s_nop 0", "s_waitcnt vmcnt(0)")
    assert [(one.execution.verdict, one.launch) for one in found] == [("raised", None)] * 2
    assert "no wait stands before its use" in found[0].execution.why
    assert [*(saved / "emulated").iterdir()] == []


def test_what_the_emulator_does_not_know_is_no_fault_of_the_launch(saved):
    with pytest.raises(SavedFileError, match=r"merge-fp32\.s: line \d+: `v_unknown_f32"):
        emulated_with(saved, saved / "emulated", "v_unknown_f32")


def an_ulp_off(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Make an instruction return the float behind the right one."""
    meaning = forms.VECTOR[name]

    def make(*context) -> Callable[..., np.ndarray]:
        function = meaning.make(*context)
        return lambda *sources: np.nextafter(function(*sources), np.float32(np.inf))

    monkeypatch.setitem(forms.VECTOR, name, replace(meaning, make=make))


@pytest.mark.nightly
def test_a_rounding_of_reciprocals_does_not_reach_a_cache(saved, tmp_path, monkeypatch):
    """What docs/guide/amd-hardware.md says: divisions correct v_rcp_f32, and nothing corrects v_exp_f32."""
    for folder, name in ((saved, NAME), (tmp_path / "write", WRITE)):
        right = emulate_saved(folder / "launches.json", tmp_path / "right", "gfx942", name, (name,), 60)
        with monkeypatch.context() as patch:
            for instruction in ("v_rcp_f32", "v_rcp_iflag_f32", "v_exp_f32"):
                an_ulp_off(patch, instruction)
            emulate_saved(folder / "launches.json", tmp_path / "off", "gfx942", name, (name,), 60)
        for one in right:
            assert one.launch is not None
            assert "v_rcp_f32" in one.launch.inexact
            _, differences = compared(*(tmp_path / folder / one.launch.folder for folder in ("right", "off")))
            assert bool(differences) == (name == NAME)


def test_a_launch_that_needs_another_one_says_which(saved, tmp_path):
    change(saved, {"call": "decode, split, reduction"})
    with pytest.raises(SavedFileError, match="gfx942 decode, split is missing, and decode, split launches it, too"):
        emulate_saved(saved / "launches.json", tmp_path, "gfx942", "decode, split", ("decode, split, reduction",), 60)


def check_all(saved: Path) -> None:
    checked_program(saved, launch_of(saved))
    check_plan(launch_of(saved), chosen("gfx942")[NAME])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"threads_per_block": 10**30}, r"Expected `int` <= 2147483647 - at `\$.launches\[0\]"),
        ({"dynamic_lds_bytes": -1}, "Expected `int` >= 0"),
        ({"kernarg.bytes": "x"}, "Expected `int`, got `str`"),
        ({"arguments.0.attributes.tt,divisibility": 0}, "Expected `int` >= 1"),
        ({"call": "x" * 5000}, "Expected `str` of length <= 1000"),
        ({"kernarg.arguments": [{"name": "x", "offset": 0, "size": 0, "kind": "x"}] * 9999}, "x"),
        ({"constants.HEAD_SIZE": ["x"] * 99_999}, "HEAD_SIZE was saved as"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_what_launches_json_cannot_say_is_named_in_short(saved, changes, words):
    change(saved, changes)
    with pytest.raises(SavedFileError, match=words) as error:
        check_all(saved)
    assert len(str(error.value)) < 1000


def test_a_launch_is_there_once(saved):
    path = saved / "launches.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "launches": content["launches"] * 2}))
    with pytest.raises(SavedFileError, match="gfx942 merge, fp32 is there twice"):
        read(path)


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("g++") is None or not HEADERS.is_dir(), reason="needs g++ and HIP's headers of Triton")
def test_the_loader_puts_bytes_where_they_belong(saved, tmp_path):
    """HIP is a stub, which prints what it is given, and flips a bit of the first argument's tensor."""
    sources = [ROOT / "examples" / "launch.cpp", ROOT / "tests" / "binaries" / "hip_stub.cpp"]
    options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-D__HIP_PLATFORM_AMD__", "-isystem", HEADERS]
    subprocess.run(["g++", *options, *sources, "-o", tmp_path / "launch"], check=True)
    shutil.rmtree(tmp_path / "out")
    folder, out = saved / "emulated" / RANDOM, tmp_path / "out" / RANDOM
    shutil.copytree(folder / "after", folder / "before", dirs_exist_ok=True)  # the stub computes nothing
    ended = subprocess.run([tmp_path / "launch", folder, out], capture_output=True, text=True, check=True)
    launch = run_folder.read(folder)
    tokens = next(tensor for tensor in launch.tensors if tensor.name == "out_ptr").shape[0]
    grid = " ".join(str(number) for number in launch.grid)
    assert ended.stdout == f"{launch.kernel}\n{grid} {launch.threads_per_block} {launch.dynamic_lds_bytes} {tokens}\n"
    _, (found,) = compared(folder, out)
    assert (found.where, found.count, found.first, found.ulps) == ("out_ptr", 1, "[0, 0, 0]", 1)
    (folder / "launch.txt").write_text("attn-parity-launch 1\ncode\n")
    ended = subprocess.run([tmp_path / "launch", folder, out], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, "launch: launch.txt: code: unknown, or with too few words behind it\n")
