"""Into how many parts the keys of a tile of queries are split, so that a GPU is full until all is done."""

import math

from attn_optimized.device import INTERPRETER
from attn_optimized.launch.table import Parameters
from attn_optimized.launch.workload import Workload

MAX_SPLITS = 128
"""More parts cost the reduction more than they bring."""
MIN_WAVES = 1.5
"""The fewest waves of programs that a split aims at. Those of a single wave begin together, and leave the memory idle then."""
PART_COST = 0.08
"""What each part beyond the first adds to the time, relative to that without a split: measured at 64 requests of 8k keys."""
_INTERPRETED_PROGRAMS = 2
"""So many programs fill the interpreter, as far as splits go: keys of few requests are split there, too."""


def num_splits(
    workload: Workload,
    *,
    architecture: str,
    compute_units: int,
    num_programs: int,
    max_keys: int,
    parameters: Parameters,
) -> tuple[int, int]:
    """Splits for the longest request, and the smaller number for batches whose requests are all about as long.

    Each part is a program of its own, and costs a float32 output row in scratch memory and in the reduction. A batch-invariant
    call never splits keys.

    Args:
        compute_units: multiprocessors (NVIDIA) or compute units (AMD).
        num_programs: programs without a split.
        max_keys: an upper bound, possibly loose, of the keys that a tile of queries sees.
        parameters: how many keys are worth a program, and how many programs run on a compute unit at once.
    """
    if workload.batch_invariant:
        return 1, 1
    at_once = _INTERPRETED_PROGRAMS if architecture == INTERPRETER else parameters.programs_per_unit * compute_units
    most = max(1, min(max_keys // parameters.keys_per_split, MAX_SPLITS))
    balanced = min(most, _balanced_splits(num_programs, at_once))
    if workload.num_requests == 1:
        return balanced, balanced
    # parts of few keys fill what the longest request leaves idle
    uneven = min(most, -(-parameters.uneven_waves * at_once // max(1, num_programs)))
    return max(balanced, uneven), balanced


def _balanced_splits(num_programs: int, at_once: int) -> int:
    """The split count with the least time in which programs are idle, among those of at least MIN_WAVES waves."""
    if not num_programs or num_programs >= 2 * at_once:
        return 1

    def idle(splits: int) -> float:
        waves = num_programs * splits / at_once
        return math.ceil(waves) / waves * (1 + PART_COST * (splits - 1)) if waves >= MIN_WAVES else math.inf

    return min(range(1, max(4, 2 * at_once // num_programs) + 1), key=idle)


def parts_bytes(num_parts: int, workload: Workload) -> int:
    """Memory of the softmax's state for parts of the keys: float32 sums of values, largest logits and sums of weights."""
    return num_parts * workload.num_tokens * workload.num_heads * (workload.value_size + 2) * 4
