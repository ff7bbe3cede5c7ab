"""`attn-parity emulate`: saved code runs, what it reads and writes is saved, and whatever another machine changes is named."""

import contextlib
import json
import random
import re
import shutil
import subprocess
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import triton
from attn_amdgcn.instructions import forms
from attn_binaries import run_folder
from attn_binaries.build import build
from attn_binaries.comparison import compared
from attn_binaries.run_folder import GUARD_BYTES, Argument, Buffer, EmulatedLaunch, Tensor
from attn_binaries.saved import SavedFileError, SavedLaunch, read
from attn_binaries.saved_checks import check_plan, checked_program
from attn_binaries.saved_execution import Emulated, OutOfTimeError, emulate_saved
from attn_binaries.saving import save_binaries
from attn_binaries.shipped_calls import chosen
from attn_fuzz.errors import InputError
from attn_parity import main

from tests.support.malformed import KNOWN_FIELDS_DRAWS, TEXT_DRAWS, damage, run_in_fork
from tests.support.pages import ROOT

NAME, WRITE = "merge, fp32", "cache write, int8 cache"
RANDOM = "gfx942-merge-fp32-random"
HEADERS = Path(triton.__file__).parent / "backends" / "amd" / "include"


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of saved launches: `code` with what the emulator made of it, and `write`."""
    folder = tmp_path_factory.mktemp("saved")
    jobs = {"code": ("gfx942", NAME), "write": ("gfx942", WRITE)}
    built = build([*jobs.values()], 1)
    for name, job in jobs.items():
        (folder / name).mkdir()
        save_binaries(folder / name, {job: built.binaries[job]}, {"gfx942": chosen("gfx942")})
    with pytest.raises(SystemExit) as end:
        main(["emulate", str(folder / "code" / "launches.json"), "--workers", "1"])
    assert end.value.code == 0
    return folder


@pytest.fixture
def saved(emulated: Path, tmp_path: Path) -> Path:
    """A copy of `code`, with `write` beside it; `out` beside it has what another machine made of its launches: the same."""
    shutil.copytree(emulated, tmp_path, dirs_exist_ok=True)
    shutil.copytree(emulated / "code" / "emulated", tmp_path / "out")
    return tmp_path / "code"


def launch_of(folder: Path) -> SavedLaunch:
    return read(folder / "launches.json")["gfx942", NAME]


def flip(path: Path, byte: int = 60, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(data)


GONE = object()


def change(folder: Path, changes: Mapping[str, object]) -> None:
    """Change fields of the first launch of launches.json: `a.b.0` leads to them, and a comma stands for a point in a name."""
    written = json.loads((folder / "launches.json").read_text())
    for path, value in changes.items():
        where, *names = written["launches"][0], *path.split(".")
        keys = [int(name) if re.fullmatch(r"-?\d+", name) else name.replace(",", ".") for name in names]
        for key in keys[:-1]:
            where = where[key]
        if value is GONE:
            del where[keys[-1]]
        elif callable(value):
            value(where[keys[-1]])
        else:
            where[keys[-1]] = value
    (folder / "launches.json").write_text(json.dumps(written))


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


def test_what_is_the_same_agrees(saved, attn_parity):
    run = attn_parity("emulate", "code/launches.json", "--compare", "out")
    assert (run.code, run.out) == (0, "2 of 2 launches left the same bits in every buffer\n")


def test_a_bit_that_differs_is_named(saved, attn_parity):
    launch = run_folder.read(saved / "emulated" / RANDOM)
    out = next(tensor for tensor in launch.tensors if tensor.name == "out_ptr")
    row, head, dim = 2, 1, 3
    element = out.byte + 4 * sum(i * stride for i, stride in zip((row, head, dim), out.strides, strict=True))
    there = saved.parent / "out" / RANDOM / "after" / "out_ptr.bin"
    flip(there, element)
    flip(there, 7)
    run = attn_parity("emulate", "code/launches.json", "--compare", "out")
    assert run.code == 1
    words = ([word for word in line.split() if not word.startswith("(0x")] for line in run.out.splitlines())
    lines = [each for each in words if each]  # the bits of a long number have a line of their own
    assert lines[0] == [RANDOM]
    assert lines[2][:6] == ["out_ptr", "1", str(np.prod(out.shape)), "[2,", "1,", "3]"]
    assert lines[2][6:9] == ["[2,", "1,", "3]"]
    here, there = (float(lines[2][i]) for i in (9, 10))
    assert float(lines[2][11]) == pytest.approx(abs(here - there), rel=0.1)
    assert lines[2][-2:] == ["1", "1"]
    assert lines[3][:4] == ["out_ptr,", "in", "no", "tensor"]
    assert lines[3][6:10] == ["byte", "7", "byte", "7"]
    assert lines[3][-3:] == ["-", "-", "-"]
    assert "hardware may round: v_exp_f32, v_log_f32, v_rcp_f32" in run.out
    assert "1 of 2 launches left the same bits" in run.out


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def holds(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


@pytest.mark.parametrize(
    ("path", "damage", "words"),
    [
        (f"out/{RANDOM}/after/lse_ptr.bin", truncate, "lse_ptr.bin: got "),
        (f"out/{RANDOM}/after/lse_ptr.bin", Path.unlink, "lse_ptr.bin: there is no such file"),
        (f"out/{RANDOM}/after/more.bin", Path.touch, "more.bin: expected the buffers out_ptr"),
        (f"out/{RANDOM}/after", shutil.rmtree, "out_ptr.bin: there is no such file"),
        ("out/another", Path.mkdir, "out/another: code/emulated has no folder of this name"),
        (f"out/{RANDOM}", shutil.rmtree, f"out/{RANDOM}/launch.txt: there is no such file"),
        (f"out/{RANDOM}/launch.txt", flip, "launch.txt: expected the same as"),
        (f"code/emulated/{RANDOM}/launch.json", holds("{}"), "launch.json: schema: got nothing"),
        (f"code/emulated/{RANDOM}", shutil.rmtree, f"out/{RANDOM}: code/emulated has no folder"),
        ("code/gfx942-merge-fp32.s", flip, "merge-fp32.s: SHA-256: got "),
        ("code/gfx942-merge-fp32.hsaco", flip, "merge-fp32.hsaco: SHA-256: got "),
        ("code/gfx942-merge-fp32.hsaco", Path.unlink, "merge-fp32.hsaco: there is no such file"),
        ("code/launches.json", holds("{"), "launches.json: Expecting property name enclosed"),
        ("code/launches.json", holds('{"schema": "x"}'), "launches.json: schema: got 'x'"),
        ("code/launches.json", Path.unlink, "launches.json: there is no such file"),
    ],
)
def test_damaged_files_are_named(saved, attn_parity, path, damage, words):
    damage(saved.parent / path)
    run = attn_parity("emulate", "code/launches.json", "--compare", "out")
    assert run.code == 2
    assert not run.out or run.out.endswith("; 1 folder could not be compared\n")
    assert run.err.count("\n") == 1
    assert words in run.err


def damaged(rng: random.Random, folder: Path) -> tuple[Path, bool]:
    """A file of a comparison of `code` with `there`, which is no longer what it was, or as it was; and whether it is."""
    files = [folder / "code" / name for name in ("launches.json", "gfx942-merge-fp32.s", "gfx942-merge-fp32.hsaco")]
    for pattern in ("code/emulated/*/launch.*", "*/*/launch.txt", "*/*/after/*", "code/emulated/*/after/*"):
        files += sorted(folder.glob(pattern))
    path = rng.choice(files)
    before = path.read_bytes()
    damage(rng, path, KNOWN_FIELDS_DRAWS if path.suffix == ".json" else TEXT_DRAWS)
    return path, path.is_file() and path.stat().st_size == len(before) and path.read_bytes() == before


def test_malformed_files_of_a_comparison_are_named(emulated, tmp_path, request):
    wrong = []
    for seed in request.config.getoption("--malformed")[::4]:
        folder = tmp_path / str(seed)
        shutil.copytree(emulated, folder)
        shutil.copytree(emulated / "code" / "emulated", folder / "there")
        path, is_same = damaged(random.Random(seed), folder)
        ended = run_in_fork(main, ["emulate", "code/launches.json", "--compare", "there"], folder)
        lines = ended.err.splitlines()
        is_told = all(line.startswith("attn-parity: ") and line.isprintable() and len(line) < 2000 for line in lines)
        if ended.code != (0 if is_same else 2) or bool(lines) is is_same or not is_told:
            wrong.append(f"{seed}: {path.relative_to(folder)}: exit {ended.code}, {ended.out[-300:]!r}, {ended.err[-600:]!r}")
        if ended.took_too_much:
            wrong.append(f"{seed}: {path.relative_to(folder)}: {ended.seconds:.1f} s, {ended.mebibytes:.0f} MiB")
        shutil.rmtree(folder)
    assert not wrong, "\n".join(wrong)


def test_a_folder_that_cannot_be_compared_does_not_hide_the_others(saved, attn_parity):
    other = "gfx942-merge-fp32-signature"
    truncate(saved.parent / "out" / RANDOM / "after" / "lse_ptr.bin")
    flip(saved.parent / "out" / other / "after" / "out_ptr.bin", GUARD_BYTES)
    (saved.parent / "out" / "another").mkdir()
    run = attn_parity("emulate", "code/launches.json", "--compare", "out")
    assert run.code == 2
    errors = run.err.splitlines()
    assert errors[0] == "attn-parity: out/another: code/emulated has no folder of this name"
    assert errors[1].startswith(f"attn-parity: out/{RANDOM}/after/lse_ptr.bin: got ")
    assert run.out.startswith(f"{other}\n")
    assert run.out.endswith("0 of 1 launches left the same bits in every buffer; 2 folders could not be compared\n")


def test_without_an_emulated_launch_the_command_for_it_is_named(saved, attn_parity):
    shutil.rmtree(saved / "emulated")
    run = attn_parity("emulate", "code/launches.json", "--compare", "out")
    told = "attn-parity: code/emulated: nothing was emulated: run `attn-parity emulate code/launches.json` first\n"
    assert (run.code, run.out, run.err) == (2, "", told)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "gfx906"}, "architecture of merge, fp32: got gfx906, expected one of gfx90a"),
        ({"architecture": "sm90"}, "has no launch for AMD's GPUs"),
        ({"call": "of old"}, "gfx942 of old: this version has no such launch"),
        ({"threads_per_block": "64"}, "Expected `int`, got `str` - at `$.launches[0].threads_per_block`"),
        ({"file": "../file"}, "merge, fp32: got ../file, expected the name of a file beside"),
        ({"sha256": GONE}, "missing required field `sha256`"),
    ],
)
def test_a_launch_that_cannot_be_run_is_named(saved, attn_parity, changes, words):
    change(saved, changes)
    run = attn_parity("emulate", "code/launches.json", "--workers", "1")
    assert (run.code, run.out) == (2, "")
    assert run.err.count("\n") == 1
    assert words in run.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--only", "nothing"), "has no launch for AMD's GPUs that --arch and --only name"),
        (("--arch", "gfx950"), "has no launch for AMD's GPUs that --arch and --only name"),
        (("--arch", "gfx906"), "--arch: got gfx906"),
        (("--compare", "nowhere"), "nowhere"),
    ],
)
def test_bad_options_are_named(saved, attn_parity, options, words):
    run = attn_parity("emulate", "code/launches.json", *options)
    assert run.code == 2
    assert words in run.err


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


def emulated_with(saved: Path, folder: Path, new: str, old: str = "v_exp_f32", case_seconds: float = 60) -> list[Emulated]:
    """Run the saved launch with another instruction in the place of an old one."""
    path = saved / "gfx942-merge-fp32.s"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    digest = run_folder.digest(np.frombuffer(path.read_bytes(), np.uint8))
    change(saved, {"sha256.assembly": digest})
    return emulate_saved(saved / "launches.json", folder, "gfx942", NAME, (NAME,), case_seconds)


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


def test_an_endless_loop_ends_at_the_limit_of_the_tool(saved, attn_parity):
    with pytest.raises(OutOfTimeError, match=r"gfx942 merge, fp32, random: no end in 0\.5 s \(--case-seconds\)"):
        emulated_with(saved, saved / "emulated", ".Lloop:\n\ts_branch .Lloop\n\ts_endpgm\n", "s_endpgm\n", 0.5)
    run = attn_parity("emulate", "code/launches.json", "--case-seconds", 0.5, "--workers", 1)
    assert (run.code, run.out) == (2, "")
    assert run.err == "attn-parity: gfx942 merge, fp32, random: no end in 0.5 s (--case-seconds)\n"


def an_ulp_off(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Make an instruction return the float after the right one."""
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


