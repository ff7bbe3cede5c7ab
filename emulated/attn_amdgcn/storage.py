"""Bytes that loads and stores reach at offsets: global memory, LDS and scratch."""

import numpy as np

_COUNTED = np.arange(64)


class Storage:
    """Bytes, and loads and stores of them at [waves, lanes] offsets that somebody else has checked.

    Args:
        data: uint8 of one dimension. Its length is a multiple of 4.
    """

    def __init__(self, data: np.ndarray) -> None:
        self.bytes, self._words, self._halves = data, data.view(np.uint32), data.view(np.uint16)

    def load(self, place: np.ndarray, words: int) -> np.ndarray:
        """[words, waves, lanes] uint32 from each offset on."""
        if _misplaced(place, 3):
            return self._unaligned(_following(place, words, 4))
        return self._words.take(_following(place >> 2, words))

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

    def store(self, place: np.ndarray, values: np.ndarray, lanes: np.ndarray | None) -> None:
        """Write [words, waves, lanes] from each offset on. Of lanes with one offset the last one wins."""
        chosen = place if lanes is None else place[lanes]
        data = values if lanes is None else values[:, lanes]
        if not _misplaced(chosen, 3):
            self._words[_following(chosen >> 2, len(values))] = data
            return
        for index, word in zip(_following(chosen, len(values), 4), data, strict=True):
            for byte in range(4):
                self.bytes[index + byte] = word >> np.uint32(8 * byte)

    def store_part(self, place: np.ndarray, value: np.ndarray, size: int, lanes: np.ndarray | None) -> None:
        """Write the lowest one or two bytes of uint32."""
        chosen, data = (place, value) if lanes is None else (place[lanes], value[lanes])
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


def _following(place: np.ndarray, count: int, step: int = 1) -> np.ndarray:
    """So many offsets from each one on: of the first words, then of the second ones."""
    return place[None] if count == 1 else np.add.outer(_COUNTED[:count] * step if step > 1 else _COUNTED[:count], place)
