"""Waves that stand at the same instruction, and the registers that they have."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from attn_amdgcn.storage import Storage

if TYPE_CHECKING:
    from attn_amdgcn.errors import Hazards
    from attn_amdgcn.instructions.buffer_memory import Range
    from attn_amdgcn.memory import Memory
    from attn_amdgcn.watch import Watch

SCALARS = 128
"""Rows of a wave's scalar registers: s0 to s105, vcc, ttmp0 to ttmp15, m0 and exec."""
VCC, TTMP, M0, EXEC = 106, 108, 124, 126
_ALL_OF_32, _ALL_LANES = np.uint32(0xFFFFFFFF), np.uint64(0xFFFFFFFFFFFFFFFF)


def masks_at(index: int, count: int) -> range:
    """The registers where masks begin that lie in some scalar registers: a pair begins at most one register before."""
    return range(index - 1, index + count)


@dataclass(frozen=True)
class Shared:
    """The state that workgroups share which run at once.

    Attributes:
        memory: global memory.
        lds: [workgroups, words] uint32, the LDS of each workgroup.
        lds_bytes: the bytes of each workgroup's LDS; `lds` may have a few more.
        scratch_bytes: the bytes of each lane's private memory.
        watches: the observers of the run.
        hazards: the record of faults of that kind; None: each of them ends the launch.
        lds_storage: `lds`, row after row.
        ranges: the ranges of buffers, by their resources (`instructions.buffer_memory`).
    """

    memory: "Memory"
    lds: np.ndarray
    lds_bytes: int
    scratch_bytes: int
    watches: "tuple[Watch, ...]" = ()
    hazards: "Hazards | None" = None
    lds_storage: Storage = field(init=False, repr=False)
    ranges: "dict[tuple[bytes, bytes, int], Range]" = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lds_storage", Storage(self.lds.reshape(-1).view(np.uint8)))


class Waves:
    """Some waves of some workgroups. All of them run the next instruction together.

    Attributes:
        vector: [rows, waves, lanes] uint32, the vector registers, and after them the accumulation registers.
        vector_f32, vector_i32: the same bits as numbers of these types: making a view takes longer than most reads.
        scalar: [waves, SCALARS] uint32; a pair that begins at an even number is an element of `scalar64`.
        scalars, scalars_f32, scalars_i32: [SCALARS, waves], the same bits; `scalars64` has the pairs.
        uniform, uniform_f32, uniform_i32: [SCALARS, waves, 1], the same bits as values of lanes; `uniform64` has the pairs.
        shape: numbers of waves and of lanes.
        scc: [waves] bool, the scalar condition code.
        masks: the results of `mask`, by index, until the scalar registers there are written.
        lanes: [waves, lanes] bool, the lanes that EXEC switches on; None if all are on.
        block: the number of the basic block in which the next instruction stands.
        pending: the memory instructions that are not complete yet (`attn_amdgcn.waits`).
        workgroup: [waves] int64, the number of each wave's workgroup in the grid.
        number: [waves] int64, the number of each wave in its workgroup.
        slot: [waves] int64, the row of `shared.lds` that is the wave's.
        lds_begin: [waves, 1] int64, the first byte of that row.
        scratch: [words, waves, lanes] uint32, the private memory of each lane.
        shared: memory and LDS, which groups of waves share.
    """

    def __init__(
        self,
        vector: np.ndarray,
        scalar: np.ndarray,
        *,
        workgroup: np.ndarray,
        number: np.ndarray,
        slot: np.ndarray,
        scratch: np.ndarray,
        shared: Shared,
        scc: np.ndarray | None = None,
        block: int = 0,
        pending: tuple = (),
    ) -> None:
        self.vector, self.scalar, self.scalar64 = vector, scalar, scalar.view(np.uint64)
        self.vector_f32, self.vector_i32 = vector.view(np.float32), vector.view(np.int32)
        scalars = scalar.T, scalar.view(np.float32).T, scalar.view(np.int32).T, self.scalar64.T
        self.scalars, self.scalars_f32, self.scalars_i32, self.scalars64 = scalars
        self.uniform, self.uniform_f32, self.uniform_i32, self.uniform64 = (each[:, :, None] for each in scalars)
        self.shape: tuple[int, int] = vector.shape[1], vector.shape[2]
        self.scc = np.zeros(len(scalar), bool) if scc is None else scc
        self.workgroup, self.number, self.slot, self.scratch, self.shared = workgroup, number, slot, scratch, shared
        self.lds_begin = (slot * (4 * shared.lds.shape[1]))[:, None]
        self.block, self.pending = block, pending
        self.masks: dict[int, np.ndarray] = {}
        self.lanes: np.ndarray | None = None
        self.switch()
        self.masks.clear()  # the code that makes waves may set their registers before they run

    def __len__(self) -> int:
        return len(self.scalar)

    def switch(self) -> None:
        """Read EXEC anew, after it was written."""
        is_whole = self.scalars64[EXEC // 2] == _ALL_LANES if self.shape[1] == 64 else self.scalars[EXEC] == _ALL_OF_32
        self.lanes = None if np.count_nonzero(is_whole) == len(self) else self.mask(EXEC)

    def mask(self, index: int) -> np.ndarray:
        """[waves, lanes] bool: the bits of the scalar register or pair that begins at an index. Nobody writes into it."""
        found = self.masks.get(index)
        if found is None:
            words = np.ascontiguousarray(self.scalar[:, index : index + self.shape[1] // 32])
            found = self.masks[index] = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little").view(bool)
        return found

    def set_mask(self, index: int, lanes: np.ndarray) -> None:
        """Write a bit for each lane into a scalar register or a pair. `lanes` is kept, and must not change later."""
        if lanes.shape != self.shape:
            lanes = np.broadcast_to(lanes, self.shape)
        words = np.packbits(lanes, None, "little").view(np.uint32).reshape(len(lanes), -1)
        count = words.shape[1]
        self.scalar[:, index : index + count] = words
        self.forget_masks(index, count)
        self.masks[index] = lanes

    def forget_masks(self, index: int, count: int) -> None:
        """Forget the masks in some scalar registers, after they were written."""
        for each in masks_at(index, count):
            self.masks.pop(each, None)

    def taken(self, which: np.ndarray) -> "Waves":
        """The waves at these positions, with copies of their registers."""
        return Waves(
            self.vector.take(which, axis=1),
            self.scalar[which],
            workgroup=self.workgroup[which],
            number=self.number[which],
            slot=self.slot[which],
            scratch=self.scratch.take(which, axis=1),
            shared=self.shared,
            scc=self.scc[which],
            block=self.block,
            pending=self.pending,
        )

    def joined(self, other: "Waves", pending: tuple) -> "Waves":
        """These waves and those of another group that stands at the same instruction."""
        return Waves(
            np.concatenate([self.vector, other.vector], axis=1),
            np.concatenate([self.scalar, other.scalar]),
            workgroup=np.concatenate([self.workgroup, other.workgroup]),
            number=np.concatenate([self.number, other.number]),
            slot=np.concatenate([self.slot, other.slot]),
            scratch=np.concatenate([self.scratch, other.scratch], axis=1),
            shared=self.shared,
            scc=np.concatenate([self.scc, other.scc]),
            block=self.block,
            pending=pending,
        )
