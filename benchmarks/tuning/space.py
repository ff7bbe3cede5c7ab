"""Which launch parameters are tried, as data."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Literal

from attn_contract import ContractError
from attn_optimized.launch.table import Parameters, Phase

from benchmarks.tuning.classes import CallClass

Vendor = Literal["nvidia", "amd"]


@dataclass(frozen=True, kw_only=True)
class Space:
    """Every combination of these values is a candidate; names as in `Parameters`.

    The last three change no loop over keys: they are tried once the others are chosen, where few programs need a split.
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


_SPLITS = {"keys_per_split": (256, 512, 1024), "programs_per_unit": (1, 2, 3, 4, 6), "uneven_waves": (0, 4)}
SPACES: dict[Vendor, dict[Phase, Space]] = {
    "nvidia": {
        "decode": Space(
            block_m=(16,), block_n=(16, 32, 64, 128), num_warps=(2, 4), num_stages=(2, 3, 5), maxnreg=(None, 128), **_SPLITS
        ),
        "wide_decode": Space(
            block_m=(64,), block_n=(16, 32, 64, 128), num_warps=(4, 8), num_stages=(2, 3), maxnreg=(None, 168), **_SPLITS
        ),
        "mixed": Space(
            block_m=(32, 64, 128),
            block_n=(32, 64, 128),
            num_warps=(4, 8),
            num_stages=(2, 3),
            maxnreg=(None, 128, 168),
            **_SPLITS,
        ),
        "short": Space(
            block_m=(16, 32, 64), block_n=(32, 64, 128), num_warps=(4, 8), num_stages=(2, 3), maxnreg=(None, 168), **_SPLITS
        ),
        "window": Space(
            block_m=(32, 64, 128), block_n=(16, 32, 64), num_warps=(4, 8), num_stages=(2, 3), maxnreg=(None, 80, 128, 168)
        ),
        "rules": Space(
            block_m=(32, 64, 128), block_n=(16, 32, 64), num_warps=(4, 8), num_stages=(2, 3), maxnreg=(None, 128, 168)
        ),
        "prefill": Space(
            block_m=(32, 64, 128), block_n=(16, 32, 64, 128), num_warps=(4, 8), num_stages=(2, 3), maxnreg=(None, 128, 168)
        ),
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
LANES = {"nvidia": 32, "cdna": 64, "rdna": 32}
REGISTERS = {"nvidia": 255, "cdna": 512, "rdna": 256}
"""Of a thread at most, accumulation registers included."""
DERIVABLE = ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201", "gfx1250")
"""Whose binaries' facts are known to say which is better."""
TINY = 2
"""Candidates of each class beside today's in `--tiny`."""


def vendor_of(architecture: str) -> Vendor:
    return "amd" if architecture.startswith("gfx") else "nvidia"


def family_of(architecture: str) -> Literal["nvidia", "cdna", "rdna"]:
    return "nvidia" if vendor_of(architecture) == "nvidia" else "cdna" if architecture.startswith("gfx9") else "rdna"


def check_derivable(architecture: str) -> None:
    """
    Raises:
        ContractError: its binaries' facts rank nothing.
    """
    if architecture not in DERIVABLE:
        raise ContractError("--arch", repr(architecture), f"one of {', '.join(DERIVABLE)}; others are measured on their GPU")


def candidates(call_class: CallClass, architecture: str, today: Parameters) -> list[Parameters]:
    """What is compiled: all that may fit the registers, those first that differ least from today's, which is left out.

    Hints of how many waves to compile for, which often change nothing, are the last to be followed.
    """
    space = SPACES[vendor_of(architecture)][call_class.phase]
    names = [field.name for field in fields(Space) if field.name not in _SPLITS]
    product = itertools.product(*(getattr(space, name) for name in names))
    found = (replace(today, **dict(zip(names, values, strict=True))) for values in product)
    return sorted(
        (candidate for candidate in found if candidate != today and may_fit(candidate, call_class, architecture)),
        key=lambda candidate: (
            candidate.waves_per_eu != today.waves_per_eu,
            sum(getattr(candidate, name) != getattr(today, name) for name in names),
        ),
    )


def with_as_many_waves(candidate: Parameters, today: Parameters) -> Parameters:
    """Split so that a compute unit has as many waves as today, which are in programs of more or fewer."""
    waves = today.programs_per_unit * today.num_warps
    return replace(candidate, programs_per_unit=max(1, waves // candidate.num_warps))


def splits(call_class: CallClass, architecture: str, chosen: Parameters) -> Iterator[Parameters]:
    """The same binary with other splits of the keys."""
    space = SPACES[vendor_of(architecture)][call_class.phase]
    for keys, programs, waves in itertools.product(space.keys_per_split, space.programs_per_unit, space.uneven_waves):
        candidate = replace(chosen, keys_per_split=keys, programs_per_unit=programs, uneven_waves=waves)
        if candidate != chosen:
            yield candidate


def may_fit(parameters: Parameters, call_class: CallClass, architecture: str) -> bool:
    """Whether a thread has registers for its share of the float32 accumulator and logits, if it had to hold nothing else."""
    family = family_of(architecture)
    held = parameters.block_m * (call_class.most_block_d + parameters.block_n)
    return held / (parameters.num_warps * LANES[family]) <= min(REGISTERS[family], parameters.maxnreg or REGISTERS[family])
