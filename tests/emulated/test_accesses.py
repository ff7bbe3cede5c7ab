"""Lines of global memory and conflicts of LDS banks, against sets of bytes and words; and known patterns."""

import numpy as np
import pytest
from attn_amdgcn import accesses
from attn_amdgcn.accesses import Accesses
from attn_amdgcn.instructions.forms import REGISTERED

from tests.emulated.lines import ran

RNG = np.random.default_rng(5)
LANES = np.arange(64)
CONSECUTIVE = [range(i, i + 8) for i in range(0, 64, 8)]
FOUR_AND_FOUR = [
    [*range(4), *range(20, 24)],
    [*range(4, 8), *range(16, 20)],
    [*range(8, 12), *range(28, 32)],
    [*range(12, 16), *range(24, 28)],
    [*range(32, 36), *range(52, 56)],
    [*range(36, 40), *range(48, 52)],
    [*range(40, 44), *range(60, 64)],
    [*range(44, 48), *range(56, 60)],
]
HALVES = [range(32), range(32, 64)]


def counted(text, architecture="gfx942", **given):
    watch = Accesses(architecture)
    ran(text, architecture, watches=(watch,), **given)
    return watch.total


def expected_lines(places, size, line):
    touched = {byte for place in places for byte in range(place, place + size)}
    return len({byte // line for byte in touched}), -(-len(touched) // line)


def expected_conflicts(places, size, phases):
    """Passes, and those beyond the first one of each phase, of {lane: byte}."""
    found = []
    for lanes in phases:
        words = {places[lane] // 4 + i for lane in lanes if lane in places for i in range(max(1, size // 4))}
        fullest = max((sum(word % 32 == bank for word in words) for bank in range(32)), default=0)
        if fullest:
            found.append(fullest)
    return len(found), sum(found) - len(found)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 12, 16])
@pytest.mark.parametrize("lanes_on", [(1 << 64) - 1, 0x0F0F_1234_5678_9ABC, 1, 0])
def test_lines_are_those_of_the_lanes_that_are_on(size, lanes_on):
    places = RNG.integers(0, 3000, 64) // 4 * 4
    load = {1: "ubyte v8", 2: "ushort v8", 4: "dword v8", 8: "dwordx2 v[8:9]", 12: "dwordx3 v[8:10]", 16: "dwordx4 v[8:11]"}
    store = {1: "byte", 2: "short", 4: "dword", 8: "dwordx2", 12: "dwordx3", 16: "dwordx4"}
    data = load[size].split()[1]
    for text in (f"global_load_{load[size]}, v0, s[100:101]", f"global_store_{store[size]} v0, {data}, s[100:101]"):
        found = counted(text, v={0: places}, exec=lanes_on, buffers={"data": np.zeros(4096, np.uint8)})
        on = [int(place) for lane, place in enumerate(places) if lanes_on >> lane & 1]
        for line in (64, 128):  # the buffer begins at a multiple of 128
            assert (found[f"lines of {line}"], found[f"least lines of {line}"]) == expected_lines(on, size, line)
        assert found["global accesses"] == bool(lanes_on)


def test_a_scalar_load_is_no_access_of_lanes():
    assert counted("s_load_dword s4, s[100:101], 0x0", buffers={"data": np.zeros(64, np.uint8)})["global accesses"] == 0


def test_waves_and_their_lanes_count_by_themselves():
    """Two waves touch one line, and no lane of a third one is on."""
    text = "v_cmpx_gt_u32_e64 exec, 128, v0\nglobal_load_dword v1, v2, s[100:101]"
    v = {0: np.arange(192).reshape(3, 64).astype(np.uint32), 2: LANES % 8 * 4}
    found = counted(text, v=v, num_waves=3, buffers={"data": np.zeros(64, np.uint8)})
    assert (found["global accesses"], found["lines of 64"], found["least lines of 64"]) == (2, 2, 2)


@pytest.mark.parametrize(
    ("text", "architecture", "size", "phases"),
    [
        ("ds_read_b32 v8, v0", "gfx942", 4, HALVES),
        ("ds_read_u16 v8, v0", "gfx90a", 2, HALVES),
        ("ds_write_b32 v0, v8", "gfx90a", 4, HALVES),
        ("ds_load_b32 v8, v0", "gfx1201", 4, HALVES[:1]),
        ("ds_load_u8 v8, v0", "gfx1100", 1, HALVES[:1]),
        ("ds_read_b128 v[8:11], v0", "gfx942", 16, FOUR_AND_FOUR),
        ("ds_write_b128 v0, v[8:11]", "gfx942", 16, CONSECUTIVE),
    ],
)
@pytest.mark.parametrize("lanes_on", [(1 << 64) - 1, 0x0F0F_1234_5678_9ABC])
def test_conflicts_are_words_of_one_bank_in_one_phase(text, architecture, size, phases, lanes_on):
    num_lanes = 64 if architecture.startswith("gfx9") else 32
    for most in (16, 64, 256, 4096 // size):
        places = RNG.integers(0, most, num_lanes) * size
        found = counted(text, architecture, v={0: places}, exec=lanes_on, lds_bytes=4096)
        on = {lane: int(place) for lane, place in enumerate(places) if lanes_on >> lane & 1}
        assert (found["LDS phases"], found["LDS conflicts"]) == expected_conflicts(on, size, phases)
        assert found["LDS accesses with known phases"] == found["LDS accesses"] == 1


def test_accesses_that_are_not_documented_are_not_counted():
    for text, architecture in (
        ("ds_read_b64 v[8:9], v0", "gfx942"),
        ("ds_read2_b32 v[8:9], v0 offset1:1", "gfx942"),
        ("ds_write_b16 v0, v8", "gfx942"),
        ("ds_read_b32 v8, v0", "gfx950"),
        ("ds_load_b128 v[8:11], v0", "gfx1201"),
        ("ds_load_b32 v8, v0", "gfx1250"),
    ):
        found = counted(text, architecture, v={0: 0})
        assert found["LDS accesses"] > 0
        assert [found[name] for name in accesses.COLUMNS[-3:]] == [0, 0, 0], text


def test_names_whose_phases_are_known_are_those_that_there_are():
    known = {name for name in REGISTERED if accesses.phases_of(name, "gfx942", 64) is not None}
    loads = [f"{width}{half}" for width in ("u8", "i8", "u16", "i16") for half in ("", "_d16", "_d16_hi")] + ["b32"]
    assert known == {f"ds_{verb}_{name}" for verb in ("read", "load") for name in loads} | {
        "ds_write_b32",
        "ds_store_b32",
        "ds_read_b128",
        "ds_write_b128",
    }