def written(folder: Path, data: np.ndarray, *tensors: Tensor) -> Path:
    """A folder of a launch with one buffer, `data`."""
    buffers = run_folder.guarded({"data": data})
    launch = EmulatedLaunch(
        architecture="gfx942",
        call="call",
        case="random",
        code="code.hsaco",
        sha256="",
        kernel="kernel",
        grid=(3, 2, 1),
        threads_per_block=64,
        dynamic_lds_bytes=16,
        kernarg_bytes=24,
        arguments=(
            Argument("data", 0, 8, "global_buffer", "00" * 8, "data", GUARD_BYTES),
            Argument("n", 8, 4, "by_value", "05000000"),
            Argument("hidden_block_count_x", 12, 4, "hidden_block_count_x", "03000000"),
        ),
        buffers=(Buffer("data", len(buffers["data"]), "digest"),),
        tensors=tensors,
        inexact=(),
    )
    run_folder.write(folder, launch, buffers, buffers)
    assert run_folder.read(folder) == launch
    return folder


@pytest.mark.parametrize("number", [-1, 0, 1 << 31, 10**12, 10**30, 1.5, "x", "x" * 5000, [], None])
def test_a_number_of_a_launch_has_its_bounds(tmp_path, number):
    """Each number of launch.json in turn: the launch is refused or compared, and nothing has its size."""
    tensor = Tensor("data_ptr", "data", GUARD_BYTES, "int8", (2, 2), (2, 1))
    folders = [written(tmp_path / name, np.full(4, i, np.uint8), tensor) for i, name in enumerate(("here", "there"))]
    path = folders[0] / "launch.json"
    text = path.read_text()
    tracemalloc.start()
    for found in re.finditer(r"(?<=[ \[])\d+(?=[,\n\]])", text):
        path.write_text(text[: found.start()] + json.dumps(number) + text[found.end() :])
        with contextlib.suppress(InputError):
            compared(*folders)
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()


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


