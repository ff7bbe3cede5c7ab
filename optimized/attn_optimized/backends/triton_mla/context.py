"""Attention of queries to the expanded keys and values of a context, whose number differs from that of the queries."""

import dataclasses
from weakref import WeakKeyDictionary

import torch
from attn_contract import AttentionType, Batch, Layer, Layout

import attn_optimized

# by the layer that attends to a step's own tokens: all chunks of all steps share it
_CROSSING: WeakKeyDictionary[Layer, Layer] = WeakKeyDictionary()


def expanded_layer(num_heads: int, head_size: int, head_size_v: int, scale: float) -> Layer:
    """The expanded form's attention to the keys of the step itself: causal by its window."""
    return Layer(
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_size=head_size,
        head_size_v=head_size_v,
        scale=scale,
        attn_type=AttentionType.ENCODER_ONLY,
        window=(-1, 0),
    )


def attend_to_context(
    query: torch.Tensor,
    rows: torch.Tensor,
    layer: Layer,
    batch: Batch,
    *,
    out: torch.Tensor | None = None,
    batch_invariant: bool = False,
    validate: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention to the keys of a context, all of which every query of their request sees.

    The kernels address such keys as a cache of blocks of one slot.

    Args:
        query: [T, N, D].
        rows: [n, N, D + V], keys, and after each its value; dense.
        layer: see `expanded_layer`.
        batch: `block_table` has the rows of each request.
        out: [T, N, V], written; new if not given.

    Returns:
        The output [T, N, V] and its LSE [N, T] float32. A query without a key has 0 and -inf.
    """
    crossing = _CROSSING.get(layer)
    if crossing is None:
        crossing = dataclasses.replace(
            layer, attn_type=AttentionType.ENCODER_DECODER, window=(-1, -1), layout=Layout.CONTENT_PACKED
        )
        _CROSSING[layer] = crossing
    lse = query.new_empty(query.shape[1], len(query), dtype=torch.float32)
    options = {"batch_invariant": batch_invariant, "validate": validate}
    out = attn_optimized.paged_attention(query, rows[:, :, None], crossing, batch, out=out, lse=lse, **options)
    return out, lse
