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
            of q and the one after the last; the first key and the one after the last; the request's keys after that; 0.
        reduce_indptr: [tiles + 1], where the parts of each tile of queries begin in `reduce_partial_map`.
        reduce_final_map: [tiles, 2], the tile's rows of the output.
        reduce_partial_map: [parts], the first row of each part in the partial outputs.
    """

    work_indptr: torch.Tensor
    work_info_set: torch.Tensor
    reduce_indptr: torch.Tensor
    reduce_final_map: torch.Tensor
    reduce_partial_map: torch.Tensor


class _Planned(NamedTuple):
    """What is divided among workgroups.

    Attributes:
        request: the request that it is of.
        tiles: of each tile its first row of q, the one after the last, and the number of last keys that it does not see.
        size: the rows of a tile.
        keys: the first key of the request and the one after the last.
    """

    request: int
    tiles: list[tuple[int, int, int]]
    size: int
    keys: tuple[int, int]

    @property
    def blocks(self) -> int:
        return -(-(self.keys[1] - self.keys[0]) // KEYS)


def metadata(qo_indptr: torch.Tensor, kv_indptr: torch.Tensor, heads: int, workgroups: int, most_parts: int) -> Metadata:
    """The metadata that get_mla_metadata_v1 of the wheel makes.

    Args:
        heads: the number of heads of q, on one KV head.
        most_parts: max_split_per_batch; -1: as many as there are workgroups.
    """
    planned = []
    spans = zip(itertools.pairwise(qo_indptr.tolist()), itertools.pairwise(kv_indptr.tolist()), strict=True)
    for request, ((begin, end), keys) in enumerate(spans):
        tiles, size = _tiles(begin, end, max(1, -(-(end - begin) * heads // ROWS)))
        planned.append(_Planned(request, tiles, size, keys))
    return _divided(planned, workgroups, _most_parts(workgroups, most_parts, len(planned)))


def _most_parts(workgroups: int, most_parts: int, requests: int) -> int:
    return workgroups if most_parts < 0 else min(workgroups, most_parts * requests)


def metadata_of_main(
    qo_indptr: torch.Tensor, kv_indptr: torch.Tensor, heads: int, workgroups: int, most_parts: int, factor: int = 1
) -> Metadata:
    """The same of main, which plans each tile of queries by itself, without a last part of fewer keys than the most queries of
    a request (tail_done_threshold): metadata/v1_2_device.cuh:386-700, for pages of one slot and a causal mask.

    Args:
        factor: the number of consecutive requests of `heads` heads as which each request is planned. They share its keys.
    """
    spans = [span for span in itertools.pairwise(kv_indptr.tolist()) for _ in range(factor)]
    queries = [0, *itertools.accumulate(length for length in qo_indptr.diff().tolist() for _ in range(factor))]
    planned, most = [], 0
    for request, ((begin, end), keys) in enumerate(zip(itertools.pairwise(queries), spans, strict=True)):
        most = max(most, end - begin)
        count = end - begin if heads * 2 > ROWS else max(1, -(-(end - begin) * heads // ROWS))
        tiles, size = _tiles(begin, end, count)
        planned += [_Planned(request, [tile], size, keys) for tile in tiles]
    return _divided(planned, workgroups, _most_parts(workgroups, most_parts, len(spans)), most)


def _tiles(begin: int, end: int, count: int) -> tuple[list[tuple[int, int, int]], int]:
    """The tiles and the size of `_Planned`, of a request's rows."""
    size = -(-(end - begin) // count)
    return [(begin + i * size, min(begin + (i + 1) * size, end), count - 1 - i) for i in range(count)], size


def _divided(planned: list[_Planned], workgroups: int, parts: int, tail: int | None = None) -> Metadata:
    """`tail`: a last part has at least so many keys. None: as the wheel, which begins nothing with OVERHEAD left."""
    payload = -(-sum(each.blocks + OVERHEAD for each in planned) // parts) + OVERHEAD
    works: list[tuple[int, ...]] = []
    indptr, reduced, final, partial = [0], [0], [], []
    index = block = row = 0
    earlier: list[int] = []  # the first partial rows of the parts so far
    for _ in range(workgroups):
        left = payload
        while index < len(planned):
            request, tiles, size, (first, last) = planned[index]
            start, rest, taken = first + block * KEYS, planned[index].blocks - block, left - OVERHEAD
            fits = taken >= rest
            if taken <= 0 and (tail is None or not fits):
                break
            stops = [min(start + taken * KEYS, last - hidden) for *_, hidden in tiles]
            is_last = fits or (tail is not None and last - stops[0] < tail)
            is_part = not is_last or bool(earlier)
            for i, ((begin, end, hidden), stop) in enumerate(zip(tiles, stops, strict=True)):
                stop = last - hidden if is_last else stop
                works.append((request, row + i * size if is_part else -1, begin, end, start, stop, last - stop, 0))
                if is_last:
                    final.append((begin, end))
                    partial += [each + i * size for each in (*earlier, row)] if is_part else []
                    reduced.append(len(partial))
            if is_part:
                earlier.append(row)
                row += len(tiles) * size
            if not is_last:
                block += taken
                break
            left -= rest + OVERHEAD
            index, block, earlier = index + 1, 0, []
        indptr.append(len(works))
    tensors = (torch.tensor(each, dtype=torch.int32) for each in (indptr, works, reduced, final, partial or [0]))
    return Metadata(*tensors)


def reduce(partial, lse, indptr, final_map, partial_map, *others) -> None:
    """mla_reduce_v1: merge the parts of each tile that has several.

    Args:
        partial, lse: [rows, 1, H, D] and [rows, 1, H, 1] float32.
        others: of main the most queries and splits first; then out, [T, H, D], and its LSE, [T, H], which main lets be None.
    """
    *_, out, final_lse = others
    for tile, (first, last) in enumerate(itertools.pairwise(indptr.tolist())):
        if last - first < 2:
            continue
        begin, end = final_map[tile].tolist()
        rows = partial_map[first:last, None] + torch.arange(end - begin)
        sums = lse[rows, 0, :, 0]  # [parts, queries, H]
        total = sums.logsumexp(0).nan_to_num(torch.inf, neginf=torch.inf)
        out[begin:end] = ((sums - total).exp()[..., None] * partial[rows, 0]).sum(0)
        if final_lse is not None:
            final_lse[begin:end] = total
