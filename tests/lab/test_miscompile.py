"""Is a change of each kind made, and found? Does the page say what was found, and why the rest was not?"""

import numpy as np
import pytest
from attn_amdgcn import checked, load, prepare
from attn_amdgcn.assembly import code_of
from attn_fuzz.verdict.verdict import Verdict
from attn_lab.commands import miscompile
from attn_lab.miscompile import operators, page, trials
from attn_lab.miscompile.subjects import Launch, Subject

from tests.emulated.kernels import kernel_text

KERNEL = kernel_text(
    "s_load_dwordx2 s[4:5], s[0:1], 0x0",
    "v_lshlrev_b32_e32 v1, 2, v0",
    "v_sub_u32_e32 v2, 0x1ff, v0",
    "s_mov_b32 s6, 0",
    "again:",
    "s_add_i32 s6, s6, 1",
    "s_cmp_lt_i32 s6, 3",
    "s_cbranch_scc1 again",
    "ds_write_b32 v1, v2",
    "v_xor_b32_e32 v4, 0x1fc, v1",
    "s_waitcnt lgkmcnt(0)",
    "s_barrier",
    "ds_read_b32 v5, v4",
    "s_waitcnt lgkmcnt(0)",
    "v_cvt_f32_u32_e32 v6, v5",
    "v_cvt_f32_u32_e32 v7, s6",
    "v_mul_f32_e64 v6, -v6, v7",
    "global_store_dword v1, v6, s[4:5] offset:512",
)
"""128 lanes write their numbers, reversed, into LDS, and read those that other waves wrote."""


@pytest.fixture(scope="module")
def subject() -> Subject:
    program = prepare(load(KERNEL))
    buffers = {"out": np.zeros(1024, np.uint8)}
    memory, report = checked(program, (1, 1, 1), [("out", 0)], buffers, lds_bytes=512)
    assert memory.contents("out").view(np.float32)[128:131].tolist() == [-1152, -1155, -1158]  # 511 - 127 + i, by -3
    after = {"out": memory.contents("out").copy()}
    launch = Launch(None, (1, 1, 1), [("out", 0)], buffers, after, 512, report.wave_instructions)  # type: ignore[arg-type]
    return Subject("gfx942", "kernel", program, report.executed > 0, [launch])


@pytest.fixture(autouse=True)
def judged(monkeypatch):
    """The launch is no case: the judge finds what leaves other bits."""
    monkeypatch.setattr(trials, "try_case", lambda case, target, device: Verdict(kind="value", message="judged"))


def of_kind(subject: Subject, kind: str, text: str, number: int = 0) -> trials.Mutant:
    """The change of an instruction that begins with a text."""
    code = subject.program.kernel.instructions
    place = next(i for i, instruction in enumerate(code) if instruction.text.startswith(text))
    return trials.Mutant(subject, kind, place, number, list(operators.OPERATORS[kind](code[place]))[number])


@pytest.mark.parametrize(
    ("kind", "text", "by", "change"),
    [
        ("deleted", "s_add_i32", "endless", "nothing"),
        ("deleted", "v_sub_u32", "order", "nothing"),
        ("without-wait", "s_waitcnt", "race", "nothing"),
        ("without-barrier", "s_barrier", "race", "nothing"),
        ("swapped-operands", "v_sub_u32", "value", "v0 for 511"),
        ("number", "v_sub_u32", "value", "510 for 511"),
        ("offset", "global_store", "value", "offset 511"),
        ("edge", "s_cmp_lt", "value", "s_cmp_le_i32"),
        ("modifier", "v_mul_f32", "value", "v6 for -v6"),
        ("register", "v_cvt_f32", "value", "v5 for v6"),
    ],
)
def test_a_change_is_made_and_found(subject, kind, text, by, change):
    trial = trials.tried(of_kind(subject, kind, text))
    assert trial.change.endswith(f"-> {change}")
    assert trial.by == by or (kind, trial.by) in {("register", "order"), ("offset", "memory")}
    assert trial.name.startswith("gfx942:kernel:")
    assert f":{kind}:" in trial.name


