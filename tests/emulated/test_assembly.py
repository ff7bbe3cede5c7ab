"""The text of a kernel: what is read, and what is no kernel."""

import pytest
from attn_amdgcn import AssemblyError, load
from attn_amdgcn.assembly import Literal, Named, Operand, Register, code_of

from tests.emulated.kernels import kernel_text


def operands(text: str) -> list[Operand]:
    ((instruction,), _) = code_of(text)
    return list(instruction.operands)


def test_registers_are_numbered_with_their_count():
    found = operands("v_fma_f64 v[2:3], s[4:5], a7, vcc")
    assert [operand.of for operand in found] == [
        Register("v", 2, 2),
        Register("s", 4, 2),
        Register("a", 7, 1),
        Register("vcc", 0, 2),
    ]


def test_signs_and_halves_stand_around_an_operand():
    assert operands("v_add_f32 v0, -v1, |v2|")[1:] == [
        Operand(Register("v", 1, 1), neg=True),
        Operand(Register("v", 2, 1), abs=True),
    ]
    assert operands("v_add_f32 v0, -|v1|, sext(v2)")[1:] == [
        Operand(Register("v", 1, 1), neg=True, abs=True),
        Operand(Register("v", 2, 1), sext=True),
    ]
    assert operands("v_mov_b16 v0.h, v1.l")[0].of == Register("v", 0, 1, "h")


def test_a_number_with_a_point_is_a_float():
    assert [operand.of for operand in operands("v_add_f32 v0, 1.0, 0x3f800000")[1:]] == [Literal(1.0), Literal(0x3F800000)]
    assert operands("v_add_f32 v0, -4.0, -16")[1:] == [Operand(Literal(-4.0)), Operand(Literal(-16))]


def test_modifiers_follow_the_last_operand():
    ((instruction,), _) = code_of("buffer_load_dword v14, v13, s[36:39], 0 offen offset:16 sc0")
    assert len(instruction.operands) == 4
    assert instruction.modifiers == {"offen": True, "offset": 16, "sc0": True}
    ((instruction,), _) = code_of("v_pk_mul_f32 v[0:1], v[2:3], v[4:5] op_sel_hi:[1,0] neg_lo:[0,1]")
    assert instruction.modifiers == {"op_sel_hi": (1, 0), "neg_lo": (0, 1)}


def test_a_dual_instruction_is_two():
    ((instruction,), _) = code_of("v_dual_mov_b32 v1, -1 :: v_dual_and_b32 v2, 31, v0")
    assert instruction.second is not None
    assert (instruction.name, instruction.second.name) == ("v_dual_mov_b32", "v_dual_and_b32")


def test_labels_and_source_lines():
    text = '\t.file\t1 "/somewhere" "kernel.py"\n\t.loc\t1 7 0\n\ts_nop 0\n.LBB0_1:\n\t.loc\t1 9 0\n\ts_branch .LBB0_1\n'
    (first, second), labels = code_of(text)
    assert (first.source, second.source) == ("kernel.py:7", "kernel.py:9")
    assert labels == {".LBB0_1": 1}
    assert second.operands[0].of == Named(".LBB0_1")


def test_a_word_that_is_no_operand_is_refused_with_its_line():
    with pytest.raises(AssemblyError, match="line 2: `v_mov_b32 v0, %q`: '%q' is no operand"):
        code_of("s_nop 0\nv_mov_b32 v0, %q")


def test_a_text_without_instructions_is_refused():
    with pytest.raises(AssemblyError, match="no instruction"):
        code_of("")


def test_a_branch_by_the_program_counter_is_a_branch():
    text = """\ts_nop 0
\ts_getpc_b64 s[46:47]
.Lpost_getpc0:
\ts_add_u32 s46, s46, (.LBB0_38-.Lpost_getpc0)&4294967295
\ts_addc_u32 s47, s47, (.LBB0_38-.Lpost_getpc0)>>32
\ts_setpc_b64 s[46:47]
\ts_nop 1
.LBB0_38:
\ts_nop 2
"""
    (_, branch, after, _), labels = code_of(text)
    assert (branch.name, branch.operands[0].of, branch.line) == ("s_branch", Named(".LBB0_38"), 2)
    assert (after.line, labels) == (7, {".LBB0_38": 3})
    with pytest.raises(AssemblyError, match="is no operand"):
        code_of(text.replace("s_setpc_b64 s[46:47]", "s_setpc_b64 s[48:49]"))


@pytest.mark.parametrize(
    "wait",
    [pytest.param("0xfffe", id="the LLVM of Triton 3.6"), pytest.param("depctr_sa_sdst(0)", id="the LLVM of Triton 3.9")],
)
def test_a_branch_by_the_program_counter_may_hold_waits_for_the_scalar_unit(wait):
    """The instruction as gfx1201 has it."""
    text = f"""\ts_getpc_b64 s[46:47]
.Lpost_getpc0:
\ts_wait_alu {wait}
\ts_add_co_u32 s46, s46, (.LBB0_38-.Lpost_getpc0)&4294967295
\ts_add_co_ci_u32 s47, s47, (.LBB0_38-.Lpost_getpc0)>>32
\ts_wait_alu {wait}
\ts_setpc_b64 s[46:47]
.LBB0_38:
\ts_nop 2
"""
    (branch, after), labels = code_of(text)
    assert (branch.name, branch.operands[0].of, after.line) == ("s_branch", Named(".LBB0_38"), 9)
    assert labels == {".LBB0_38": 1}


def test_the_name_of_an_argument_that_yaml_reads_as_no_text_has_a_tag():
    text = kernel_text("s_nop 0")
    named = text.replace("- .name: kernel", "- .name: !str n")
    assert named != text
    assert load(named).name == "n"
    with pytest.raises(AssemblyError, match="cannot be read: ConstructorError"):
        load(text.replace("- .name: kernel", "- .name: !other n"))


def named(name: str, instruction: str) -> tuple[str, str]:
    """The code of a kernel with a name, and the entry of its metadata."""
    text = kernel_text(instruction).replace("kernel:", f"{name}:").replace("_kernel kernel", f"_kernel {name}")
    code, _, metadata = text.replace(".name: kernel", f".name: {name}").partition("    .amdgpu_metadata")
    return code, metadata.partition("amdhsa.kernels:\n")[2].partition("amdhsa.target")[0]


@pytest.mark.parametrize(("name", "instruction"), [("one", "s_nop 0"), ("two", "s_nop 1")])
def test_a_name_picks_one_of_several_kernels(name: str, instruction: str):
    codes, entries = zip(named("one", "s_nop 0"), named("two", "s_nop 1"), strict=True)
    metadata = (
        "---",
        "amdhsa.kernels:",
        *(entry.rstrip() for entry in entries),
        "amdhsa.target: amdgcn-amd-amdhsa--gfx942",
        "...",
    )
    text = "\n".join((*codes, ".amdgpu_metadata", *metadata, ".end_amdgpu_metadata"))
    kernel = load(text, name)
    assert (kernel.name, kernel.instructions[0].text) == (name, instruction)
    with pytest.raises(AssemblyError, match="2 kernels, and 1 is expected"):
        load(text)
    with pytest.raises(AssemblyError, match="0 kernels of the name three"):
        load(text, "three")