def test_a_launch_in_lines_of_words(tmp_path):
    lines = (written(tmp_path, np.zeros(8, np.uint8)) / "launch.txt").read_text()
    assert lines == (
        "attn-parity-launch 1\ncode ../../code.hsaco \nkernel kernel\ngrid 3 2 1\nthreads 64\nlds 16\nkernarg 24\n"
        "buffer data 8200 digest\npointer 0 data 4096\nvalue 8 4 05000000\nhidden 12 4 03000000\n"
    )


@pytest.mark.parametrize(
    ("dtype", "here", "there", "ulps", "shown"),
    [
        ("float32", 1.0, 1 + 2**-22, 2, "1 (0x3f800000)"),
        ("bfloat16", 2**-133, -(2**-133), 2, "9.18354962e-41 (0x0001)"),
        ("float16", 65504.0, float("inf"), 1, "65504 (0x7bff)"),
        ("float32", 0.0, -0.0, 0, "0 (0x00000000)"),
        ("float32", float("nan"), 1.0, None, "nan (0x7fc00000)"),
        ("float8_e4m3fn", 448.0, 416.0, 1, "448 (0x7e)"),
        ("float8_e4m3fnuz", 240.0, float("nan"), None, "240 (0x7f)"),
        ("int8", -1, 1, 2, "-1 (0xff)"),
        ("int64", -(2**62), 2**62, 2**63, f"{-(2**62)} (0xc000000000000000)"),
        ("bool", 0, 1, 1, "0 (0x00)"),
    ],
)
def test_distances_count_the_values_between(tmp_path, dtype, here, there, ulps, shown):
    kind = getattr(torch, dtype)
    one, other = (
        torch.tensor([[0, 0], [0, value]], dtype=kind if kind.itemsize > 1 else None).to(kind) for value in (here, there)
    )
    data = [tensor.view(torch.uint8).flatten().numpy() for tensor in (one, other)]
    tensor = Tensor("data_ptr", "data", GUARD_BYTES, dtype, (2, 2), (2, 1))
    folders = [written(tmp_path / name, each, tensor) for name, each in zip(("here", "there"), data, strict=True)]
    _, (found,) = compared(*folders)
    assert (found.where, found.first, found.count, found.of) == ("data_ptr", "[1, 1]", 1, 4)
    assert (found.here, found.ulps, found.most_ulps) == (shown, ulps, ulps)


