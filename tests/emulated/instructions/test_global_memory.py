"""Loads, stores and atomic changes of global memory, buffers and scratch against Python's slices of bytes."""

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from attn_amdgcn import (
    EmulationFault,
    LaunchError,
    Memory,
    Parts,
    Schedule,
    Touch,
    UnknownInstructionError,
    checked,
    launch,
    load,
    prepare,
)
from attn_amdgcn.checked import SCHEDULES
from attn_amdgcn.memory import BASE, PAGE_BITS
from attn_amdgcn.waves import Waves

from tests.emulated.kernels import POINTER, kernel_text
from tests.emulated.lines import JUNK, ran

LANES = np.arange(64, dtype=np.uint32)
DATA = np.random.default_rng(1).integers(0, 256, 4096, np.uint8)

LOADS = {
    # gfx942's name, gfx1201's name: bytes, whether signed
    ("ubyte", "u8"): (1, False),
    ("sbyte", "i8"): (1, True),
    ("ushort", "u16"): (2, False),
    ("sshort", "i16"): (2, True),
    ("dword", "b32"): (4, False),
    ("dwordx2", "b64"): (8, False),
    ("dwordx3", "b96"): (12, False),
    ("dwordx4", "b128"): (16, False),
}
STORES = {
    ("byte", "b8"): (1, 0),
    ("byte_d16_hi", "d16_hi_b8"): (1, 16),
    ("short", "b16"): (2, 0),
    ("short_d16_hi", "d16_hi_b16"): (2, 16),
    ("dword", "b32"): (4, 0),
    ("dwordx2", "b64"): (8, 0),
    ("dwordx3", "b96"): (12, 0),
    ("dwordx4", "b128"): (16, 0),
}


def registers(first: int, size: int, bank: str = "v") -> str:
    return f"{bank}{first}" if size <= 4 else f"{bank}[{first}:{first + size // 4 - 1}]"


def words_of(data: bytes, signed: bool = False) -> list[int]:
    """The registers of one lane."""
    if len(data) < 4:
        return [int.from_bytes(data, "little", signed=signed) % (1 << 32)]
    return [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]


def resource(address: int, records: int, architecture: str) -> dict[int, int]:
    """s[4:7]."""
    if architecture == "gfx1250":
        bits = address | records << 57
        return {4 + i: bits >> 32 * i & 0xFFFFFFFF for i in range(4)}
    return {4: address, 5: address >> 32, 6: records, 7: 0x27000 if architecture.startswith("gfx9") else 0x31027000}


ADDRESS = 0x7F3E_FFFF_C000 + 4096
"""The address of the first buffer."""


