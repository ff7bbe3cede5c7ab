"""Global memory: the buffers of a launch at addresses of 64 bits, with guards between them that nobody may touch."""

from dataclasses import dataclass

import numpy as np
from attn_amdgcn.errors import Fault, LaunchError
from attn_amdgcn.waves import Waves

GUARD = 4096
BASE = 0x7F3E_FFFF_C000
"""The first buffer lies a little below a multiple of 4 GiB, so that sums of addresses carry into their upper half."""


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


class Memory:
    """Buffers and what they hold.

    Args:
        contents: bytes of each buffer, by name. They are copied.
        seed: of what lies between the buffers.
    """

    def __init__(self, contents: dict[str, np.ndarray], seed: int = 0) -> None:
        self.buffers: dict[str, Buffer] = {}
        end = GUARD
        for name, data in contents.items():
            if data.dtype != np.uint8 or data.ndim != 1:
                raise LaunchError(f"buffer {name}: {data.dtype} {data.shape}, and uint8 of one dimension is expected")
            self.buffers[name] = Buffer(name, BASE + end, len(data))
            end += -(-len(data) // 256) * 256 + GUARD
        self.bytes = np.random.default_rng(seed).integers(0, 256, end, np.uint8)
        self._owned = np.zeros(end, bool)
        for name, data in contents.items():
            place = self._place(name)
            self.bytes[place], self._owned[place] = data, True
        self._words, self._halves = self.bytes.view(np.uint32), self.bytes.view(np.uint16)

    def _place(self, name: str) -> slice:
        buffer = self.buffers[name]
        return slice(buffer.address - BASE, buffer.address - BASE + buffer.size)

    def contents(self, name: str) -> np.ndarray:
        """The bytes of a buffer."""
        return self.bytes[self._place(name)]

    def offsets(self, address: np.ndarray, size: int, lanes: np.ndarray | None, waves: Waves) -> np.ndarray:
        """Where an access of `size` bytes at each address begins. Lanes that are off begin at 0.

        Args:
            address: [waves, lanes] or [waves, 1] uint64.
            lanes: the lanes that access memory; None if all do.

        Raises:
            Fault: a byte belongs to no buffer.
        """
        offset = (address - np.uint64(BASE)).view(np.int64)
        if lanes is not None:
            offset = np.where(lanes, offset, GUARD)  # the first byte of the first buffer
        inside = (offset >= 0) & (offset <= len(self.bytes) - size)
        if inside.all():
            inside = self._owned.take(offset) & self._owned.take(offset + (size - 1))
        outside = ~inside if lanes is None else ~inside & lanes
        if outside.any():
            self._fault(address, outside, size, waves)
        return offset

    def _fault(self, address: np.ndarray, outside: np.ndarray, size: int, waves: Waves) -> None:
        wave, lane = (int(number) for number in np.argwhere(outside)[0])
        place = int(address[wave, lane])
        near = min(self.buffers.values(), key=lambda buffer: max(buffer.address - place, place - buffer.address - buffer.size))
        what = f"{size} bytes at byte {place - near.address} of {near.name}, which has {near.size} bytes"
        raise Fault(what, wave=int(waves.number[wave]), workgroup=int(waves.workgroup[wave]), lane=lane)

    def load(self, offset: np.ndarray, words: int) -> list[np.ndarray]:
        """Words of 32 bits from each offset on."""
        if not (offset & 3).any():
            index = offset >> 2
            return [self._words.take(index + i) for i in range(words)]
        return [self._unaligned(offset + 4 * i) for i in range(words)]

    def _unaligned(self, offset: np.ndarray) -> np.ndarray:
        found = self.bytes.take(offset).astype(np.uint32)
        for i in range(1, 4):
            found |= self.bytes.take(offset + i).astype(np.uint32) << np.uint32(8 * i)
        return found

    def load_part(self, offset: np.ndarray, size: int) -> np.ndarray:
        """One or two bytes from each offset, as uint32."""
        low = self.bytes.take(offset).astype(np.uint32)
        return low if size == 1 else low | self.bytes.take(offset + 1).astype(np.uint32) << np.uint32(8)

    def store(self, offset: np.ndarray, values: list[np.ndarray], lanes: np.ndarray | None) -> None:
        """Write words of 32 bits from each offset on. Of lanes with one address the last one wins."""
        place = offset.reshape(-1) if lanes is None else offset[lanes]
        aligned = not (place & 3).any()
        for i, value in enumerate(values):
            full = np.broadcast_to(value, offset.shape)
            data = np.ascontiguousarray(full.reshape(-1) if lanes is None else full[lanes])
            if aligned:
                self._words[(place >> 2) + i] = data
            else:
                for byte in range(4):
                    self.bytes[place + 4 * i + byte] = data >> np.uint32(8 * byte)

    def store_part(self, offset: np.ndarray, value: np.ndarray, size: int, lanes: np.ndarray | None) -> None:
        """Write the lowest one or two bytes."""
        full = np.broadcast_to(value, offset.shape)
        place, data = (offset.reshape(-1), full.reshape(-1)) if lanes is None else (offset[lanes], full[lanes])
        for byte in range(size):
            self.bytes[place + byte] = data >> np.uint32(8 * byte)
