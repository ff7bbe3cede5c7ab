"""Loads and stores of LDS against Python's slices of bytes."""

import numpy as np
import pytest
from attn_amdgcn import EmulationFault

from tests.emulated.instructions.test_global_memory import LANES, registers, words_of
from tests.emulated.lines import JUNK, ran

VALUES = np.random.default_rng(4).integers(0, 1 << 32, (4, 64), np.uint32)
FILL = "\n".join(f"ds_write_b32 v60, v{61 + i} offset:{256 * i}" for i in range(4))
"""Lane i writes its word of VALUES[j] at byte 256 * j + 4 * i."""
FILLED = {60: LANES * 4, **{61 + i: VALUES[i] for i in range(4)}}
DATA = VALUES.tobytes()

LOADS = {
    "read_u8": (1, False),
    "read_i8": (1, True),
    "read_u16": (2, False),
    "read_i16": (2, True),
    "read_b32": (4, False),
    "read_b64": (8, False),
    "read_b96": (12, False),
    "read_b128": (16, False),
}


@pytest.mark.parametrize("stride", [1, 12])
def test_loads_bring_the_bytes_of_each_lane(stride):
    for name, (size, signed) in LOADS.items():
        text = f"{FILL}\nds_{name} {registers(4, size)}, v0 offset:18"
        after = ran(text, v={0: LANES * stride, **FILLED}, exec=~(1 << 5) if name == "read_b8" else -1)
        for lane in range(64):
            begin = lane * stride + 18
            expected = words_of(DATA[begin : begin + size], signed)
            assert after.vector[4 : 4 + len(expected), 0, lane].tolist() == expected, (text, lane)


@pytest.mark.parametrize("architecture", ["gfx942", "gfx1201"])
def test_loads_and_stores_of_two_addresses(architecture):
    lanes = 64 if architecture == "gfx942" else 32
    names = (
        {1: ("read2", "write2"), 64: ("read2st64", "write2st64")}
        if lanes == 64
        else {1: ("load_2addr", "store_2addr"), 64: ("load_2addr_stride64", "store_2addr_stride64")}
    )
    for factor, (read, write) in names.items():
        for size in (4, 8):
            count = size // 4
            text = f"ds_{write}_b{8 * size} v0, {registers(4, size)}, {registers(8, size)} offset0:3 offset1:1\n"
            text += (
                "s_waitcnt lgkmcnt(0)\n" if lanes == 64 else "s_wait_dscnt 0x0\n"
            ) + f"ds_{read}_b{8 * size} {registers(20, 2 * size)}, v0 offset0:1 offset1:3"
            after = ran(
                text,
                architecture,
                v={0: LANES[:lanes] * 32, **{4 + i: VALUES[i % 4, :lanes] + i for i in range(6)}},
                lds_bytes=4096,
                exec=~8,
            )
            lds = bytearray(JUNK.to_bytes(4, "little") * 1024)
            for offset, first in ((3, 4), (1, 8)):
                for lane in range(lanes):
                    if lane != 3:
                        begin = lane * 32 + offset * factor * size
                        lds[begin : begin + size] = b"".join(
                            (int(VALUES[(first + i - 4) % 4, lane]) + first + i - 4).__mod__(1 << 32).to_bytes(4, "little")
                            for i in range(count)
                        )
            assert after.shared.lds.tobytes() == bytes(lds), text
            for lane in range(lanes):
                begins = [lane * 32 + offset * factor * size for offset in (1, 3)]
                expected = [word for begin in begins for word in words_of(bytes(lds[begin : begin + size]))]
                assert after.vector[20 : 20 + 2 * count, 0, lane].tolist() == (expected if lane != 3 else [JUNK] * 2 * count), (
                    text,
                    lane,
                )


@pytest.mark.parametrize(
    ("store", "load", "expected"),
    [
        ("ds_store_b8 v0, v4", "ds_load_u8 v5, v0", lambda value: value & 0xFF),
        ("ds_store_b8_d16_hi v0, v4", "ds_load_u8 v5, v0", lambda value: value >> 16 & 0xFF),
        ("ds_store_b16 v0, v4", "ds_load_u16 v5, v0", lambda value: value & 0xFFFF),
        ("ds_store_b16_d16_hi v0, v4", "ds_load_u16 v5, v0", lambda value: value >> 16),
        ("ds_store_b32 v0, v4", "ds_load_u16_d16 v5, v0", lambda value: JUNK & 0xFFFF0000 | value & 0xFFFF),
        ("ds_store_b32 v0, v4", "ds_load_u16_d16_hi v5, v0 offset:2", lambda value: value & 0xFFFF0000 | JUNK & 0xFFFF),
        ("ds_store_b32 v0, v4", "ds_load_u8_d16 v5, v0 offset:3", lambda value: JUNK & 0xFFFF0000 | value >> 24),
        ("ds_store_b32 v0, v4", "ds_load_u8_d16_hi v5, v0 offset:1", lambda value: (value >> 8 & 0xFF) << 16 | JUNK & 0xFFFF),
    ],
)
def test_parts_and_halves_of_words_are_stored_and_loaded(store, load, expected):
    after = ran(f"{store}\ns_wait_dscnt 0x0\n{load}", "gfx1201", v={0: LANES[:32] * 4, 4: VALUES[0, :32]})
    assert after.vector[5, 0].tolist() == [expected(int(value)) for value in VALUES[0, :32]]


def test_waves_of_one_workgroup_share_lds():
    text = "ds_write_b32 v0, v1\ns_waitcnt lgkmcnt(0)\ns_barrier\nds_read_b32 v3, v2"
    place = np.arange(128, dtype=np.uint32).reshape(2, 64) * 4
    after = ran(text, v={0: place, 1: place, 2: place[::-1]}, num_waves=2)
    assert after.vector[3].tolist() == place[::-1].tolist()


