"""Tile sizes and warps of the kernels of an index layer.

Tiles depend on the index layer alone, and not on the step: so does the order of all sums, and a row has the same logits in any
batch.
"""

from dataclasses import dataclass

from attn_contract import Indexer, UnsupportedError

from attn_optimized.device import INTERPRETER
from attn_optimized.launch.widths import MAX_HEAD_SIZE, padded, power_of_2
from attn_optimized.launch.workload import MIN_DOT

_MOST_ROWS, _MOST_KEYS = 64, 64
"""Rows of a dot, pairs of query and head, and keys."""
_BYTES_OF_OPERAND = 16 << 10
"""Of a dot. Both operands of one may be in shared memory at once, of which the smallest GPUs have 64 KiB."""


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
    fitting = max(MIN_DOT, _BYTES_OF_OPERAND // (block_d * itemsize))
    rows, keys = min(_MOST_ROWS, fitting), min(_MOST_KEYS, fitting)
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


def select_tiles(architecture: str) -> SelectTiles:
    """Tiles of `select`."""
    if architecture == INTERPRETER:
        # so few that the units of a small step take several turns
        return SelectTiles(block=128, block_requests=4, num_warps=1)
    return SelectTiles(block=1024, block_requests=256, num_warps=8)
