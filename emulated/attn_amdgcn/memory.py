"""Global memory: the buffers of a launch at addresses of 64 bits, with guards between them that no wave may touch."""

import itertools
import mmap
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from attn_amdgcn.errors import EmulationFault, LaunchError, Touch
from attn_amdgcn.storage import Storage
from attn_amdgcn.waves import Waves

GUARD = 4096
BASE = 0x7F3E_FFFF_C000
"""The first buffer lies a little below a multiple of 4 GiB, so that sums of addresses carry into their upper half."""

Spans = Mapping[str, Sequence[tuple[int, int]] | np.ndarray]
"""Spans [begin, end) of a buffer's bytes, by the buffer's name: pairs, or an array [spans, 2]."""
MAX_COPIED = 256 << 20
"""The most bytes of buffers that are copied when a launch starts. Above that, each page is copied when it is first touched."""
PAGE_BITS = 16
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # a constant of Python 3.13 and later; the number is Linux's
MAX_TOLD = 4
"""The most spans of a buffer that a fault names. If there are more, it names the nearest one."""


class PermittedBytes(NamedTuple):
    """The bytes of buffers that may be read, and the bytes that may be written. Of a buffer without spans, all bytes may be."""

    reads: Spans
    writes: Spans


@dataclass(frozen=True)
class Buffer:
    name: str
    """The name of the tensor or of the argument."""
    address: int
    """The address of its first byte."""
    size: int
    """In bytes."""


def addresses(sizes: Mapping[str, int]) -> dict[str, int]:
    """The addresses of a launch's buffers by their names, for host code that writes a pointer into a buffer.

    Args:
        sizes: the sizes of the launch's buffers in bytes, in their order.
    """
    ends = itertools.accumulate(map(_taken, sizes.values()), initial=BASE + GUARD)
    return dict(zip(sizes, ends, strict=False))


