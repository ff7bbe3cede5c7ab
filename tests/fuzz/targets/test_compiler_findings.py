"""Findings in compilers: their scripts see the fault in machine code, and the installed compiler has it or has not."""

import importlib.util
import json
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest
from attn_amdgcn import AmdgcnError, EmulationFault, Schedule, launch, load, prepare
from attn_lab.findings.places import FOLDER
from attn_lab.findings.scripts import DOES_NOT_SHOW, SHOWS

LOST_SHIFT, BEFORE_EXEC, PARTIAL_SPILL, BEHIND_BARRIER, READS_BEHIND_BARRIER, SAME_PLACE = (
    FOLDER / "compilers" / f"{name}.py"
    for name in (
        "ptxas-lost-shift",
        "llvm-copies-before-exec",
        "llvm-partial-spill",
        "llvm-wait-behind-barrier",
        "llvm-reads-behind-barrier",
        "triton-same-place",
    )
)
WRONG = ["/*0010*/ IMAD R4, R4, 0x1f8, R5 ;", "/*0020*/ IMAD.SHL.U32 R5, R4, 0x10, RZ ;"]
JUMP, LABEL, ON = "s_cbranch_execz .LBB0_1", ".LBB0_1:", "s_or_b64 exec, exec, s[2:3]"
COPY = "v_accvgpr_write_b32 a0, v221"
READ, LOAD = "v_readlane_b32 s12, v48, 14", "buffer_load_dword v46, v46, s[12:15], 0 offen"
WRITE, OTHER = "v_writelane_b32 v48, s12, 14", "s_mov_b64 s[12:13], s[0:1]"
STORE = "ds_write_b64 v4, v[6:7]"
COPIED, COPY_LOAD = "s_mov_b64 s[8:9], s[12:13]", "buffer_load_dword v46, v46, s[8:11], 0 offen"


@pytest.fixture(scope="module")
def script(request: pytest.FixtureRequest) -> ModuleType:
    spec = importlib.util.spec_from_file_location("script", request.param)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("script", [LOST_SHIFT], indirect=True)
@pytest.mark.parametrize(
    ("code", "is_lost"),
    [
        (WRONG, True),
        ([WRONG[0], "/*0018*/ PRMT R7, RZ, 0x7610, R4 ;", WRONG[1]], True),
        ([WRONG[1], WRONG[0]], False),
        ([WRONG[0], "/*0018*/ LOP3.LUT R4, R6, 0x7, RZ, 0xc0, !PT ;", WRONG[1]], False),
    ],
)
def test_a_shift_is_lost_if_its_register_has_the_sum_already(script, code, is_lost):
    assert (script.lost_shift(code) is not None) == is_lost


def test_ptxas_12_8_loses_the_shift_and_later_ones_do_not():
    done = subprocess.run([sys.executable, LOST_SHIFT], capture_output=True, text=True)
    assert done.returncode == (SHOWS if "release 12.8" in done.stdout else DOES_NOT_SHOW), done.stdout + done.stderr


@pytest.mark.parametrize("script", [BEFORE_EXEC], indirect=True)
@pytest.mark.parametrize(
    ("code", "early"),
    [
        ([JUMP, "s_nop 0", LABEL, COPY, "s_mov_b32 s98, s86", ON], [COPY]),
        ([JUMP, LABEL, "s_mov_b32 s98, s86", ON, COPY], []),
        ([JUMP, LABEL, "v_writelane_b32 v255, s3, 55", ON], []),  # it writes one lane, be it on or off
        ([JUMP, LABEL, COPY, "s_mov_b64 exec, s[4:5]", ON], []),
        (["s_cbranch_scc1 .LBB0_1", LABEL, COPY, ON], []),
    ],
)
def test_a_copy_before_lanes_are_switched_on_is_too_early(script, code, early):
    assert script.too_early(code) == early


def test_llvm_22_copies_registers_while_lanes_are_off_and_later_ones_do_not():
    done = subprocess.run([sys.executable, "-W", "ignore", BEFORE_EXEC], capture_output=True, text=True)
    assert done.returncode == (SHOWS if "Triton 3.6." in done.stdout else DOES_NOT_SHOW), done.stdout + done.stderr


