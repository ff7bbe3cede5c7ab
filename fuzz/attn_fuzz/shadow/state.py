"""The state of a shadow: names, tables, and the keys and values that it keeps."""

import itertools
from collections import deque
from collections.abc import Hashable, Mapping
from typing import Any, Final

import numpy as np
from attn_contract import ContractError
from attn_fuzz.shadow.contents import REAL, ZEROS, Contents
from attn_fuzz.shadow.faults import Written
from attn_fuzz.shadow.tables import SLOT, Slots, Track

_FREED_KEPT: Final = 4096
"""The number of freed requests whose tokens are kept."""
_DROPPED_KEPT: Final = 16
"""The number of freed requests whose positions each layer keeps, to name a key that attention still reads."""


class ShadowState:
    """The tables of a shadow. Each request has a number. The number of a freed request is never used again.

    Args:
        value_bytes, pools: as for Shadow.

    Attributes:
        numbers: the numbers of living requests.
        tracks: by layer and number.
        tokens: by number.
    """

    def __init__(self, value_bytes: int, pools: Mapping[Any, Hashable]) -> None:
        self.step, self.value_bytes = 0, value_bytes
        self.numbers: dict[Hashable, int] = {}
        self.tracks: dict[Hashable, dict[int, Track]] = {}
        self.tokens: dict[int, np.ndarray] = {}
        self.narrow: dict[Hashable, tuple[int | None, int | None]] = {}
        self._pool_of = dict(pools)
        self._slots: dict[Hashable, Slots] = {}
        self._layers: dict[Hashable, int] = {}
        self._names: list[Hashable] = []
        self._freed: dict[int, int] = {}
        self._dropped: deque[tuple[Hashable, int, Track]] = deque(maxlen=_DROPPED_KEPT)
        self._writes: deque[Contents] = deque()
        self._kept: dict[int, tuple[Contents, int]] = {}
        self._kept_bytes, self._serial = 0, 0

    @property
    def nbytes(self) -> int:
        """The bytes of all tables, without the kept keys and values."""
        tables = [*self._slots.values(), *(track for *_, track in self._dropped)]
        tables += [track for tracks in self.tracks.values() for track in tracks.values()]
        return sum(table.nbytes for table in tables)

    def number(self, request: Hashable) -> int:
        try:
            if request not in self.numbers:
                self.numbers[request] = len(self._names)
                self._names.append(request)
        except TypeError:
            raise ContractError("request", request, "a name that can be hashed") from None
        return self.numbers[request]

    def track(self, layer: Hashable, number: int) -> Track:
        try:
            self._layers.setdefault(layer, len(self._layers))
        except TypeError:
            raise ContractError("layer", layer, "a name that can be hashed") from None
        return self.tracks.setdefault(layer, {}).setdefault(number, Track())

    def slots(self, layer: Hashable) -> Slots:
        return self._slots.setdefault(self._pool_of.get(layer, layer), Slots())

    def free(self, request: Hashable) -> None:
        number = self.numbers.pop(request, None)
        if number is None:
            return
        for layer, tracks in self.tracks.items():
            if (track := tracks.pop(number, None)) is not None:
                self._dropped.append((layer, number, track))
        self._freed[number] = self.step
        for old in [number for number in self.tokens if number in self._freed][:-_FREED_KEPT]:
            del self.tokens[old]

    def fill(self, layer: Hashable, number: int, positions: np.ndarray, slots: np.ndarray, marks: np.ndarray) -> None:
        kept = slots >= 0
        records = np.zeros(int(kept.sum()), SLOT)
        records["mark"], records["position"] = marks[kept], positions[kept]
        records["request"], records["step"], records["layer"] = number, self.step, self._layers[layer]
        self.slots(layer).put(slots[kept], records)

    def serials(self, count: int) -> np.ndarray:
        """Marks of unknown keys, each different from all others."""
        self._serial += count
        return np.arange(self._serial - count + 1, self._serial + 1, dtype=np.uint64)

    def keep(self, written: Contents) -> None:
        """Keep keys and values by their mark, under which requests that share a key find it, too."""
        if not self.value_bytes:
            return
        kept = written.clone()
        self._writes.append(kept)
        self._kept.update(zip(kept.marks.tolist(), zip(itertools.repeat(kept), itertools.count()), strict=False))
        self._kept_bytes += kept.nbytes
        while self._kept_bytes > self.value_bytes:
            oldest = self._writes.popleft()
            self._kept_bytes -= oldest.nbytes
            for mark in oldest.marks.tolist():
                if mark in self._kept and self._kept[mark][0] is oldest:
                    del self._kept[mark]

    def kept(self, mark: int) -> Contents | None:
        """The key and value of a mark, [1, ...]; None if they are not kept."""
        written, row = self._kept.get(mark, (None, 0))
        return None if written is None else written[row : row + 1]

    def _tracks(self, layer: Hashable) -> list[tuple[int, Track]]:
        """The tracks of living requests, followed by those that were freed last."""
        freed = [(owner, track) for of, owner, track in reversed(self._dropped) if of == layer]
        return [*self.tracks.get(layer, {}).items(), *freed]

    def marks(self, layer: Hashable, position: int) -> list[int]:
        """The marks of a position, in all requests and in some that were freed."""
        found = (track.get(np.array([position]))["mark"][0] for _, track in self._tracks(layer))
        return [int(mark) for mark in found if mark]

    def first_seen(self, layer: Hashable, query: int) -> int:
        """The first position that a query of the layer sees."""
        window, chunk = self.narrow.get(layer, (None, None))
        first = 0 if window is None else query - window + 1
        return max(0, first) if chunk is None else max(first, query // chunk * chunk)

    def own(self, layer: Hashable, request: Hashable, position: int) -> Written | None:
        """The request's own write of a position; None if there was none."""
        track = self.tracks.get(layer, {}).get(self.numbers.get(request, -1))
        record = None if track is None else track.get(np.array([position]))[0]
        if record is None or record["mark"] == 0:
            return None
        return Written(layer, request, position, int(record["step"]))

    def writer(self, record: Any) -> Written | None:
        """The writer of a slot's record; None if it was not written."""
        if record is None or record["mark"] == 0:
            return None
        owner = int(record["request"])
        layer = list(self._layers)[int(record["layer"])]
        return Written(layer, self._names[owner], int(record["position"]), int(record["step"]), self._freed.get(owner))

    def source(self, layer: Hashable, number: int, mark: np.uint64, mask: np.uint64) -> Any:
        """The write with a mark, as a record of a slot. It is searched in the request, others, freed ones, then in slots."""
        if mark & REAL == 0 or mark == ZEROS:
            return None
        for owner, track in sorted(self._tracks(layer), key=lambda one: one[0] != number):
            same = ((track.marks ^ mark) & mask) == 0
            if same.any():
                position = track.begin + int(same.argmax())
                record = track.get(np.array([position]))[0]
                return np.array((record["mark"], owner, position, record["step"], self._layers[layer]), SLOT)[()]
        pool = self._slots.get(self._pool_of.get(layer, layer))
        return None if pool is None else pool.find(mark, mask)
