"""Bytes that loads and stores reach at offsets: global memory, LDS and scratch."""

import numpy as np


class Storage:
    """Bytes, and loads and stores of them at [waves, lanes] offsets that somebody else has checked.

    Args:
        data: uint8 of one dimension. Its length is a multiple of 4.
    """

    def __init__(self, data: np.ndarray) -> None:
        self.bytes, self._words, self._halves = data, data.view(np.uint32), data.view(np.uint16)

    def load(self, place: np.ndarray, words: int) -> list[np.ndarray]:
        """Words of 32 bits from each offset on."""
        if not _misplaced(place, 3):
            index = place >> 2
            return [self._words.take(index if i == 0 else index + i) for i in range(words)]
        return [self._unaligned(place + 4 * i) for i in range(words)]

    def _unaligned(self, place: np.ndarray) -> np.ndarray:
        found = self.bytes.take(place).astype(np.uint32)
        for i in range(1, 4):
            found |= self.bytes.take(place + i).astype(np.uint32) << np.uint32(8 * i)
        return found

    def load_part(self, place: np.ndarray, size: int) -> np.ndarray:
        """One or two bytes from each offset on, as uint32."""
        if size == 1:
            return self.bytes.take(place).astype(np.uint32)
        if not _misplaced(place, 1):
            return self._halves.take(place >> 1).astype(np.uint32)
        return self.bytes.take(place).astype(np.uint32) | self.bytes.take(place + 1).astype(np.uint32) << np.uint32(8)

    def store(self, place: np.ndarray, values: list[np.ndarray], lanes: np.ndarray | None) -> None:
        """Write words of 32 bits from each offset on. Of lanes with one offset the last one wins."""
        chosen = place.reshape(-1) if lanes is None else place[lanes]
        aligned = not _misplaced(chosen, 3)
        index = chosen >> 2 if aligned else chosen
        for i, value in enumerate(values):
            data = _chosen(value, place, lanes)
            if aligned:
                self._words[index if i == 0 else index + i] = data
            else:
                for byte in range(4):
                    self.bytes[index + (4 * i + byte)] = data >> np.uint32(8 * byte)

    def store_part(self, place: np.ndarray, value: np.ndarray, size: int, lanes: np.ndarray | None) -> None:
        """Write the lowest one or two bytes of uint32."""
        chosen = place.reshape(-1) if lanes is None else place[lanes]
        data = _chosen(value, place, lanes)
        if size == 1:
            self.bytes[chosen] = data
        elif not _misplaced(chosen, 1):
            self._halves[chosen >> 1] = data
        else:
            self.bytes[chosen] = data
            self.bytes[chosen + 1] = data >> np.uint32(8)


def _misplaced(place: np.ndarray, mask: int) -> bool:
    """Whether an offset has one of these bits."""
    return bool(np.bitwise_or.reduce(place, axis=None) & mask)


def _chosen(value: np.ndarray, place: np.ndarray, lanes: np.ndarray | None) -> np.ndarray:
    full = value if value.shape == place.shape else np.broadcast_to(value, place.shape)
    return full.reshape(-1) if lanes is None else full[lanes]
