"""Executed instructions are counted by class, and every instruction that is known has one class."""

import pytest
from attn_amdgcn import counts, launch, load, multiply_adds, prepare
from attn_amdgcn.counts import CLASSES, class_of, of_matrix_instruction
from attn_amdgcn.instructions.forms import REGISTERED

from tests.emulated.kernels import DATA, KERNEL


def test_each_wave_is_counted():
    program = prepare(load(KERNEL))
    _, report = launch(program, (5, 1, 1), [("data", 0), 1], DATA)
    found = counts(program, report)
    turns = 2 * sum(max(1, workgroup) for workgroup in range(5))  # two waves of each workgroup
    expected = {"scalar memory": 20, "waits": 10, "scalar": 10 + 2 * turns, "branches": turns + 10}
    assert found == dict.fromkeys(CLASSES, 0) | expected
    assert sum(found.values()) == report.wave_instructions
    assert multiply_adds(program, report) == 0


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


def test_matrix_instructions_multiply_what_their_registers_hold():
    """A lane holds so many elements of A and of D as its registers do: rows x k, and rows x columns, of all blocks."""
    for name, rows, k, elements_of_a, blocks in (
        ("v_mfma_f32_32x32x8_f16", 32, 8, 4, 1),
        ("v_mfma_f32_32x32x8f16", 32, 8, 4, 1),
        ("v_mfma_f32_16x16x16bf16_1k", 16, 16, 4, 1),
        ("v_mfma_f32_16x16x8bf16", 16, 8, 2, 1),
        ("v_mfma_f32_4x4x4_16b_f16", 4, 4, 4, 16),
        ("v_mfma_f32_4x4x4f16", 4, 4, 4, 16),
        ("v_mfma_f32_16x16x4f32", 16, 4, 1, 1),
        ("v_mfma_f32_32x32x1f32", 32, 1, 1, 2),
        ("v_mfma_i32_16x16x32_i8", 16, 32, 8, 1),
        ("v_mfma_f32_32x32x64_f8f6f4", 32, 64, 32, 1),
        ("v_mfma_scale_f32_16x16x128_f8f6f4", 16, 128, 32, 1),
    ):
        assert rows * k * blocks == 64 * elements_of_a
        assert of_matrix_instruction(name) == rows * rows * k * blocks, name
    assert of_matrix_instruction("v_wmma_f32_16x16x16_bf16") == 16**3
    assert of_matrix_instruction("v_wmma_f32_16x16x64_fp8_fp8") == 16 * 16 * 64
    for name in REGISTERED:
        if class_of(name) == "matrix":
            assert of_matrix_instruction(name) > 0, name
