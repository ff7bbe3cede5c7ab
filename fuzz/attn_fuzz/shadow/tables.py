"""The two tables of a shadow: the write of each position of a request, and the last write into each slot."""

import numpy as np

POSITION = np.dtype([("mark", "u8"), ("slot", "i8"), ("step", "i4")])
SLOT = np.dtype([("mark", "u8"), ("request", "i4"), ("position", "i4"), ("step", "i4"), ("layer", "i2")])
NO_SLOT = -1
MAX_SLOT = 1 << 36


class Track:
    """The writes of one request in one layer, by position. A mark of 0 is a position that was not written.

    Attributes:
        begin, end: the positions that are kept. Those before `begin` have left the window.
        step, first, last: the number of the latest step that wrote, and its first and last position.
    """

    def __init__(self) -> None:
        self.begin, self.end = 0, 0
        self.step, self.first, self.last = -1, 0, -1
        self._data = np.zeros(0, POSITION)

    @property
    def nbytes(self) -> int:
        return self._data.nbytes

    @property
    def marks(self) -> np.ndarray:
        return self._data["mark"][: self.end - self.begin]

    def get(self, positions: np.ndarray) -> np.ndarray:
        """The records of positions; zeros for those that were not written."""
        first, count = int(positions[0]) - self.begin if len(positions) else 0, len(positions)
        if first >= 0 and first + count <= self.end - self.begin and int(positions[-1]) - self.begin == first + count - 1:
            records = self._data[first : first + count]
            if np.array_equal(positions, np.arange(first + self.begin, first + self.begin + count)):
                return records
        held = (positions >= self.begin) & (positions < self.end)
        records = np.zeros(count, POSITION)
        records["slot"] = NO_SLOT
        records[held] = self._data[positions[held] - self.begin]
        return records

    def put(self, positions: np.ndarray, marks: np.ndarray, slots: np.ndarray | None, step: int) -> None:
        kept = positions >= self.begin
        if not kept.all():
            positions, marks, slots = positions[kept], marks[kept], None if slots is None else slots[kept]
        if not len(positions):
            return
        first, last = int(positions.min()), int(positions.max())
        self._reach(last + 1)
        rows = positions - self.begin
        self._data["mark"][rows] = marks
        self._data["slot"][rows] = NO_SLOT if slots is None else slots
        self._data["step"][rows] = step
        is_new = step != self.step
        self.first = first if is_new else min(self.first, first)
        self.last = last if is_new else max(self.last, last)
        self.step = step

    def adopt(self, positions: np.ndarray, marks: np.ndarray, slots: np.ndarray, step: int) -> None:
        """Put positions that this step does not query."""
        self.put(positions, marks, slots, step)
        self.step = -1

    def place(self, positions: np.ndarray, slots: np.ndarray) -> None:
        self._data["slot"][positions - self.begin] = slots

    def truncate(self, end: int) -> None:
        """Forget the positions from `end` on."""
        if end < self.end:
            self._data[max(0, end - self.begin) :] = np.zeros((), POSITION)
            self.end = max(self.begin, end)
            self.last = min(self.last, end - 1)

    def slide(self, begin: int) -> None:
        """Forget the positions before `begin`, now and then."""
        if begin - self.begin > 64:
            self._data = self._data[begin - self.begin :].copy()
            self.begin, self.end = begin, max(begin, self.end)

    def copy(self, end: int | None) -> "Track":
        """A track of another request, with the positions before `end`, or with all. That request has written nothing itself."""
        other = Track()
        other.begin, other.end = self.begin, self.end if end is None else max(self.begin, min(self.end, end))
        other._data = self._data[: other.end - other.begin].copy()
        return other

    def _reach(self, end: int) -> None:
        size = end - self.begin
        if size > len(self._data):
            grown = np.zeros(max(size, len(self._data) * 9 // 8 + 4), POSITION)
            grown[: len(self._data)] = self._data
            self._data = grown
        self.end = max(self.end, end)


class Slots:
    """The last write into each slot of a pool. A slot with the mark 0 was not written."""

    _PAGE = 64

    def __init__(self) -> None:
        self._pages = np.full(0, -1, np.int32)
        self._used = 0
        self._data = np.zeros((0, self._PAGE), SLOT)

    @property
    def nbytes(self) -> int:
        return self._data.nbytes + self._pages.nbytes

    def get(self, slots: np.ndarray) -> np.ndarray:
        pages = slots // self._PAGE
        held = (slots >= 0) & (pages < len(self._pages))
        rows = np.full(len(slots), -1, np.int32)
        rows[held] = self._pages[pages[held]]
        records = np.zeros(len(slots), SLOT)
        held = rows >= 0
        records[held] = self._data[rows[held], slots[held] % self._PAGE]
        return records

    def put(self, slots: np.ndarray, records: np.ndarray) -> None:
        pages = slots // self._PAGE
        self._reach(np.unique(pages))
        self._data[self._pages[pages], slots % self._PAGE] = records

    def find(self, mark: np.uint64, mask: np.uint64) -> np.void | None:
        """The latest write with such a mark."""
        found = self._data[((self._data["mark"] ^ mark) & mask == 0) & (self._data["mark"] != 0)]
        return found[found["step"].argmax()] if len(found) else None

    def _reach(self, pages: np.ndarray) -> None:
        if len(pages) and pages[-1] >= len(self._pages):
            grown = np.full(int(pages[-1]) * 9 // 8 + 1, -1, np.int32)
            grown[: len(self._pages)] = self._pages
            self._pages = grown
        new = pages[self._pages[pages] < 0]
        if self._used + len(new) > len(self._data):
            data = np.zeros((max(self._used + len(new), len(self._data) * 9 // 8), self._PAGE), SLOT)
            data[: len(self._data)] = self._data
            self._data = data
        self._pages[new] = np.arange(self._used, self._used + len(new))
        self._used += len(new)
