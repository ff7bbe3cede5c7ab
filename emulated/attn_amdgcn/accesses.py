"""Counts how the accesses of a launch fit the memory: lines of global memory, and conflicts of LDS banks.

These are counts and no times. What a conflict or a line costs, and what a cache holds already, is not known here.

Global memory: a vector instruction of a wave touches lines of 64 and of 128 bytes. The least that it could touch is as many
as its distinct bytes fill. Where a buffer ends within a lane's bytes, each word counts as an access.

LDS has banks of 4 bytes, and byte b is in bank b / 4 % 32. An instruction is served in phases, each for some of its lanes. A
phase takes as many passes as the words of the fullest bank; lanes that touch the same word share it. A pass beyond the first
one of a phase is a conflict. Phases are counted where AMD documents which lanes are in one:

* Loads of at most 4 bytes, and stores of 4 bytes: lanes 0 to 31, and lanes 32 to 63. CDNA: half wavefronts, as AMD's OpenCL
  Optimization Guide says of GCN ("Local Memory (LDS) Optimizations"). RDNA: a SIMD whose waves have 32 lanes has 32 banks
  (RDNA3 ISA, "Local Data Share").
* ds_write_b128 and ds_read_b128 of CDNA with 32 banks: 8 lanes, see READ_B128 (documentation of AMD's Composable Kernel,
  "Understanding AMD GPU LDS and Bank Conflicts").

Conflicts of all other accesses are not counted: 8 and 12 bytes, two addresses, stores of parts of a word, transposing loads,
and 16 bytes on RDNA. Neither are those of gfx950, which has 64 banks and no documented phases, nor those of gfx1250.
"""

import re
from collections import Counter, defaultdict

import numpy as np
from attn_amdgcn.watch import Access, Watch

LINES = (64, 128)
"""Bytes of a line of the caches nearest to the lanes, or of L2, depending on the architecture."""
BANKS = 32
BANKED = ("gfx90a", "gfx942", "gfx1100", "gfx1201")
"""The architectures whose LDS has 32 banks for a wave."""
WRITE_B128 = np.arange(64).reshape(8, 8)
"""[phases, lanes] of ds_write_b128."""
READ_B128 = np.array(
    [
        [*range(first, first + 4), *range(second, second + 4)]
        for half in (0, 32)
        for first, second in ((half, half + 20), (half + 4, half + 16), (half + 8, half + 28), (half + 12, half + 24))
    ]
)
"""[phases, lanes] of ds_read_b128."""
COLUMNS = (
    "global accesses",
    *(f"{which}lines of {size}" for size in LINES for which in ("", "least ")),
    "LDS accesses",
    "LDS accesses with known phases",
    "LDS phases",
    "LDS conflicts",
)
"""The counts. Each execution by a wave is an access."""


