"""Metadata of AITER's persistent latent decode and of its reduction: csrc/kernels/mla of the wheel.

Both are HIP there. These follow its algorithms, so that works are those of hardware: which workgroup has which keys of which
request (metadata/v1_2_device.cuh:74-322, the mode `fast_mode`, which vLLM 0.33 asks for), and how parts are merged
(reduce.cu:135-380).
"""

import itertools
from typing import NamedTuple

import torch

KEYS = 16
"""kv_granularity: parts of a request begin at multiples of it. vLLM's is 16."""
OVERHEAD = 16
"""The cost of a work beside its blocks of keys, in such blocks (kFixedOverheadNumBlocks)."""
ROWS = 128
"""Rows of q that a work has at most (kPackedQoLenPerWg)."""


class Metadata(NamedTuple):
    """int32 tensors, as metadata.cu:16-37 and the docstring of get_mla_metadata_v1 (aiter/ops/attention.py:426-449) have them.

    Attributes:
        work_indptr: [workgroups + 1], where the works of each workgroup begin.
        work_info_set: [works, 8]: the request; the first row of partial outputs, or -1 if the work has all keys; the first row
            of q and the one behind the last; the first key and the one behind the last; the request's keys behind that; 0.
        reduce_indptr: [tiles + 1], where the parts of each tile of queries begin in `reduce_partial_map`.
        reduce_final_map: [tiles, 2], the tile's rows of the output.
        reduce_partial_map: [parts], the first row of each part in the partial outputs.
    """

    work_indptr: torch.Tensor
    work_info_set: torch.Tensor
    reduce_indptr: torch.Tensor
    reduce_final_map: torch.Tensor
    reduce_partial_map: torch.Tensor


def metadata(qo_indptr: torch.Tensor, kv_indptr: torch.Tensor, heads: int, workgroups: int, most_parts: int) -> Metadata:
    """As get_mla_metadata_v1 makes them.

    Args:
        heads: of q, 16 or 128, on one KV head.
        most_parts: max_split_per_batch; -1: as many as there are workgroups.
    """
    queries, keys = qo_indptr.tolist(), kv_indptr.tolist()
    requests = len(keys) - 1
    blocks = [-(-(end - begin) // KEYS) for begin, end in itertools.pairwise(keys)]
    parts = workgroups if most_parts < 0 else min(workgroups, most_parts * requests)
    payload = -(-(sum(blocks) + requests * OVERHEAD) // parts) + OVERHEAD
    works: list[tuple[int, ...]] = []
    indptr, reduced, final, partial = [0], [0], [], []
    request = block = row = 0
    earlier: list[int] = []  # the first partial rows of the request's parts so far
    for _ in range(workgroups):
        left = payload
        while request < requests and left > OVERHEAD:
            begin, end = queries[request : request + 2]
            tiles = max(1, -(-(end - begin) * heads // ROWS))
            size = -(-(end - begin) // tiles)
            taken = min(left - OVERHEAD, blocks[request] - block)
            is_last = taken == blocks[request] - block
            is_part = not is_last or bool(earlier)
            first_key = keys[request] + block * KEYS
            for tile in range(tiles):
                rows = begin + tile * size, min(begin + (tile + 1) * size, end)
                last_key = min(first_key + taken * KEYS, keys[request + 1] - (tiles - 1 - tile))
                place = row + tile * size if is_part else -1
                works.append((request, place, *rows, first_key, last_key, keys[request + 1] - last_key, 0))
                if is_last:
                    final.append(rows)
                    partial += [each + tile * size for each in (*earlier, row)] if is_part else []
                    reduced.append(len(partial))
            if is_part:
                earlier.append(row)
                row += tiles * size
            if not is_last:
                block += taken
                break
            left -= taken + OVERHEAD
            request, block, earlier = request + 1, 0, []
        indptr.append(len(works))
    tensors = (torch.tensor(each, dtype=torch.int32) for each in (indptr, works, reduced, final, partial or [0]))
    return Metadata(*tensors)


def reduce(partial, lse, indptr, final_map, partial_map, out, final_lse) -> None:
    """mla_reduce_v1: merge the parts of each tile that has several.

    Args:
        partial, lse: [rows, 1, H, D] and [rows, 1, H, 1] float32.
        out, final_lse: [T, H, D] and [T, H].
    """
    for tile, (first, last) in enumerate(itertools.pairwise(indptr.tolist())):
        if last - first < 2:
            continue
        begin, end = final_map[tile].tolist()
        rows = partial_map[first:last, None] + torch.arange(end - begin)
        sums = lse[rows, 0, :, 0]  # [parts, queries, H]
        total = sums.logsumexp(0).nan_to_num(torch.inf, neginf=torch.inf)
        out[begin:end] = ((sums - total).exp()[..., None] * partial[rows, 0]).sum(0)
        final_lse[begin:end] = total
