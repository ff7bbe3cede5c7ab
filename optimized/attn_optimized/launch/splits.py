"""Chooses the number of parts into which the keys of a tile of queries are split, so that a GPU is full until the end."""

import math
from typing import NamedTuple

from attn_optimized.kernels.split_keys import SHARES_OF_LONGEST
from attn_optimized.launch.table import Parameters
from attn_optimized.launch.workload import Workload

MAX_SPLITS, MAX_LONG_SPLITS = 128, 256
"""The most parts: more of them cost the reduction more than they gain. MAX_LONG_SPLITS is for parts of at least LONG_PART_BYTES
of K, if there are at most LONG_PARTS_PER_UNIT for each compute unit: on an H200, one request of 512k keys and one KV head takes
0.7 times as long in 256 parts as in 128."""
LONG_PART_BYTES, LONG_PARTS_PER_UNIT = 128 << 10, 2
MIN_WAVES, MIN_WAVES_OF_TILES = 1.5, 0.9
"""The fewest waves of programs that a split aims at. The programs of a single wave begin together, and until they have read
their first keys, the memory is idle. Tiles of many rows (MIN_WAVES_OF_TILES) compute more for each byte, and a second wave of a
few programs takes as long as a full one. So a single wave is best for the tiles of one request, and for a latent cache, whose
parts have sums of 512 dims for many heads. On an H200, shared prefixes are 1.14 times as fast in 0.9 waves as in two."""
MAX_WAVES, MAX_WAVES_OF_TILES = 3, 1
"""From this number of waves on, keys are not split to make programs end together. On an H200, 1024 programs of 4k keys are 1.1
times as fast in three parts, and 2048 programs of 1k keys 0.95 times as fast in two."""
SHORT_KEYS, SHORT_WAVES = 2048, 4
"""Requests of at most SHORT_KEYS keys, in at least SHORT_WAVES waves of programs, are not split, because no program is idle.
Without a split, 256 requests of 1k keys take 0.97 times as long (H200)."""
PART_COST = 0.03
"""The time that each part beyond the first adds, relative to the time without a split: 0.3 to 4 % in 64 requests of 8k keys."""

MIN_FILLING, MAX_FILLING = 4, 64
"""Parts may be shorter than `keys_per_split` if the GPU has room for at least MIN_FILLING programs in place of each: with
less room the reduction costs more than short parts gain. Then there are at most MAX_FILLING parts."""

SHARES_PER_UNIT = 8
"""Shares of the work per compute unit, if work is dealt by shares, as in several requests with several tiles of queries."""
MAX_SUMS, MIN_WAVES_OF_SUMS = 1 / 8, 2
"""The most bytes that parts write and read if work is dealt by shares, relative to the bytes of K and V. Above that there are
fewer shares, but at least MIN_WAVES_OF_SUMS of programs. On an H200, extends of 32 to 64 tokens would take 1.05 to 1.26 times
as long with all shares over one KV head, and 1.01 and 1.03 times over eight."""
MIN_SHARES, MAX_SHARES = 3, 64
"""The fewest and the most parts if work is dealt by shares."""
MAX_PROGRAMS_PER_UNIT = 48
"""The most programs per compute unit if work is dealt by shares. An idle program occupies a slot for 3 us (H200)."""
PARTS_BYTES_PER_KEY, MAX_PARTS_BYTES = 10_000, 256 << 20
"""The most bytes of all parts if work is dealt by shares, per key of the longest request and in total. They take at most about
a quarter of the time of the longest tile (H200)."""


class Splits(NamedTuple):
    """The numbers of parts into which the keys of a tile of queries may be split. Each part is a program of its own, and costs
    a float32 output row in scratch memory and in the reduction. The kernel chooses the parts of a step by the lengths that the
    device knows: see kernels/split_keys.py."""

    most: int = 1
    """The most parts of a request; 1: keys are not split."""
    balanced: int = 1
    """The parts of each request in a batch of about equal lengths."""
    filling: int = 1
    """The parts that fill the GPU at once, which may be as short as a tile; 1 if the GPU is nearly full without a split."""
    shares: int = 0
    """The shares of the work on the heads of one program; 0: parts are made by the lengths of requests."""


