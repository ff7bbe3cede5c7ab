"""gfx1250's tensor data mover against loops over a tile, and its loads by lanes: where bytes lie, and who may touch them."""

import itertools
from contextlib import nullcontext

import numpy as np
import pytest
from attn_amdgcn import EmulationFault, UnknownInstructionError
from attn_amdgcn.memory import BASE, GUARD

from tests.emulated.lines import JUNK, ran

HALVES = np.random.default_rng(0).integers(0, 1 << 16, 4096, np.uint16)
WORDS = HALVES.view(np.uint32)
LANES = np.arange(32, dtype=np.uint32)
WAIT = "s_wait_tensorcnt 0x0"
LDS = 2048


def descriptor(shape, tile, strides=(), *, byte=0, lds=0, size=2, pad=None, flags=1, rows=None) -> dict[int, int]:
    """s0 to s19: four groups. Extents and strides have dimension 0 first; the buffer is the first one of the launch."""
    shape, tile, strides = ([*given, *[0] * (5 - len(given))] for given in (shape, tile, strides))
    address = BASE + GUARD + byte
    one = size.bit_length() - 1 << 16
    if pad:
        one |= 1 << 20 | (pad[0].bit_length() - 2) << 22 | (pad[1] - 1) << 25
    fields = [(flags, 32), (lds, 32), (address, 57), (0, 5), (2, 2)]
    fields += [(one, 32), (0, 16), (shape[0], 32), (shape[1], 32), (tile[0], 16), (tile[1], 16), (tile[2], 16)]
    fields += [(strides[0], 48), (strides[1], 48)]
    if rows is None:
        fields += [(shape[2], 32), (shape[3], 32), (strides[2], 48), (tile[3], 16)]
        fields += [(strides[3], 48), (shape[4], 32), (tile[4], 16), (0, 32)]
    else:
        fields += [(row, 32 if flags & 1 << 30 else 16) for row in rows]
    bits = at = 0
    for value, width in fields:
        assert 0 <= value < 1 << width
        bits, at = bits | value << at, at + width
    return {i: bits >> 32 * i & 0xFFFFFFFF for i in range(20)}


def moved(name, s, groups, **more):
    operands = ("s[0:3]", "s[4:11]", "s[12:15]", "s[16:19]")[:groups]
    buffers = {"data": HALVES.view(np.uint8)}
    return ran(f"{name} {', '.join(operands)}\n{WAIT}", "gfx1250", s=s, buffers=buffers, lds_bytes=LDS, **more)


def loaded(s, groups, **more) -> list[int]:
    return moved("tensor_load_to_lds", s, groups, **more).shared.lds.view(np.uint16)[0].tolist()


