"""Tile sizes, warps and compiler options of the kernels.

Tiles for GPUs feed their matrix units and fit their registers. Tiles for the interpreter are large, because its operations take
the same time for any size. But a sequence of a few hundred tokens must still have several tiles of queries and of keys, and
several iterations of the reduction: a loop with one iteration hides errors of the second.
"""

from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache

from attn_contract import UnsupportedError

from attn_optimized.device import INTERPRETER
from attn_optimized.launch.shared_memory import rows_that_fit, stages_that_fit
from attn_optimized.launch.table import Entry, Parameters, entry_for
from attn_optimized.launch.widths import Widths, padded, power_of_2
from attn_optimized.launch.workload import DECODE_TILE_ROWS, MIN_DOT, Workload, group_of, phase_of

# so a request of a few hundred keys is split, and most small cases are not, because splits make them slow
_INTERPRETED = Parameters(block_m=64, block_n=64, num_warps=1, num_stages=1, keys_per_split=64)
_FEW_ROWS = ("decode", "latent_decode", "latent_scaled_decode")
_MANY_ROWS = ("prefill", "mixed", "short")
"""The phases that have one stage over X_PACKED and SHUFFLED caches, whose tiles are transposed in registers. On an H200 prefill
of 128 dims is 1.28 and 1.25 times as fast with one stage as with two (`attn-parity doctor --full`). Triton 3.8 and 3.9 compile
two stages wrongly for gfx950: see `miscompiled`."""


@dataclass(frozen=True, kw_only=True)
class AttentionTiles:
    """Tiles of the attention kernel, and options of its compiler.

    Args:
        widths: the widths of rows of q, K and V.
        groups_per_kv_head: the number of groups into which the query heads of a KV head are cut. Each has tiles of its own.
        heads_per_kv_head: the number of query heads of a KV head.
        group: the number of query heads of a group; the last group of a KV head may have fewer.
        queries: the number of queries of a tile. Each brings the heads of its group, so `queries * group <= block_m`.
        small_block_m: the rows of the smaller tile for a request that needs no more; 0: all tiles are alike.
        block_m: the rows of a tile, pairs of query and head.
        parameters: the other launch parameters.
    """

    widths: Widths
    groups_per_kv_head: int
    heads_per_kv_head: int
    group: int
    queries: int
    small_block_m: int
    block_m: int
    parameters: Parameters

    @property
    def block_n(self) -> int:
        """The number of keys of a tile."""
        return self.parameters.block_n

    @cached_property
    def kind(self) -> dict[str, int]:
        """The fields of the kernel's Kind that follow from the tiles."""
        return {
            **asdict(self.widths),
            "groups_per_kv_head": self.groups_per_kv_head,
            "heads_per_kv_head": self.heads_per_kv_head if self.groups_per_kv_head > 1 else 0,
            "small_block_m": self.small_block_m,
            "block_m": self.block_m,
            "block_n": self.block_n,
        }

    @cached_property
    def options(self) -> dict[str, int]:
        """The options of the compiler that are given."""
        names = ("num_warps", "num_stages", "maxnreg", "waves_per_eu")
        return {name: value for name in names if (value := getattr(self.parameters, name)) is not None}


