"""Writing this step's keys and values into the KV cache."""

import torch
from attn_contract import Layout
from attn_contract.validation import check_write_kv_cache

from attn_optimized.device import architecture_of
from attn_optimized.kernels.write_kv_cache import write_kv_cache_kernel
from attn_optimized.launch import in_units, row_grid, row_tiles
from attn_optimized.strides import kv_cache_strides

_INTEGER_OF_SIZE = {2: torch.int16, 4: torch.int32}


def write_kv_cache(
    k: torch.Tensor,
    v: torch.Tensor,
    kv_cache: torch.Tensor,
    layout: Layout,
    slot_mapping: torch.Tensor,
    *,
    validate: bool = False,
) -> None:
    """Write row s of k and v to slot `slot_mapping[s]` of the cache, bit by bit; every other byte stays as it is.

    Args:
        k, v: [T_kv, HK, D] of the cache's dtype; the last dimension is dense. Rows past S are not read.
        kv_cache: as `layout` says, with any strides.
        slot_mapping: [S] int64, `block * block_size + offset`; -1 writes nothing.
        validate: check the slots too, which waits for the device.

    Raises:
        ContractError: the arguments contradict the contract. Nothing was written.
        UnsupportedError: tensors on a CPU without Triton's interpreter. Nothing was written.
    """
    check_write_kv_cache(k, v, kv_cache, layout, slot_mapping, values=validate)
    num_slots, num_kv_heads, head_size = len(slot_mapping), k.shape[1], k.shape[2]
    # integers: their copies keep every bit, those of a NaN too
    integer = _INTEGER_OF_SIZE[k.element_size()]
    tiles = row_tiles(architecture_of(k.device, integer), head_size=head_size)
    if not num_slots:
        return
    cache = kv_cache_strides(kv_cache, layout)
    strides = in_units(
        k.element_size(),
        stride_k_row=k.stride(0),
        stride_k_head=k.stride(1),
        stride_v_row=v.stride(0),
        stride_v_head=v.stride(1),
        stride_kv=cache.kv,
        stride_block=cache.block,
        stride_slot=cache.slot,
        stride_kv_head=cache.head,
    )
    with torch.cuda.device_of(k):
        write_kv_cache_kernel[row_grid(tiles, num_slots * num_kv_heads)](
            kv_cache.view(integer),
            k.view(integer),
            v.view(integer),
            slot_mapping,
            num_slots,
            num_kv_heads,
            cache.block_size,
            **strides,
            **tiles.options,
        )
