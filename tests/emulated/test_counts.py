"""Executed instructions are counted by class, and every instruction that is known has one class."""

import pytest
from attn_amdgcn import counts, launch, load, prepare
from attn_amdgcn.counts import CLASSES, class_of
from attn_amdgcn.instructions.forms import REGISTERED

from tests.emulated.test_run import DATA, KERNEL


def test_each_wave_counts():
    program = prepare(load(KERNEL))
    _, report = launch(program, (5, 1, 1), [("data", 0), 1], DATA)
    found = counts(program, report)
    turns = 2 * sum(max(1, workgroup) for workgroup in range(5))  # two waves of each workgroup
    expected = {"scalar memory": 20, "waits": 10, "scalar": 10 + 2 * turns, "branches": turns + 10}
    assert found == dict.fromkeys(CLASSES, 0) | expected
    assert sum(found.values()) == report.wave_instructions


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("v_mfma_f32_32x32x8_f16", "matrix"),
        ("v_wmma_f32_16x16x16_f16", "matrix"),
        ("v_dual_fmac_f32", "vector"),
        ("buffer_load_dwordx4", "global memory"),
        ("scratch_load_b32", "scratch memory"),
        ("ds_read_b128", "LDS"),
        ("s_load_dwordx2", "scalar memory"),
        ("s_cbranch_execz", "branches"),
        ("s_wait_loadcnt", "waits"),
        ("s_barrier_signal", "waits"),
        ("s_add_u32", "scalar"),
    ],
)
def test_the_class_of_an_instruction(name, kind):
    assert class_of(name) == kind


def test_every_known_instruction_has_a_class():
    kinds = {class_of(name) for name in REGISTERED}
    assert kinds >= {*CLASSES} - {"branches"}
    with pytest.raises(ValueError, match="instruction 'image_load' has no class"):
        class_of("image_load")
