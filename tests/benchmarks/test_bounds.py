"""Hot loops in AMD's assembly, and what published rates let them reach."""

import pytest

from benchmarks.assembly.loops import HotLoop, Pipeline, bounds_of, hot_loop, innermost_loops
from benchmarks.assembly.rates import Cost, UnknownRateError, cost_of

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
    first, second, third = ([line.split()[0] for line in loop] for loop in innermost_loops(ASSEMBLY))
    assert first[0] == "v_exp_f32_e32"
    assert first[-2:] == ["global_load_dwordx4", "s_cbranch_execnz"]
    assert len(first) == 6
    assert second == ["v_mfma_f32_16x16x16_f16", "ds_read_b128", "s_cbranch_scc1"]
    assert third == ["v_add_f32_e32", "s_branch"]


def found(assembly: str) -> HotLoop:
    loop = hot_loop(assembly)
    assert loop is not None
    return loop


def test_the_hot_loop_is_the_shortest_of_those_that_multiply_most():
    alike = ASSEMBLY.replace("v_mfma_f32_16x16x16_f16", "v_mfma_f32_32x32x8_f16")
    assert found(alike).cost == Cost(instructions=3, matrix=1, matrix_cycles=32.0, lds_bytes=64 * 16)
    of_larger_tile = found(ASSEMBLY).cost
    assert (of_larger_tile.matrix_cycles, of_larger_tile.instructions) == (32.0, 6)
    assert hot_loop(ASSEMBLY.replace("v_mfma_f32", "v_add_f32")) is None


MULTIPLY, WAIT, BARRIER = "v_mfma_f32_32x32x8_bf16 a[0:15], v[0:1], v[2:3], a[0:15]", "s_waitcnt vmcnt({})", "s_barrier"
LOAD, NARROW, STORE = (
    "buffer_load_dwordx4 v[0:3], v4, s[0:3], 0 offen",
    "global_load_dword v5, v[6:7], off",
    "ds_write_b128 v0, v[0:3]",
)


@pytest.mark.parametrize(
    ("turn", "pipeline"),
    [
        # all is waited for at once
        ([LOAD, WAIT.format(0), STORE, BARRIER, MULTIPLY, MULTIPLY, BARRIER], Pipeline(0.0, 2, 1)),
        # the load of this turn is waited for in the next one
        ([WAIT.format(0), STORE, BARRIER, LOAD, MULTIPLY, MULTIPLY], Pipeline(1.0, 1, 1)),
        # one load may still be under way, so that each is waited for a turn later
        ([LOAD, WAIT.format(1), BARRIER, MULTIPLY, MULTIPLY], Pipeline(1.0, 1, 0)),
        # 16 bytes wait for one of two, and 4 bytes for none
        ([LOAD, MULTIPLY, NARROW, WAIT.format(0), MULTIPLY], Pipeline(0.4, 0, 0)),
        ([LOAD.replace("buffer_load_dwordx4", "global_load_lds_dwordx4"), MULTIPLY, WAIT.format(0)], Pipeline(1.0, 0, 0)),
        (
            [LOAD.replace("dwordx4", "b128"), MULTIPLY, "s_wait_loadcnt 0x0", "s_barrier_signal -1", "s_barrier_wait -1"],
            Pipeline(1.0, 1, 0),
        ),
    ],
)
def test_how_far_a_loop_loads_ahead(turn, pipeline):
    loop = "\n".join(f"\t{line}" for line in [*turn, "s_cbranch_scc1 .LBB0_1"])
    assert found(f".LBB0_1:\n{loop}\n").pipeline == pipeline
    longer = f".LBB0_1:\n\ts_nop 0\n{loop}\n.LBB0_2:\n{loop.replace('_1', '_2')}\n"
    assert found(longer).pipeline == pipeline


def test_a_loop_that_loads_nothing_has_no_pipeline():
    assert found(f".LBB0_1:\n\t{MULTIPLY}\n\ts_cbranch_scc1 .LBB0_1\n").pipeline is None
    assert found(f".LBB0_1:\n\t{LOAD}\n\tv_fmac_f32_e32 v0, v1, v2\n\ts_cbranch_scc1 .LBB0_1\n").pipeline is None


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
