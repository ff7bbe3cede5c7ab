"""The emulator knows what Triton makes of the attention kernels of other packages: instructions.txt, without a compiler.

`python -m attn_lab instructions FOLDER --write` writes the file, and the table kernels.csv, from texts that were compiled.
"""

import json

import pytest
from attn_amdgcn.assembly import code_of
from attn_lab.binaries import instructions
from attn_lab.binaries.instructions import Made, Of

from tests.emulated.kernels import kernel_text

STORED = instructions.stored()


@pytest.mark.parametrize("architecture", sorted(frozenset.union(*STORED.values())))
def test_it_knows_each_instruction_with_its_modifiers(architecture):
    forms = [each for each, architectures in STORED.items() if architecture in architectures]
    whys = {each: instructions.why_unknown(code_of(each)[0][0], architecture) for each in forms}
    assert not {each: why for each, why in whys.items() if why}


@pytest.mark.parametrize("text", ["v_never_f32 v0, v0", "v_swap_b32 v0, v0 clamp", "v_add_f32_e32 v0, v0"])
def test_an_unknown_instruction_has_a_reason(text):
    assert instructions.why_unknown(code_of(text)[0][0], "gfx942")


def test_the_longest_form_of_each_mnemonic_and_modifiers_is_chosen_on_each_architecture():
    every, one = frozenset({"gfx942", "gfx1201"}), frozenset({"gfx942"})
    forms = {"v_add_f32 v0, v0, v0": every, "v_add_f32 v0, 0x1000, v0": one, "v_add_f32 v0, v0, v0 clamp": one}
    assert instructions.chosen(forms) == {
        "v_add_f32 v0, 0x1000, v0": one,
        "v_add_f32 v0, v0, v0": every - one,
        "v_add_f32 v0, v0, v0 clamp": one,
    }


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("ds_load_b64 v[4:5], v7 offset:1024", "ds_load_b64 v[0:1], v0 offset:8"),
        ("ds_swizzle_b32 v3, v4 offset:swizzle(SWAP,16)", "ds_swizzle_b32 v0, v0 offset:swizzle(SWAP,16)"),
        ("s_add_i32 s5, s6, -7", "s_add_i32 s0, s0, 1"),
    ],
)
def test_a_form_has_one_register_and_one_number_of_a_kind(text, form):
    assert instructions.form(code_of(text)[0][0]) == form


def test_forms_are_added_to_those_that_are_stored(tmp_path, monkeypatch):
    known, new = frozenset({"gfx942"}), frozenset({"gfx1201"})
    monkeypatch.setattr(instructions, "FILE", tmp_path / "instructions.txt")
    instructions.FILE.write_text("gfx942:\nv_add_f32 v0, v0, v0; v_sub_f32 v0, v0, v0\n")
    instructions.write({"v_add_f32 v0, v0, v0": new})
    assert instructions.stored() == {"v_add_f32 v0, v0, v0": known | new, "v_sub_f32 v0, v0, v0": known}


def test_a_mode_is_unknown_by_all_of_its_kernel():
    ovfl = "s_setreg_imm32_b32 hwreg(HW_REG_MODE, 23, 1), 1"
    for beside, is_known in (("v_mul_f32 v0, v0, v0", True), ("v_rcp_f16_e32 v0, v0", False)):
        text = instructions.Text("vllm", "kernel", "gfx942", "3.9.0", kernel_text(ovfl, beside))
        made, _ = instructions.read([text])
        assert (not made[Of("vllm", "3.9.0", "gfx942")].unknown) == is_known


def test_a_line_of_the_table_says_what_ran_and_what_agrees(tmp_path):
    of = Of("vllm", "3.9.0", "gfx942")
    run = {"target": "vllm-a@gfx942", "versions": {"triton": "3.9.0"}, "refused": 0, "limits": {}, "known": {}, "failures": []}
    found = [run | {"examples": 4, "limits": {"time": 1}}, run | {"examples": 3, "refused": 1, "failures": [{"later": 0}]}]
    (tmp_path / "runs.json").write_text(json.dumps({"schema": "attn-parity.fuzz-runs/1", "runs": found}))
    (tmp_path / "run.json").write_text(json.dumps(run | {"examples": 5, "failures": [{"later": 2}, {}]}))
    made = {of: Made(kernels={"a", "b"}, texts=5, mnemonics={"v_add_f32"})}
    assert [*instructions.rows(made, instructions.runs([tmp_path]))] == [(*of, 2, 5, 1, 12, 10, 5)]
