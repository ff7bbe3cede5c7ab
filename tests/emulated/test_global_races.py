"""Races in global memory, planted one by one, and drawn ones against all pairs of accesses."""

import random
from dataclasses import dataclass

import numpy as np
import pytest
from attn_amdgcn import EmulationFault, Schedule, UnknownInstructionError
from attn_amdgcn.assembly import Instruction
from attn_amdgcn.global_races import GlobalRaces
from attn_amdgcn.memory import Memory
from attn_amdgcn.watch import Access

from tests.emulated.kernels import LSHL, checked_run
from tests.emulated.lines import ran

LANES = np.arange(64, dtype=np.uint32)
OWN = LANES * 4 + np.array([[0], [256]], np.uint32)
"""[2 waves, 64 lanes]: each lane its own word."""
OTHER = OWN[::-1]
VALUES = np.arange(128, dtype=np.uint32).reshape(2, 64)
LOAD, STORE = "global_load_dword v3, v1, s[100:101]", "global_store_dword v0, v2, s[100:101]"
WAIT = "s_waitcnt vmcnt(0)"
RACES = (Schedule(races=True),)


def run(*lines, races=True, v=None):
    registers = {0: OWN, 1: OTHER, 2: VALUES} | (v or {})
    return ran("\n".join(lines), v=registers, buffers={"data": np.zeros(1024, np.uint8)}, num_waves=2, races=races)


@pytest.mark.parametrize(
    ("lines", "does"),
    [
        ((STORE, WAIT, LOAD), "reads byte 256 of data, which wave 1 of workgroup 0 wrote"),
        ((LOAD, WAIT, STORE), "writes byte 0 of data, which wave 1 of workgroup 0 read"),
        ((STORE, "global_store_byte v1, v2, s[100:101]"), "writes byte 256 of data, which wave 1 of workgroup 0 wrote"),
        (("global_store_short v3, v2, s[100:101]",), "writes byte 8 of data, which wave 0 of workgroup 0 wrote"),
        (("s_load_dword s4, s[100:101], 0x104", STORE), "writes byte 260 of data, which wave 0 of workgroup 0 read"),
    ],
)
def test_a_missing_barrier_is_found(lines, does):
    v = {3: np.broadcast_to(np.where(LANES == 5, 8, LANES * 4 + 512), (2, 64)) + np.where(LANES == 5, 0, [[0], [256]])}
    with pytest.raises(EmulationFault) as found:
        run(*lines, v=v)
    assert f"a race: it {does} by `{lines[0]}`, line 1 of the assembly" in found.value.what
    assert "with no barrier between" in found.value.what
    assert found.value.instruction == lines[-1]
    run(*lines, races=False, v=v)


def test_barriers_order_waves_of_a_workgroup():
    run(STORE, WAIT, "s_barrier", LOAD, WAIT, "s_barrier", STORE, WAIT, "s_barrier", LOAD)


def test_waves_may_use_their_own_bytes_and_read_one_byte():
    last_word = "global_load_dword v3, v4, s[100:101] offset:1020"
    run(STORE, WAIT, "global_load_dword v3, v0, s[100:101]", WAIT, STORE, last_word, v={4: 0})


def test_copies_of_one_value_do_not_race():
    copies = {0: np.broadcast_to(LANES * 4, (2, 64)), 2: np.broadcast_to(LANES, (2, 64))}
    run(STORE, STORE, v=copies)
    with pytest.raises(EmulationFault, match="which wave 1 of workgroup 0 wrote"):
        run(STORE, WAIT, "global_load_dword v3, v0, s[100:101]", v=copies)


def test_lanes_that_are_off_do_not_race():
    run(STORE, "s_mov_b64 exec, 0", LOAD)


