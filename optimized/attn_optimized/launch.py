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
# Lengths are int32, so a window of as many keys hides none.
_UNLIMITED = 2**31 - 1


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


def attention_tiles(architecture: str, *, itemsize: int, head_size: int, group: int, max_query_len: int) -> AttentionTiles:
    """Tiles of both attention kernels.

    Args:
        architecture: see `device.architecture_of`.
        itemsize: bytes of an element of q and the keys.
        head_size: D.
        group: query heads of a KV head.
        max_query_len: only a hint; longer queries are attended all the same.

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
        # two sizes, few rows (decode) and many, and not one more: each is compiled for every head size and dtype
        many = 64 if itemsize == 2 else 32
        block_m = _MIN_DOT if max_query_len * group <= _MIN_DOT else many
        # keys of 16 KiB at most: with the values, and a second stage, they fit the shared memory of every GPU. RDNA's warps
        # have half the lanes of CDNA's, and so half the registers for a tile
        rdna = architecture.startswith("gfx1")
        keys_bytes, most_keys = (8 * 1024, 32) if rdna else (16 * 1024, 64)
        block_n = max(_MIN_DOT, min(most_keys, keys_bytes // (block_d * itemsize)))
        num_warps = 4
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
    """Programs of an attention kernel: as many tiles as any split of the tokens into requests can need, for each KV head."""
    if num_requests == 0:
        return 0, num_kv_heads
    return -(-num_tokens // tiles.queries) + num_requests - 1, num_kv_heads


def row_tiles(architecture: str, *, head_size: int) -> RowTiles:
    """Tiles of write_kv_cache and merge_attn_states."""
    block_d = _power_of_2(head_size)
    if architecture == INTERPRETER:
        return RowTiles(head_size=head_size, block_rows=max(1, min(256, (1 << 19) // block_d)), block_d=block_d, num_warps=1)
    return RowTiles(head_size=head_size, block_rows=max(1, 2048 // block_d), block_d=block_d, num_warps=4)


def row_grid(tiles: RowTiles, num_rows: int) -> tuple[int]:
    """Programs of such a kernel."""
    return (-(-num_rows // tiles.block_rows),)


def in_units(itemsize: int, **strides: int) -> dict[str, Any]:
    """Strides as the kernels take them, and the STRIDE_UNIT that they then count in.

    The unit is 16 bytes of elements, the widest load, if every stride is a whole multiple of that, else one element. A constant
    of two values tells the compiler what its own specialization of every stride would compile ever more variants for.
    """
    widest = 16 // itemsize
    unit = widest if all(stride % widest == 0 for stride in strides.values()) else 1
    return {"STRIDE_UNIT": unit, **{name: stride // unit for name, stride in strides.items()}}


def window_bounds(window: tuple[int, int], *, causal: bool) -> tuple[int, int]:
    """(left, right) as the kernels take them, without a special value: a causal mask is a right edge of 0."""
    left, right = (_UNLIMITED if side < 0 else side for side in window)
    return left, 0 if causal else right


def _power_of_2(size: int) -> int:
    """The least power of two that is not below a size."""
    return 1 << (size - 1).bit_length()