@pytest.mark.parametrize("script", [PARTIAL_SPILL], indirect=True)
@pytest.mark.parametrize(
    ("turn", "overwritten"),
    [
        ([READ, LOAD, OTHER, WRITE], [f"{LOAD}: v48 14"]),
        ([READ, LOAD, "s_mov_b32 s12, 0", WRITE], [f"{LOAD}: v48 14"]),
        ([READ, LOAD, "v_cmp_gt_i32_e64 s[12:13], s9, v3", WRITE], [f"{LOAD}: v48 14"]),
        ([READ, COPIED, COPY_LOAD, OTHER, WRITE], [f"{COPY_LOAD}: v48 14"]),
        ([READ, LOAD, WRITE], []),
        ([READ, LOAD, OTHER, "v_writelane_b32 v48, s12, 15"], []),
        ([READ, LOAD, COPIED, OTHER, WRITE, "v_writelane_b32 v48, s8, 14"], []),
        ([OTHER, WRITE, READ, LOAD], []),  # each turn loads through what it has written
        ([READ, OTHER, WRITE, LOAD], []),  # it loads through another address
    ],
)
def test_an_address_is_overwritten_if_the_next_turn_reads_another_one(script, turn, overwritten):
    assert script.overwritten("\n".join(turn)) == overwritten


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("script", [PARTIAL_SPILL], indirect=True)
@pytest.mark.parametrize(("tensors", "masks"), [(5, 42), (5, 44), (6, 50)])
def test_the_emulated_sums_are_wrong_where_an_address_is_overwritten(script, tensors, masks):
    code = script.machine_code(script.kernel(tensors, masks))
    assert _sums_are_right(code, tensors, masks) == (not script.found(code))


def _sums_are_right(code: str, tensors: int, masks: int, bound: int = 100, rows: int = 192) -> bool:
    rng = np.random.default_rng(0)
    values = rng.integers(-8, 8, (tensors, 64))
    slots = rng.integers(0, 64, rows, dtype=np.int32)
    contents = {f"tensor{i}": values[i].astype(np.float32) for i in range(tensors)}
    buffers = {"out": np.zeros(64, np.float32), "slots": slots, **contents}
    arguments = [*((name, 0) for name in buffers), bound, rows]
    try:
        memory, _ = launch(
            prepare(load(code)), (1, 1, 1), arguments, {name: each.view(np.uint8) for name, each in buffers.items()}
        )
    except AmdgcnError:
        return False
    row = np.arange(rows)[:, None]
    is_seen = (row ^ np.arange(masks)) < bound
    read = np.where(is_seen[:, :tensors], values[:, slots].T, 0)  # a load of no place brings 0
    sums = np.where(is_seen[:, None], read[:, :, None], np.arange(masks)).sum(axis=(1, 2)) + 1
    return np.array_equal(memory.contents("out").view(np.float32), sums.reshape(-1, 64).sum(axis=0))


def test_llvm_24_overwrites_an_address_and_earlier_ones_do_not():
    done = subprocess.run([sys.executable, "-W", "ignore", PARTIAL_SPILL], capture_output=True, text=True)
    assert done.returncode == (SHOWS if "Triton 3.9." in done.stdout else DOES_NOT_SHOW), done.stdout + done.stderr


@pytest.mark.parametrize("script", [BEHIND_BARRIER], indirect=True)
@pytest.mark.parametrize(
    ("turn", "is_unwaited"),
    [
        (["s_waitcnt vmcnt(0)", "s_barrier", "s_waitcnt lgkmcnt(0)", STORE], True),
        (["s_waitcnt vmcnt(0) lgkmcnt(0)", "s_barrier", STORE], False),
        (["s_barrier", STORE, "s_waitcnt lgkmcnt(0)"], False),
    ],
)
def test_a_store_of_a_turn_is_waited_for_before_the_barrier_of_the_next(script, turn, is_unwaited):
    assert script.unwaited([".LBB0_1:", *turn, "s_cbranch_scc1 .LBB0_1"]) == [STORE] * is_unwaited


def test_llvm_of_triton_38_and_39_waits_behind_a_barrier():
    done = subprocess.run([sys.executable, "-W", "ignore", BEHIND_BARRIER], capture_output=True, text=True)
    if done.returncode not in (SHOWS, DOES_NOT_SHOW):
        pytest.skip("this Triton does not read the IR of 3.9")
    assert done.returncode == (SHOWS if any(f"Triton 3.{minor}." in done.stdout for minor in (8, 9)) else DOES_NOT_SHOW)


