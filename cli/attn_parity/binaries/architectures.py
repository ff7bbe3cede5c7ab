"""The GPUs that launches are compiled for: what their compute units hold, and how many they have."""

from typing import NamedTuple

KI = 1024


class Architecture(NamedTuple):
    """A GPU of an architecture.

    Programs share a compute unit of CDNA, a pair of compute units of RDNA that work as one, or a multiprocessor of NVIDIA.

    Attributes:
        compute_units: of the GPU, as torch counts them.
        lds_limit: bytes of LDS (shared memory) that a program may have.
        lds: bytes of LDS that all programs on a compute unit share.
        simds: of a compute unit.
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
    # its number of compute units is not published: it is taken to be gfx950's
    "gfx1250": Architecture(256, 320 * KI, 320 * KI),
    "sm90": Architecture(132, 227 * KI, 228 * KI),
}
"""By name. Launches are compiled for these architectures only."""
