"""Several layers in one raw allocation: whose bytes each block id covers, and who reads what another layer writes."""

import itertools
from collections.abc import Iterable, Mapping

import torch

from attn_contract.arguments import check_names, check_type, elements_of, shown
from attn_contract.errors import ContractError
from attn_contract.kv_cache_view import KVCacheView


def same_footprint(a: KVCacheView, b: KVCacheView) -> bool:
    """True if every block id covers the same bytes in both views, K and V together.

    Any two layers that share an allocation must have the same footprint: each owns block ids of its own, and must not touch the
    bytes of the other's blocks. Block 0 of a blocks-first view lies over blocks 0 and 1 of both planes of a K/V-first view
    (vLLM #43945).
    """
    if a.num_blocks != b.num_blocks:
        return False
    if a.num_blocks > 1 and a.block_stride * a.itemsize != b.block_stride * b.itemsize:
        return False
    return _byte_runs(a) == _byte_runs(b)


def same_elements(a: KVCacheView, b: KVCacheView) -> bool:
    """True if every (kv, block, slot, head, dim) has the same address in both views.

    Layers that share the contents of a cache must have the same elements: with KV sharing, one layer reads what another writes.
    """
    sizes_a = (a.num_blocks, a.block_size, a.num_kv_heads, a.head_size, a.itemsize, a.row_sizes)
    if sizes_a != (b.num_blocks, b.block_size, b.num_kv_heads, b.head_size, b.itemsize, b.row_sizes):
        return False
    if a.num_blocks > 1 and a.block_stride != b.block_stride:
        return False
    return all(map(torch.equal, a.first_block_elements(), b.first_block_elements()))


def check_shared_allocation(views: Mapping[str, KVCacheView], shared_contents: Iterable[tuple[str, str]] = ()) -> None:
    """Check the views that several layers have of one raw allocation against each other.

    Args:
        views: by the layer's name.
        shared_contents: pairs of layers that read and write the same contents, such as a layer and the one that its
            `kv_sharing_target_layer_name` names.

    Raises:
        ContractError: two layers have different footprints; two layers that share contents have different elements; or
            `shared_contents` names a layer that is not in `views`; or an argument has another type.
    """
    check_type("views", views, Mapping, "views by the layer's name")
    check_names("views", views)
    for name, view in views.items():
        check_type(name, view, KVCacheView, "a KVCacheView")
    for (first, reference), (name, view) in itertools.pairwise(views.items()):
        if not same_footprint(reference, view):
            raise ContractError(
                name, _describe(view), f"the footprint of {first} ({_describe(reference)}): each block id covers the same bytes"
            )
    for pair in elements_of("shared_contents", shared_contents, "pairs of names of layers"):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ContractError("shared_contents", shown(pair), "a pair of names of layers for each")
        for name in pair:
            if not isinstance(name, str) or name not in views:
                raise ContractError("shared_contents", shown(name), f"one of the layers: {', '.join(views)}")
        writer, reader = pair
        if not same_elements(views[writer], views[reader]):
            raise ContractError(
                reader, _describe(views[reader]), f"the elements of {writer} ({_describe(views[writer])}): they share contents"
            )


def _byte_runs(view: KVCacheView) -> list[tuple[int, int]]:
    """Block 0 as maximal runs of consecutive bytes, [start, end)."""
    elements = torch.cat([rows.flatten() for rows in view.first_block_elements()]).unique()
    is_start = torch.ones_like(elements, dtype=torch.bool)
    is_start[1:] = elements[1:] != elements[:-1] + 1
    starts = elements[is_start]
    ends = torch.cat([elements[:-1][is_start[1:]], elements[-1:]]) + 1
    return [(s * view.itemsize, e * view.itemsize) for s, e in zip(starts.tolist(), ends.tolist(), strict=True)]


def _describe(view: KVCacheView) -> str:
    strides = f"kv {view.kv_stride}, block {view.block_stride}, slot {view.slot_stride}, head {view.head_stride}"
    return f"{view.layout} with strides {strides} in {view.itemsize}-byte elements"
