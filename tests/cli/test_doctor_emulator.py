"""Launches beside the emulator: other bytes are told, and those that no rounding explains are an error.

No AMD GPU is here: the emulator stands in for it, and leaves other bytes where a test says so.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from attn_amdgcn import load, prepare
from attn_amdgcn.instructions import forms
from attn_binaries.shipped_calls import CALLS, chosen
from attn_fuzz.emulated.compiler import Ready, ready
from attn_fuzz.emulated.emulation import emulate, job_of, run_ready
from attn_optimized.kernel_call import KernelCall
from attn_parity.commands.doctor import emulator, full, sections
from attn_parity.commands.doctor.emulator import Compared, Difference, differences

Change = Callable[[KernelCall], None]


def flipped(byte: int, name: str = "out_ptr") -> Change:
    """Flips the lowest bit of a byte of a tensor; of one before the tensor, if the number is below 0."""

    def flip(call: KernelCall) -> None:
        tensor = call.tensors[name]
        assert tensor is not None
        memory = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
        memory[tensor.storage_offset() * tensor.itemsize + byte] ^= 1

    return flip


def compared(monkeypatch: pytest.MonkeyPatch, name: str, *changes: Change, code: str = "") -> dict[str, Any]:
    """The section of a call. The stand-in for the GPU makes a change after each launch, and ran this code, if it is given."""
    left = iter(changes)

    def on_gpu(call: KernelCall) -> str:
        emulate(call, "gfx942")
        next(left, lambda _: None)(call)
        return code or ready(job_of(call, "gfx942")).compiled.text

    monkeypatch.setattr(emulator, "on_gpu", on_gpu)
    (call,) = (each for each in CALLS if each.name == name)
    return emulator.compared(call, {name, f"{name}, reduction"}, "gfx942", device="cpu")


def test_the_same_bytes_agree(monkeypatch):
    section = compared(monkeypatch, "merge")
    assert [*section] == ["launches"]
    merge = section["launches"]["merge"]
    assert (merge["same_code"], merge["differences"]) == (True, [])
    assert set(merge["may_round"]) == {"v_exp_f32", "v_log_f32", "v_rcp_f32"}
    assert full.in_words(section) == "1 launched here and emulated, 0 left other bytes, 0 ran other code"


def test_other_bytes_where_instructions_round_are_no_error(monkeypatch):
    section = compared(monkeypatch, "merge", flipped(0))
    (found,) = section["launches"]["merge"]["differences"]
    assert (found["where"], found["count"], found["first"]) == ("out_ptr", 1, 0)
    assert int(found["gpu"], 16) ^ int(found["emulator"], 16) == 1
    assert 0 < found["most"] < 0.1
    assert "error" not in section
    assert "1 left other bytes" in full.in_words(section)


@pytest.mark.parametrize(
    ("name", "change", "where"),
    [("merge", flipped(-1), "out_ptr, in no tensor"), ("cache write, int8 cache", flipped(0, "kv_cache_ptr"), "kv_cache_ptr")],
)
def test_what_no_rounding_explains_is_an_error(name, change, where, monkeypatch):
    section = compared(monkeypatch, name, change)
    assert section["error"].startswith(f"{name}: {where}: 1 of ")
    assert section["error"].endswith("which no rounding explains: GPU or emulator is wrong")


def test_other_code_may_leave_other_bytes(monkeypatch):
    section = compared(monkeypatch, "merge", flipped(-1), code="other code")
    assert section["launches"]["merge"]["differences"]
    assert "error" not in section
    assert full.in_words(section).endswith("1 ran other code")


def test_a_launch_reads_what_the_emulator_left(monkeypatch):
    """One difference is told once, and not of all launches that read it."""
    first, second = compared(monkeypatch, "decode, split", flipped(0, "acc_ptr"))["launches"].values()
    assert [each["where"] for each in first["differences"]] == ["acc_ptr"]
    assert second["differences"] == []


def test_an_error_of_the_emulator_is_told(monkeypatch):
    monkeypatch.setattr(emulator, "on_gpu", lambda _: pytest.fail("the GPU is lost"))
    (call,) = (each for each in CALLS if each.name == "merge")
    section = emulator.compared(call, {"merge"}, "gfx942", device="cpu")
    assert "the GPU is lost" in section["error"]
    assert section["launches"] == {}


NAN, OTHER_NAN = (torch.tensor([bits], dtype=torch.int32).view(torch.float32) for bits in (0x7FC00000, 0x7FC00001))


@pytest.mark.parametrize(
    ("gpu", "emulated", "expected"),
    [
        (torch.tensor([1.0, 2.0, 4.5]), torch.tensor([1.0, 2.5, 4.0]), [(2, 3, 1, 0.5)]),
        (torch.tensor([0.0]), torch.tensor([-0.0]), [(1, 1, 0, 0.0)]),
        (torch.tensor([3], dtype=torch.int32), torch.tensor([4], dtype=torch.int32), [(1, 1, 0, None)]),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, torch.nan]), [(1, 2, 1, None)]),
        (NAN, OTHER_NAN, []),
    ],
)
def test_elements_are_compared_by_their_bits(gpu, emulated, expected):
    found = differences({"x": gpu}, {"x": emulated})
    assert [(each.count, each.of, each.first, each.most) for each in found] == expected


def test_a_byte_of_two_tensors_counts_once_and_one_of_none_too():
    gpu, emulated = torch.zeros(6), torch.zeros(6)
    gpu[0], gpu[5] = 1, 2
    views = ({"a": each[:2], "b": each[:4:2], "none": None} for each in (gpu, emulated))
    found = [*differences(*views)]
    assert [(each.where, each.count, each.of, each.gpu) for each in found] == [
        ("a", 1, 2, "3f800000"),
        ("a, in no tensor", 1, 24, "40"),
    ]


@pytest.mark.parametrize(
    ("same_code", "may_round", "most", "is_fault"),
    [(True, (), 1e-7, True), (True, ("v_exp_f32",), 1e-7, False), (True, ("v_exp_f32",), None, True), (False, (), None, False)],
)
def test_a_fault_is_what_no_rounding_explains(same_code, may_round, most, is_fault):
    one = Difference(where="out_ptr", count=1, of=2, first=0, gpu="0", emulator="1", most=most)
    assert (Compared(same_code, may_round, [one]).fault is not None) == is_fault


@pytest.mark.parametrize(("architecture", "launches"), [("gfx942", 20), ("gfx1201", 20), ("sm90", 0)])
def test_amds_gpus_compare_twenty_launches(architecture, launches, monkeypatch, tmp_path):
    monkeypatch.setattr(sections, "this_architecture", lambda: architecture)
    asked = []
    monkeypatch.setattr(emulator, "compared", lambda call, names, architecture: asked.extend(names) or {})
    for name, section in sections.sections("cuda", examples=1, workers=1, seed=0, folder=tmp_path):
        if name.startswith("bytes of "):
            section()
    assert len(asked) == len({*asked}) == launches
    assert {*asked} <= {*chosen(architecture, main=True)}


def an_ulp_off(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Make an instruction return the float after the right one."""
    meaning = forms.VECTOR[name]

    def make(*context: Any) -> Callable[..., np.ndarray]:
        function = meaning.make(*context)
        return lambda *sources: np.nextafter(function(*sources), np.float32(np.inf))

    monkeypatch.setitem(forms.VECTOR, name, replace(meaning, make=make))


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "is_same"), [("merge", False), ("cache write, int8 cache", True)])
def test_a_rounding_of_reciprocals_does_not_reach_a_cache(name, is_same, monkeypatch):
    """What docs/guide/amd-hardware.md says: divisions correct v_rcp_f32, and nothing corrects v_exp_f32."""

    def on_gpu(call: KernelCall) -> str:
        code = ready(job_of(call, "gfx942")).compiled
        with monkeypatch.context() as patch:
            for instruction in ("v_rcp_f32", "v_rcp_iflag_f32", "v_exp_f32"):
                an_ulp_off(patch, instruction)
            run_ready(Ready(prepare(load(code.text)), code), call.arguments, call.launch.grid)
        return code.text

    monkeypatch.setattr(emulator, "on_gpu", on_gpu)
    (call,) = (each for each in CALLS if each.name == name)
    section = emulator.compared(call, {name}, "gfx942", device="cpu")
    assert "v_rcp_f32" in section["launches"][name]["may_round"]
    assert (section["launches"][name]["differences"] == []) == is_same