class Accesses(Watch):
    """Counts the accesses of a launch for an architecture.

    Attributes:
        of: counts by the lines of the assembly, with names of COLUMNS.
    """

    def __init__(self, architecture: str) -> None:
        self._architecture = architecture
        self.of: dict[int, Counter[str]] = defaultdict(Counter)

    @property
    def total(self) -> dict[str, int]:
        """The counts of all instructions together, in the order of COLUMNS."""
        return {name: sum(counter[name] for counter in self.of.values()) for name in COLUMNS}

    def global_read(self, access: Access) -> None:
        if not access.instruction.name.startswith("s_"):
            self._count_lines(access)

    def global_written(self, access: Access, values: np.ndarray) -> None:
        self._count_lines(access)

    def lds_read(self, access: Access) -> None:
        self._count_conflicts(access)

    def lds_written(self, access: Access, values: np.ndarray) -> None:
        self._count_conflicts(access)

    def _count_lines(self, access: Access) -> None:
        place, _ = _lanes_that_are_on(access)
        counter = self.of[access.instruction.line]
        counter["global accesses"] += len(place)
        if not len(place):
            return
        filled = distinct_bytes(place, access.size)
        for size in LINES:
            counter[f"lines of {size}"] += int(lines(place, access.size, size).sum())
            counter[f"least lines of {size}"] += int(-(-filled // size).sum())

    def _count_conflicts(self, access: Access) -> None:
        place, on = _lanes_that_are_on(access._replace(place=access.place - access.waves.lds_begin))
        counter = self.of[access.instruction.line]
        counter["LDS accesses"] += len(place)
        phases = phases_of(access.instruction.name, self._architecture, access.waves.shape[1])
        if phases is None or not len(place):
            return
        needed = passes(place, access.size, on, phases)
        counter["LDS accesses with known phases"] += len(place)
        counter["LDS phases"] += int((needed > 0).sum())
        counter["LDS conflicts"] += int(np.maximum(needed - 1, 0).sum())


def phases_of(name: str, architecture: str, num_lanes: int) -> np.ndarray | None:
    """[phases, lanes of a phase]: the lanes that LDS serves together, by mnemonic; None if AMD does not document them."""
    if architecture not in BANKED:
        return None
    if re.fullmatch(r"ds_((read|load)_([ui](8|16)(_d16(_hi)?)?|b32)|(write|store)_b32)", name):
        return np.arange(num_lanes).reshape(-1, 32)
    return {"ds_read_b128": READ_B128, "ds_write_b128": WRITE_B128}.get(name)  # these are gfx9's names


def lines(place: np.ndarray, size: int, line: int) -> np.ndarray:
    """[waves]: the number of lines that lanes touch. The `size` bytes of a lane begin at place [waves, lanes]."""
    touched = np.concatenate([place // line, (place + size - 1) // line], axis=1)
    touched.sort(axis=1)
    return 1 + (np.diff(touched, axis=1) != 0).sum(axis=1)


def distinct_bytes(place: np.ndarray, size: int) -> np.ndarray:
    """[waves]: the number of distinct bytes that lanes touch. The `size` bytes of a lane begin at place [waves, lanes]."""
    return size + np.minimum(np.diff(np.sort(place, axis=1), axis=1), size).sum(axis=1)


def passes(place: np.ndarray, size: int, on: np.ndarray, phases: np.ndarray) -> np.ndarray:
    """[waves, phases]: the number of passes for the words of the lanes that are on; 0 if no lane is on.

    Args:
        place: [waves, lanes] bytes of LDS.
        size: the size of the access, at most 4 or a multiple of 4.
        on: [waves, lanes] bool.
        phases: [phases, lanes of a phase].
    """
    first = (place >> 2)[:, phases]  # [waves, phases, lanes]
    words = (first[..., None] + np.arange(max(1, size // 4))).reshape(*first.shape[:2], -1)
    taken = np.repeat(on[:, phases], max(1, size // 4), axis=-1)
    words = np.where(taken, words, -1)
    words.sort(axis=-1)
    is_first = np.diff(words, axis=-1, prepend=-1) != 0  # the lanes that are off are -1, and no first one
    phase = np.arange(first.shape[0] * first.shape[1]).reshape(first.shape[:2])[..., None]
    in_bank = np.bincount((phase * BANKS + words % BANKS)[is_first], minlength=phase.size * BANKS)
    return in_bank.reshape(*first.shape[:2], BANKS).max(axis=-1)


def _lanes_that_are_on(access: Access) -> tuple[np.ndarray, np.ndarray]:
    """[waves, lanes] places and whether lanes take part, of waves in which some do. The other lanes have the lowest place."""
    place = np.broadcast_to(access.place, access.waves.shape)
    if access.lanes is None:
        return place, np.ones(place.shape, bool)
    which = access.lanes.any(axis=1)
    place, on = place[which], access.lanes[which]
    lowest = np.where(on, place, np.iinfo(np.int64).max).min(axis=1, initial=np.iinfo(np.int64).max, keepdims=True)
    return np.where(on, place, lowest), on