def splits_of(
    workload: Workload,
    *,
    num_programs: int,
    groups: int,
    queries: int,
    one_tile_per_request: bool,
    at_once: int,
    compute_units: int,
    most_programs: int,
    max_keys: int,
    parameters: Parameters,
    most_sums: float = MAX_SUMS,
) -> Splits:
    """The splits of a call. A batch-invariant call never splits keys.

    Args:
        num_programs: the number of programs without a split.
        groups: the number of groups of query heads. A tile of queries has a program for each group.
        queries: the number of queries of a tile.
        at_once: the number of programs that the GPU runs at once.
        most_programs: the most programs of a call with splits in which several requests have several tiles.
        most_sums: see MAX_SUMS.
        max_keys: an upper bound, possibly loose, of the keys that a tile of queries sees.
    """
    if workload.batch_invariant or max_keys <= parameters.keys_per_split or not num_programs:
        return Splits()
    if one_tile_per_request and not workload.is_latent:
        return _by_length(workload, num_programs, at_once, (MIN_WAVES, MAX_WAVES), compute_units, max_keys, parameters)
    if workload.is_latent or workload.num_requests == 1:
        waves = MIN_WAVES_OF_TILES, MAX_WAVES_OF_TILES
        return _by_length(workload, num_programs, at_once, waves, compute_units, max_keys, parameters)
    part_bytes = 8 * (queries * workload.num_heads // groups) * workload.v_head_size
    within_sums = most_sums * _most_bytes(workload, max_keys) / part_bytes
    # at least as many programs as cut each tile, if all tiles have the same work
    fewest = max(MIN_WAVES_OF_SUMS * at_once, SHARES_OF_LONGEST.value * num_programs)
    programs = min(SHARES_PER_UNIT * compute_units, max(within_sums, fewest))
    return _by_work(workload, most_programs // num_programs, math.ceil(programs / groups), queries, max_keys, parameters)


def _by_length(
    workload: Workload,
    num_programs: int,
    at_once: int,
    waves: tuple[float, int],
    compute_units: int,
    max_keys: int,
    parameters: Parameters,
) -> Splits:
    """The splits where the lengths give the work of a program."""
    fewest = parameters.keys_per_split
    room = at_once // num_programs
    filling = min(room, MAX_FILLING) if room >= MIN_FILLING else 1
    shortest = min(filling, -(-max_keys // parameters.block_n))
    long_parts = min(_key_bytes(workload) * max_keys // LONG_PART_BYTES, LONG_PARTS_PER_UNIT * compute_units // num_programs)
    most = min(max(max_keys // fewest, shortest), max(MAX_SPLITS, min(long_parts, MAX_LONG_SPLITS)))
    balanced = min(most, _balanced_splits(num_programs, at_once, *waves))
    if workload.num_requests == 1 or (max_keys <= SHORT_KEYS and num_programs >= SHORT_WAVES * at_once):
        return Splits(balanced, balanced, filling)
    # short parts use what is idle next to the longest request
    uneven = min(most, -(-parameters.uneven_waves * at_once // num_programs))
    return Splits(max(balanced, uneven), balanced, filling)


def _most_bytes(workload: Workload, max_keys: int) -> int:
    """The most bytes of K and V that a step of these sizes reads."""
    itemsize = 1 if workload.quantized else workload.itemsize
    dims = (workload.head_size + workload.v_head_size) * workload.num_kv_heads
    return workload.num_requests * max_keys * dims * itemsize


def _key_bytes(workload: Workload) -> int:
    return workload.head_size * (1 if workload.quantized else workload.itemsize)


def _balanced_splits(num_programs: int, at_once: int, min_waves: float, most_waves: int) -> int:
    """The number of splits with the least idle time, among those that make at least min_waves waves of programs.

    It is 1 if there are most_waves waves without a split.
    """
    if num_programs >= most_waves * at_once:
        return 1

    def idle(splits: int) -> float:
        waves = num_programs * splits / at_once
        return math.ceil(waves) / waves * (1 + PART_COST * (splits - 1)) if waves >= min_waves else math.inf

    return min(range(1, max(4, 2 * at_once // num_programs) + 1), key=idle)


def _by_work(workload: Workload, most_splits: int, shares: int, queries: int, max_keys: int, parameters: Parameters) -> Splits:
    """The splits where several requests may have several tiles of queries."""
    if not workload.num_tokens:
        return Splits()
    fewest = parameters.keys_per_split
    most_parts = min(PARTS_BYTES_PER_KEY * max_keys, MAX_PARTS_BYTES) // parts_bytes(1, workload)
    most = min(max_keys // fewest, most_splits, most_parts, MAX_SHARES)
    least_share = max(least_work(workload, max_keys) // queries // shares, fewest)
    if most < MIN_SHARES or max_keys <= SHARES_OF_LONGEST.value * least_share:
        return Splits()
    return Splits(most, most, shares=shares)


def least_work(workload: Workload, max_keys: int) -> int:
    """The fewest pairs of a query and a key that a batch of these sizes can have.

    A request may have no keys before its own queries. One request has max_query_len queries.
    """
    average, longest = workload.num_tokens // workload.num_requests, workload.max_query_len
    return max(workload.num_tokens * min(average // 2, max_keys), longest * min(longest // 2, max_keys))


def parts_bytes(num_parts: int, workload: Workload) -> int:
    """Memory of the softmax's state for parts of the keys: float32 sums of values, largest logits and sums of weights."""
    return num_parts * workload.num_tokens * workload.num_heads * (workload.v_head_size + 2) * 4
