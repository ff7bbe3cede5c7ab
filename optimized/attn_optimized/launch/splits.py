"""Into how many parts the keys of a tile of queries are split, so that a GPU is full until all is done."""

import math
from typing import NamedTuple

from attn_optimized.launch.table import Parameters
from attn_optimized.launch.workload import Workload

MAX_SPLITS = 128
"""More parts cost the reduction more than they bring."""
MIN_WAVES = 1.5
"""The fewest waves of programs that a split aims at. Those of a single wave begin together, and leave the memory idle then.
Tiles of prompts, whose work differs, keep it busy: they aim at one wave, since each part costs the reduction."""
PART_COST = 0.08
"""What each part beyond the first adds to the time, relative to that without a split: measured at 64 requests of 8k keys."""

MIN_FILLING, MAX_FILLING = 4, 64
"""Parts are short where the GPU has room for at least MIN_FILLING programs in place of each. With less room the reduction costs
more than short parts bring. At most MAX_FILLING parts are made by being short."""


class Splits(NamedTuple):
    """Into how many parts the keys of a tile of queries are split. Each part is a program of its own, and costs a float32
    output row in scratch memory and in the reduction."""

    most: int
    """parts of the longest request; 1: keys are not split"""
    balanced: int
    """parts of a batch whose requests are all about as long"""
    filling: int
    """parts that fill the GPU at once, as short as a tile if need be; 1 if it is about full without"""


def splits_of(
    workload: Workload,
    *,
    num_programs: int,
    at_once: int,
    has_long_queries: bool,
    max_keys: int,
    parameters: Parameters,
) -> Splits:
    """The splits of a call. A batch-invariant call never splits keys.

    Args:
        num_programs: programs without a split.
        at_once: programs that the GPU runs at once.
        has_long_queries: whether most requests have several tiles of queries.
        max_keys: an upper bound, possibly loose, of the keys that a tile of queries sees.
    """
    if workload.batch_invariant or max_keys <= parameters.keys_per_split or not num_programs:
        return Splits(1, 1, 1)
    room = at_once // num_programs
    filling = min(room, MAX_FILLING) if room >= MIN_FILLING else 1
    shortest = min(filling, -(-max_keys // parameters.block_n))
    most = min(max(max_keys // parameters.keys_per_split, shortest), MAX_SPLITS)
    balanced = min(most, _balanced_splits(num_programs, at_once, 1.0 if has_long_queries else MIN_WAVES))
    if workload.num_requests == 1:
        return Splits(balanced, balanced, filling)
    # parts of few keys fill what the longest request leaves idle
    uneven = min(most, -(-parameters.uneven_waves * at_once // num_programs))
    return Splits(max(balanced, uneven), balanced, filling)


def _balanced_splits(num_programs: int, at_once: int, min_waves: float) -> int:
    """The split count with the least time in which programs are idle, among those of at least min_waves waves."""
    if num_programs >= (2 if min_waves > 1 else 1) * at_once:
        return 1

    def idle(splits: int) -> float:
        waves = num_programs * splits / at_once
        return math.ceil(waves) / waves * (1 + PART_COST * (splits - 1)) if waves >= min_waves else math.inf

    return min(range(1, max(4, 2 * at_once // num_programs) + 1), key=idle)


def parts_bytes(num_parts: int, workload: Workload) -> int:
    """Memory of the softmax's state for parts of the keys: float32 sums of values, largest logits and sums of weights."""
    return num_parts * workload.num_tokens * workload.num_heads * (workload.value_size + 2) * 4
