"""The emulator knows what Triton makes of the attention kernels of other packages: instructions.txt, without a compiler.

`python -m attn_lab instructions FOLDER --write` writes the file from texts that were compiled.
"""

import pytest
from attn_amdgcn.assembly import code_of
from attn_lab.binaries import instructions

STORED = instructions.stored()


@pytest.mark.parametrize("architecture", sorted(frozenset.union(*STORED.values())))
def test_it_knows_each_instruction_with_its_modifiers(architecture):
    forms = [each for each, architectures in STORED.items() if architecture in architectures]
    assert len(forms) > 100
    whys = {each: instructions.why_unknown(code_of(each)[0][0], architecture) for each in forms}
    assert not {each: why for each, why in whys.items() if why}


@pytest.mark.parametrize("text", ["v_never_f32 v0, v0", "v_swap_b32 v0, v0 clamp", "v_add_f32_e32 v0, v0"])
def test_what_it_does_not_know_is_told(text):
    assert instructions.why_unknown(code_of(text)[0][0], "gfx942")


def test_the_longest_form_of_each_mnemonic_and_modifiers_is_chosen_on_each_architecture():
    every, one = frozenset({"gfx942", "gfx1201"}), frozenset({"gfx942"})
    forms = {"v_add_f32 v0, v0, v0": every, "v_add_f32 v0, 0x1000, v0": one, "v_add_f32 v0, v0, v0 clamp": one}
    assert instructions.chosen(forms) == {
        "v_add_f32 v0, 0x1000, v0": one,
        "v_add_f32 v0, v0, v0": every - one,
        "v_add_f32 v0, v0, v0 clamp": one,
    }
