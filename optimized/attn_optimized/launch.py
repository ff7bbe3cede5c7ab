"""Tile sizes, warps and grids of the kernels: pure functions of shapes, element size and architecture.

GPUs want tiles that feed their matrix units and fit their registers. The interpreter wants few programs, since an operation
costs it the same whatever its size, but a sequence of a few hundred tokens must still take several tiles of either kind.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

from attn_contract import UnsupportedError

from attn_optimized.device import INTERPRETER
from attn_optimized.launch_table import Parameters, Phase, parameters_for

MAX_HEAD_SIZE = 256
MAX_GROUP = 64
# tl.dot takes no shorter side.
_MIN_DOT = 16
# Rows of a request that decodes or speculates, at most.
FEW_ROWS = 64
# Keys of a short window: a tile of queries that sees no more has hardly begun when it ends.
FEW_KEYS = 256
# A batch is mixed if it has so many requests, which have on average so many times fewer queries than the longest.
MIXED_REQUESTS, MIXED = 8, 4
_MAX_GRID_Y = 65535
# Lengths are int32, so a distance of as many keys hides none.
UNLIMITED = 2**31 - 1
# More parts than this cost the reduction more than they bring.
MAX_SPLITS = 128
# Waves of programs of one length, at least.
LEAST_WAVES = 1.5
# Of the time without a split, what each further part adds to it: measured at 64 requests of 8k keys.
PART_COST = 0.08


@dataclass(frozen=True, kw_only=True)
class AttentionTiles:
    """How an attention kernel is cut and compiled.

    Args:
        head_size: D.
        queries: queries of a tile; each brings the heads of its group, so `queries * group <= block_m`.
        few_m: rows of the tile of a request that needs no more; 0: as of every other.
        block_m: rows of a tile, pairs of query and head.
        block_d: the head size, padded to a power of two.
        parameters: the rest.
    """

    head_size: int
    queries: int
    few_m: int
    block_m: int
    block_d: int
    parameters: Parameters

    @property
    def block_n(self) -> int:
        """Keys of a tile."""
        return self.parameters.block_n

    @cached_property
    def constants(self) -> dict[str, int]:
        """The kernel's."""
        return {
            "HEAD_SIZE": self.head_size,
            "FEW_M": self.few_m,
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "BLOCK_D": self.block_d,
        }

    @cached_property
    def options(self) -> dict[str, int]:
        """The compiler's."""
        names = ("num_warps", "num_stages", "maxnreg", "waves_per_eu")
        return {name: value for name in names if (value := getattr(self.parameters, name)) is not None}


@dataclass(frozen=True, kw_only=True)
class RowTiles:
    """How a kernel that treats each row (pair of token and head) by itself is cut and compiled."""

    head_size: int
    block_rows: int
    block_d: int
    num_warps: int

    @cached_property
    def constants(self) -> dict[str, int]:
        """The kernel's."""
        return {"HEAD_SIZE": self.head_size, "BLOCK_ROWS": self.block_rows, "BLOCK_D": self.block_d}

    @cached_property
    def options(self) -> dict[str, int]:
        """The compiler's."""
        return {"num_warps": self.num_warps}