def test_the_sources_of_a_matrix_instruction_are_swapped():
    (instruction,) = code_of("v_mfma_f32_16x16x16_f16 a[0:3], v[4:5], v[6:7], a[0:3]")[0]
    (swapped,) = operators.swapped_matrices(instruction)
    assert [operand.of.index for operand in swapped.operands] == [0, 6, 4, 0]
    assert not list(operators.swapped_operands(instruction))


@pytest.mark.parametrize(
    ("text", "kind", "changes"),
    [
        ("v_add_u32_e32 v0, v1, v2", "swapped-operands", []),  # it may add in any order
        ("v_fma_f32 v0, v1, v2, v3", "swapped-operands", ["v2 for v1", "v3 for v2"]),
        ("s_waitcnt vmcnt(0)", "deleted", []),
        ("v_cmp_eq_u32_e32 vcc, v0, v1", "edge", ["v_cmp_ne_u32"]),
        ("v_cmp_neq_f32_e32 vcc, v0, v1", "edge", ["v_cmp_nlg_f32"]),
        ("v_add_f32_dpp v0, v1, v2 quad_perm:[1,0,3,2] row_mask:0xa bank_mask:0xf", "modifier", ["row_mask dropped"]),
        ("v_pk_mul_f32 v[0:1], v[2:3], v[4:5] op_sel_hi:[1,0]", "modifier", ["op_sel_hi dropped"]),
        ("v_mov_b32_e32 v3, v4", "register", ["v2 for v3", "v4 for v3", "v3 for v4", "v5 for v4"]),
    ],
)
def test_changes_of_an_instruction(text, kind, changes):
    (instruction,) = code_of(text)[0]
    found = [operators.change(instruction, other).partition(" -> ")[2] for other in operators.OPERATORS[kind](instruction)]
    assert [each for each in found if not each.startswith("quad_perm")] == changes


def test_a_seed_draws_the_same_mutants_and_a_longer_sample_begins_with_them(subject):
    names = [mutant.name for mutant in trials.drawn([subject], 30, "1")]
    assert names[:10] == [mutant.name for mutant in trials.drawn([subject], 10, "1")]
    assert len(set(names)) == 30
    assert {name.split(":")[3] for name in names} == set(operators.OPERATORS) - {"swapped-matrices"}


def test_a_log_gets_what_it_lacks(subject, monkeypatch, tmp_path):
    monkeypatch.setattr(trials, "families", lambda architecture, seed, count: [[]] * count)
    monkeypatch.setattr(trials, "subjects", lambda architecture, cases: [subject])
    log = tmp_path / "log.jsonl"
    assert trials.logged_trials("gfx942", 1, 2, 3, 0, str(log)) == 3
    with log.open("ab") as file:
        file.write(b'{"name": "cut sh')  # as an end of the process leaves it
    assert len(page.logged(log)) == 3
    assert trials.logged_trials("gfx942", 1, 2, 3, 0, str(log)) == 0


@pytest.mark.parametrize(("outcome", "interrupted", "code"), [([], True, 130), ("it ended", False, 2), ([], False, 0)])
def test_only_a_whole_sample_is_written(attn_lab, tmp_path, monkeypatch, outcome, interrupted, code):
    written = []
    monkeypatch.setattr(miscompile, "in_processes", lambda work, jobs, *_, **__: (dict.fromkeys(jobs, outcome), interrupted))
    monkeypatch.setattr(page, "save", lambda *_: written.append("csv"))
    (tmp_path / page.DATA).parent.mkdir(parents=True)
    run = attn_lab("miscompile", "--layers", "1", "--log", tmp_path / "log.jsonl", "--write")
    assert run.code == code
    assert ("gfx942, layer 0: it ended" in run.err) == (code == 2)
    assert written == ([] if code else ["csv"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--write --arch gfx942", "--write: expected no --arch: the page has a whole sample"),
        ("--write --read --log missing.jsonl", "--log: missing.jsonl does not exist, so there is nothing to read"),
        ("--write", "--write: the folder docs/generated does not exist"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_the_work(options, message, attn_lab, monkeypatch):
    for name in ("in_processes", "page.save"):
        monkeypatch.setattr(f"attn_lab.commands.miscompile.{name}", lambda *_, **__: pytest.fail("it worked"))
    run = attn_lab("miscompile", *options.split())
    assert (run.code, message in run.err) == (2, True), run.err