def expected(shape, tile, strides, *, first=0, lds=0, rows=None, pad=None) -> list[int]:
    """Halves of LDS, by one loop over a tile of halves."""
    found = np.full(LDS // 4, JUNK, np.uint32).view(np.uint16).tolist()
    for n, place in enumerate(itertools.product(*(range(extent) for extent in tile[::-1]))):
        place = list(place[::-1])
        if rows is not None:
            place[1] = rows[place[1]]
        inside = all(i < extent for i, extent in zip(place, shape, strict=True))
        free = n // (2 * pad[0]) * 2 * pad[1] if pad else 0
        offset = sum(i * stride for i, stride in zip(place, (1, *strides), strict=True))
        found[lds // 2 + n + free] = int(HALVES[first + offset]) if inside else 0
    return found


@pytest.mark.parametrize("exec", [-1, 0])
def test_a_tile_of_two_dimensions_with_free_words(exec):
    shape, tile, strides, pad = (20, 7), (16, 9), (40,), (4, 2)
    s = descriptor(shape, tile, strides, byte=6, lds=16, pad=pad)
    assert loaded(s, 2, exec=exec) == expected(shape, tile, strides, first=3, lds=16, pad=pad)


def test_a_tile_beyond_the_tensor_and_one_of_no_elements():
    shape, tile, strides = (5, 2), (8, 4), (64,)
    assert loaded(descriptor(shape, tile, strides), 2) == expected(shape, tile, strides)
    untouched = np.full(LDS // 4, JUNK, np.uint32).view(np.uint16).tolist()
    assert loaded(descriptor(shape, tile, strides, flags=0), 2) == untouched
    assert loaded(descriptor(shape, (0, 4), strides), 2) == untouched


@pytest.mark.parametrize("dims", [3, 4, 5])
def test_tiles_of_more_dimensions_are_loaded(dims):
    shape, tile, strides = (4, 3, 2, 2, 3)[:dims], (4, 2, 3, 2, 2)[:dims], (6, 40, 130, 700)[: dims - 1]
    assert loaded(descriptor(shape, tile, strides), 4) == expected(shape, tile, strides)


@pytest.mark.parametrize(
    ("wide", "rows"), [(1, (3, 0, 5, 6, 2**32 - 1, 1, 1, 4)), (0, (3, 65535, *range(6), 4, 4, 7, 1, 0, 2, 5, 6))]
)
def test_chosen_rows_are_loaded(wide, rows):
    shape, count, strides = (16, 6), len(rows) - 1, (50,)
    s = descriptor(shape, (16, count), strides, flags=1 << 31 | wide << 30 | 1, rows=rows)
    assert loaded(s, 4) == expected(shape, (16, count), strides, rows=rows)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_store_of_each_size(size):
    s = descriptor((3, 2), (4, 3), (16,), size=size, lds=32, pad=(2, 1))
    text = "v_lshlrev_b32_e32 v2, 2, v0\nds_store_b32 v2, v1\ns_wait_dscnt 0x0\n"
    buffers = {"data": np.zeros(1024, np.uint8)}
    v = {0: LANES, 1: WORDS[:32]}
    after = ran(f"{text}tensor_store_from_lds s[0:3], s[4:11]\n{WAIT}", "gfx1250", s=s, v=v, buffers=buffers, lds_bytes=LDS)
    lds, found = WORDS[:32].view(np.uint8)[32:], np.zeros(1024, np.uint8)
    for row, n in itertools.product(range(2), range(3)):
        found[(16 * row + n) * size :][:size] = lds[(4 * row + n) * size :][:size]
    assert after.shared.memory.contents("data").tolist() == found.tolist()


@pytest.mark.parametrize(
    ("change", "groups", "what"),
    [
        ({0: 3}, 2, "a count above 1"),
        ({4: 1 << 16 | 1 << 18}, 2, "a barrier"),
        ({4: 1 << 16 | 1 << 19}, 2, "iterations"),
        ({4: 1 << 16 | 3}, 2, "workgroups of a cluster"),
        ({3: 1 << 30}, 2, "type 2"),
        ({8: 2 | 1 << 16}, 2, "a third dimension"),
        ({0: 1 | 1 << 31}, 2, "rows without their indices"),
    ],
)
def test_unknown_fields_of_a_descriptor_are_refused(change, groups, what):
    with pytest.raises(UnknownInstructionError, match=what):
        loaded(descriptor((8, 8), (4, 2), (8,)) | change, groups)


def test_other_architectures_have_none():
    with pytest.raises(UnknownInstructionError):
        ran("tensor_load_to_lds s[0:3], s[4:11]", "gfx1201")


def test_bytes_outside_are_faults():
    with pytest.raises(EmulationFault, match="2 bytes at byte 8192 of data"):
        loaded(descriptor((8, 2), (8, 2), (4096,)), 2)
    with pytest.raises(EmulationFault, match="2 bytes at byte 2048 of LDS"):
        loaded(descriptor((8, 2), (8, 2), (8,), lds=2040), 2)


TILE = "tensor_load_to_lds s[0:3], s[4:11]"
READ = "ds_load_b32 v2, v0"
ASYNC = "global_load_async_to_lds_b32 v0, v1, s[100:101] offset:4"


@pytest.mark.parametrize(
    ("lines", "fails"),
    [
        ((TILE, READ), True),
        ((TILE, "s_wait_loadcnt 0x0", READ), True),
        ((TILE, TILE.replace("0:3", "20:23"), "s_wait_tensorcnt 0x1", READ), False),
        ((TILE, WAIT, READ), False),
        ((ASYNC, READ), True),
        ((ASYNC, WAIT, READ), True),
        ((ASYNC, "s_wait_asynccnt 0x0", "ds_load_b32 v2, v0 offset:4"), False),
    ],
)
def test_a_byte_that_has_not_come_is_not_touched(lines, fails):
    s = descriptor((64,), (64,))
    s |= {20 + i: word for i, word in enumerate(list(descriptor((64,), (64,), lds=1024).values())[:4])}
    v = {0: LANES * 4, 1: LANES * 4}
    fault = pytest.raises(EmulationFault, match="no wait stands before its use") if fails else nullcontext()
    with fault:
        ran("\n".join(lines), "gfx1250", s=s, v=v, buffers={"data": HALVES.view(np.uint8)}, lds_bytes=LDS)


@pytest.mark.parametrize(("name", "words"), [("b32", 1), ("b64", 2), ("b128", 4)])
def test_a_load_by_lanes(name, words):
    text = f"global_load_async_to_lds_{name} v0, v1, s[100:101] offset:16\ns_wait_asynccnt 0x0"
    v = {0: LANES[::-1] * 32, 1: LANES * 48}
    v[0][7], v[1][7] = 0x7FFFFFFF, 1 << 30  # a lane that is to load nothing, from where there is nothing
    after = ran(text, "gfx1250", v=v, buffers={"data": HALVES.view(np.uint8)}, lds_bytes=LDS, exec=~(1 << 5))
    found = np.full(LDS // 4, JUNK, np.uint32)
    for lane in set(range(32)) - {5, 7}:
        found[(31 - lane) * 8 + 4 :][:words] = WORDS[lane * 12 + 4 :][:words]
    assert after.shared.lds[0].tolist() == found.tolist()