@pytest.mark.parametrize("script", [READS_BEHIND_BARRIER], indirect=True)
@pytest.mark.parametrize(
    ("code", "is_sunk"),
    [
        (["ds_read2st64_b64 v[0:3], v9 offset1:4", "ds_read_b32 v4, v9", "s_barrier"], False),
        (["ds_read_b32 v4, v9", "s_barrier", "s_cbranch_vccnz .LBB0_2", "ds_read2_b64 v[0:3], v9 offset1:4"], True),
        (["s_barrier", "ds_read_b128 v[0:3], v9", "ds_read_b32 v4, v9"], True),
    ],
)
def test_a_read_before_a_barrier_is_sunk_if_the_code_reads_less_than_the_ir(script, code, is_sunk):
    place = "ptr addrspace(3) %0, align 8"
    ir = [f"%{i} = load {of}, {place}" for i, of in enumerate(("<4 x half>", "<2 x i32>", "float"), 1)]
    ir = "\n".join([*ir, "tail call void @llvm.amdgcn.s.barrier()"])
    assert bool(script.sunk(ir, "\n".join(code))) == is_sunk


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("script", [READS_BEHIND_BARRIER], indirect=True)
def test_reads_are_sunk_where_the_emulator_finds_a_race(script):
    code = script.machine_code(script.LLVM_IR)
    buffers = {name: np.zeros(2 * count, np.uint8) for name, count in (("q", 1280), ("k", 2560), ("v", 4096), ("out", 4096))}
    buffers["block_table"] = np.zeros(8, np.uint8)
    arguments = [*((name, 0) for name in buffers), 32, None, None]
    has_race = False
    try:
        launch(prepare(load(code)), (1, 1, 1), arguments, buffers, lds_bytes=1 << 14, schedule=Schedule(races=True))
    except EmulationFault as fault:
        has_race = "race" in fault.what
    assert has_race == bool(script.sunk(script.LLVM_IR, code))


def test_llvm_of_triton_36_and_370_reads_behind_a_barrier():
    done = subprocess.run([sys.executable, "-W", "ignore", READS_BEHIND_BARRIER], capture_output=True, text=True)
    shows = any(f"Triton {release}" in done.stdout for release in ("3.6.", "3.7.0"))
    assert done.returncode == (SHOWS if shows else DOES_NOT_SHOW), done.stdout + done.stderr


@pytest.mark.parametrize("script", [SAME_PLACE], indirect=True)
@pytest.mark.parametrize(("places", "is_same"), [(("%a", "%b", "%a"), True), (("%a", "%b", "%c"), False), ((), False)])
def test_the_last_of_four_tiles_must_not_be_where_the_first_was(script, places, is_same):
    lines = [f"%{i} = amdg.buffer_load_to_local %keys[%at] mask = %m into {place} {{}} : x" for i, place in enumerate(places)]
    assert script.is_same_place("\n".join(lines)) == is_same


COMPILES = """
import json, runpy, sys
binary = runpy.run_path(sys.argv[1])["compiled"](int(sys.argv[2]))
print(json.dumps((binary.asm["ttgir"], binary.asm["amdgcn"], binary.metadata.shared)))
"""
"""For a process of its own, in which Triton's interpreter has patched nothing."""


@pytest.mark.parametrize("script", [SAME_PLACE], indirect=True)
@pytest.mark.parametrize("tiles", [3, 4, 5])
def test_a_tile_is_read_where_another_is_loaded_if_the_emulator_finds_no_wait(script, tiles):
    done = subprocess.run([sys.executable, "-c", COMPILES, SAME_PLACE, str(tiles)], capture_output=True, text=True, check=True)
    ttgir, code, lds_bytes = json.loads(done.stdout)
    sizes = {"slots": 4 * 32 * tiles, "keys": 64, "queries": 1024, "out": 2048}
    buffers = {name: np.zeros(size, np.uint8) for name, size in sizes.items()}
    lacks_wait = False
    try:
        launch(prepare(load(code)), (1, 1, 1), [*((name, 0) for name in sizes), None, None], buffers, lds_bytes=lds_bytes)
    except EmulationFault as fault:
        lacks_wait = "no wait stands before its use" in fault.what
    assert lacks_wait == (tiles == script.TILES and script.is_same_place(ttgir))


def test_triton_38_and_39_load_the_last_tile_where_another_is_read():
    done = subprocess.run([sys.executable, "-W", "ignore", SAME_PLACE], capture_output=True, text=True)
    shows = any(f"Triton 3.{minor}." in done.stdout for minor in (8, 9))
    assert done.returncode == (SHOWS if shows else DOES_NOT_SHOW), done.stdout + done.stderr
