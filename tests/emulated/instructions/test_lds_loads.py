"""Loads from global memory into LDS: where the bytes lie, and who may touch them when."""

import numpy as np
import pytest
from attn_amdgcn import EmulationFault, Schedule, UnknownInstructionError, launch, load, prepare

from tests.emulated.kernels import kernel_text
from tests.emulated.lines import JUNK, ran

WORDS = np.random.default_rng(0).integers(0, 1 << 32, 1024, np.uint32)
BUFFERS = {"data": WORDS.view(np.uint8)}
LANES = np.arange(64, dtype=np.uint32)
SIZES = {"dword": (1, 4), "dwordx3": (3, 16), "dwordx4": (4, 16)}
"""Words of a lane, and the distance of lanes in bytes."""
OFF = 5
"""A lane that is off."""
RESOURCE = "s_mov_b64 s[4:5], s[100:101]\ns_movk_i32 s6, 0x{records:x}\ns_mov_b32 s7, 0\n"


def words_in_lds(waves) -> list[int]:
    return waves.shared.lds[0].tolist()


def expected(size: str, first_word: int, lds_byte: int, *, distance: int = 3, zero_from: int = 1024) -> list[int]:
    """LDS after a load whose lane i reads at word first_word + distance * i, without lane OFF."""
    words, step = SIZES[size]
    found = [JUNK] * 512
    for lane in range(64):
        for i in range(words if lane != OFF else 0):
            word = first_word + distance * lane + i
            found[(lds_byte + step * lane) // 4 + i] = int(WORDS[word]) if word < zero_from else 0
    return found


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("m0", [64, 64 | 3, 64 | 1 << 18])
def test_a_global_load_puts_lanes_one_behind_the_other(size, m0):
    text = f"s_mov_b32 m0, 0x{m0:x}\nglobal_load_lds_{size} v0, s[100:101] offset:8\ns_waitcnt vmcnt(0)"
    after = ran(text, "gfx950", v={0: LANES * 12}, buffers=BUFFERS, lds_bytes=2048, exec=~(1 << OFF))
    assert words_in_lds(after) == expected(size, 2, 64 + 8)


def test_a_global_load_of_whole_addresses():
    text = "v_mov_b32_e32 v1, s101\nv_add_u32_e32 v0, s100, v0\ns_mov_b32 m0, 0\nglobal_load_lds_dwordx4 v[0:1], off nt"
    after = ran(text, "gfx950", v={0: LANES * 12}, buffers=BUFFERS, lds_bytes=2048, exec=~(1 << OFF))
    assert words_in_lds(after) == expected("dwordx4", 0, 0)


@pytest.mark.parametrize("size", SIZES)
def test_a_buffer_load_brings_0_beyond_its_records(size):
    text = RESOURCE.format(records=600) + f"s_mov_b32 m0, 0x40040\nbuffer_load_{size} v0, s[4:7], 4 offen offset:8 lds"
    after = ran(text, "gfx950", v={0: LANES * 12}, buffers=BUFFERS, lds_bytes=2048, exec=~(1 << OFF))
    assert words_in_lds(after) == expected(size, 3, 64 + 8, zero_from=150)


def test_each_architecture_loads_its_sizes_and_refuses_others():
    word = "s_mov_b32 m0, 0x10040\nbuffer_load_dword v0, s[4:7], 0 offen lds"
    after = ran(RESOURCE.format(records=4096) + word, v={0: LANES * 12}, buffers=BUFFERS, lds_bytes=2048, exec=~(1 << OFF))
    assert words_in_lds(after) == expected("dword", 0, 64)  # gfx942 reads 16 bits of M0
    for line, architecture in (
        ("global_load_lds_dwordx4 v0, s[100:101]", "gfx942"),
        ("buffer_load_dwordx3 v0, s[4:7], 0 offen lds", "gfx942"),
        ("buffer_load_dwordx2 v0, s[4:7], 0 offen lds", "gfx950"),
        ("buffer_load_dword v0, s[4:7], 0 offen lds", "gfx90a"),
        ("global_load_lds_dword v0, s[100:101] lds", "gfx950"),
    ):
        with pytest.raises(UnknownInstructionError):
            ran(line, architecture, buffers=BUFFERS)


@pytest.mark.parametrize("load", ["global_load_lds_dword v0, s[100:101]", "buffer_load_dword v0, s[4:7], 0 offen lds"])
def test_a_wave_that_is_to_load_nothing(load):
    text = f"{RESOURCE.format(records=4096)}s_brev_b32 m0, -2\n{load}\ns_waitcnt vmcnt(0)"  # 0x7fffffff
    after = ran(text, "gfx950", v={0: LANES * 4}, buffers=BUFFERS, lds_bytes=2048)
    assert words_in_lds(after) == [JUNK] * 512


@pytest.mark.parametrize(("m0", "offset", "byte"), [(1792, 8, 2048), (0, -16, -16)])
def test_a_lane_beyond_lds_is_a_fault(m0, offset, byte):
    text = f"s_mov_b32 m0, {m0}\nglobal_load_lds_dword v0, s[100:101] offset:{offset}"
    with pytest.raises(EmulationFault, match=f"4 bytes at byte {byte} of LDS, of which a workgroup has 2048 bytes"):
        ran(text, "gfx950", v={0: 64 + LANES * 4}, buffers=BUFFERS, lds_bytes=2048)


OWN = np.array([[0], [256]], np.uint32) + LANES * 4
"""[2 waves, 64 lanes]: the byte of each lane's word, in memory and in LDS."""
LOAD = "s_mov_b32 m0, s8\nglobal_load_lds_dword v0, s[100:101]"
NEXT = LOAD.replace("s8", "s9")
WAIT, BARRIER, READ = "s_waitcnt vmcnt(0)", "s_barrier", "ds_read_b32 v2, v0"
OTHERS = "ds_read_b32 v2, v1"
STORE = "global_store_dword v4, v5, s[100:101] offset:4092"


def run(*lines, **more):
    """Two waves. s8 is where a wave's 256 bytes of LDS begin, and s9 is 512 bytes behind."""
    begin = "v_readfirstlane_b32 s8, v0\ns_add_u32 s9, s8, 512"
    v = {0: OWN, 1: OWN[::-1].copy(), 3: OWN + 512, 4: 0, 5: 0}
    return ran("\n".join([begin, *lines]), "gfx950", v=v, buffers=BUFFERS, lds_bytes=1024, num_waves=2, **more)


@pytest.mark.parametrize(
    ("lines", "lacks"),
    [
        ((LOAD, READ), "reads byte 0 .* no wait stands before its use"),
        ((LOAD, "s_waitcnt lgkmcnt(0)", READ), "reads byte 0 .* no wait stands before its use"),
        ((LOAD, "s_waitcnt vmcnt(1)", READ), "reads byte 0 .* no wait stands before its use"),
        ((LOAD, NEXT, "s_waitcnt vmcnt(1)", "ds_read_b32 v2, v3"), "reads byte 512 .* no wait stands before its use"),
        ((LOAD, *[NEXT] * 62, READ), "reads byte 0 .* no wait stands before its use"),
        ((LOAD, "ds_write_b32 v0, v2"), "writes byte 0 .* no wait stands before its use"),
        ((LOAD, WAIT, OTHERS), "reads byte 256 .* no wait and barrier stand before its use"),
        ((LOAD, BARRIER, WAIT, OTHERS), "reads byte 256 .* no wait and barrier stand before its use"),
        ((LOAD, WAIT, BARRIER, READ, NEXT, BARRIER, "ds_read_b32 v2, v3"), "reads byte 512 .* no wait stands before its use"),
    ],
)
def test_a_byte_that_has_not_come_is_not_touched(lines, lacks):
    with pytest.raises(EmulationFault, match=lacks) as found:
        run(*lines)
    assert found.value.instruction == lines[-1]
    assert (found.value.wave, found.value.lane) == (0, 0)


@pytest.mark.parametrize(
    "lines",
    [
        (LOAD, WAIT, READ),
        (LOAD, NEXT, "s_waitcnt vmcnt(1)", READ),
        (LOAD, STORE, "s_waitcnt vmcnt(1)", READ),
        (LOAD, *[NEXT] * 63, READ),  # vmcnt counts no further
        (LOAD, "ds_read_b32 v2, v3"),
        (LOAD, WAIT, BARRIER, OTHERS),
        (LOAD, BARRIER, WAIT, BARRIER, OTHERS),
        (LOAD, NEXT, "s_waitcnt vmcnt(1)", BARRIER, OTHERS),
        (LOAD, WAIT, READ, LOAD, WAIT, READ),
        (LOAD, "v_mov_b32_e32 v6, v0", "v_mov_b32_e32 v0, 0"),  # it loads no register
    ],
)
def test_waits_and_barriers_that_suffice(lines):
    after = run(*lines)
    if lines[-1] in (READ, OTHERS):
        chosen = OWN if lines[-1] == READ else OWN[::-1]
        assert after.vector[2].tolist() == WORDS[chosen // 4].tolist()


def test_a_load_into_what_another_wave_has_read_races():
    lines = (LOAD, WAIT, BARRIER, OTHERS, "s_waitcnt lgkmcnt(0)", LOAD)
    run(*lines)
    with pytest.raises(EmulationFault, match=r"a race: it writes byte .* of LDS, which wave . read"):
        run(*lines, races=True)
    run(*lines[:-1], BARRIER, LOAD, races=True)


@pytest.mark.parametrize("waves", ["together", "descending"])
def test_a_launch_looks_at_its_loads(waves):
    lines = ["s_load_dwordx2 s[4:5], s[0:1], 0x0", "v_lshlrev_b32_e32 v1, 2, v0", "v_readfirstlane_b32 s6, v1"]
    lines += ["s_waitcnt lgkmcnt(0)", "s_mov_b32 m0, s6", "global_load_lds_dword v1, s[4:5]", WAIT, "ds_read_b32 v2, v1"]
    lines += ["s_waitcnt lgkmcnt(0)", "global_store_dword v1, v2, s[4:5] offset:512"]

    def launched(*lines: str) -> np.ndarray:
        program = prepare(load(kernel_text(*lines, architecture="gfx950")))
        memory, _ = launch(program, (3, 1, 1), [("data", 0)], BUFFERS, lds_bytes=512, schedule=Schedule(waves))
        return memory.contents("data").view(np.uint32)

    assert launched(*lines)[128:256].tolist() == WORDS[:128].tolist()
    with pytest.raises(EmulationFault, match=r"reads byte .* of LDS, which wave . loads by `global_load_lds_dword"):
        launched(*(line for line in lines if line != WAIT))
