"""Bytes that loads and stores reach at offsets: global memory, LDS and scratch."""

import numpy as np

_COUNTED = np.arange(64)[:, None, None]


class Storage:
    """Bytes, and loads and stores of them at offsets that the caller has checked.

    Offsets are [waves, lanes], or [..., waves, lanes] of several accesses.

    Args:
        data: uint8 of one dimension. Its length is a multiple of 4.
    """

    def __init__(self, data: np.ndarray) -> None:
        self.bytes, self._words, self._halves = data, data.view(np.uint32), data.view(np.uint16)

    def load(self, place: np.ndarray, words: int) -> np.ndarray:
        """[..., words, waves, lanes] uint32 from each offset on."""
        if _misplaced(place, 3):
            return self._unaligned(place[..., None, :, :] + 4 * _COUNTED[:words])
        return self._words.take(_following(place, words))

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
        """Write [..., words, waves, lanes] from each offset on. If several values have one offset, the last one wins.

        Args:
            lanes: the lanes of one access that take part; None if all do.
        """
        if lanes is not None:
            place, values = place[lanes][None], values[:, lanes][:, None]
        if not _misplaced(place, 3):
            self._words[_following(place, values.shape[-3])] = values
            return
        for first, words in zip(_each(place, 2), _each(values, 3), strict=True):
            for i, word in enumerate(words):
                for byte in range(4):
                    self.bytes[first + (4 * i + byte)] = word >> np.uint32(8 * byte)

    def store_part(self, place: np.ndarray, value: np.ndarray, size: int, lanes: np.ndarray | None) -> None:
        """Write the lowest one or two bytes of uint32."""
        if lanes is not None:
            place, value = place[lanes][None], value[lanes][None]
        if size == 1:
            self.bytes[place] = value
        elif not _misplaced(place, 1):
            self._halves[place >> 1] = value
        else:
            for first, data in zip(_each(place, 2), _each(value, 2), strict=True):
                self.bytes[first] = data
                self.bytes[first + 1] = data >> np.uint32(8)


def _each(values: np.ndarray, axes: int) -> np.ndarray:
    """The values of several accesses as one sequence of arrays with this number of axes."""
    return values.reshape(-1, *values.shape[-axes:])


def _misplaced(place: np.ndarray, mask: int) -> bool:
    """True if an offset has one of these bits."""
    return bool(np.bitwise_or.reduce(place, axis=None) & mask)


def _following(place: np.ndarray, words: int) -> np.ndarray:
    """[..., words, waves, lanes]: the numbers of the words from each offset on."""
    first = (place >> 2)[..., None, :, :]
    return first if words == 1 else first + _COUNTED[:words]