def _taken(size: int) -> int:
    return -(-size // 256) * 256 + GUARD


class Memory(Storage):
    """Buffers and what they hold. A place is an address less BASE.

    Args:
        contents: bytes of each buffer, by name. They are copied, and must not change while the memory is used.
        seed: the seed of the bytes between the buffers.
        permitted: the bytes that may be touched; None: all.

    Attributes:
        atomic_readers: the workgroups that got a value from an atomic instruction: it may order them after others.
    """

    def __init__(self, contents: dict[str, np.ndarray], seed: int = 0, permitted: PermittedBytes | None = None) -> None:
        for name, data in contents.items():
            if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 1:
                what = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
                raise LaunchError(f"buffer {name}: {what}, and an array of uint8 of one dimension is expected")
        sizes = {name: len(data) for name, data in contents.items()}
        self.buffers = {name: Buffer(name, address, sizes[name]) for name, address in addresses(sizes).items()}
        end = sum(map(_taken, sizes.values()), GUARD)
        self._given, self._missing = contents, np.ones((end >> PAGE_BITS) + 1, bool)
        self._is_paged = end > MAX_COPIED
        self.atomic_readers: set[int] = set()
        if self._is_paged:
            super().__init__(self.zeros_of(end, np.uint8))
        else:
            super().__init__(np.resize(np.random.default_rng(seed).integers(0, 256, GUARD, np.uint8), end))
            self._bring(slice(0, end))
        reads, writes = permitted or PermittedBytes({}, {})
        self._reads, self._writes = self._allowed("read", reads), self._allowed("written", writes)

    def _allowed(self, does: str, spans: Spans) -> "_Allowed":
        found = [np.zeros((0, 2), np.int64)]
        for name, buffer in self.buffers.items():
            found.append(_joined(spans.get(name, [(0, buffer.size)]), buffer.size) + self._place(name).start)
        return _Allowed(does, np.concatenate(found))

    def _place(self, name: str) -> slice:
        buffer = self.buffers[name]
        return slice(buffer.address - BASE, buffer.address - BASE + buffer.size)

    def zeros_of(self, count: int, dtype: type[np.generic]) -> np.ndarray:
        """[count] zeros, which take no memory until they are written if this memory is so large that it is copied by pages."""
        if not self._is_paged:
            return np.zeros(count, dtype)
        size = count * np.dtype(dtype).itemsize
        return np.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE), dtype)

    def _bring(self, places: slice) -> None:
        """Copy what buffers hold at some places."""
        for name, data in self._given.items():
            own = self._place(name)
            begin, end = max(own.start, places.start), min(own.stop, places.stop)
            if begin < end:
                self.bytes[begin:end] = data[begin - own.start : end - own.start]

    def _bring_pages(self, pages: np.ndarray) -> None:
        for page in np.unique(pages[self._missing.take(pages)]).tolist():
            self._bring(slice(page << PAGE_BITS, page + 1 << PAGE_BITS))
            self._missing[page] = False

    def contents(self, name: str) -> np.ndarray:
        """The bytes of a buffer."""
        place = self._place(name)
        if self._is_paged:
            self._bring_pages(np.arange(place.start >> PAGE_BITS, (place.stop >> PAGE_BITS) + 1))
        return self.bytes[place]

    def touched(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """The parts of a buffer that may have changed: the byte of the buffer where each begins, and what it holds."""
        place = self._place(name)
        if not self._is_paged:
            yield 0, self.bytes[place]
            return
        first, last = place.start >> PAGE_BITS, (place.stop >> PAGE_BITS) + 1
        for page in (first + np.flatnonzero(~self._missing[first:last])).tolist():
            begin, end = max(place.start, page << PAGE_BITS), min(place.stop, page + 1 << PAGE_BITS)
            yield begin - place.start, self.bytes[begin:end]

    def first_difference(self, other: "Memory", name: str) -> tuple[int, int, int] | None:
        """A byte of a buffer that another memory of the same buffers holds otherwise, and what it is here and there."""
        for begin, held in (*self.touched(name), *other.touched(name)):
            end = begin + len(held)
            one, another = (memory._held(name, begin, end) for memory in (self, other))
            if not np.array_equal(one, another):
                at = int((one != another).argmax())
                return begin + at, int(one[at]), int(another[at])
        return None

    def _held(self, name: str, begin: int, end: int) -> np.ndarray:
        start = self._place(name).start
        if self._is_paged:
            self._bring_pages(np.array([start + begin >> PAGE_BITS]))
        return self.bytes[start + begin : start + end]

    def named(self, place: int) -> tuple[Buffer, int]:
        """The buffer at a place, or the nearest one, and which byte of it the place is."""
        address = place + BASE
        near = min(
            self.buffers.values(), key=lambda buffer: max(buffer.address - address, address - buffer.address - buffer.size)
        )
        return near, address - near.address

    def readable(self, place: np.ndarray, size: int, lanes: np.ndarray | None, waves: Waves) -> np.ndarray:
        """The places of a load of `size` bytes. A lane that does not take part gets the place of a lane that does, or 0.

        Args:
            place: [waves, lanes] or [waves, 1] int64; of several instructions [..., waves, lanes].
            lanes: the lanes that access memory; None if all do.

        Raises:
            EmulationFault: a byte belongs to no buffer, or may not be read.
        """
        return self._checked(self._reads, place, size, lanes, waves)

    def writable(self, place: np.ndarray, size: int, lanes: np.ndarray | None, waves: Waves) -> np.ndarray:
        """The places of a store: as `readable`."""
        return self._checked(self._writes, place, size, lanes, waves)

    def _checked(self, allowed: "_Allowed", place: np.ndarray, size: int, lanes: np.ndarray | None, waves: Waves) -> np.ndarray:
        if lanes is not None:
            some = place[lanes]
            if not some.size:
                return np.zeros_like(place)
            place = np.where(lanes, place, some[0])
        low, high = int(np.minimum.reduce(place, axis=None)), int(np.maximum.reduce(place, axis=None)) + size
        if not allowed.cover(low, high) and not (inside := allowed.cover_each(place, size)).all():
            self._fault(allowed, place, ~inside if lanes is None else ~inside & lanes, size, waves)
        if self._is_paged:
            pages = np.stack([place, place + (size - 1)]) >> PAGE_BITS
            if self._missing.take(pages).any():
                self._bring_pages(pages)
        return place

    def _fault(self, allowed: "_Allowed", place: np.ndarray, outside: np.ndarray, size: int, waves: Waves) -> None:
        first = np.argwhere(outside)[0].tolist()
        near, byte = self.named(int(place[*first]))
        *_, wave, lane = first
        what = f"{size} bytes at byte {byte} of {near.name}, which has {near.size} bytes"
        if spans := allowed.described(self._place(near.name), byte):
            what += f": of these {spans}"
        touch = Touch(near.name, byte, allowed.does)
        raise EmulationFault(what, wave=int(waves.number[wave]), workgroup=int(waves.workgroup[wave]), lane=lane, touch=touch)


_NOTHING = np.full((1, 2), np.iinfo(np.int64).min)
"""A span without a byte, below all places."""


class _Allowed:
    """The bytes of a memory that may be touched in one way.

    Args:
        does: "read" or "written".
        spans: [spans, 2] int64, places [begin, end), ascending and apart.
    """

    def __init__(self, does: str, spans: np.ndarray) -> None:
        self.does, self._spans = does, np.concatenate([_NOTHING, spans])
        self._begins: list[int] = spans[:, 0].tolist()
        self._ends: list[int] = spans[:, 1].tolist()

    def cover(self, begin: int, end: int) -> bool:
        """True if one span has all bytes [begin, end)."""
        which = bisect_right(self._begins, begin) - 1
        return which >= 0 and end <= self._ends[which]

    def cover_each(self, place: np.ndarray, size: int) -> np.ndarray:
        """True if a span has all of the `size` bytes from each place on."""
        which = self._spans[:, 0].searchsorted(place, "right") - 1
        return place + size <= self._spans[:, 1].take(which)

    def described(self, buffer: slice, byte: int) -> str:
        """The spans of a buffer that may be touched, in words; empty if all may be. Of many spans the one nearest to `byte`."""
        of_buffer = (self._spans[:, 0] >= buffer.start) & (self._spans[:, 1] <= buffer.stop)
        spans = self._spans[of_buffer] - buffer.start
        if spans.tolist() == [[0, buffer.stop - buffer.start]]:
            return ""
        if len(spans) <= MAX_TOLD:
            return f"{', '.join(map(_span, spans)) or 'none'} may be {self.does}"
        distance = np.maximum(spans[:, 0] - byte, byte - spans[:, 1] + 1)
        return f"{len(spans)} parts may be {self.does}, the nearest {_span(spans[distance.argmin()])}"


def _span(span: np.ndarray) -> str:
    return f"[{span[0]}, {span[1]})"


def _joined(spans: Sequence[tuple[int, int]] | np.ndarray, size: int) -> np.ndarray:
    """[spans, 2] int64: spans of a buffer in their order, those that touch or overlap made one.

    Raises:
        LaunchError: a span reaches beyond the buffer.
    """
    given = np.asarray(spans, np.int64).reshape(-1, 2)
    begin, end = given[np.lexsort((given[:, 1], given[:, 0]))].T
    wrong = (begin < 0) | (end < begin) | (end > size)
    if wrong.any():
        raise LaunchError(f"bytes {_span(np.stack([begin, end], 1)[wrong.argmax()])} of a buffer that has {size}")
    begin, end = begin[begin < end], np.maximum.accumulate(end[begin < end])
    first = np.ones(len(begin), bool)
    first[1:] = begin[1:] > end[:-1]
    return np.stack([begin[first], end[np.roll(first, -1)]], 1)
