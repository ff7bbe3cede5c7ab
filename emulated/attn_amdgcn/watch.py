"""Watches of a launch see each access of global memory and of LDS, and barriers."""

from typing import NamedTuple

import numpy as np
from attn_amdgcn.assembly import Instruction
from attn_amdgcn.waves import Waves


class Access(NamedTuple):
    """The load or store of one instruction by the lanes of some waves.

    Attributes:
        waves: all that run the instruction.
        place: [waves, lanes] or [waves, 1] int64, where each lane's bytes begin: an address less `memory.BASE`, or a byte of
            the LDS of all workgroups that run at once.
        size: bytes of a lane.
        lanes: [waves, lanes] bool, the lanes that take part; None if all do.
        instruction: the load or store. If it has two addresses, it makes two accesses. Where a buffer ends within a lane's
            bytes, it makes one for each word.
    """

    waves: Waves
    place: np.ndarray
    size: int
    lanes: np.ndarray | None
    instruction: Instruction

    def bytes(self) -> np.ndarray:
        """[n, size] int64: the places of the bytes of each lane that takes part."""
        return self._chosen(self.place)[:, None] + np.arange(self.size)

    def data(self, values: np.ndarray) -> np.ndarray:
        """[n, size] uint8: what each lane that takes part stores, of words, or of the lowest 1 or 2 bytes of them."""
        words = np.stack([self._chosen(value) for value in values], axis=-1)
        return words.view(np.uint8)[:, : self.size]

    def of_lanes(self, values: np.ndarray) -> np.ndarray:
        """[n]: of values [waves], the one of each lane that takes part."""
        return self._chosen(np.broadcast_to(values[:, None], self.place.shape))

    def position(self, n: int) -> tuple[int, int]:
        """The position in `waves` and the lane of the n-th lane that takes part."""
        positions = np.ndindex(self.place.shape) if self.lanes is None else map(tuple, np.argwhere(self.lanes))
        return next(position for i, position in enumerate(positions) if i == n)

    def _chosen(self, values: np.ndarray) -> np.ndarray:
        return values.reshape(-1) if self.lanes is None else values[self.lanes]


class Watch:
    """Looks on, and does nothing. A store is seen before memory changes."""

    def global_read(self, access: Access) -> None:
        """Waves load from global memory, by vector or scalar instructions."""

    def global_written(self, access: Access, values: np.ndarray) -> None:
        """Waves store [words, waves, lanes], or the lowest 1 or 2 bytes of them, to global memory."""

    def global_updated(self, access: Access, values: np.ndarray) -> None:
        """Waves change words of global memory by atomic instructions: they are seen as stores of values [1, waves, lanes]."""
        self.global_written(access, values)

    def lds_read(self, access: Access) -> None:
        """Waves load from LDS."""

    def lds_written(self, access: Access, values: np.ndarray) -> None:
        """Waves store [words, waves, lanes], or the lowest 1 or 2 bytes of them, to LDS."""

    def began(self, waves: Waves, counter: str) -> None:
        """Some waves begin an instruction that a counter of loads into LDS counts. Seen only in code that loads into LDS."""

    def waited(self, waves: Waves, counter: str, most: int) -> None:
        """Some waves have waited until at most `most` of these are under way. Seen only in code that loads into LDS."""

    def reached(self, barrier: Instruction, waves: Waves) -> None:
        """Some waves have come to a barrier."""

    def barrier(self) -> None:
        """All waves that run at once have come to a barrier, or have ended."""
