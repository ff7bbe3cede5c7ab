"""Hot loops in AMD's assembly, and what published rates let them reach."""

import pytest
from click.testing import CliRunner

from benchmarks.__main__ import cli
from benchmarks.bounds import page
from benchmarks.bounds.loops import bounds_of, hot_loop, innermost_loops
from benchmarks.bounds.rates import Cost, UnknownRateError, cost_of
from benchmarks.bounds.results import Results, Row, read
from benchmarks.speed.participants import OURS, VLLM

ASSEMBLY = """
kernel:
\ts_mov_b32 s0, 0
.LBB0_1:                                ; =>This Loop Header: Depth=1
                                        ;     Child Loop BB0_2 Depth 2
\tv_add_f32_e32 v0, v1, v2
.LBB0_2:                                ;   Parent Loop BB0_1 Depth=1
                                        ; =>  This Inner Loop Header: Depth=2
\tv_exp_f32_e32 v0, v1
\tv_mfma_f32_32x32x8_bf16 a[0:15], v[0:1], v[2:3], a[0:15]
\ts_cbranch_scc1 .LBB0_3
\tv_add_f32_e32 v0, v1, v2
.LBB0_3:                                ;   in Loop: Header=BB0_2 Depth=2
\tglobal_load_dwordx4 v[0:3], v4, s[0:1]
\ts_cbranch_execnz .LBB0_2
; %bb.4:
\ts_cbranch_scc1 .LBB0_1
.LBB0_5:                                ; =>This Inner Loop Header: Depth=1
\tv_mfma_f32_16x16x16_f16 a[0:3], v[0:1], v[2:3], a[0:3]
\tds_read_b128 v[0:3], v4
\ts_cbranch_scc1 .LBB0_5
.LBB0_6:                                ; =>This Inner Loop Header: Depth=1
\tv_add_f32_e32 v0, v1, v2
\ts_branch .LBB0_6
\ts_endpgm
"""


def test_loops_without_a_loop_in_them():
    first, second, third = innermost_loops(ASSEMBLY)
    assert first[0] == "v_exp_f32_e32"
    assert first[-2:] == ["global_load_dwordx4", "s_cbranch_execnz"]
    assert len(first) == 6
    assert second == ["v_mfma_f32_16x16x16_f16", "ds_read_b128", "s_cbranch_scc1"]
    assert third == ["v_add_f32_e32", "s_branch"]


def test_the_hot_loop_is_the_shortest_of_those_that_multiply_most():
    alike = ASSEMBLY.replace("v_mfma_f32_16x16x16_f16", "v_mfma_f32_32x32x8_f16")
    assert hot_loop(alike) == Cost(instructions=3, matrix=1, matrix_cycles=32.0, lds_bytes=64 * 16)
    of_larger_tile = hot_loop(ASSEMBLY)
    assert of_larger_tile is not None
    assert (of_larger_tile.matrix_cycles, of_larger_tile.instructions) == (32.0, 6)
    assert hot_loop(ASSEMBLY.replace("v_mfma_f32", "v_add_f32")) is None


@pytest.mark.parametrize(
    ("mnemonic", "cost"),
    [
        ("v_mfma_f32_32x32x8_bf16", {"matrix": 1, "matrix_cycles": 32.0}),
        ("v_mfma_f32_32x32x16_fp8_fp8", {"matrix": 1, "matrix_cycles": 32.0}),
        ("v_mfma_f32_16x16x4_f32", {"matrix": 1, "matrix_cycles": 32.0}),
        ("v_mfma_f32_32x32x4_2b_bf16", {"matrix": 1, "matrix_cycles": 32.0}),
        ("v_mfma_f32_16x16x8_xf32", {"matrix": 1, "matrix_cycles": 16.0}),
        ("v_mul_lo_u32", {"vector_cycles": 16}),
        ("v_pk_mul_f32", {"vector_cycles": 4}),
        ("ds_read2st64_b64", {"lds_bytes": 1024}),
        ("ds_bpermute_b32", {"lds_bytes": 256}),
        ("ds_write_b16_d16_hi", {"lds_bytes": 128}),
        ("ds_read_u8", {"lds_bytes": 64}),
        ("buffer_load_dword", {"l1_bytes": 256, "loaded_bytes": 256}),
        ("global_store_dwordx2", {"l1_bytes": 512}),
        ("buffer_load_ushort", {"l1_bytes": 128, "loaded_bytes": 128}),
        ("scratch_load_dwordx4", {"l1_bytes": 1024}),
        ("s_barrier", {}),
    ],
)
def test_what_an_instruction_takes(mnemonic, cost):
    assert cost_of(mnemonic) == Cost(instructions=1, **cost)


