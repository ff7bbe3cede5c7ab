"""`attn-parity emulate`: an exit code and a line say whether a launch agrees, and which file or option is wrong."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from attn_binaries import run_folder
from attn_binaries.run_folder import GUARD_BYTES
from attn_parity import main

from tests.binaries.conftest import GONE, RANDOM, change, replace_instruction
from tests.support.malformed import KNOWN_FIELDS_DRAWS, TEXT_DRAWS, damage, run_in_fork


def flip(path: Path, byte: int = 60, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(data)


def test_what_is_the_same_agrees(saved, attn_parity):
    run = attn_parity("emulate", "code/launches.json", "--compare", "out")
    assert (run.code, run.out) == (0, "2 of 2 launches left the same bits in every buffer\n")


def test_a_bit_that_differs_is_named(saved, attn_parity):
    out = next(each for each in run_folder.read(saved / "emulated" / RANDOM).tensors if each.name == "out_ptr")
    flip(saved.parent / "out" / RANDOM / "after" / "out_ptr.bin", out.byte)
    run = attn_parity("emulate", "code/launches.json", "--compare", "out")
    assert run.code == 1
    assert run.out.startswith(f"{RANDOM}\n")
    assert "[0, 0, 0]" in run.out
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
        ("code/emulated", shutil.rmtree, "nothing was emulated: run `attn-parity emulate code/launches.json` first"),
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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "gfx906"}, "architecture of merge, fp32: got gfx906, expected one of gfx90a"),
        ({"architecture": "sm90"}, "has no launch for AMD's GPUs"),
        ({"call": "of old"}, "gfx942 of old: this version has no such launch"),
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


def test_an_endless_loop_ends_at_the_limit_of_the_tool(saved, attn_parity):
    replace_instruction(saved, ".Lloop:\n\ts_branch .Lloop\n\ts_endpgm\n", "s_endpgm\n")
    run = attn_parity("emulate", "code/launches.json", "--case-seconds", 0.5, "--workers", 1)
    assert (run.code, run.out) == (2, "")
    assert run.err == "attn-parity: gfx942 merge, fp32, random: no end in 0.5 s (--case-seconds)\n"