@pytest.mark.parametrize(
    ("body", "does"),
    [
        # every workgroup stores its number, and then one number, into byte 0
        (["v_mov_b32_e32 v2, s2", "global_store_dword v3, v2, s[4:5]"], "writes byte 0 of out, .* wrote"),
        (["global_store_dword v3, v3, s[4:5]"], "writes byte 0 of out, .* wrote"),
        # the second one reads what the first one wrote, and the other way round
        (["global_store_dword v3, v3, s[4:5] offset:1020"], "writes byte 1020 of out, .* wrote"),
        (
            ["s_load_dword s6, s[4:5], 0x4", "s_waitcnt lgkmcnt(0)", "s_barrier", "global_store_dword v4, v3, s[4:5]"],
            "writes byte 4 of out",
        ),
        (["global_store_dword v4, v3, s[4:5]", "s_barrier", "s_load_dword s6, s[4:5], 0x0"], "reads byte 0 of out, .* wrote"),
    ],
)
def test_workgroups_are_not_ordered(body, does):
    """v4 is 4 times the workgroup's number."""
    lines = ["v_mov_b32_e32 v3, 0", "v_mov_b32_e32 v4, s2", "v_add_u32_e32 v4, v4, v4", "v_add_u32_e32 v4, v4, v4", "s_barrier"]
    with pytest.raises(EmulationFault, match=f"a race: it {does}.*, and nothing orders workgroups") as found:
        checked_run(*lines, *body, grid=(2, 1, 1), schedules=RACES)
    assert found.value.workgroup in (0, 1)
    checked_run(*lines, *body, grid=(1, 1, 1), schedules=RACES)


def test_workgroups_that_run_in_different_batches_race():
    """128 waves run at once, and these are 65 workgroups of 2: the last one reads what the first one wrote."""
    body = ["s_cmp_eq_u32 s2, 0", "s_cbranch_scc1 .L", "s_cmp_lg_u32 s2, 64", "s_cbranch_scc1 .E"]
    body += ["s_load_dword s6, s[4:5], 0x0", "s_endpgm", ".L:", LSHL, "global_store_dword v1, v0, s[4:5]", ".E:"]
    with pytest.raises(EmulationFault, match="reads byte 0 of out, which wave 0 of workgroup 0 wrote"):
        checked_run(*body, grid=(65, 1, 1), schedules=RACES)
    checked_run(*body, grid=(64, 1, 1), schedules=RACES)


ADD, TOLD = "global_atomic_add v3, v5, s[4:5]", "global_atomic_add v6, v3, v5, s[4:5] sc0"
PLAIN_LOAD, PLAIN_STORE = "global_load_dword v6, v3, s[4:5]", "global_store_dword v3, v5, s[4:5]"


def chosen(first, second):
    """Lines of workgroup 0, and those of the others. v3 is 0, v4 is 4, and v5 is 1."""
    begin = ["v_mov_b32_e32 v3, 0", "v_mov_b32_e32 v4, 4", "v_mov_b32_e32 v5, 1", "s_cmp_eq_u32 s2, 0", "s_cbranch_scc0 .L"]
    return [*begin, *first, "s_endpgm", ".L:", *second]


def test_atomic_instructions_on_one_word_are_no_race():
    memory, _ = checked_run(*chosen([ADD, ADD], [ADD, TOLD]), grid=(70, 1, 1))
    assert memory.contents("out").view(np.uint32)[0] == 2 * 128 * 70


@pytest.mark.parametrize(
    ("first", "second", "does"),
    [
        (ADD, PLAIN_LOAD, "reads byte 0 of out, which wave . of workgroup 0 updated"),
        (ADD, PLAIN_STORE, "writes byte 0 of out, which wave . of workgroup 0 updated"),
        (PLAIN_LOAD, TOLD, "updates byte 0 of out, which wave . of workgroup 0 read"),
        (PLAIN_STORE, ADD, "updates byte 0 of out, which wave . of workgroup 0 wrote"),
        (TOLD, PLAIN_LOAD, "reads byte 0 of out, which wave . of workgroup 0 updated"),
    ],
)
def test_an_atomic_instruction_races_with_a_plain_access(first, second, does):
    later = ["s_nop 0"] * 40 + [second]
    with pytest.raises(EmulationFault, match=f"a race: it {does}.*, and nothing orders workgroups"):
        checked_run(*chosen([first], ["s_barrier", *later]), grid=(2, 1, 1), schedules=RACES)
    with pytest.raises(EmulationFault, match=r"a race: .*, with no barrier between"):
        checked_run(*chosen([first, WAIT, second], []), grid=(1, 1, 1), schedules=RACES)


