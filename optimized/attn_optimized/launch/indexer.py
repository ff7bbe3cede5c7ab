"""Tile sizes and warps of the kernels of an index layer.

Tiles depend only on the index layer and not on the step. So does the order of all sums, and a row has the same logits in every
batch.
"""

from dataclasses import dataclass

from attn_contract import Indexer, UnsupportedError

from attn_optimized.device import INTERPRETER
from attn_optimized.launch.widths import MAX_HEAD_SIZE, padded, power_of_2
from attn_optimized.launch.workload import MIN_DOT

_MAX_TILE = 64, 128
"""Rows of a dot, pairs of query and head, and keys. On an H200, decodes of 32k keys and 64 heads are 1.47 times as fast with
128 keys as with 64."""
_MAX_TILE_OF_GFX11 = 32, 32
"""With twice as many of either, Triton 3.9 spills 40 to 98 vector registers and more in layers of `shipped_calls.toml`."""
_MAX_OF_INTERPRETER = 16, 32
"""Tiles of the interpreter, so small that many heads and large units take several iterations."""
_BYTES_OF_ROWS, _BYTES_OF_KEYS = 16 << 10, 32 << 10
"""The most bytes of each operand of a dot. Both may be in shared memory at once, and the smallest GPUs have 64 KiB of it."""


@dataclass(frozen=True, kw_only=True)
class LogitTiles:
    """Fields of the kernel's Kind, and warps: see `kernels.index_logits.IndexLogitsKind`."""

    block_q: int
    block_h: int
    block_units: int
    block_keys: int
    block_d: int
    num_warps: int


def logit_tiles(architecture: str, indexer: Indexer, itemsize: int) -> LogitTiles:
    """Tiles of `index_logits`.

    Args:
        architecture: see `device.architecture_of`.
        itemsize: bytes of the operands of dots.

    Raises:
        UnsupportedError: the head size is too large for a tile.
    """
    if indexer.head_size > MAX_HEAD_SIZE:
        reason = f"a tile holds whole heads of at most {MAX_HEAD_SIZE}"
        raise UnsupportedError("attn_optimized", f"head size {indexer.head_size}", reason, "attn_reference")
    block_d = padded(indexer.head_size)
    most_rows, most_keys = _MAX_TILE_OF_GFX11 if architecture.startswith("gfx11") else _MAX_TILE
    if architecture == INTERPRETER:
        most_rows, most_keys = _MAX_OF_INTERPRETER
    rows = max(MIN_DOT, min(most_rows, _BYTES_OF_ROWS // (block_d * itemsize)))
    keys = max(MIN_DOT, min(most_keys, _BYTES_OF_KEYS // (block_d * itemsize)))
    block_h = min(power_of_2(indexer.num_heads // indexer.num_selections), rows)
    block_keys = min(power_of_2(indexer.selection_unit // indexer.key_unit), keys)
    return LogitTiles(
        block_q=rows // block_h,
        block_h=block_h,
        block_units=keys // block_keys,
        block_keys=block_keys,
        block_d=block_d,
        num_warps=1 if architecture == INTERPRETER else 4,
    )


@dataclass(frozen=True, kw_only=True)
class SelectTiles:
    """Fields of the kernel's Kind, and warps: see `kernels.select_units.SelectKind`."""

    block: int
    block_requests: int
    num_warps: int


def select_tiles(architecture: str, indexer: Indexer) -> SelectTiles:
    """Tiles of `select`: the same for every layer."""
    if architecture == INTERPRETER:
        # few units, so that the units of a small step take several iterations
        return SelectTiles(block=64, block_requests=4, num_warps=1)
    # one program has a row: 1024 threads, each with 4 units in an iteration
    num_warps = 16 if architecture.startswith("gfx9") else 32
    return SelectTiles(block=4096, block_requests=256, num_warps=num_warps)