@pytest.mark.parametrize(
    ("dtype", "there", "worst", "difference"),
    [
        ("float32", [1e-30, 0.0, 0.5, 0.25], "[1, 0]", 0.5),
        ("float32", [1e-30, float("nan"), 0.5, float("inf")], "[0, 1]", None),
        ("float16", [0.0, 1.0, -float("inf"), 2.0], "[1, 0]", float("inf")),
        ("int64", [3, 2**62, 2**62 + 1, 0], "[1, 0]", 2**62 + 1),
    ],
)
def test_the_worst_element_is_the_one_that_is_off_by_most(tmp_path, dtype, there, worst, difference):
    """Many ULP near 0 are a small difference, and a NaN on one side is worse than any."""
    kind = getattr(torch, dtype)
    data = [torch.tensor(values, dtype=kind).view(torch.uint8).numpy() for values in ([0, 0, 0, 0], there)]
    tensor = Tensor("data_ptr", "data", GUARD_BYTES, dtype, (2, 2), (2, 1))
    folders = [written(tmp_path / name, each, tensor) for name, each in zip(("here", "there"), data, strict=True)]
    _, (found,) = compared(*folders)
    assert (found.worst, found.difference) == (worst, difference)
    assert found.first == ("[0, 1]" if there[0] == 0 else "[0, 0]")


