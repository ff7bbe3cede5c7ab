"""An engine of a few lines, right and with one mistake at a time: the shadow names each, and is silent otherwise."""

import math

import numpy as np
import pytest
import torch
from attn_contract import ContractError
from attn_fuzz.shadow import FaultKind, Shadow, contents_of

BLOCK, RING = 4, 16


class TinyEngine:
    """Requests in blocks of 4 slots, of one layer: keys are random, and rotated by their position. With a window, a request's
    blocks are a ring of 16 slots."""

    def __init__(self, *, window: int | None = None, **options) -> None:
        self.shadow = Shadow(value_bytes=1 << 20, **options)
        self.window = window
        if window is not None:
            self.shadow.narrow(0, window=window)
        self.cache = torch.zeros(64 * BLOCK, 2, 2, 8)
        self.tables: dict[str, list[int]] = {}
        self.lengths: dict[str, int] = {}
        self.first: dict[str, int] = {}
        self.free_blocks = list(range(16))
        self.generator = torch.Generator().manual_seed(0)

    def slots(self, request: str, positions: range) -> list[int]:
        table = self.tables[request]
        ring = [p if self.window is None else p % RING for p in positions]
        return [table[r // BLOCK] * BLOCK + r % BLOCK for r in ring]

    def write(self, request: str, count: int = 1) -> None:
        begin = self.lengths.get(request, 0)
        end = begin + count
        table = self.tables.setdefault(request, [])
        needed = -(-(end if self.window is None else min(end, RING)) // BLOCK)
        while len(table) < needed:
            table.append(self.free_blocks.pop(0))
        new = torch.randn(count, 2, 2, 8, generator=self.generator)
        new[:, 0] = rotated(new[:, 0], torch.arange(begin, end))
        slots = self.slots(request, range(begin, end))
        self.cache[slots] = new
        self.lengths[request], self.first[request] = end, begin
        self.shadow.write(0, request, range(begin, end), slots=slots, keys=new[:, 0], values=new[:, 1])

    def read(self, request: str, *, slots=None, length=None, **options):
        length = length or self.lengths[request]
        positions = range(0 if self.window is None else max(0, self.first[request] - self.window + 1), length)
        slots = self.slots(request, positions) if slots is None else slots
        handed = self.cache[slots]
        return self.shadow.read(0, request, positions, slots=slots, keys=handed[:, 0], values=handed[:, 1], **options)

    def free(self, request: str) -> None:
        self.free_blocks = self.tables.pop(request) + self.free_blocks
        del self.lengths[request]
        self.shadow.free(request)


def rotated(keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """RoPE [n, HK, D], in pairs of halves."""
    half = keys.shape[-1] // 2
    angles = positions[:, None] * 10000.0 ** (-torch.arange(half) / half)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    first, second = keys[..., :half], keys[..., half:]
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


def two_requests(**options) -> TinyEngine:
    engine = TinyEngine(**options)
    for request, count in (("a", 6), ("b", 3)):
        engine.write(request, count)
        assert not engine.read(request)
    return engine


def wrong_slot(engine):
    engine.write("a")
    return engine.read("a", slots=[*engine.slots("a", range(5)), *engine.slots("a", range(4, 6))])


def shared_block(engine):
    engine.tables["b"][0] = engine.tables["a"][0]
    engine.write("b")
    engine.write("a")
    return engine.read("a")


def stale_block(engine):
    old = engine.tables["b"][0]
    engine.free("b")
    engine.tables["a"][0] = old
    engine.write("a")
    return engine.read("a")


def lost_key(engine):
    engine.write("a")
    return engine.read("a", slots=[*engine.slots("a", range(6)), 200])


def zeroed(engine):
    engine.write("a")
    engine.cache[engine.slots("a", range(2, 4))] = 0
    return engine.read("a")


def too_long(engine):
    engine.write("b")
    return engine.read("b", slots=[*engine.slots("b", range(4)), 200], length=5)


def too_short(engine):
    engine.write("a", 2)
    return engine.read("a", length=7)


def rotated_again(engine):
    engine.write("a")
    at = engine.slots("a", range(3, 6))
    engine.cache[at, 0] = rotated(engine.cache[at, 0], torch.arange(3, 6))
    return engine.read("a")


def unrotated(engine):
    engine.write("a")
    at = engine.slots("a", range(1, 3))
    engine.cache[at, 0] = rotated(engine.cache[at, 0], -torch.arange(1, 3))
    return engine.read("a")


def rescaled(engine):
    engine.write("a")
    engine.cache[engine.slots("a", range(2, 3)), 1] *= 0.37
    return engine.read("a")


def altered(engine):
    engine.write("a")
    engine.cache[engine.slots("a", range(2, 3)), 0, 1, 3] += 1
    return engine.read("a")


def after_read(engine):
    engine.lengths["a"] += 1
    engine.read("a", slots=engine.slots("a", range(7)))
    engine.lengths["a"] -= 1
    begin = engine.lengths["a"]
    return engine.shadow.write(0, "a", range(begin, begin + 1), slots=engine.slots("a", range(begin, begin + 1)))


FAULTS = [
    (wrong_slot, FaultKind.WRONG_SLOT, 5, ("a", 4)),
    (shared_block, FaultKind.OTHER_REQUEST, 3, ("b", 3)),
    (stale_block, FaultKind.STALE_BLOCK, 0, ("b", 0)),
    (lost_key, FaultKind.WRONG_SLOT, 6, None),
    (zeroed, FaultKind.LOST_KEY, 2, ("a", 2)),
    (too_long, FaultKind.WRONG_LENGTH, 4, None),
    (too_short, FaultKind.WRONG_LENGTH, 7, None),
    (rotated_again, FaultKind.ROTATED_TWICE, 3, ("a", 3)),
    (unrotated, FaultKind.NOT_ROTATED, 1, ("a", 1)),
    (rescaled, FaultKind.SCALE, 2, ("a", 2)),
    (altered, FaultKind.ALTERED, 2, ("a", 2)),
    (after_read, FaultKind.WRITE_AFTER_READ, 6, None),
]


@pytest.mark.parametrize(("mistake", "kind", "position", "writer"), FAULTS, ids=[one[0].__name__ for one in FAULTS])
def test_a_mistake_is_named_with_its_first_position_and_the_slots_writer(mistake, kind, position, writer):
    engine = two_requests()
    found = mistake(engine)[0]
    assert (found.kind, found.position) == (kind, position), str(found)
    assert (found.writer and (found.writer.request, found.writer.position)) == writer
    assert found in engine.shadow.faults
    assert str(found).startswith(f"{kind}: layer 0, request {found.request}, position {position}, step ")


def test_a_ring_that_is_read_from_another_place():
    engine = two_requests(window=8)
    for count in (5, 1):
        engine.write("a", count)
        assert not engine.read("a")
    right = engine.slots("a", range(4, 12))
    assert not engine.read("a")
    found = engine.read("a", slots=right[1:] + right[:1])
    assert found[0].kind == FaultKind.WRONG_RING
    assert found[0].position == 4
    assert (found[0].expected_slot, found[0].writer.position, found[0].count) == (right[0], 5, 8)


def test_a_right_engine_has_no_fault():
    """Chunks, rings, copies on write, shared prefixes, rejected drafts, beams, preemption, and blocks that are used again."""
    for window in (None, 8):
        engine = two_requests(window=window)
        engine.write("a", 4)
        assert not engine.read("a")
        for _ in range(20):
            for request in ("a", "b"):
                engine.write(request)
                assert not engine.read(request)
        engine.lengths["a"] -= 1
        engine.shadow.roll_back("a", engine.lengths["a"])
        engine.write("a")
        assert not engine.read("a")
        engine.free("b")
        engine.write("b", 9)
        assert not engine.read("b")

    engine = two_requests()
    engine.tables["c"], engine.lengths["c"] = [*engine.tables["a"][:1], 20], 6
    engine.cache[20 * BLOCK : 21 * BLOCK] = engine.cache[engine.tables["a"][1] * BLOCK :][:BLOCK]
    engine.shadow.fork("c", "a")
    engine.shadow.copy(0, engine.slots("a", range(4, 6)), engine.slots("c", range(4, 6)))
    for request in ("a", "c"):
        engine.write(request)
        assert not engine.read(request)
    engine.shadow.free("a")  # others share its first block
    engine.tables["d"], engine.lengths["d"] = engine.tables["c"][:1], 4
    assert not engine.shadow.adopt(0, "d", range(4), engine.slots("d", range(4)))
    engine.write("d", 3)
    assert not engine.read("d")


def test_beams_change_places_at_once():
    shadow = Shadow()
    keys = torch.randn(3, 4, 8)
    for beam in range(3):
        shadow.write("layer", beam, range(4), keys=keys[beam])
        assert not shadow.read("layer", beam, range(4), keys=keys[beam])
    order = [2, 0, 0]
    shadow.reorder(dict(enumerate(order)))
    for beam, of in enumerate(order):
        assert not shadow.read("layer", beam, range(4), keys=keys[of])
        other = shadow.read("layer", beam, range(4), keys=keys[(of + 1) % 3])
        assert other[0].kind == (FaultKind.STALE_BLOCK if (of + 1) % 3 == 1 else FaultKind.OTHER_REQUEST), str(other[0])


def test_a_prefix_is_shared_for_its_tokens():
    shadow = Shadow()
    for request, tokens in (("a", [1, 2, 3, 4]), ("b", [1, 2, 3, 4, 5]), ("c", [1, 9, 3, 4, 5])):
        shadow.tell(request, tokens)
    shadow.write(0, "a", range(4), slots=range(4))
    shadow.free("a")
    assert not shadow.adopt(0, "b", range(4), range(4))
    found = shadow.adopt(0, "c", range(4), range(4))
    assert found[0].kind == FaultKind.OTHER_REQUEST
    assert found[0].position == 1
    assert shadow.adopt(0, "c", range(1, 3), range(2))[0].kind == FaultKind.WRONG_SLOT
    assert shadow.adopt(0, "c", range(4, 5), range(4, 5))[0].kind == FaultKind.LOST_KEY


def test_layers_that_share_a_pool_see_each_others_writes():
    shadow = Shadow(pools={0: "pool", 1: "pool"})
    shadow.write(0, "a", range(4), slots=range(4))
    shadow.write(1, "a", range(4), slots=range(2, 6))
    found = shadow.read(0, "a", range(4), slots=range(4))
    assert found[0].position == 2
    assert found[0].writer.layer == 1


def test_64_bytes_a_token_and_layer():
    shadow = Shadow()
    marks = contents_of(torch.randn(96, 2, 16), torch.randn(96, 2, 16))
    for layer in range(2):
        for request in range(64):
            first = request * 96
            shadow.write(layer, request, range(95), slots=range(first, first + 95), keys=marks[:95])
            shadow.write(layer, request, [95], slots=[first + 95], keys=marks[95:])
    assert shadow.nbytes / (2 * 64 * 96) < 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("width", [1, 3, 16])
def test_marks_differ_where_a_bit_does(dtype, width):
    keys = torch.randint(1, 200, (50, 2, width), generator=torch.Generator().manual_seed(0)).to(dtype)
    keys = torch.unique(keys, dim=0)
    marks = contents_of(keys, keys).marks
    assert len(set(marks.tolist())) == len(keys)
    flipped = keys.clone()
    flipped.view(torch.uint8).view(len(keys), -1)[:, -1] ^= 128
    assert not (contents_of(flipped, keys).marks == marks).any()
    assert np.array_equal(contents_of(keys.numpy() if dtype != torch.bfloat16 else keys, keys).marks, marks)


@pytest.mark.parametrize("pairs", ["halves", "neighbours"])
@pytest.mark.parametrize("width", [8, 4])
def test_a_rotation_is_seen_in_either_pairing_of_some_dims(pairs, width):
    shadow = Shadow(value_bytes=1 << 16)
    keys = torch.randn(1, 2, 8)
    again = keys.clone()
    order = torch.arange(width) if pairs == "halves" else torch.arange(width).view(-1, 2).T.flatten()
    again[..., order] = rotated(keys[..., order], torch.tensor([5]))
    shadow.write(0, "a", [5], keys=keys.bfloat16())
    assert shadow.read(0, "a", [5], keys=again.bfloat16(), whole=False)[0].kind == FaultKind.ROTATED_TWICE


BAD = [
    ("positions", lambda s: s.write(0, "a", [0.5])),
    ("positions", lambda s: s.write(0, "a", [-1])),
    ("slots", lambda s: s.write(0, "a", [0, 1], slots=[3])),
    ("slots", lambda s: s.write(0, "a", [0], slots=[1 << 40])),
    ("keys", lambda s: s.write(0, "a", [0], keys=torch.zeros(2, 4))),
    ("keys", lambda s: s.write(0, "a", [0], keys="k")),
    ("values", lambda s: s.write(0, "a", [0], keys=torch.zeros(1, 4), values=torch.zeros(2, 4))),
    ("values", lambda s: s.read(0, "a", [0], keys=contents_of(torch.zeros(1, 4)), values=torch.zeros(1, 4))),
    ("request", lambda s: s.write(0, [], [0])),
    ("layer", lambda s: s.write([], "a", [0])),
    ("window", lambda s: s.narrow(0, window=0)),
    ("length", lambda s: s.roll_back("a", -1)),
    ("of", lambda s: s.fork("a", "nobody")),
    ("tokens", lambda s: s.tell("a", [[1], [2]])),
    ("to_slots", lambda s: s.copy(0, [1, 2], [3])),
    ("value_bytes", lambda s: Shadow(value_bytes=-1)),
]


@pytest.mark.parametrize(("argument", "call"), BAD, ids=range(len(BAD)))
def test_bad_input_is_refused_by_name(argument, call):
    with pytest.raises(ContractError) as error:
        call(Shadow())
    assert error.value.argument == argument


def test_values_are_kept_within_their_bound():
    shadow = Shadow(value_bytes=300 * 32)
    keys = torch.randn(1000, 8)
    for begin in range(0, 1000, 100):
        shadow.write(0, "a", range(begin, begin + 100), keys=keys[begin : begin + 100])
    turned = keys * math.pi
    assert shadow.read(0, "a", range(700, 1000), keys=turned[700:], whole=False)[0].kind == FaultKind.SCALE
    early = shadow.read(0, "a", range(10), keys=turned[:10], whole=False)[0]
    assert early.kind == FaultKind.ALTERED
    assert "no longer kept" in early.detail


def test_a_rounded_key_is_close_to_its_own_and_not_to_anothers():
    shadow = Shadow(value_bytes=1 << 20)
    keys = torch.randn(2, 5, 16)
    for request in range(2):
        shadow.write(0, request, range(5), keys=keys[request])
    rounded = keys.to(torch.float8_e4m3fn).float()
    assert not shadow.read(0, 0, range(5), keys=rounded[0], close=0.25)
    found = shadow.read(0, 0, range(5), keys=rounded[1], close=0.25)
    assert (found[0].kind, found[0].writer.request) == (FaultKind.OTHER_REQUEST, 1)