@pytest.mark.parametrize("architecture", ["gfx942", "gfx1201"])
@pytest.mark.parametrize("stride", [16, 17])
def test_loads_bring_the_bytes_of_each_lane(architecture, stride):
    lanes = 64 if architecture == "gfx942" else 32
    for names, (size, signed) in LOADS.items():
        name = names[architecture != "gfx942"]
        place = LANES[:lanes] * stride
        forms = {
            f"global_load_{name} {registers(4, size)}, v0, s[100:101] offset:24": 24,
            f"global_load_{name} {registers(4, size)}, v[2:3], off offset:-8": 8,
            f"buffer_load_{name} {registers(4, size)}, v0, s[4:7], s8 offen offset:24": 30,
        }
        for text, offset in forms.items():
            after = ran(
                text,
                architecture,
                v={0: place, 2: (place + np.uint32((ADDRESS + 16) % (1 << 32))), 3: ADDRESS >> 32},
                s=resource(ADDRESS, 4096, architecture) | {8: 6},
                buffers={"data": DATA},
                exec=~2,
            )
            for lane in range(lanes):
                begin = lane * stride + offset
                expected = words_of(DATA[begin : begin + size].tobytes(), signed) if lane != 1 else [JUNK] * max(1, size // 4)
                assert after.vector[4 : 4 + len(expected), 0, lane].tolist() == expected, (text, lane)


@pytest.mark.parametrize("architecture", ["gfx942", "gfx1201"])
@pytest.mark.parametrize("stride", [16, 19])
def test_stores_write_the_bytes_of_each_lane(architecture, stride):
    lanes = 64 if architecture == "gfx942" else 32
    values = np.random.default_rng(2).integers(0, 1 << 32, (4, 64), np.uint32)[:, :lanes]
    for names, (size, shift) in STORES.items():
        name = names[architecture != "gfx942"]
        forms = {
            f"global_store_{name} v0, {registers(4, size)}, s[100:101] offset:24": 24,
            f"buffer_store_{name} {registers(4, size)}, v0, s[4:7], null offen offset:24": 24,
        }
        for text, offset in forms.items():
            after = ran(
                text,
                architecture,
                v={0: LANES[:lanes] * stride, **{4 + i: values[i] for i in range(4)}},
                s=resource(ADDRESS, 4096, architecture),
                buffers={"data": DATA},
                exec=~2,
            )
            expected = bytearray(DATA.tobytes())
            for lane in range(lanes):
                if lane != 1:
                    data = b"".join(int(values[i, lane] >> shift).to_bytes(4, "little") for i in range(4))
                    expected[lane * stride + offset : lane * stride + offset + size] = data[:size]
            assert after.shared.memory.contents("data").tobytes() == bytes(expected), text


@pytest.mark.parametrize(("name", "size", "signed"), [("u8", 1, False), ("i8", 1, True), ("u16", 2, False), ("i16", 2, True)])
@pytest.mark.parametrize("byte", [0, 5, 6, 131])
def test_scalar_loads_of_parts_of_words(name, size, signed, byte):
    after = ran(f"s_load_{name} s4, s[100:101], {byte:#x}", "gfx1201", buffers={"data": DATA})
    begin = byte // size * size
    assert int(after.scalar[0, 4]) == int.from_bytes(DATA[begin : begin + size].tobytes(), "little", signed=signed) % (1 << 32)


@pytest.mark.parametrize(("name", "words"), [("b32", 1), ("b64", 2)])
def test_gfx1250_scales_the_offset_of_a_scalar_load(name, words):
    targets = "s4" if words == 1 else "s[4:5]"
    data = np.arange(64, dtype=np.uint8)
    after = ran(f"s_load_{name} {targets}, s[100:101], s6 offset:0x4 scale_offset", "gfx1250", s={6: 3}, buffers={"data": data})
    assert after.scalar[0, 4 : 4 + words].tobytes() == data[4 + 12 * words :][: 4 * words].tobytes()
    for line, architecture in (
        (f"s_load_{name} {targets}, s[100:101], s6 scale_offset", "gfx1201"),
        (f"s_load_{name} {targets}, s[100:101], 0x4 scale_offset", "gfx1250"),
    ):
        with pytest.raises(UnknownInstructionError, match="scale_offset"):
            ran(line, architecture, buffers={"data": data})


def test_a_scalar_load_of_a_byte_ends_where_its_buffer_does():
    data = DATA[:8]
    ran("s_load_u8 s4, s[100:101], 0x7", "gfx1201", buffers={"data": data})
    with pytest.raises(EmulationFault, match="1 bytes at byte 8 of data"):
        ran("s_load_u8 s4, s[100:101], 0x8", "gfx1201", buffers={"data": data})


def test_half_loads_leave_the_other_half():
    for name, size, signed in (("u8", 1, False), ("i8", 1, True), ("b16", 2, False)):
        for hi in (False, True):
            after = ran(
                f"global_load_d16_{'hi_' if hi else ''}{name} v4, v0, s[100:101]",
                "gfx1201",
                v={0: LANES[:32]},
                buffers={"data": DATA},
            )
            for lane in range(32):
                half = int.from_bytes(DATA[lane : lane + size].tobytes(), "little", signed=signed) % (1 << 16)
                expected = half << 16 | JUNK & 0xFFFF if hi else JUNK & 0xFFFF0000 | half
                assert int(after.vector[4, 0, lane]) == expected
    with pytest.raises(UnknownInstructionError, match="ECC"):
        ran("global_load_short_d16 v4, v0, s[100:101]", buffers={"data": DATA})


def test_accumulation_registers_are_loaded_and_stored():
    after = ran(
        "global_load_dwordx2 a[2:3], v0, s[100:101]\ns_waitcnt vmcnt(0)\nglobal_store_dword v0, a3, s[100:101]",
        v={0: LANES * 8},
        buffers={"data": DATA},
    )
    assert after.vector[194, 0].tobytes() == DATA[: 64 * 8].view(np.uint32)[::2].tobytes()
    assert after.shared.memory.contents("data").view(np.uint32)[0] == DATA.view(np.uint32)[1]


def test_gfx1250_scales_and_extends_the_offset():
    after = ran(
        "global_load_b32 v4, v0, s[4:5] scale_offset",
        "gfx1250",
        v={0: LANES[:32] - 16},
        s={4: ADDRESS + 64, 5: ADDRESS >> 32},
        buffers={"data": DATA},
    )
    assert after.vector[4, 0].tolist() == DATA[:128].view(np.uint32).tolist()


@pytest.mark.parametrize("architecture", ["gfx90a", "gfx942", "gfx1100", "gfx1201", "gfx1250"])
def test_a_buffer_gives_0_beyond_its_records(architecture):
    wide = "dwordx4" if architecture.startswith("gfx9") else "b128"
    offsets = np.array([0, 80, 84, 88, 92, 96, 97, 100, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFC, 93] + [0] * 52, np.uint32)
    lanes = 64 if architecture.startswith("gfx9") else 32
    after = ran(
        f"buffer_load_{wide} v[4:7], v0, s[4:7], s8 offen offset:4",
        architecture,
        v={0: offsets[:lanes]},
        s=resource(ADDRESS, 108, architecture) | {8: 4},
        buffers={"data": DATA},
    )
    for lane in range(lanes):
        for word in range(4):
            begin = int(offsets[lane]) + 8 + 4 * word
            expected = int.from_bytes(DATA[begin : begin + 4].tobytes(), "little") if begin + 4 <= 108 else 0
            assert int(after.vector[4 + word, 0, lane]) == expected, (lane, word)


@pytest.mark.parametrize(("name", "size"), [("ubyte", 1), ("ushort", 2), ("dword", 4)])
def test_the_last_byte_of_a_buffer_is_the_last_that_a_load_brings(name, size):
    offsets = np.arange(64, dtype=np.uint32) + 64
    after = ran(
        f"buffer_load_{name} v4, v0, s[4:7], 0 offen",
        v={0: offsets},
        s=resource(ADDRESS, 108, "gfx942"),
        buffers={"data": DATA},
    )
    for lane, offset in enumerate(offsets.tolist()):
        expected = int.from_bytes(DATA[offset : offset + size].tobytes(), "little") if offset + size <= 108 else 0
        assert int(after.vector[4, 0, lane]) == expected, lane


def test_a_buffer_drops_stores_beyond_its_records():
    after = ran(
        "buffer_store_dwordx2 v[4:5], v0, s[4:7], 0 offen",
        v={0: LANES * 8, 4: LANES, 5: LANES},
        s=resource(ADDRESS, 20, "gfx942"),
        buffers={"data": DATA},
    )
    expected = np.concatenate([np.array([0, 0, 1, 1, 2], np.uint32).view(np.uint8), DATA[20:]])
    assert after.shared.memory.contents("data").tolist() == expected.tolist()


@pytest.mark.parametrize(("word", "value"), [(1, 0x40000000), (1, 0x80000000), (3, 0x00827000), (3, 0x31027000)])
def test_a_resource_of_another_kind_is_a_fault(word, value):
    described = resource(ADDRESS, 64, "gfx942")
    described[4 + word] = (described[5] & 0xFFFF if word == 1 else 0) | value
    with pytest.raises(EmulationFault, match="no raw buffer"):
        ran("buffer_load_dword v4, v0, s[4:7], 0 offen", v={0: 0}, s=described, buffers={"data": DATA})


def test_a_stride_without_swizzle_changes_nothing_on_gfx9():
    described = resource(ADDRESS, 20, "gfx942")
    described[5] = described[5] & 0xFFFF | 0x00040000
    after = ran("buffer_load_dword v4, v0, s[4:7], 0 offen", v={0: LANES * 4}, s=described, buffers={"data": DATA})
    assert (after.vector[4, 0, :5] == DATA[:20].view(np.uint32)).all()
    assert (after.vector[4, 0, 5:] == 0).all(), "num_records counts bytes"


def test_an_access_outside_the_buffers_is_a_fault():
    """The fault names instruction, buffer, byte, wave and lane."""
    offsets = np.where(LANES == 9, 4093, 0)
    for text in (
        "global_load_dword v4, v0, s[100:101]",
        "global_store_dword v0, v0, s[100:101]",
        "buffer_load_dword v4, v0, s[4:7], 0 offen",
    ):
        with pytest.raises(
            EmulationFault, match=r"4 bytes at byte 4093 of data, which has 4096 bytes \(workgroup 0, wave 0, lane 9\)"
        ) as found:
            ran(text, v={0: offsets}, s=resource(ADDRESS, 0x7FFFFFFE, "gfx942"), buffers={"data": DATA})
        assert found.value.instruction == text
        ran(text, v={0: offsets}, exec=~(1 << 9), s=resource(ADDRESS, 0x7FFFFFFE, "gfx942"), buffers={"data": DATA})


def test_both_ends_may_lie_in_different_buffers():
    after = ran(
        "global_load_dword v4, v0, s[100:101]",
        v={0: np.where(LANES % 2, 8192, 0)},
        buffers={"first": DATA, "second": DATA[::-1].copy()},
    )
    assert after.vector[4, 0, :2].tolist() == [int(DATA.view(np.uint32)[0]), int(DATA[::-1].copy().view(np.uint32)[0])]


SCRATCH = """
scratch_store_b128 off, v[4:7], off offset:8
scratch_store_b8 v1, v5, off offset:1
scratch_store_b16 off, v6, s4 offset:2
s_wait_storecnt 0x0
scratch_load_b64 v[8:9], off, off offset:12
scratch_load_u8 v10, v1, off offset:1
scratch_load_i16 v11, off, s4 offset:2
scratch_load_d16_hi_b16 v12, off, off offset:10
scratch_load_b32 v13, v1, s4
"""


def test_scratch_belongs_to_each_lane():
    values = np.random.default_rng(3).integers(0, 1 << 32, (4, 32), np.uint32)
    after = ran(
        SCRATCH,
        "gfx1201",
        v={1: LANES[:32] % 8 * 4, **{4 + i: values[i] for i in range(4)}},
        s={4: 32},
        scratch_bytes=64,
        exec=~4,
    )
    for lane in range(32):
        data = bytearray(JUNK.to_bytes(4, "little") * 16)
        data[8:24] = values[:, lane].tobytes()
        data[lane % 8 * 4 + 1] = int(values[1, lane]) & 0xFF
        data[34:36] = (int(values[2, lane]) & 0xFFFF).to_bytes(2, "little")
        signed = int.from_bytes(data[34:36], "little", signed=True) % (1 << 32)
        here = int.from_bytes(data[lane % 8 * 4 + 32 : lane % 8 * 4 + 36], "little")
        expected = [
            *words_of(bytes(data[12:20])),
            data[lane % 8 * 4 + 1],
            signed,
            int.from_bytes(data[10:12], "little") << 16 | JUNK & 0xFFFF,
            here,
        ]
        assert after.vector[8:14, 0, lane].tolist() == (expected if lane != 2 else [JUNK] * 6), lane


@pytest.mark.parametrize(
    "text", ["scratch_load_b64 v[8:9], off, off offset:60", "scratch_store_b32 v1, v0, off", "scratch_load_b32 v8, off, s4"]
)
def test_scratch_beyond_the_frame_is_a_fault(text):
    with pytest.raises(EmulationFault, match="of scratch, of which a lane has 64 bytes"):
        ran(text, "gfx1201", v={1: np.where(LANES[:32] == 3, 64, 0)}, s={4: 62})


@pytest.mark.parametrize(
    "text",
    [
        "global_load_dword v4, v0, s[100:101] lds",
        "global_load_dwordx2 v4, v0, s[100:101]",
        "buffer_load_dword v4, v0, s[4:7], 0 idxen",
        "buffer_load_dword v4, v0, s[4:7], 0",
        "buffer_load_dword v4, v0, s[4:7], 0 offen lds",
        "global_load_dword v4, v0, s[100:101] scale_offset",
    ],
)
def test_forms_without_a_meaning_here_are_refused(text):
    with pytest.raises(UnknownInstructionError):
        ran(text, buffers={"data": DATA})


RETURNED = {"gfx90a": " glc", "gfx942": " sc0 sc1", "gfx1100": " glc", "gfx1201": " th:TH_ATOMIC_RETURN scope:SCOPE_DEV"}


@pytest.mark.parametrize("architecture", RETURNED)
@pytest.mark.parametrize("returns", [True, False])
@pytest.mark.parametrize("is_add", [True, False])
def test_each_lane_finds_what_the_lanes_before_it_left(architecture, returns, is_add):
    """Lanes of two waves to 16 words, so that several come to one; lane 1 is off."""
    lanes, name = (64, ["swap", "add"][is_add]) if architecture.startswith("gfx9") else (32, ["swap_b32", "add_u32"][is_add])
    rng = np.random.default_rng(7)
    places, given = rng.integers(0, 16, (2, lanes)) * 4, rng.integers(0, 1 << 32, (2, lanes), np.uint32)
    for base, offset in (("v0, v5, s[100:101]", 24), ("v[2:3], v5, off", 8)):
        after = ran(
            f"global_atomic_{name} {'v4, ' * returns}{base} offset:{offset}{RETURNED[architecture] * returns}",
            architecture,
            v={0: places, 2: places + ADDRESS % (1 << 32), 3: ADDRESS >> 32, 5: given},
            exec=~2,
            buffers={"data": DATA},
            num_waves=2,
            races=True,
        )
        expected, found = bytearray(DATA.tobytes()), np.full((2, lanes), JUNK, np.uint32)
        for wave, lane in np.ndindex(2, lanes):
            if lane == 1:
                continue
            at = slice(int(places[wave, lane]) + offset, int(places[wave, lane]) + offset + 4)
            before = int.from_bytes(expected[at], "little")
            expected[at] = ((before * is_add + int(given[wave, lane])) % (1 << 32)).to_bytes(4, "little")
            found[wave, lane] = before if returns else JUNK
        assert after.shared.memory.contents("data").tobytes() == bytes(expected)
        assert (after.vector[4] == found).all()
        assert after.shared.memory.atomic_readers == ({0} if returns else set())


def test_operands_of_an_atomic_fit_and_what_it_brings_is_waited_for():
    for text in ("v4, v0, v5, s[100:101]", "v0, v5, s[100:101] sc0"):
        with pytest.raises(UnknownInstructionError):
            ran(f"global_atomic_add {text}", buffers={"data": DATA})
    with pytest.raises(EmulationFault, match="no wait stands before its use"):
        ran("global_atomic_add v4, v0, v5, s[100:101] sc0\nv_mov_b32_e32 v6, v4", v={0: 0}, buffers={"data": DATA})


@pytest.mark.parametrize(
    ("reads", "writes", "place", "what"),
    [
        (4, 8, 4, r"byte 4 of x, which has 8 bytes: of these \[0, 4\) may be read"),
        (8, 4, 4, r"byte 4 of x, which has 8 bytes: of these \[0, 4\) may be written"),
        (8, 8, 8, "4 bytes at byte 8 of x, which has 8 bytes"),
        (8, 8, 2, "at an address that is no multiple of its 4 bytes"),
    ],
)
def test_an_atomic_reads_and_writes_what_may_be_and_whole_words(reads, writes, place, what):
    body = [f"v_mov_b32_e32 v1, {place}", "s_load_dwordx2 s[4:5], s[0:1], 0x0", "s_waitcnt lgkmcnt(0)"]
    program = prepare(load(kernel_text(*body, "global_atomic_add v1, v1, s[4:5]", arguments=[POINTER])))
    parts = Parts({"x": [(0, reads)]}, {"x": [(0, writes)]})
    with pytest.raises(EmulationFault, match=what):
        launch(program, (1, 1, 1), [("x", 0)], {"x": np.zeros(8, np.uint8)}, parts=parts)


def only(spans):
    """Parts of a buffer x that may be read and written."""
    return Parts({"x": spans}, {"x": spans})


@pytest.fixture
def waves() -> Waves:
    """One wave, as far as memory looks at it."""
    return cast(Waves, SimpleNamespace(number=np.zeros(1, int), workgroup=np.zeros(1, int)))


def at(memory, *offsets):
    """[1, lanes]: the places of bytes of the buffer x."""
    return np.array([offsets]) + memory.buffers["x"].address - BASE


@pytest.mark.parametrize(
    ("begin", "fault"), [(0, False), (252, False), (256, True), (508, True), (512, False), (764, False), (768, True)]
)
def test_a_part_of_a_buffer_may_be_touched_and_the_rest_may_not(begin, fault, waves):
    memory = Memory({"x": np.zeros(1024, np.uint8)}, parts=only([(512, 640), (0, 256), (600, 768)]))
    place = at(memory, *[begin] * 64)
    if not fault:
        assert memory.readable(place, 4, None, waves) is place
        return
    words = rf"4 bytes at byte {begin} of x, which has 1024 bytes: of these \[0, 256\), \[512, 768\) may be read"
    with pytest.raises(EmulationFault, match=words) as found:
        memory.readable(place, 4, None, waves)
    assert found.value.touch == Touch("x", begin, "read")


def test_a_lane_in_each_of_two_parts_is_right_and_an_access_across_them_is_not(waves):
    memory = Memory({"x": np.zeros(1024, np.uint8)}, parts=only([(0, 256), (512, 768)]))
    assert memory.readable(at(memory, 0, 512), 4, None, waves) is not None
    with pytest.raises(EmulationFault, match="lane 1"):
        memory.readable(at(memory, 0, 254), 4, None, waves)


def test_permissions_to_read_and_to_write_are_apart(waves):
    memory = Memory({"x": np.zeros(64, np.uint8)}, parts=Parts({"x": [(0, 16)]}, {"x": [(16, 32)]}))
    memory.readable(at(memory, 0, 12), 4, None, waves)
    memory.writable(at(memory, 16, 28), 4, None, waves)
    with pytest.raises(EmulationFault, match=r"byte 16 of x, which has 64 bytes: of these \[0, 16\) may be read") as found:
        memory.readable(at(memory, 0, 16), 4, None, waves)
    assert found.value.touch == Touch("x", 16, "read")
    with pytest.raises(EmulationFault, match=r"byte 0 of x, which has 64 bytes: of these \[16, 32\) may be written") as found:
        memory.writable(at(memory, 16, 0), 4, None, waves)
    assert found.value.touch == Touch("x", 0, "written")


def test_a_load_and_a_store_are_held_to_their_own_parts():
    """Each of 128 lanes touches a word, and of as many words one may not be touched."""
    words = np.zeros(512, np.uint8)
    some, whole = [(0, 508)], [(0, 512)]
    text = kernel_text(
        "s_load_dwordx2 s[4:5], s[0:1], 0x0",
        "v_lshlrev_b32_e32 v1, 2, v0",
        "s_waitcnt lgkmcnt(0)",
        "global_load_dword v2, v1, s[4:5]",
        "s_waitcnt vmcnt(0)",
        "global_store_dword v1, v2, s[4:5]",
        arguments=[POINTER],
    )
    program = prepare(load(text))
    launch(program, (1, 1, 1), [("x", 0)], {"x": words}, parts=Parts({"x": whole}, {"x": whole}))
    for reads, writes, name in ((some, whole, "global_load_dword"), (whole, some, "global_store_dword")):
        with pytest.raises(EmulationFault, match=f"4 bytes at byte 508 of x.*wave 1, lane 63.*`{name}"):
            launch(program, (1, 1, 1), [("x", 0)], {"x": words}, parts=Parts({"x": reads}, {"x": writes}))


@pytest.mark.parametrize("size", [1, 2, 4, 8, 12, 16, 32, 64])
def test_an_access_may_start_where_all_its_bytes_may_be_touched(size, waves):
    may = np.random.default_rng(size).random(1024) < 1 - 0.5 / size
    edges = np.flatnonzero(np.diff(np.pad(may, 1).astype(int))).reshape(-1, 2)
    memory = Memory({"x": np.zeros(1024, np.uint8)}, parts=only(edges))
    found = []
    for begin in range(1024):
        try:
            memory.readable(at(memory, begin, begin), size, None, waves)
        except EmulationFault:
            found.append(False)
        else:
            found.append(True)
    assert found == [bool(may[i : i + size].all()) and i + size <= 1024 for i in range(1024)]
    assert 50 < sum(found) < 1000


def test_of_many_parts_a_fault_names_the_nearest(waves):
    memory = Memory({"x": np.zeros(1024, np.uint8)}, parts=only([(i, i + 8) for i in range(0, 1024, 32)]))
    with pytest.raises(EmulationFault, match=r"byte 72 of x, .*: of these 32 parts may be read, the nearest \[64, 72\)"):
        memory.readable(at(memory, 0, 72), 4, None, waves)


def test_a_part_beyond_its_buffer_is_refused():
    with pytest.raises(LaunchError, match=r"bytes \[0, 17\) of a buffer that has 16"):
        Memory({"x": np.zeros(16, np.uint8)}, parts=only([(0, 17)]))


FAR = (1 << 32) + (1 << 16) - 6
"""A byte that no number of 32 bits holds. The words from here on lie in two pages."""


def far_program(*body: str):
    text = kernel_text("s_load_dwordx2 s[4:5], s[0:1], 0x0", "v_lshlrev_b32_e32 v1, 2, v0", *body, arguments=[POINTER])
    return prepare(load(text))


def test_of_buffers_beyond_4_gib_the_pages_are_copied_that_are_touched():
    program = far_program(
        "s_waitcnt lgkmcnt(0)",
        "global_load_dword v2, v1, s[4:5]",
        "s_waitcnt vmcnt(0)",
        "v_add_u32_e32 v2, 1, v2",
        "global_store_dword v1, v2, s[4:5] offset:1024",
    )
    large, near = np.zeros(FAR + (1 << 20), np.uint8), np.arange(512, dtype=np.uint8)
    large[FAR : FAR + 512] = near
    memory, _ = checked(program, (1, 1, 1), [("x", FAR)], {"other": near, "x": large})
    touched = list(memory.touched("x"))
    assert sum(len(held) for _, held in touched) <= 2 << PAGE_BITS
    for begin, held in touched:
        large[begin : begin + len(held)] = held
    assert (large[FAR + 1024 : FAR + 1536].view(np.uint32) - near.view(np.uint32) == 1).all()
    assert (large[FAR : FAR + 512] == near).all()
    with pytest.raises(EmulationFault, match=rf"4 bytes at byte {len(large)} of x, which has {len(large)} bytes"):
        launch(program, (1, 1, 1), [("x", len(large) - 4)], {"x": large})


@pytest.mark.parametrize(
    ("schedules", "words"),
    [
        (SCHEDULES, f"a race: it writes byte {FAR} of x, which wave . of workgroup 0 wrote"),
        ((Schedule(), Schedule(workgroups="descending")), f"byte {FAR} of x is 1 under .*, and 0 under"),
    ],
)
def test_races_beyond_4_gib(schedules, words):
    program = far_program(
        "v_mov_b32_e32 v2, s2", "s_waitcnt lgkmcnt(0)", "v_mov_b32_e32 v1, 0", "global_store_dword v1, v2, s[4:5]"
    )
    with pytest.raises(EmulationFault, match=words):
        checked(program, (2, 1, 1), [("x", FAR)], {"x": np.zeros(FAR + 64, np.uint8)}, schedules=schedules)