@pytest.mark.parametrize(
    "mnemonic",
    [
        "v_mfma_f64_16x16x4_f64",
        "v_smfmac_f32_16x16x32_bf16",
        "global_atomic_add",
        "scratch_load_b96",
        "ds_add_u32",
        "image_load",
    ],
)
def test_an_instruction_without_a_published_rate_is_refused(mnemonic):
    with pytest.raises(UnknownRateError, match=mnemonic):
        cost_of(mnemonic)


def test_few_waves_cannot_hide_one_unit_behind_another():
    turn = Cost(instructions=10, matrix=1, matrix_cycles=100, vector_cycles=50, lds_bytes=32, l1_bytes=32, loaded_bytes=32)
    assert bounds_of(turn, 1)[::2] == (100 / 150, "one after the other")
    assert bounds_of(turn, 2)[::2] == (1.0, "matrix")
    slow = turn._replace(lds_bytes=32 * 200)
    assert bounds_of(slow, 2)[::2] == (0.5, "LDS")
    assert bounds_of(slow, 2).bandwidth == pytest.approx(32 * 4 / 200 / (5.3e12 / 304 / 2.1e9))


def test_a_page_is_of_its_own_cases(tmp_path):
    for asked in (["--seed", "1"], ["--drawn", "2"], ["--only", "decode"]):
        ended = CliRunner().invoke(cli, ["bounds", "--page", str(tmp_path / "bounds.md"), *asked])
        assert (ended.exit_code, "a page is of all cases of --drawn" in " ".join(ended.output.split())) == (2, True)


def test_a_page_is_what_its_data_say(tmp_path):
    turn = Cost(instructions=20, matrix=2, matrix_cycles=64, vector_cycles=128, lds_bytes=640, l1_bytes=64, loaded_bytes=64)
    place = ("gfx942", "3 decode: a model")
    rows = (
        Row(*place, OURS, "attention_kernel", 1, 2, turn),
        Row(*place, VLLM, "kernel", 4, 2, turn._replace(vector_cycles=256)),
    )
    rows += (Row("gfx942", "5 chunks: a model", VLLM, "wide", 8, 0, turn),)
    without = Row("gfx942", "4 prompts: a model", VLLM).without("CompilationError: at\n 1")
    found = Results(triton="3.9.0", peers={VLLM: "1"}, rows=(*rows, without))
    data = tmp_path / "bounds.csv"
    data.write_text(found.csv(), encoding="utf-8")
    assert read(data) == found
    text = page.text(found)
    assert f"| decode | {OURS} | 1 | 10.0 | 50% | " in text
    assert f"| 3 decode: a model | {VLLM} | kernel | 4 | 2 | 10.0 | 64 | 256 | 20 | 2 | 25% | " in text
    assert "CompilationError: at 1" in text
    assert "| wide: wants more LDS or registers than there are |  |" in text
    (tmp_path / "bounds.md").write_text(text, encoding="utf-8")
    check = ["bounds", "--check", "--page", str(tmp_path / "bounds.md")]
    assert CliRunner().invoke(cli, check).exit_code == 0
    (tmp_path / "bounds.md").write_text(text.replace("25%", "52%"), encoding="utf-8")
    ended = CliRunner().invoke(cli, check)
    assert (ended.exit_code, "is not what" in " ".join(ended.output.split())) == (1, True)
