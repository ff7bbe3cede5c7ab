"""The KV cache, written and read through one formula: `KVCacheView.element` over the raw allocation.

No index here knows the order of the cache's dimensions. Bits are moved, never computed with: a NaN stays the same NaN.
"""

import torch
from attn_contract import KVCacheView, Layout
from attn_contract.layouts import K, V
from attn_contract.validation import check_write_kv_cache


def write_kv_cache(
    k: torch.Tensor, v: torch.Tensor, kv_cache: torch.Tensor, layout: Layout, slot_mapping: torch.Tensor
) -> None:
    """Write rows of k and v to the slots of a cache, in place.

    Args:
        k, v: [T_kv, HK, D], in the cache's dtype; rows from len(slot_mapping) on are not written.
        kv_cache: shaped as `layout` says, of any strides.
        layout: how the cache is laid out.
        slot_mapping: [S] int64, `block * block_size + offset` of each row; -1 writes nothing. S <= T_kv.

    Raises:
        ContractError: an argument contradicts the contract, a slot lies outside the cache or is given twice.
    """
    view = check_write_kv_cache(k, v, kv_cache, layout, slot_mapping, values=True)
    rows = (slot_mapping >= 0).nonzero().flatten()
    _allocation(kv_cache)[_elements(view, slot_mapping[rows])] = torch.stack([k[rows], v[rows]])


def gather_kv_cache(
    kv_cache: torch.Tensor, layout: Layout, block_table: torch.Tensor, seq_len: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read one request's keys and values.

    Args:
        kv_cache: shaped as `layout` says, of any strides.
        layout: how the cache is laid out.
        block_table: [max_blocks] int32, the request's row; entries past `ceil(seq_len / block_size)` are never followed.
        seq_len: how many keys to read.

    Returns:
        key, value: [seq_len, HK, D] each, in the cache's dtype.

    Raises:
        ContractError: the cache is no view of this layout.
    """
    view = KVCacheView.of(kv_cache, layout)
    positions = torch.arange(seq_len, device=kv_cache.device)
    blocks = block_table.long()[positions // view.block_size]
    slots = blocks * view.block_size + positions % view.block_size
    key, value = _allocation(kv_cache)[_elements(view, slots)]
    return key, value


def _elements(view: KVCacheView, slots: torch.Tensor) -> torch.Tensor:
    """[2, len(slots), HK, D] int64: where the allocation holds the K and the V of each slot."""
    device = slots.device
    kv = torch.tensor([K, V], device=device).view(2, 1, 1, 1)
    block = (slots // view.block_size).view(-1, 1, 1)
    slot = (slots % view.block_size).view(-1, 1, 1)
    head = torch.arange(view.num_kv_heads, device=device).view(-1, 1)
    dim = torch.arange(view.head_size, device=device)
    return view.element(kv, block, slot, head, dim)


def _allocation(kv_cache: torch.Tensor) -> torch.Tensor:
    """The whole allocation under a view, [elements]."""
    elements = kv_cache.untyped_storage().nbytes() // kv_cache.element_size()
    return kv_cache.as_strided((elements,), (1,), 0)