def attention_tiles(
    workload: Workload, architecture: str, compute_units: int, parameters: Parameters | None = None
) -> AttentionTiles:
    """Tiles of the attention kernel.

    Args:
        architecture, compute_units: those of the GPU; see `device.architecture_of`.
        parameters: launch parameters to use instead of those of the architecture's table.

    Raises:
        UnsupportedError: the head size is too large for a tile.
    """
    widths, heads = Widths.of(workload), workload.heads_per_kv_head
    phase = phase_of(workload, compute_units)
    if parameters is None and architecture == INTERPRETER:
        # tiles of few rows have code of their own
        parameters = replace(_INTERPRETED, block_m=MIN_DOT) if phase in _FEW_ROWS else _INTERPRETED
    elif parameters is None:
        parameters = entry_of(workload, architecture, compute_units).parameters
    most_rows = rows_that_fit(architecture, workload, widths)
    group = group_of(heads, parameters.block_m if workload.is_latent else min(workload.most_heads, most_rows))
    # decodes have tiles of only two sizes, because each size is compiled
    rows = min(DECODE_TILE_ROWS, most_rows) if phase == "wide_decode" else group
    block_m = max(parameters.block_m, power_of_2(rows))
    small_block_m = padded(group) if phase == "mixed" else 0
    num_stages = stages_that_fit(architecture, workload, widths, block_m, parameters)
    if workload.is_x_packed and phase in _MANY_ROWS:
        num_stages = 1
    return AttentionTiles(
        widths=widths,
        groups_per_kv_head=-(-heads // group),
        heads_per_kv_head=heads,
        group=group,
        queries=1 if workload.has_selection else block_m // group,
        small_block_m=small_block_m if small_block_m < block_m else 0,
        block_m=block_m,
        parameters=replace(parameters, num_stages=num_stages),
    )


def entry_of(workload: Workload, architecture: str, compute_units: int) -> Entry:
    """The entry of the architecture's table by which a workload is launched."""
    phase, widths = phase_of(workload, compute_units), Widths.of(workload)
    # by the width of V if it is wider than K: sums of values are in registers, which the entry of a narrow head may limit
    block_d = max(widths.row_block, widths.value_row_block)
    return entry_for(architecture, phase=phase, itemsize=workload.itemsize, block_d=block_d, quantized=workload.quantized)


@dataclass(frozen=True, kw_only=True)
class RowTiles:
    """Tiles and compiler options of a kernel that treats each row (pair of token and head) by itself."""

    head_size: int
    block_rows: int
    block_d: int
    num_warps: int

    @cached_property
    def constants(self) -> dict[str, int]:
        """The kernel's constants, by name."""
        return {"HEAD_SIZE": self.head_size, "BLOCK_ROWS": self.block_rows, "BLOCK_D": self.block_d}

    @cached_property
    def options(self) -> dict[str, int]:
        """Options of the compiler."""
        return {"num_warps": self.num_warps}


MAX_ROW_SIZE = 4096
"""The widest row: a compiler takes minutes for much wider tiles, because a thread holds all its dims in registers."""


@lru_cache(maxsize=1024)
def row_tiles(architecture: str, *, head_size: int) -> RowTiles:
    """Tiles of the cache writes and of the merges.

    Args:
        head_size: the dims of a row; of the widest one if a program has tiles of several widths for the same rows.

    Raises:
        UnsupportedError: a row is wider than a tile.
    """
    if head_size > MAX_ROW_SIZE:
        reason = f"a tile holds whole rows of at most {MAX_ROW_SIZE}"
        raise UnsupportedError("attn_optimized", f"a row of {head_size} dims", reason, "attn_reference")
    block_d = power_of_2(head_size)
    if architecture == INTERPRETER:
        # few rows, so that the tokens of a small step take several programs
        return RowTiles(head_size=head_size, block_rows=16, block_d=block_d, num_warps=1)
    return RowTiles(head_size=head_size, block_rows=max(1, 2048 // block_d), block_d=block_d, num_warps=4)


@dataclass(frozen=True, kw_only=True)
class ReduceTiles:
    """Tiles and compiler options of the kernel that reduces parts."""

    head_size: int
    block_rows: int
    block_parts: int
    block_d: int
    num_warps: int

    @cached_property
    def constants(self) -> dict[str, int]:
        """The kernel's constants, by name."""
        return {
            "HEAD_SIZE": self.head_size,
            "BLOCK_ROWS": self.block_rows,
            "BLOCK_PARTS": self.block_parts,
            "BLOCK_D": self.block_d,
        }

    @cached_property
    def options(self) -> dict[str, int]:
        """Options of the compiler."""
        return {"num_warps": self.num_warps}


REDUCED_AT_ONCE = {"gfx": 8, "sm": 32}
"""The parts of rows that a warp loads at once, by the first letters of the architecture's name. On AMD the masks of parts are
in scalar registers: with 32 parts Triton 3.9 spills 204 of them for gfx942 in the loop over parts, and with 8 parts none."""
MAX_REDUCED_DIMS = 128
"""The most dims of a row that one program reduces. Several programs reduce a wider row, so that few rows fill a GPU."""


@lru_cache(maxsize=1024)
def reduce_tiles(architecture: str, *, head_size: int, num_parts: int) -> ReduceTiles:
    """Tiles of reduce_parts.

    A warp holds a row's dims in its lanes and the parts in its registers, so that sums over parts stay in a lane. On an H200,
    64 parts of 8 rows of 512 dims take 3.7 us; programs of four warps with whole rows take 29.5 us.
    """
    block_d = power_of_2(head_size)
    if architecture == INTERPRETER:
        # a wide row has several programs
        block_d = min(block_d, 64)
        block_rows = max(1, min(64, (1 << 17) // block_d))
        return ReduceTiles(head_size=head_size, block_rows=block_rows, block_parts=2, block_d=block_d, num_warps=1)
    at_once = REDUCED_AT_ONCE["gfx" if architecture.startswith("gfx") else "sm"]
    # only a few sizes, because each is compiled
    block_parts, num_warps = min(max(power_of_2(num_parts), 4), at_once), 1
    if num_parts > 2 * at_once:
        # only few rows have this size, where a program waits once for all parts
        block_parts, num_warps = 4 * at_once, 4
    return ReduceTiles(
        head_size=head_size,
        block_rows=max(1, at_once // block_parts),
        block_parts=block_parts,
        block_d=min(block_d, MAX_REDUCED_DIMS),
        num_warps=num_warps,
    )


def reduce_grid(tiles: ReduceTiles, num_rows: int) -> tuple[int, int]:
    """The grid of reduce_parts: tiles of rows, and blocks of their dims."""
    return -(-num_rows // tiles.block_rows), -(-tiles.head_size // tiles.block_d)


def row_grid(tiles: RowTiles, num_rows: int) -> tuple[int]:
    """The grid of a kernel with such tiles."""
    return (-(-num_rows // tiles.block_rows),)