def test_whether_an_atomic_instruction_orders_workgroups_is_no_fault():
    """The last workgroup goes on with what another one stored; workgroups note when they came; one waits without an end."""
    store, wait = PLAIN_STORE.replace("v3", "v4"), ["s_waitcnt vmcnt(0)", "s_barrier"]
    merge = chosen([store, *wait, ADD], [TOLD, *wait, PLAIN_LOAD.replace("v3", "v4")])
    own = ["v_mov_b32_e32 v7, s2", "v_lshlrev_b32_e32 v7, 7, v7", "v_add_u32_e32 v7, v7, v0"]
    when = [*own, "v_mov_b32_e32 v3, 0", "v_mov_b32_e32 v5, 1", TOLD, WAIT, "global_store_byte v7, v6, s[4:5] offset:512"]
    endless = chosen([".A:", TOLD, "s_branch .A"], [])
    orders = (*RACES, Schedule(workgroups="descending"))
    for body, schedules, what in (
        (merge, RACES, "a race of workgroups, unless an atomic"),
        (when, orders, "a result that changes with the order of a launch's atomic"),
        (endless, RACES, "a launch without an end, unless"),
    ):
        with pytest.raises(UnknownInstructionError, match=what):
            checked_run(*body, grid=(2, 1, 1), schedules=schedules, most=5000)


@dataclass
class FewWaves:
    workgroup: np.ndarray
    number: np.ndarray

    def __len__(self):
        return len(self.number)


def is_race(first, second) -> bool:
    """True if two accesses of a byte race: (wave, turn, whether it writes, value)."""
    (one, turn, writes, value), (other, other_turn, other_writes, other_value) = first, second
    if one == other or not (writes or other_writes):
        return False
    if one[0] != other[0]:
        return True
    return turn == other_turn and not (writes and other_writes and value == other_value)


@pytest.mark.parametrize("seed", range(200))
def test_drawn_accesses_race_if_two_of_them_do(seed):
    """3 workgroups of 3 waves touch 4 bytes, two waves at once."""
    rng = random.Random(seed)
    memory = Memory({"data": np.zeros(16, np.uint8)})
    base = memory.buffers["data"].address - 0x7F3E_FFFF_C000
    races = GlobalRaces(memory)
    instruction = Instruction("", "", (), {}, "", 1, "")
    history = {byte: [] for byte in range(4)}
    only_group = rng.random() < 0.5
    for _ in range(60):
        if rng.random() < 0.3:
            races.barrier()
            history = {byte: [(wave, -1, *rest) for wave, _, *rest in all_of] for byte, all_of in history.items()}
        waves = rng.sample([(0, n) for n in range(3)] if only_group else [(g, n) for g in range(3) for n in range(3)], 2)
        writes, value = rng.random() < 0.15, rng.randrange(2)
        touched = [rng.randrange(4) for _ in waves]
        access = Access(
            FewWaves(np.array([g for g, _ in waves]), np.array([n for _, n in waves])),
            np.array(touched)[:, None] + base,
            1,
            None,
            instruction,
        )
        now = [(byte, (wave, 0, writes, value)) for byte, wave in zip(touched, waves, strict=True)]
        expected = any(is_race(old, new) for byte, new in now for old in history[byte])
        expected |= touched[0] == touched[1] and is_race(now[0][1], now[1][1])
        call = races.global_written if writes else races.global_read
        values = [np.full((2, 1), value, np.uint32)] if writes else []
        if expected:
            with pytest.raises(EmulationFault, match="a race"):
                call(access, *[values] * writes)
            return
        call(access, *[values] * writes)
        for byte, new in now:
            history[byte].append(new)
            if writes:
                memory.contents("data")[byte] = value
