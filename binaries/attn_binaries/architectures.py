"""The GPUs for which launches are compiled: the size of a compute unit, and the number of compute units."""

from typing import NamedTuple

KI = 1024


class Architecture(NamedTuple):
    """One GPU of an architecture.

    A compute unit is what several programs share: a compute unit of CDNA, a pair of compute units of RDNA, or a multiprocessor
    of NVIDIA.

    Attributes:
        compute_units: the number of compute units of the GPU, as torch counts them.
        lds_limit: bytes of LDS (shared memory) that a program may have.
        lds: bytes of LDS that all programs on a compute unit share.
        simds: the number of SIMDs of a compute unit.
    """

    compute_units: int
    lds_limit: int
    lds: int
    simds: int = 4


ARCHITECTURES = {
    "gfx90a": Architecture(110, 64 * KI, 64 * KI),
    "gfx942": Architecture(304, 64 * KI, 64 * KI),
    "gfx950": Architecture(256, 160 * KI, 160 * KI),
    "gfx1100": Architecture(48, 64 * KI, 128 * KI),
    "gfx1201": Architecture(32, 64 * KI, 128 * KI),
    # The number of compute units of gfx1250 is not published: the number of gfx950 is used.
    "gfx1250": Architecture(256, 320 * KI, 320 * KI),
    "sm90": Architecture(132, 227 * KI, 228 * KI),
}
"""The architectures for which launches are compiled, by name."""
