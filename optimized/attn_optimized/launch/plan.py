"""The plan of a call of attention, by which it is launched."""

import math
from dataclasses import dataclass
from functools import lru_cache

from attn_contract import UnsupportedError

from attn_optimized.device import INTERPRETER
from attn_optimized.launch.prompts import has_full_tiles
from attn_optimized.launch.splits import MAX_PROGRAMS_PER_UNIT, MAX_SUMS, parts_bytes, splits_of
from attn_optimized.launch.table import Parameters
from attn_optimized.launch.tiles import AttentionTiles, attention_tiles
from attn_optimized.launch.workload import Workload

MAX_GRID_Y = 65535
_INTERPRETED_PROGRAMS = 4
"""The programs that the interpreter runs at once, as splits assume, so that keys of few requests are split there, too.

It is the fewest with which one program has room for parts that fill a GPU at once (MIN_FILLING). Of 268 drawn steps whose V has
no power of 2 of dims, 54 have keys in several parts then, and 32 if it is 2.
"""
_INTERPRETED_UNITS, _MAX_INTERPRETED_PROGRAMS = 1, 24
"""The compute units of the interpreter, as shares of the work assume, and the most programs of a call that is dealt by shares:
each program takes a millisecond or more there."""
_MANY_WAVES = 8
"""From this number of waves on, the last wave takes a small part of the time: programs are ordered so that neighbours share
keys."""


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """The tiles, programs and splits of a call.

    Args:
        architecture: see `device.architecture_of`.
        tiles: the tiles of queries and keys.
        grid: the programs without a split: tiles of queries, groups of query heads.
        batch_invariant: True if a request's output must not depend on the rest of the batch.
        has_short_window: True if windows are too short for a loop of tiles without a mask.
        one_tile_per_request: True if each request has one tile of queries.
        has_full_tiles: True if the warp specialized kernel is faster, where it serves the call: launch/prompts.py.
        heads_first: True if neighbouring programs are heads of one tile, so that all programs begin in the order of their
            work. False if they are tiles of one head, which read the same keys.
        splits: the most parts of the keys of a tile of queries, each a program of its own.
        balanced_splits: the parts of requests of about the same length; see kernels/split_keys.py.
        filling_splits: the parts that fill the GPU at once.
        work_shares: the shares of the work, one for each part; 0: parts are made by the lengths of requests.
        min_tiles_per_split: the fewest tiles of keys of a part, unless parts must be short to fill the GPU.
        max_tiles: an upper bound of the tiles of keys that a tile of queries sees.
        scratch_bytes: the memory of the parts between the two kernels; 0 without a split.

    Raises:
        UnsupportedError: the grid has more programs than any GPU allows.
    """

    architecture: str
    tiles: AttentionTiles
    grid: tuple[int, int]
    batch_invariant: bool
    has_short_window: bool
    one_tile_per_request: bool
    has_full_tiles: bool
    heads_first: bool
    splits: int
    balanced_splits: int
    filling_splits: int
    work_shares: int
    min_tiles_per_split: int
    max_tiles: int
    scratch_bytes: int

    def __post_init__(self) -> None:
        if self.launch_grid[1] > MAX_GRID_Y:
            tiles, heads = self.grid
            programs = f"{heads} groups of query heads beside {tiles} tiles of queries"
            reason = f"a GPU's grid has at most {MAX_GRID_Y} programs in its second dimension"
            raise UnsupportedError("attn_optimized", programs, reason, "attn_reference")

    @property
    def launch_grid(self) -> tuple[int, int, int]:
        """The grid of the kernel, with splits."""
        tiles, heads = self.grid
        return (heads, tiles, self.splits) if self.heads_first else (tiles, heads, self.splits)

    @property
    def num_programs(self) -> int:
        return self.grid[0] * self.grid[1] * self.splits


# all layers of a model ask for the same plan in a step
@lru_cache(maxsize=1024)
def attention_plan(
    workload: Workload, *, architecture: str, compute_units: int, parameters: Parameters | None = None
) -> AttentionPlan:
    """The plan of a workload on a GPU.

    Args:
        architecture, compute_units: of the GPU; see `device.architecture_of`.
        parameters: launch parameters to use instead of those of the architecture's table; the attention kernel then serves any
            call.

    Raises:
        UnsupportedError: the head size is too large for a tile, or no GPU has a grid of so many programs.
    """
    tiles = attention_tiles(workload, architecture, compute_units, parameters)
    grid, one_tile_per_request = attention_grid(workload, tiles)
    max_keys = workload.max_seq_len
    if workload.window_keys is not None:
        max_keys = min(max_keys, workload.window_keys)
    max_keys_of_tile = max_keys + tiles.queries - 1
    is_interpreted = architecture == INTERPRETER
    at_once = _INTERPRETED_PROGRAMS if is_interpreted else tiles.parameters.programs_per_unit * compute_units
    num_programs = grid[0] * grid[1]
    splits = splits_of(
        workload,
        num_programs=num_programs,
        groups=grid[1],
        queries=tiles.queries,
        one_tile_per_request=one_tile_per_request,
        at_once=at_once,
        compute_units=_INTERPRETED_UNITS if is_interpreted else compute_units,
        most_programs=_MAX_INTERPRETED_PROGRAMS if is_interpreted else MAX_PROGRAMS_PER_UNIT * compute_units,
        most_sums=math.inf if is_interpreted else MAX_SUMS,
        max_keys=max_keys_of_tile,
        parameters=tiles.parameters,
    )
    # in heads_first the tiles are the grid's second dimension, which holds fewer programs than the first
    heads_first = grid[0] <= MAX_GRID_Y and (one_tile_per_request or num_programs <= _MANY_WAVES * at_once)
    return AttentionPlan(
        architecture=architecture,
        tiles=tiles,
        grid=grid,
        batch_invariant=workload.batch_invariant,
        has_short_window=workload.has_short_window,
        one_tile_per_request=one_tile_per_request,
        has_full_tiles=parameters is None and has_full_tiles(workload, architecture, compute_units),
        heads_first=heads_first,
        splits=splits.most,
        balanced_splits=splits.balanced,
        filling_splits=splits.filling,
        work_shares=splits.shares,
        min_tiles_per_split=-(-tiles.parameters.keys_per_split // tiles.block_n),
        max_tiles=-(-max_keys_of_tile // tiles.block_n),
        scratch_bytes=parts_bytes(splits.most, workload) if splits.most > 1 else 0,
    )


def attention_grid(workload: Workload, tiles: AttentionTiles) -> tuple[tuple[int, int], bool]:
    """The programs without a split (tiles of queries, groups of heads), and True if each request has one tile.

    If a request may need more than one tile, there are as many tiles as any division of the tokens into requests can need.
    """
    num_requests, groups = workload.num_requests, workload.num_kv_heads * tiles.groups_per_kv_head
    if workload.max_query_len <= tiles.queries or num_requests == 0:
        return (num_requests, groups), True
    return (-(-workload.num_tokens // tiles.queries) + num_requests - 1, groups), False
