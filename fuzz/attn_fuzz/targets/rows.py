"""The rows of an output that a step's requests own."""

import torch
from attn_contract import Layer


def rows_of(out: torch.Tensor, layer: Layer, rows: int) -> torch.Tensor:
    """The first rows of an output, [rows, H, D of V], from either of its two shapes."""
    return out.view(len(out), layer.num_heads, layer.v_head_size)[:rows]
