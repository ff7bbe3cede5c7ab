"""Tile sizes, warps and grids of the kernels: pure functions of shapes, element size and architecture.

GPUs want tiles that feed their matrix units and fit their registers. The interpreter wants few programs, since an operation
costs it the same whatever its size, but a sequence of a few hundred tokens must still take several tiles of either kind.
"""

from dataclasses import dataclass
from typing import Any

from attn_contract import UnsupportedError

from attn_optimized.device import INTERPRETER

MAX_HEAD_SIZE = 256
MAX_GROUP = 64
# tl.dot takes no shorter side.
_MIN_DOT = 16
# Lengths are int32, so a distance of as many keys hides none.
UNLIMITED = 2**31 - 1
# More parts than this cost the reduction more than they bring.
MAX_SPLITS = 64


@dataclass(frozen=True, kw_only=True)
class AttentionTiles:
    """How an attention kernel is cut and compiled.

    Args:
        head_size: D.
        queries: queries of a tile; each brings the heads of its group, so `queries * group <= block_m`.
        block_m: rows of a tile, pairs of query and head.
        block_n: keys of a tile.
        block_d: the head size, padded to a power of two.
        num_warps, num_stages: as the compiler takes them.
    """

    head_size: int
    queries: int
    block_m: int
    block_n: int
    block_d: int
    num_warps: int
    num_stages: int

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the launch: the kernel's constants and the compiler's options."""
        return {
            "HEAD_SIZE": self.head_size,
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "BLOCK_D": self.block_d,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }


@dataclass(frozen=True, kw_only=True)
class RowTiles:
    """How a kernel that treats each row (pair of token and head) by itself is cut and compiled."""

    head_size: int
    block_rows: int
    block_d: int
    num_warps: int

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the launch: the kernel's constants and the compiler's options."""
        return {
            "HEAD_SIZE": self.head_size,
            "BLOCK_ROWS": self.block_rows,
            "BLOCK_D": self.block_d,
            "num_warps": self.num_warps,
        }


