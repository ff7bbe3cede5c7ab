"""Notes what each store to global memory writes, so that two runs of one launch can be compared store by store."""

from collections import defaultdict
from typing import NamedTuple

import numpy as np
from attn_amdgcn.assembly import Instruction
from attn_amdgcn.watch import Access, Watch


class Store(NamedTuple):
    """The store of one wave.

    Attributes:
        instruction: the store.
        data: [lanes that are on] the bytes of a lane: where it wrote them (int64), then what it wrote.
        lanes: the lanes that are on.
    """

    instruction: Instruction
    data: np.ndarray
    lanes: np.ndarray

    def first_difference(self, other: "Store") -> int | None:
        """The first lane whose bytes differ; None if both wrote the same."""
        if self.instruction is not other.instruction:
            return 0
        if not np.array_equal(self.lanes, other.lanes):
            return int(np.setxor1d(self.lanes, other.lanes)[0])
        differs = (self.data != other.data).any(axis=1)
        return int(self.lanes[differs.argmax()]) if differs.any() else None


class StoreLog(Watch):
    """The stores of each wave, in the order of its program.

    Attributes:
        of: by workgroup and wave.
    """

    def __init__(self) -> None:
        self.of: dict[tuple[int, int], list[Store]] = defaultdict(list)

    def global_written(self, access: Access, values: np.ndarray) -> None:
        waves, place, size, lanes, instruction = access
        full = np.broadcast_to(place, waves.shape)
        words = np.stack([np.broadcast_to(value, full.shape) for value in values], axis=-1)
        where = np.ascontiguousarray(full)[..., None].view(np.uint8)
        data = np.concatenate([where, np.ascontiguousarray(words).view(np.uint8)[..., :size]], axis=-1)
        for i in range(len(waves)):
            on = np.arange(full.shape[1]) if lanes is None else np.flatnonzero(lanes[i])
            self.of[int(waves.workgroup[i]), int(waves.number[i])].append(Store(instruction, data[i, on], on))

    def first_difference(self, other: "StoreLog") -> tuple[int, int, int, Instruction] | None:
        """Workgroup, wave, lane and instruction of the store that differs and comes first in its wave's program."""
        found = []
        for key in sorted({*self.of, *other.of}):
            mine, others = self.of.get(key, []), other.of.get(key, [])
            for i, (first, second) in enumerate(zip(mine, others, strict=False)):
                if (lane := first.first_difference(second)) is not None:
                    found.append((i, *key, lane, first.instruction))
                    break
            else:
                if len(mine) != len(others):
                    extra = max(mine, others, key=len)[min(len(mine), len(others))]
                    found.append((min(len(mine), len(others)), *key, 0, extra.instruction))
        return min(found, key=lambda each: each[:3])[1:] if found else None
