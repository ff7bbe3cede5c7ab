"""Slots that a cache does not have, in writes that check no values: nothing may be written for them.

A write that checks no values cannot refuse such a slot, and must not follow it: what lies beside a cache is somebody else's.
"""

import dataclasses
import random
from collections.abc import Callable

import torch
from attn_contract import KVCacheView, Layer

OFTEN = 1 / 4
"""How many writes are looked at: one takes as long as the write of a small step."""
MOST_ROWS = 2
_BLOCKS, _ROOM = 2, 4
"""Blocks of the cache, and how many more its memory has before and behind them."""
_BYTE = 0x55


def check(
    write: Callable[[torch.Tensor, torch.Tensor], object],
    rows: int,
    kv_cache: torch.Tensor,
    layer: Layer,
    choose: random.Random,
) -> None:
    """Write rows to slots before and behind a cache, in whose memory there is room for them.

    Args:
        write: takes a cache and slots, and checks no values.
        rows: how many it writes.
        kv_cache: like this, of fewer blocks.

    Raises:
        AssertionError: something was written.
    """
    if not rows or layer.layout is None or layer.k_scale_cache is not None:  # scales have memory of their own
        return
    sizes = {"num_kv_heads": layer.num_kv_heads, "head_size": layer.head_size, "head_size_v": layer.head_size_v}
    block_size = KVCacheView.of(kv_cache, layer.layout, **sizes).block_size
    dense = KVCacheView.dense(
        layer.layout, num_blocks=_BLOCKS, block_size=block_size, itemsize=kv_cache.element_size(), **sizes
    )
    view = dataclasses.replace(dense, offset=_ROOM * dense.block_stride)
    # K and V of a block, or one of them
    num_bytes = 2 * (_ROOM + _BLOCKS) * dense.block_stride * kv_cache.element_size()
    memory = torch.full((num_bytes,), _BYTE, dtype=torch.uint8, device=kv_cache.device)
    behind, before = view.num_slots + choose.randrange(block_size), -2 - choose.randrange(block_size)
    slots = [choose.choice((view.num_slots, behind, before)) for _ in range(rows)]
    write(view.tensor(memory.view(kv_cache.dtype)), torch.tensor(slots, device=kv_cache.device))
    written = int((memory != _BYTE).sum())
    assert not written, f"slots {slots} of a cache of {view.num_slots}: {written} bytes were written"
