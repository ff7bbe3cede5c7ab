"""Global memory: the buffers of a launch at addresses of 64 bits, with guards between them that nobody may touch."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from attn_amdgcn.errors import Fault, LaunchError
from attn_amdgcn.storage import Storage
from attn_amdgcn.waves import Waves

GUARD = 4096
BASE = 0x7F3E_FFFF_C000
"""The first buffer lies a little below a multiple of 4 GiB, so that sums of addresses carry into their upper half."""

Parts = Mapping[str, Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class Buffer:
    """One buffer.

    Attributes:
        name: of the tensor or of the argument.
        address: of its first byte.
        size: in bytes.
    """

    name: str
    address: int
    size: int


class Memory(Storage):
    """Buffers and what they hold. A place is an address less BASE.

    Args:
        contents: bytes of each buffer, by name. They are copied.
        seed: of what lies between the buffers.
        parts: by a buffer's name, the bytes [begin, end) of it that may be touched. All, if it is not named.
    """

    def __init__(self, contents: dict[str, np.ndarray], seed: int = 0, parts: Parts | None = None) -> None:
        self.buffers: dict[str, Buffer] = {}
        end = GUARD
        for name, data in contents.items():
            if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 1:
                what = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
                raise LaunchError(f"buffer {name}: {what}, and an array of uint8 of one dimension is expected")
            self.buffers[name] = Buffer(name, BASE + end, len(data))
            end += -(-len(data) // 256) * 256 + GUARD
        super().__init__(np.resize(np.random.default_rng(seed).integers(0, 256, GUARD, np.uint8), end))
        self._owned = np.zeros(end, bool)
        for name, data in contents.items():
            self.bytes[self._place(name)] = data
        self._parts = {name: _joined((parts or {}).get(name, [(0, len(data))]), len(data)) for name, data in contents.items()}
        self._begins: list[int] = []
        self._ends: list[int] = []
        for name, spans in self._parts.items():
            first = self._place(name).start
            for begin, end in spans:
                self._owned[first + begin : first + end] = True
                self._begins.append(first + begin)
                self._ends.append(first + end)

    def _place(self, name: str) -> slice:
        buffer = self.buffers[name]
        return slice(buffer.address - BASE, buffer.address - BASE + buffer.size)

    def contents(self, name: str) -> np.ndarray:
        """The bytes of a buffer."""
        return self.bytes[self._place(name)]

    def named(self, place: int) -> tuple[Buffer, int]:
        """The buffer at a place, or the nearest one, and which byte of it the place is."""
        address = place + BASE
        near = min(
            self.buffers.values(), key=lambda buffer: max(buffer.address - address, address - buffer.address - buffer.size)
        )
        return near, address - near.address

    def checked(self, place: np.ndarray, size: int, lanes: np.ndarray | None, waves: Waves) -> np.ndarray:
        """The places of an access of `size` bytes. A lane that does not take part gets the place of a lane that does, or 0.

        Args:
            place: [waves, lanes] or [waves, 1] int64; of several instructions [..., waves, lanes].
            lanes: the lanes that access memory; None if all do.

        Raises:
            Fault: a byte belongs to no buffer, or to no part of a buffer that may be touched.
        """
        if lanes is not None:
            some = place[lanes]
            if not some.size:
                return np.zeros_like(place)
            place = np.where(lanes, place, some[0])
        low, high = int(np.minimum.reduce(place, axis=None)), int(np.maximum.reduce(place, axis=None)) + size
        which = bisect_right(self._begins, low) - 1
        if which >= 0 and high <= self._ends[which]:
            return place
        clipped = place.clip(0, len(self.bytes) - size)
        inside = (clipped == place) & self._owned.take(clipped) & self._owned.take(clipped + (size - 1))
        if not inside.all():
            self._fault(place, ~inside if lanes is None else ~inside & lanes, size, waves)
        return place

    def _fault(self, place: np.ndarray, outside: np.ndarray, size: int, waves: Waves) -> None:
        first = np.argwhere(outside)[0].tolist()
        near, byte = self.named(int(place[*first]))
        *_, wave, lane = first
        what = f"{size} bytes at byte {byte} of {near.name}, which has {near.size} bytes"
        if self._parts[near.name] != [(0, near.size)]:
            spans = ", ".join(f"[{begin}, {end})" for begin, end in self._parts[near.name])
            what += f": of these {spans or 'none'} may be touched"
        raise Fault(what, wave=int(waves.number[wave]), workgroup=int(waves.workgroup[wave]), lane=lane)


def _joined(spans: Sequence[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """Spans of a buffer in their order, those that touch or overlap made one.

    Raises:
        LaunchError: a span reaches beyond the buffer.
    """
    found: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if not 0 <= begin <= end <= size:
            raise LaunchError(f"bytes [{begin}, {end}) of a buffer that has {size}")
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        elif begin < end:
            found.append((begin, end))
    return found
