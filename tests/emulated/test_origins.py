"""Would an address that a compiler lost be found, and is code that only looks like it left alone?"""

import pytest
from attn_amdgcn import hot_loop, lane_moves_in_loops, load, lost_addresses

from tests.emulated.kernels import POINTER, kernel_text

THREE = (POINTER, POINTER, ("by_value", 4))
ARGUMENTS = (
    "s_load_dwordx4 s[8:11], s[0:1], 0x0",
    "s_load_dword s12, s[0:1], 0x10",
    "s_mov_b32 s6, 0x7ffffffe",
    "s_mov_b32 s7, 0x27000",
)
FIRST, SECOND = ("s_mov_b64 s[4:5], s[8:9]",), ("s_mov_b64 s[4:5], s[10:11]",)
TO_SCRATCH = "scratch_store_dword off, v9, off offset:4"
LOAD = ("buffer_load_dword v0, v1, s[4:7], 0 offen",)


def kept(row: int = 9) -> tuple[str, ...]:
    """The resource in s[4:7] goes to lanes of a vector register."""
    return tuple(f"v_writelane_b32 v{row}, s{4 + i}, {i}" for i in range(4))


def restored(row: int = 9) -> tuple[str, ...]:
    return tuple(f"v_readlane_b32 s{4 + i}, v{row}, {i}" for i in range(4))


def loop(*body: str) -> tuple[str, ...]:
    return (".LBB0_1:", *body, "s_sub_i32 s12, s12, 1", "s_cmp_lg_u32 s12, 0", "s_cbranch_scc1 .LBB0_1")


OVERWRITTEN = loop(*restored(), *LOAD, *SECOND, *kept())
LOST = {
    "the next tensor's address goes to the same lanes": (*FIRST, *kept(), *OVERWRITTEN),
    "a mask goes to the address": (*FIRST, *kept(), *loop(*restored(), *LOAD, "v_cmp_gt_i32_e64 s[4:5], s12, v1", *kept())),
    "a constant goes to the upper word": (*FIRST, *kept(), *loop(*restored(), *LOAD, "s_mov_b32 s5, 0", *kept())),
    "the lanes lie in an accumulation register meanwhile": (
        *(*FIRST, *kept(), "v_accvgpr_write_b32 a0, v9"),
        *loop("v_accvgpr_read_b32 v9, a0", *restored(), *LOAD, *SECOND, *kept(), "v_accvgpr_write_b32 a0, v9"),
    ),
    "the lanes lie in scratch meanwhile": (
        *(*FIRST, *kept(), TO_SCRATCH),
        *loop("scratch_load_dword v9, off, off offset:4", *restored(), *LOAD, *SECOND, *kept(), TO_SCRATCH),
    ),
    "a scalar load has another base on the second turn": (*FIRST, *loop("s_load_dword s3, s[4:5], 0x0", *SECOND)),
    "a global store has a vector address of two tensors": (
        "v_mov_b32_e32 v2, s8", "v_mov_b32_e32 v3, s9", *loop("global_store_dword v[2:3], v1, off", "v_mov_b32_e32 v2, s10"),
    ),
}  # fmt: skip
SOUND = {
    "the address is restored as it was kept": (*FIRST, *kept(), *loop(*restored(), *LOAD, *kept())),
    "two tensors have lanes of their own": (*FIRST, *kept(), *SECOND, *kept(8), *loop(*restored(), *LOAD, *restored(8), *LOAD)),
    "the address moves on in each turn": (
        *FIRST, *kept(), *loop(*restored(), *LOAD, "s_add_u32 s4, s4, s12", "s_addc_u32 s5, s5, 0", *kept()),
    ),
    "the address is loaded from memory": ("s_load_dwordx2 s[4:5], s[8:9], 0x0", *LOAD),
    "the upper bits are cut": (*FIRST, "s_and_b32 s5, s5, 0xffff", *kept(), *loop(*restored(), *LOAD)),
    "an address is the difference of two tensors behind one": (
        *(*FIRST, "s_sub_u32 s2, s10, s8", "s_subb_u32 s3, s11, s9"),
        *loop(*LOAD, "s_add_u32 s4, s4, s2", "s_addc_u32 s5, s5, s3"),
    ),
    "a register has no value on one way": (
        *("s_cmp_eq_u32 s12, 0", "s_cbranch_scc1 .LBB0_2", *FIRST, "s_branch .LBB0_3", ".LBB0_2:"),
        *("s_mov_b64 s[4:5], s[12:13]", "; implicit-def: $sgpr4_sgpr5", "s_nop 0", ".LBB0_3:", *LOAD),
    ),
    "a loop over lanes loads into the register of their addresses": (
        *("v_mov_b32_e32 v2, s8", "v_mov_b32_e32 v3, s9"),
        *loop("v_readfirstlane_b32 s4, v2", "v_readfirstlane_b32 s5, v3", "buffer_load_dword v2, v1, s[4:7], 0 offen"),
    ),
    "arguments are read behind an offset": ("s_add_u32 s2, s0, 0x10", "s_addc_u32 s3, s1, 0", "s_load_dword s3, s[2:3], 0x0"),
}  # fmt: skip


@pytest.mark.parametrize("what", LOST)
def test_a_lost_address_is_found(what):
    text = kernel_text(*ARGUMENTS, *LOST[what], arguments=THREE, scratch=16)
    (found,) = lost_addresses(load(text), text)
    assert found.instruction.name.startswith(("buffer_load", "s_load", "global_store"))


@pytest.mark.parametrize("what", SOUND)
def test_an_access_that_keeps_its_address_is_left_alone(what):
    text = kernel_text(*ARGUMENTS, *SOUND[what], arguments=THREE)
    assert not lost_addresses(load(text), text)


def test_scalar_spills_are_counted_in_loops_alone():
    def moves(*body: str) -> int:
        return lane_moves_in_loops(load(kernel_text(*ARGUMENTS, *body, arguments=THREE)))

    assert moves(*FIRST, *kept(), *loop(*restored(), *LOAD)) == 4
    assert moves(*FIRST, *kept(), *restored(), *LOAD, *loop("s_nop 0")) == 0
    assert moves(*loop("v_readlane_b32 s3, v1, 63")) == 0, "the last lane of a sum is no spill"


def test_the_hot_loop_is_the_innermost_one_with_most_matrix_instructions():
    def count(*body: str) -> int | None:
        return hot_loop(load(kernel_text(*ARGUMENTS, *body, arguments=THREE)))

    def looped(label: str, *body: str) -> tuple[str, ...]:
        return (f"{label}:", *body, "s_cmp_lg_u32 s12, 0", f"s_cbranch_scc1 {label}")

    product = "v_mfma_f32_16x16x16_f16 v[4:7], v[0:1], v[2:3], v[4:7]"
    short, long = looped(".LBB0_1", product), looped(".LBB0_2", *("s_nop 0",) * 9)
    assert count("s_nop 0") is None
    assert count(*long) == 11
    assert count(*looped(".LBB0_3", *short, *long)) == 3
    behind = ("s_branch .LBB0_9", ".LBB0_8:", "s_nop 1", "s_branch .LBB0_6", ".LBB0_9:", "s_nop 2")
    loop_with_code_behind = looped(".LBB0_5", product, "s_cbranch_execz .LBB0_8", ".LBB0_6:", *("s_nop 0",) * 3)
    assert count(*loop_with_code_behind, *behind) == 9, "a jump back to its middle is no loop of its own"
