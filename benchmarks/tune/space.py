"""The launch parameters to try, as data."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from attn_binaries.architectures import ARCHITECTURES
from attn_fuzz.errors import InputError
from attn_optimized.launch.table import Parameters, Phase

from benchmarks.tune.classes import CallClass

Vendor = Literal["nvidia", "amd"]


@dataclass(frozen=True, kw_only=True)
class Space:
    """Every combination of these values is a candidate; names as in `Parameters`.

    The fields in TILE are the shape of a loop over keys; those in OPTIONS say how it is compiled; those in SPLITS change no
    loop, and are empty where programs need no split.
    """

    block_m: tuple[int, ...]
    block_n: tuple[int, ...]
    num_warps: tuple[int, ...]
    num_stages: tuple[int, ...]
    maxnreg: tuple[int | None, ...] = (None,)
    waves_per_eu: tuple[int | None, ...] = (None,)
    keys_per_split: tuple[int, ...] = ()
    programs_per_unit: tuple[int, ...] = ()
    uneven_waves: tuple[int, ...] = ()


_LONG = {"num_warps": (4, 8), "num_stages": (2, 3, 4), "maxnreg": (None, 128, 168)}
_SPLITS = {"keys_per_split": (128, 256, 512), "programs_per_unit": (1, 2, 4), "uneven_waves": (0, 4, 8)}
SPACES: dict[Vendor, dict[Phase, Space]] = {
    "nvidia": {
        "decode": Space(block_m=(16,), block_n=(16, 32, 64, 128), num_warps=(2, 4, 8), num_stages=(2, 3, 4, 6), **_SPLITS),
        "wide_decode": Space(block_m=(64,), block_n=(32, 64, 128), num_warps=(4, 8), num_stages=(2, 3, 4, 6), **_SPLITS),
        "mixed": Space(block_m=(64, 128), block_n=(32, 64, 128), **_LONG, **_SPLITS),
        "short": Space(block_m=(32, 64, 128), block_n=(32, 64, 128), **_LONG, **_SPLITS),
        "window": Space(block_m=(32, 64, 128), block_n=(16, 32, 64), **_LONG),
        "rules": Space(block_m=(32, 64, 128), block_n=(16, 32, 64), **_LONG),
        "prefill": Space(block_m=(64, 128), block_n=(32, 64, 128), **_LONG),
    },
    "amd": {
        "decode": Space(
            block_m=(16,),
            block_n=(16, 32, 64, 128),
            num_warps=(1, 2, 4),
            num_stages=(1, 2),
            waves_per_eu=(None, 2, 4),
            **_SPLITS,
        ),
        "wide_decode": Space(
            block_m=(64,), block_n=(16, 32, 64), num_warps=(2, 4, 8), num_stages=(1, 2), waves_per_eu=(None, 2), **_SPLITS
        ),
        "mixed": Space(
            block_m=(32, 64), block_n=(16, 32, 64), num_warps=(2, 4, 8), num_stages=(1, 2), waves_per_eu=(None, 2), **_SPLITS
        ),
        "short": Space(
            block_m=(16, 32, 64),
            block_n=(16, 32, 64),
            num_warps=(2, 4, 8),
            num_stages=(1, 2),
            waves_per_eu=(None, 2),
            **_SPLITS,
        ),
        "window": Space(
            block_m=(32, 64, 128), block_n=(16, 32, 64), num_warps=(4, 8), num_stages=(1, 2), waves_per_eu=(None, 2)
        ),
        "rules": Space(
            block_m=(32, 64, 128), block_n=(16, 32, 64), num_warps=(4, 8), num_stages=(1, 2), waves_per_eu=(None, 2)
        ),
        "prefill": Space(
            block_m=(32, 64, 128, 256), block_n=(16, 32, 64, 128), num_warps=(4, 8), num_stages=(1, 2), waves_per_eu=(None, 2)
        ),
    },
}
TILE, OPTIONS = ("block_m", "block_n", "num_warps"), ("num_stages", "maxnreg", "waves_per_eu")
SHOWN_BY_BINARIES = ("num_stages", "waves_per_eu")
"""The options whose effect an AMD binary shows."""
SPLITS = tuple(_SPLITS)
LANES = {"nvidia": 32, "cdna": 64, "rdna": 32}
REGISTERS = {"nvidia": 255, "cdna": 512, "rdna": 256}
"""The most registers of a thread, accumulation registers included."""
DERIVABLE = tuple(name for name in ARCHITECTURES if name.startswith("gfx"))
"""The architectures whose candidates can be ranked by the facts of their binaries."""


def vendor_of(architecture: str) -> Vendor:
    return "amd" if architecture.startswith("gfx") else "nvidia"


def family_of(architecture: str) -> Literal["nvidia", "cdna", "rdna"]:
    return "nvidia" if vendor_of(architecture) == "nvidia" else "cdna" if architecture.startswith("gfx9") else "rdna"


def check_derivable(architecture: str) -> None:
    """
    Raises:
        InputError: its binaries' facts rank nothing.
    """
    if architecture not in DERIVABLE:
        expected = f"expected one of {', '.join(DERIVABLE)}; others are measured on their GPU"
        raise InputError(f"--arch: got {architecture!r}, {expected}")


def variants(call_class: CallClass, architecture: str, base: Parameters, names: Sequence[str]) -> list[Parameters]:
    """Every combination of some parameters, the others as in `base`, which is left out.

    Those come first that differ least from it. Hints of how many waves to compile for, which often change nothing, are the last
    to be followed.
    """
    space = SPACES[vendor_of(architecture)][call_class.phase]
    product = itertools.product(*(getattr(space, name) or (getattr(base, name),) for name in names))
    found = (replace(base, **dict(zip(names, values, strict=True))) for values in product)
    return sorted(
        (each for each in found if each != base and may_fit(each, call_class, architecture)),
        key=lambda each: (each.waves_per_eu != base.waves_per_eu, sum(getattr(each, n) != getattr(base, n) for n in names)),
    )


def with_as_many_waves(candidate: Parameters, today: Parameters) -> Parameters:
    """Split so that a compute unit has as many waves as today, which are in programs of more or fewer."""
    waves = today.programs_per_unit * today.num_warps
    return replace(candidate, programs_per_unit=max(1, waves // candidate.num_warps))


def may_fit(parameters: Parameters, call_class: CallClass, architecture: str) -> bool:
    """True if a thread that holds nothing else has registers for its share of the float32 accumulator and logits."""
    family = family_of(architecture)
    held = parameters.block_m * (call_class.most_block_d + parameters.block_n)
    return held / (parameters.num_warps * LANES[family]) <= min(REGISTERS[family], parameters.maxnreg or REGISTERS[family])
