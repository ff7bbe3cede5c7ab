"""NAME@planned: launches as on GPUs that are not here, for any architecture that the launch tables know, interpreted on a CPU.

The plan that the interpreter takes for itself has tiles, splits and formats of float8 of its own. So the tables, the waves of
compute units and the formats of GPUs would never run on a CPU. A call's metadata chooses its GPU. In half of the calls
attention has launch parameters that no table holds.
"""

import dataclasses
import random
from typing import Any

from attn_fuzz.cases.tensors import Step
from attn_fuzz.interpreted.numbers import missing_e4m3fnuz
from attn_fuzz.targets.rng import rng_of_metadata
from attn_fuzz.targets.target import Gpu, NoModeError, Target, within
from attn_fuzz.verdict.rounding import Rounding

COMPUTE_UNITS = (1, 3, 8)
"""Numbers of compute units, so few that splitting keys over them makes programs that are quickly interpreted."""
TILE_EDGES = (32, 64, 128)
MAX_PARTS = 128
MIN_KEYS_PER_TILE = 16
"""The keys of the smallest tile of a plan, on any GPU."""
_NVIDIA = ("sm70", "sm75", "sm80", "sm86", "sm87", "sm89", "sm90", "sm100", "sm103", "sm110", "sm120", "sm121")
"""GPUs that keep several tiles of keys in shared memory, whose size limits the number."""


def drawn_gpu(rng: random.Random) -> Gpu:
    """One with a table of its own or of a chip like it; now and then one of NVIDIA's, or one that no table names."""
    from attn_optimized.launch.table import architectures

    strangers = (
        f"sm{rng.randint(70, 129)}",
        rng.choice(_NVIDIA),
        f"gfx{rng.randint(0x900, 0x9FF):x}",
    )
    architecture, compute_units = rng.choice((*architectures(), *strangers)), rng.choice(COMPUTE_UNITS)
    parameters = _parameters(rng) if rng.random() < 0.5 else {}
    return Gpu(architecture, compute_units, parameters, batch_invariant=rng.random() < 0.2)


def _parameters(rng: random.Random) -> dict[str, Any]:
    return {
        "block_m": rng.choice(TILE_EDGES),
        "block_n": rng.choice(TILE_EDGES),
        "num_warps": rng.choice((1, 2, 4, 8)),
        "num_stages": rng.randint(1, 4),
        "maxnreg": rng.choice((None, 128)),
        "waves_per_eu": rng.choice((None, 2)),
        "keys_per_split": rng.choice((16, 16, 33, 64, 512)),
        "programs_per_unit": rng.randint(1, 3),
        "uneven_waves": rng.randint(0, 4),
    }


def on_drawn_gpus(target: Target) -> Target:
    planned = target.planned
    if planned is None:
        raise NoModeError(f"{target.name} does not say how its host code plans for another GPU (Target.planned)")

    def events(step: Step) -> list[str]:
        gpu = drawn_gpu(rng_of_metadata((step.batch,)))
        with planned(gpu):
            maker = "AMD" if gpu.architecture.startswith("gfx") else "NVIDIA"
            return [f"plans of {maker}", *target.events(step)]

    def rounding(device: str) -> Rounding:
        # this bounds every plan: no tile sums more keys than a request has
        return dataclasses.replace(target.rounding("cuda"), keys_per_tile=MIN_KEYS_PER_TILE, splits=MAX_PARTS)

    return target.wrapped(
        within(lambda arguments: planned(drawn_gpu(rng_of_metadata(arguments)))),
        rounding=rounding,
        unavailable=lambda device: target.unavailable(device) or _unavailable(device),
        events=events,
        checks_arguments=False,
        modules=None,  # its launches are those of several architectures
    )


def _unavailable(device: str) -> str | None:
    if device != "cpu":
        return "it interprets the launches of GPUs that are not here: --device cpu"
    return missing_e4m3fnuz()
