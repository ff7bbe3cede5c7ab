"""The rows of a tile of queries, and the number of tiles of keys, that a compiler can keep in shared memory (LDS)."""

from attn_optimized.launch.table import Parameters
from attn_optimized.launch.widths import Widths
from attn_optimized.launch.workload import MAX_GROUP, Workload

ROWS_OF_ASYNC_DOT = 64
"""Dots of at least this many rows of 16 bits are asynchronous (wgmma)."""
_KIB = 1024
# bytes of a workgroup, by AMD's instruction set documents; the others have 64 KiB
_LDS_BYTES = {"gfx950": 160 * _KIB, "gfx1250": 320 * _KIB}
# CUDA C++ Programming Guide, technical specifications per compute capability: shared memory of a thread block at most
_MAX_BYTES = {
    "sm70": 96 * _KIB,
    "sm75": 64 * _KIB,
    "sm80": 163 * _KIB,
    "sm86": 99 * _KIB,
    "sm87": 163 * _KIB,
    "sm89": 99 * _KIB,
    "sm90": 227 * _KIB,
    "sm100": 227 * _KIB,
    "sm103": 227 * _KIB,
    "sm110": 227 * _KIB,
    "sm120": 99 * _KIB,
    "sm121": 99 * _KIB,
}


def rows_that_fit(architecture: str, workload: Workload, widths: Widths) -> int:
    """The most rows of a tile of queries that shared memory holds, a power of two.

    Triton stores the whole tile there to bring it into the layout that dots need.
    """
    row_bytes = widths.block_d * workload.itemsize
    if architecture.startswith("gfx"):
        most_bytes = _LDS_BYTES.get(architecture, 64 * _KIB)
    else:
        most_bytes = _MAX_BYTES.get(architecture, MAX_GROUP * row_bytes)
    return 1 << (most_bytes // row_bytes).bit_length() - 1


def stages_that_fit(architecture: str, workload: Workload, widths: Widths, block_m: int, parameters: Parameters) -> int:
    """The most of the parameters' stages whose tiles fit shared memory; at least one, and all on other GPUs.

    Triton keeps a tile of q, a tile of logits if something is added to them, and tiles of K and V: as many as there are stages,
    or one less for dots of few rows, which have read their operand before the next one is loaded. A bias that is loaded has as
    many tiles as K, and a byte of mask for each element of a tile.
    """
    stages = parameters.num_stages
    if architecture not in _MAX_BYTES:
        return stages
    row_bytes = (1 if workload.quantized else workload.itemsize) * (
        widths.row_block + (0 if workload.is_latent else widths.value_row_block)
    )
    pairs = block_m * parameters.block_n
    own_bytes = block_m * widths.row_block * workload.itemsize + (4 * pairs if workload.has_bias else 0)
    stage_bytes = parameters.block_n * row_bytes
    if workload.loads_bias:
        own_bytes, stage_bytes = own_bytes + pairs, stage_bytes + 4 * pairs
    buffers = (_MAX_BYTES[architecture] - own_bytes) // stage_bytes
    reads_while_loading = block_m >= ROWS_OF_ASYNC_DOT and workload.itemsize == 2
    return max(1, min(stages, buffers if reads_while_loading else buffers + 1))