TRANSPOSED = {
    # elements of a lane, bits of an element, and the matrix that lanes read: rows of consecutive elements
    ("gfx950", "ds_read_b64_tr_b16 v[4:5], v0"): (4, 16),
    ("gfx950", "ds_read_b64_tr_b8 v[4:5], v0"): (8, 8),
}


@pytest.mark.parametrize(("architecture", "text"), TRANSPOSED)
def test_16_lanes_of_gfx950_read_rows_and_get_columns(architecture, text):
    count, bits = TRANSPOSED[architecture, text]
    dtype = np.dtype(f"u{bits // 8}")
    matrix = np.frombuffer(DATA[: 4 * count * 16 * dtype.itemsize], dtype).reshape(4, count, 16)  # blocks, rows, columns
    after = ran(f"{FILL}\n{text}", architecture, v={0: LANES * 8, **FILLED})
    for lane in range(64):
        got = np.frombuffer(after.vector[4:6, 0, lane].tobytes(), dtype)
        assert got.tolist() == matrix[lane // 16, :, lane % 16].tolist(), lane


def test_gfx1250_transposes_blocks_of_8_by_8():
    fill = FILL.replace("ds_write", "ds_store")
    filled = {60: LANES[:32] * 4, **{61 + i: VALUES[i, :32] for i in range(4)}}
    lds = np.zeros(256, np.uint32)
    for i in range(4):
        lds[64 * i : 64 * i + 32] = VALUES[i, :32]
    after = ran(
        f"{fill}\nds_load_tr16_b128 v[4:7], v0", "gfx1250", v={0: LANES[:32] * 16 // 128 * 256 + LANES[:32] % 8 * 16, **filled}
    )
    halves = lds.view(np.uint16)
    for lane in range(32):
        rows = [halves[128 * (lane // 8) + 8 * i : 128 * (lane // 8) + 8 * i + 8] for i in range(8)]
        assert np.frombuffer(after.vector[4:8, 0, lane].tobytes(), np.uint16).tolist() == [int(row[lane % 8]) for row in rows]
    after = ran(f"{fill}\nds_load_tr8_b64 v[4:5], v0", "gfx1250", v={0: LANES[:32] // 16 * 256 + LANES[:32] % 16 * 8, **filled})
    parts = lds.view(np.uint8)
    for lane in range(32):
        readers = [
            lane // 16 * 16 + reader
            for reader in ([0, 1, 2, 3, 8, 9, 10, 11] if lane % 16 < 8 else [4, 5, 6, 7, 12, 13, 14, 15])
        ]
        expected = [int(parts[reader // 16 * 256 + reader % 16 * 8 + lane % 8]) for reader in readers]
        assert np.frombuffer(after.vector[4:6, 0, lane].tobytes(), np.uint8).tolist() == expected


@pytest.mark.parametrize(
    "text", ["ds_read_b32 v4, v0", "ds_write_b32 v0, v4", "ds_read2_b32 v[4:5], v0 offset1:1", "ds_read_b64 v[4:5], v0"]
)
def test_an_address_beyond_the_lds_is_a_fault(text):
    with pytest.raises(EmulationFault, match=r"of LDS, of which a workgroup has 256 bytes \(workgroup 0, wave 0, lane 60\)"):
        ran(text, v={0: np.where(LANES == 60, 254, 0)}, lds_bytes=256)
    ran(text, v={0: np.where(LANES == 60, 254, 0)}, lds_bytes=256, exec=~(1 << 60))
    ran(text, v={0: 254}, lds_bytes=256, exec=0)


def test_an_address_may_be_negative_before_its_offset_is_added():
    after = ran(f"{FILL}\nds_read_b32 v4, v0 offset:260", v={0: (LANES * 4 - 256).astype(np.uint32), **FILLED})
    assert after.vector[4, 0].tolist() == [*VALUES[0, 1:], VALUES[1, 0]]
    with pytest.raises(EmulationFault, match="4 bytes at byte 4294967292 of LDS"):
        ran("ds_read_b32 v4, v0 offset:252", v={0: -256})


@pytest.mark.parametrize("exec_mask", [0xFFFFFFFF, ~(1 << 5) & 0xFFFFFFFF])
@pytest.mark.parametrize("count", [1, 3])
def test_lanes_of_gfx1250_at_the_address_of_nowhere_store_nothing(count, exec_mask):
    """As Triton's masked copies store the other value; several stores behind each other run together."""
    lanes = LANES[:32].astype(np.uint32)
    v = {i: lanes * 8 + 256 * i for i in range(count)} | {9 + i: VALUES[0, :32] + np.uint32(i) for i in range(2 * count)}
    for i in range(count):
        v[i][7 + i] = 0x7FFFFFFF
    text = "\n".join(f"ds_store_b64 v{i}, v[{9 + 2 * i}:{10 + 2 * i}] offset:16" for i in range(count))
    found = ran(text, "gfx1250", v=v, lds_bytes=1024, exec=exec_mask).shared.lds[0]
    expected = np.full(256, JUNK, np.uint32)
    for i in range(count):
        for lane in range(32):
            if lane != 7 + i and exec_mask >> lane & 1:
                for word in range(2):
                    expected[(lane * 8 + 256 * i + 16) // 4 + word] = v[9 + 2 * i + word][lane]
    assert found.tolist() == expected.tolist()
    with pytest.raises(EmulationFault, match="of LDS, of which a workgroup has 1024 bytes"):
        ran(text, "gfx1201", v=v, lds_bytes=1024, exec=exec_mask)