def test_a_byte_of_two_tensors_is_told_once_and_one_of_none_is_told(tmp_path):
    whole = Tensor("whole", "data", GUARD_BYTES, "int16", (2, 2), (4, 1))
    part = Tensor("part", "data", GUARD_BYTES + 2, "int8", (10,), (1,))
    data = np.zeros(20, np.uint8)
    here = written(tmp_path / "here", data, whole, part)
    data[[2, 4, 8, 16]] = 1
    there = written(tmp_path / "there", data, whole, part)
    _, found = compared(here, there)
    assert [(one.where, one.first, one.count, one.of) for one in found] == [
        ("whole", "[0, 1]", 2, 4),
        ("part", "[2]", 1, 10),
        ("data, in no tensor", f"byte {GUARD_BYTES + 16}", 1, 2 * GUARD_BYTES + 20 - 12),
    ]


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (Tensor("data", "data", GUARD_BYTES, "complex32", (2,), (1,)), "dtype of data: got complex32"),
        (Tensor("data", "data", GUARD_BYTES, "int8", (2,), (1 << 20,)), "reaches beyond the 8196 bytes of data"),
        (Tensor("data", "data", GUARD_BYTES, "int8", (2,), (-4097,)), "reaches beyond the 8196 bytes of data"),
        (Tensor("data", "data", GUARD_BYTES, "int8", ((1 << 31) - 1, 1, 1), (0, 0, 0)), "reaches beyond the 8196 bytes"),
        (Tensor("data", "data", GUARD_BYTES, "int8", (2,), (1, 1)), "data has 1 sizes and 2 strides"),
    ],
)
def test_a_tensor_that_cannot_be_is_named(tmp_path, tensor, words):
    folders = [written(tmp_path / str(byte), np.full(4, byte, np.uint8), tensor) for byte in (1, 2)]
    with pytest.raises(SavedFileError, match=words):
        compared(*folders)


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("g++") is None or not HEADERS.is_dir(), reason="needs g++ and HIP's headers of Triton")
def test_the_loader_puts_bytes_where_they_belong(saved, attn_parity, tmp_path):
    """HIP is a stub, which prints what it is given, and flips a bit of the first argument's tensor."""
    sources = [ROOT / "examples" / "launch.cpp", ROOT / "tests" / "cli" / "hip_stub.cpp"]
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
    assert (ended.returncode, ended.stderr) == (1, "launch: launch.txt: code: unknown, or with too few words after it\n")
