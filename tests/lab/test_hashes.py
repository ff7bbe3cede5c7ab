"""`python -m attn_lab hashes`: what changes a binary changes its hash, and what only moves or renames does not."""

import json
from importlib.util import module_from_spec, spec_from_file_location

import pytest
from attn_binaries.build import in_processes
from attn_lab.commands import hashes
from attn_lab.commands.hashes import comes_again, described, differences

SOURCE = """
import torch
import triton
import triton.language as tl
from attn_optimized.kernel_call import KernelCall, Launch

@triton.jit
def twice(x):
    return x * 2.0

@triton.jit
def add_kernel(out_ptr, x_ptr, size, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    x = tl.load(x_ptr + place, mask=inside, other=0.0)
    for _ in range(size):
        x = twice(x) + 3.0
    tl.store(out_ptr + place, x, mask=inside)

tensors = {"out_ptr": torch.empty(256, device="meta"), "x_ptr": torch.empty(256, device="meta")}
CALL = KernelCall(Launch.of(add_kernel, (2,), {"BLOCK": 128}, {}, size=200), tensors)
"""
MOVED = SOURCE.replace("    inside", "\n    # a comment\n    inside").replace("twice", "double")
RENAMED = (
    SOURCE.replace("add_kernel", "sum_kernel").replace("size", "length").replace("x_ptr", "in_ptr").replace("place", "index")
)


def hash_of(architecture: str, path: str) -> tuple[dict, str]:
    """The hash of the launch CALL of a module."""
    spec = spec_from_file_location("planted", path)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return described(module.CALL, architecture)


@pytest.fixture(scope="module")
def hashed(tmp_path_factory):
    """The hashes of each text, for an AMD and an NVIDIA GPU."""
    texts = {
        "before": SOURCE,
        "moved": MOVED,
        "renamed": RENAMED,
        "constant": SOURCE.replace("3.0", "5.0"),
        "launched": SOURCE.replace("(2,)", "(3,)").replace("size=200", "size=300"),
    }
    jobs = {}
    for name, text in texts.items():
        folder = tmp_path_factory.mktemp(name)  # each in a folder of its own: no path counts
        (folder / f"{name}.py").write_text(text)
        jobs |= {(architecture, name): (architecture, str(folder / f"{name}.py")) for architecture in ("gfx942", "sm90")}
    found, _ = in_processes(hash_of, list(jobs.values()), 2)
    return {key: found[job] for key, job in jobs.items()}


@pytest.mark.nightly
@pytest.mark.parametrize("architecture", ["gfx942", "sm90"])
def test_a_changed_constant_changes_the_hash_and_a_moved_line_or_a_new_name_does_not(hashed, architecture):
    before, text = hashed[architecture, "before"]
    assert "add_kernel" not in text
    assert ".py" not in text
    assert "LABEL0" in text, "it has a loop"
    assert before["vgprs"]
    assert hashed[architecture, "moved"] == (before, text)
    assert hashed[architecture, "renamed"] == (before, text)
    assert hashed[architecture, "constant"][0] == before | {"sha256": hashed[architecture, "constant"][0]["sha256"]}
    assert hashed[architecture, "constant"][0]["sha256"] != before["sha256"]
    assert hashed[architecture, "launched"][0] == before | {"grid": [3], "numbers": [300]}


def test_what_differs_is_told():
    launch = {"sha256": "a" * 64, "vgprs": 8, "grid": [2], "numbers": [1, 2]}
    before = {"triton": "3.9.0", "launches": {"gfx942": {"same": launch, "other": launch, "gone": launch}}}
    other = {"sha256": "b" * 64, "vgprs": 9, "grid": [2], "numbers": [1, 3]}
    after = {"triton": "3.9.0", "launches": {"gfx942": {"same": launch, "other": other, "new": launch}}}
    jobs = {("gfx942", name) for name in ("same", "other", "new")}
    assert differences(before, after, jobs) == {
        ("gfx942", "new"): "gfx942 new: not compiled before",
        ("gfx942", "other"): ("gfx942 other: assembly aaaaaaaaaaaa, now bbbbbbbbbbbb; vgprs 8, now 9; numbers [1] 2, now 3"),
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [("[]", "schema: got nothing"), ('{"schema": "attn-parity.hashes/1", "triton": "0"}', "triton: got '0', expected")],
)
def test_a_file_of_another_form_is_refused_before_any_work(tmp_path, attn_lab, content, message):
    (tmp_path / "before.json").write_text(content)
    ended = attn_lab("hashes", "after.json", "--compare", "before.json")
    assert (ended.code, f"before.json: {message}" in ended.err) == (2, True), ended
    assert not (tmp_path / "after.json").exists()


def test_a_folder_that_is_not_there_is_named(attn_lab):
    assert "FILE: the folder none does not exist" in attn_lab("hashes", "none/hashes.json").err


@pytest.fixture
def compiled_once(monkeypatch):
    """A launch is compiled once for all commands, whose comparisons are tested."""
    known = {}

    def remembered(work, jobs, *arguments):
        known.update(in_processes(work, [job for job in jobs if job not in known], *arguments)[0])
        return {job: known[job] for job in jobs}, False

    monkeypatch.setattr(hashes, "in_processes", remembered)


@pytest.mark.nightly
@pytest.mark.usefixtures("compiled_once")
def test_a_launch_is_compared_with_what_was_written_before(tmp_path, monkeypatch, attn_lab):
    options = ["--arch", "sm90", "--only", "merge, fp32", "--workers", "1"]
    code, printed, _ = attn_lab("hashes", "before.json", *options)
    assert code == 0, printed
    code, printed, _ = attn_lab("hashes", "after.json", *options, "--compare", "before.json")
    assert code == 0, printed
    assert "1 launches compared with before.json, 0 differ" in printed
    kept = json.loads((tmp_path / "before.json").read_text())
    kept["launches"]["sm90"]["merge, fp32"]["sha256"] = "0" * 64
    (tmp_path / "before.json").write_text(json.dumps(kept))
    monkeypatch.setattr(hashes, "TRIES", 1)
    code, printed, _ = attn_lab("hashes", "after.json", *options, "--compare", "before.json")
    assert code == 1
    assert "sm90 merge, fp32: assembly 000000000000, now " in printed


def test_a_launch_that_comes_again_is_no_change(monkeypatch):
    """One of several compilations gave the earlier binary: the compiler made the difference, not the change."""
    earlier = {"launches": {"gfx942": {"decode": {"sha256": "a"}}}}
    for later, same in (("bab", True), ("bbb", False)):
        outcomes = {number: {"sha256": sha256} for number, sha256 in enumerate(later)}
        monkeypatch.setattr(hashes, "in_processes", lambda *_, outcomes=outcomes: (outcomes, False))
        assert comes_again(("gfx942", "decode"), earlier) == same