def attention_tiles(
    architecture: str, *, itemsize: int, head_size: int, group: int, max_query_len: int, batch_invariant: bool
) -> AttentionTiles:
    """Tiles of the attention kernel.

    Args:
        architecture: see `device.architecture_of`.
        itemsize: bytes of an element of q.
        head_size: D.
        group: query heads of a KV head.
        max_query_len: only a hint; longer queries are attended all the same.
        batch_invariant: take the same tiles whatever else is in the batch, so whatever the hint.

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
    if architecture == INTERPRETER:
        block_m, block_n, num_warps, num_stages = 64, 64, 1, 1
    else:
        # two sizes, few rows (decode) and many, and not one more: each is compiled for every head size and dtype. RDNA's warps
        # have half the lanes of CDNA's, and so half the registers for a tile: more warps, fewer rows and keys make up for it
        rdna = architecture.startswith("gfx1")
        many = 64 if itemsize == 2 and not rdna else 32
        block_m = _MIN_DOT if max_query_len * group <= _MIN_DOT and not batch_invariant else many
        # keys of 16 KiB at most: with the values, and a second stage, they fit the shared memory of every GPU
        keys_bytes, most_keys = (8 * 1024, 32) if rdna else (16 * 1024, 64)
        block_n = max(_MIN_DOT, min(most_keys, keys_bytes // (block_d * itemsize)))
        num_warps = 8 if rdna and block_m > _MIN_DOT else 4
        num_stages = 1 if architecture.startswith("gfx") else 2
    block_m = max(block_m, _power_of_2(group))
    return AttentionTiles(
        head_size=head_size,
        queries=block_m // group,
        block_m=block_m,
        block_n=block_n,
        block_d=block_d,
        num_warps=num_warps,
        num_stages=num_stages,
    )


def attention_grid(tiles: AttentionTiles, *, num_tokens: int, num_requests: int, num_kv_heads: int) -> tuple[int, int]:
    """Programs of the attention kernel: as many tiles as any split of the tokens into requests can need, for each KV head."""
    if num_requests == 0:
        return 0, num_kv_heads
    return -(-num_tokens // tiles.queries) + num_requests - 1, num_kv_heads


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """How a call of attention is launched.

    Args:
        architecture: see `device.architecture_of`.
        tiles: of queries and keys.
        grid: programs without a split: tiles of queries, KV heads.
        splits: parts of the keys of each tile, each a program of its own.
        scratch_bytes: memory that the parts take between two kernels; 0 without a split.
    """

    architecture: str
    tiles: AttentionTiles
    grid: tuple[int, int]
    splits: int
    scratch_bytes: int

    @property
    def num_programs(self) -> int:
        return self.grid[0] * self.grid[1] * self.splits


def attention_plan(
    architecture: str,
    *,
    compute_units: int,
    itemsize: int,
    head_size: int,
    num_heads: int,
    num_kv_heads: int,
    num_tokens: int,
    num_requests: int,
    max_query_len: int,
    max_seq_len: int,
    batch_invariant: bool,
) -> AttentionPlan:
    """Choose tiles, grid and splits from shapes and host values alone.

    Raises:
        UnsupportedError: as `attention_tiles` does.
    """
    tiles = attention_tiles(
        architecture,
        itemsize=itemsize,
        head_size=head_size,
        group=num_heads // num_kv_heads,
        max_query_len=max_query_len,
        batch_invariant=batch_invariant,
    )
    grid = attention_grid(tiles, num_tokens=num_tokens, num_requests=num_requests, num_kv_heads=num_kv_heads)
    splits = 1
    if not batch_invariant:
        splits = num_splits(
            architecture,
            compute_units=compute_units,
            num_programs=grid[0] * grid[1],
            max_seq_len=max_seq_len,
            block_n=tiles.block_n,
        )
    scratch = parts_bytes(splits, num_tokens=num_tokens, num_heads=num_heads, head_size=head_size) if splits > 1 else 0
    return AttentionPlan(architecture=architecture, tiles=tiles, grid=grid, splits=splits, scratch_bytes=scratch)


def num_splits(architecture: str, *, compute_units: int, num_programs: int, max_seq_len: int, block_n: int) -> int:
    """Into how many parts the keys of every tile of queries are split, so that few long requests fill the device.

    Each part is a program of its own, and costs a float32 output row in scratch memory and in the reduction. A tile with fewer
    keys than parts leaves the last ones empty.

    Args:
        compute_units: multiprocessors (NVIDIA) or compute units (AMD).
        num_programs: programs without a split.
        max_seq_len: an upper bound, possibly loose.
        block_n: keys of a tile.
    """
    if architecture == INTERPRETER:
        # so that a few hundred keys are split, and most small cases are not slowed down
        wanted, keys_per_split = 6, 2 * block_n
    else:
        wanted, keys_per_split = 2 * compute_units, max(256, 4 * block_n)
    by_device = -(-wanted // max(1, num_programs))
    by_length = -(-max_seq_len // keys_per_split)
    return max(1, min(by_device, by_length, MAX_SPLITS))


def parts_bytes(num_parts: int, *, num_tokens: int, num_heads: int, head_size: int) -> int:
    """Memory of the softmax's state for parts of the keys: float32 sums, largest logits and sums of weights."""
    return num_parts * num_tokens * num_heads * (head_size + 2) * 4


def row_tiles(architecture: str, *, head_size: int) -> RowTiles:
    """Tiles of write_kv_cache and merge_attn_states."""
    block_d = _power_of_2(head_size)
    if architecture == INTERPRETER:
        return RowTiles(head_size=head_size, block_rows=max(1, min(256, (1 << 19) // block_d)), block_d=block_d, num_warps=1)
    return RowTiles(head_size=head_size, block_rows=max(1, 2048 // block_d), block_d=block_d, num_warps=4)


def row_grid(tiles: RowTiles, num_rows: int) -> tuple[int]:
    """Programs of such a kernel."""
    return (-(-num_rows // tiles.block_rows),)


def in_units(itemsize: int, *, unit: str = "STRIDE_UNIT", **strides: int) -> dict[str, Any]:
    """Strides as the kernels take them, and the constant, named `unit`, that says what they then count in.

    That is 16 bytes of elements, the widest load, if every stride is a whole multiple of that, else one element. A constant
    of two values tells the compiler what its own specialization of every stride would compile ever more variants for.
    """
    widest = 16 // itemsize
    size = widest if all(stride % widest == 0 for stride in strides.values()) else 1
    return {unit: size, **{name: stride // size for name, stride in strides.items()}}


def distance(edge: int) -> int:
    """An edge of a window as the kernels take it, without a special value."""
    return UNLIMITED if edge < 0 else edge


def _power_of_2(size: int) -> int:
    """The least power of two that is not below a size."""
    return 1 << (size - 1).bit_length()