def attention_tiles(
    architecture: str,
    *,
    itemsize: int,
    head_size: int,
    group: int,
    max_query_len: int,
    phase: Phase,
    quantized: bool = False,
    parameters: Parameters | None = None,
) -> AttentionTiles:
    """Tiles of the attention kernel.

    Args:
        architecture: see `device.architecture_of`.
        itemsize: bytes of an element of q.
        head_size: D.
        group: query heads of a KV head.
        max_query_len: of the requests; only decode's tiles depend on it.
        phase, quantized: see `launch_table.Entry`.
        parameters: in place of those of the architecture's table.

    Raises:
        UnsupportedError: the head size or the group is too large for a tile.
    """
    if head_size > MAX_HEAD_SIZE:
        raise UnsupportedError(
            "attn_optimized", f"head size {head_size}", f"a tile holds whole heads of at most {MAX_HEAD_SIZE}", "attn_reference"
        )
    if group > MAX_GROUP:
        raise UnsupportedError(
            "attn_optimized",
            f"{group} query heads for each KV head",
            f"a tile holds whole groups of at most {MAX_GROUP}",
            "attn_reference",
        )
    block_d = max(_MIN_DOT, _power_of_2(head_size))
    if parameters is None and architecture == INTERPRETER:
        # a few hundred keys are split, and most small cases not slowed down
        parameters = Parameters(block_m=64, block_n=64, num_warps=1, num_stages=1, keys_per_split=64)
    elif parameters is None:
        parameters = parameters_for(architecture, phase=phase, itemsize=itemsize, block_d=block_d, quantized=quantized)
    # of decode, two sizes and not one for every number of queries: each is compiled
    rows = FEW_ROWS if phase == "decode" and max_query_len * group > _MIN_DOT else group
    block_m = max(parameters.block_m, _power_of_2(rows))
    few_m = max(_MIN_DOT, _power_of_2(group)) if phase == "mixed" else 0
    return AttentionTiles(
        head_size=head_size,
        queries=block_m // group,
        few_m=few_m if few_m < block_m else 0,
        block_m=block_m,
        block_d=block_d,
        parameters=parameters,
    )


def phase_of(
    *,
    group: int,
    num_tokens: int,
    num_requests: int,
    max_query_len: int,
    rules: bool,
    short_window: bool,
    batch_invariant: bool,
) -> Phase:
    """What a batch mostly is, from host values alone.

    Args:
        rules: whether what a query sees has holes, or logits have a bias.
        short_window: whether queries see few keys, however long their sequences are.
        batch_invariant: the same for every batch.
    """
    if batch_invariant:
        return "prefill"
    if max_query_len * group <= FEW_ROWS:
        return "decode"
    if num_requests >= MIXED_REQUESTS and num_tokens * MIXED < max_query_len * num_requests:
        return "mixed"
    if rules:
        return "rules"
    return "window" if short_window else "prefill"


def attention_grid(
    tiles: AttentionTiles, *, num_tokens: int, num_requests: int, num_kv_heads: int, max_query_len: int
) -> tuple[tuple[int, int], bool]:
    """Tiles of queries and KV heads, and whether each request has one tile.

    Else there are as many as any split of the tokens into requests can need.
    """
    if max_query_len <= tiles.queries or num_requests == 0:
        return (num_requests, num_kv_heads), True
    return (-(-num_tokens // tiles.queries) + num_requests - 1, num_kv_heads), False


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """How a call of attention is launched.

    Args:
        architecture: see `device.architecture_of`.
        tiles: of queries and keys.
        grid: programs without a split: tiles of queries, KV heads.
        batch_invariant: whether a request's output must not depend on the rest of the batch.
        short_window: whether a loop for tiles without a mask is not worth its start.
        one_tile_each: whether each request has one tile of queries.
        heads_first: whether neighbouring programs are heads of one tile, or tiles of one head.
        splits: parts of the keys of each tile at most, each a program of its own.
        even_splits: parts where requests are of much the same length; see kernels/split_keys.py.
        least_tiles, most_tiles: tiles of keys that are worth a part, and that a tile of queries sees at most.
        scratch_bytes: memory that the parts take between two kernels; 0 without a split.
    """

    architecture: str
    tiles: AttentionTiles
    grid: tuple[int, int]
    batch_invariant: bool
    short_window: bool
    one_tile_each: bool
    heads_first: bool
    splits: int
    even_splits: int
    least_tiles: int
    most_tiles: int
    scratch_bytes: int

    @property
    def launch_grid(self) -> tuple[int, int, int]:
        """As the kernel takes it."""
        tiles, heads = self.grid
        return (heads, tiles, self.splits) if self.heads_first else (tiles, heads, self.splits)

    @property
    def num_programs(self) -> int:
        return self.grid[0] * self.grid[1] * self.splits


# the layers of a step ask for the same
@lru_cache(maxsize=1024)
def attention_plan(
    architecture: str,
    *,
    compute_units: int,
    itemsize: int,
    quantized: bool,
    head_size: int,
    num_heads: int,
    num_kv_heads: int,
    num_tokens: int,
    num_requests: int,
    max_query_len: int,
    max_seq_len: int,
    window_keys: int | None,
    rules: bool,
    batch_invariant: bool,
    parameters: Parameters | None = None,
) -> AttentionPlan:
    """Choose tiles, grid and splits from shapes and host values alone.

    Args:
        max_seq_len: an upper bound, possibly loose.
        window_keys: that one query sees through its window or in its chunk, at most; None: all.
        rules: see `phase_of`.
        parameters: in place of those of the architecture's table.

    Raises:
        UnsupportedError: as `attention_tiles` does.
    """
    group = num_heads // num_kv_heads
    max_keys = max_seq_len if window_keys is None else min(max_seq_len, window_keys)
    short_window = window_keys is not None and window_keys <= FEW_KEYS
    tiles = attention_tiles(
        architecture,
        itemsize=itemsize,
        head_size=head_size,
        group=group,
        max_query_len=max_query_len,
        phase=phase_of(
            group=group,
            num_tokens=num_tokens,
            num_requests=num_requests,
            max_query_len=max_query_len,
            rules=rules,
            short_window=short_window,
            batch_invariant=batch_invariant,
        ),
        quantized=quantized,
        parameters=parameters,
    )
    grid, one_tile_each = attention_grid(
        tiles,
        num_tokens=num_tokens,
        num_requests=num_requests,
        num_kv_heads=num_kv_heads,
        max_query_len=max_query_len,
    )
    splits = even_splits = 1
    seen = max_keys + tiles.queries - 1
    if not batch_invariant:
        splits, even_splits = num_splits(
            architecture,
            compute_units=compute_units,
            num_programs=grid[0] * grid[1],
            num_requests=num_requests,
            max_keys=seen,
            parameters=tiles.parameters,
        )
    return AttentionPlan(
        architecture=architecture,
        tiles=tiles,
        grid=grid,
        batch_invariant=batch_invariant,
        short_window=short_window,
        one_tile_each=one_tile_each,
        heads_first=one_tile_each and grid[0] <= _MAX_GRID_Y,
        splits=splits,
        even_splits=even_splits,
        least_tiles=-(-tiles.parameters.keys_per_split // tiles.block_n),
        most_tiles=-(-seen // tiles.block_n),
        scratch_bytes=parts_bytes(splits, num_tokens=num_tokens, num_heads=num_heads, head_size=head_size) if splits > 1 else 0,
    )


def num_splits(
    architecture: str,
    *,
    compute_units: int,
    num_programs: int,
    num_requests: int,
    max_keys: int,
    parameters: Parameters,
) -> tuple[int, int]:
    """Into how many parts the keys of a tile of queries are split, so that the device is full until all is done.

    Each part is a program of its own, and costs a float32 output row in scratch memory and in the reduction.

    Args:
        compute_units: multiprocessors (NVIDIA) or compute units (AMD).
        num_programs: programs without a split.
        max_keys: that a tile sees, an upper bound, possibly loose.
        parameters: how many keys are worth a program, and how many programs run on a compute unit at once.

    Returns:
        Parts of the longest request: so many that those of few keys fill what it leaves idle; and fewer where all requests are
        of one length.
    """
    at_once = 2 if architecture == INTERPRETER else parameters.programs_per_unit * compute_units
    most = max(1, min(max_keys // parameters.keys_per_split, MAX_SPLITS))
    even = min(most, _even_splits(num_programs, at_once))
    if num_requests == 1:
        return even, even
    return max(even, min(most, -(-parameters.uneven_waves * at_once // max(1, num_programs)))), even


def _even_splits(num_programs: int, at_once: int) -> int:
    """The fewest parts that make programs of one length end together, in about two waves or more: those of a single one would
    also begin together, and leave the memory idle meanwhile."""
    if not num_programs or num_programs >= 2 * at_once:
        return 1

    def idle(splits: int) -> float:
        waves = num_programs * splits / at_once
        return math.ceil(waves) / waves * (1 + PART_COST * (splits - 1)) if waves >= LEAST_WAVES else math.inf

    return min(range(1, max(4, 2 * at_once // num_programs) + 1), key=idle)


def parts_bytes(num_parts: int, *, num_tokens: int, num_heads: int, head_size: int) -> int:
    """Memory of the softmax's state for parts of the keys: float32 sums, largest logits and sums of weights."""
    return num_parts * num_tokens * num_heads * (head_size + 2) * 4


@lru_cache(maxsize=1024)
def row_tiles(architecture: str, *, head_size: int) -> RowTiles:
    """Tiles of write_kv_cache and merge_attn_states."""
    block_d = _power_of_2(head_size)
    if architecture == INTERPRETER:
        return RowTiles(head_size=head_size, block_rows=max(1, min(256, (1 << 19) // block_d)), block_d=block_d, num_warps=1)
    return RowTiles(head_size=head_size, block_rows=max(1, 2048 // block_d), block_d=block_d, num_warps=4)


@dataclass(frozen=True, kw_only=True)
class ReduceTiles:
    """How the kernel that reduces parts is cut and compiled."""

    head_size: int
    block_rows: int
    block_parts: int
    block_d: int
    num_warps: int

    @cached_property
    def constants(self) -> dict[str, int]:
        """The kernel's."""
        return {
            "HEAD_SIZE": self.head_size,
            "BLOCK_ROWS": self.block_rows,
            "BLOCK_PARTS": self.block_parts,
            "BLOCK_D": self.block_d,
        }

    @cached_property
    def options(self) -> dict[str, int]:
        """The compiler's."""
        return {"num_warps": self.num_warps}


def reduce_tiles(architecture: str, *, head_size: int, num_parts: int) -> ReduceTiles:
    """Tiles of reduce_parts."""
    block_d = _power_of_2(head_size)
    if architecture == INTERPRETER:
        block_rows = max(1, min(64, (1 << 17) // block_d))
        return ReduceTiles(head_size=head_size, block_rows=block_rows, block_parts=8, block_d=block_d, num_warps=1)
    # three sizes, and not one for every number of parts: each is compiled. Few parts are those of many rows
    if num_parts <= 4:
        block_rows = max(1, min(8, 1024 // block_d))
        return ReduceTiles(head_size=head_size, block_rows=block_rows, block_parts=4, block_d=block_d, num_warps=1)
    block_parts = 32 if num_parts <= 32 else 128
    return ReduceTiles(head_size=head_size, block_rows=1, block_parts=block_parts, block_d=block_d, num_warps=4)


def row_grid(tiles: RowTiles | ReduceTiles, num_rows: int) -> tuple[int]:
    """Programs of such a kernel."""
    return (-(-num_rows // tiles.block_rows),)


def in_units(itemsize: int, **strides: int) -> tuple[int, dict[str, int]]:
    """The unit that strides count in, a constant of their kernel, and the strides in it.

    That is 16 bytes of elements, the widest load, if every stride is a whole multiple of that, else one element. A constant
    of two values tells the compiler what its own specialization of every stride would compile ever more variants for.
    """
    widest = 16 // itemsize
    unit = widest if math.gcd(*strides.values()) % widest == 0 else 1
    return unit, {name: stride // unit for name, stride in strides.items()}


def distance(edge: int) -> int:
    """An edge of a window as the kernels take it, without a special value."""
    return UNLIMITED if edge < 0 else edge


def _power_of_2(size: int) -> int:
    """The least power of two that is not below a size."""
    return 1 << (size - 1).bit_length()
