"""Parts of the tensors of a layer or a step, by what their axes count (`attn_contract.rules.Axis`)."""

from collections.abc import Iterator, Mapping

import torch
from attn_contract import Batch, Layer
from attn_contract.rules import HEADS, KV_HEADS, Axis, axes_of

Entries = slice | torch.Tensor
Taken = Mapping[Axis, Entries]


def taken(holder: Layer | Batch, layer: Layer, entries: Taken) -> dict[str, torch.Tensor]:
    """The tensors of a layer or of a step that have one of some axes, with only some entries along it, by name.

    An axis of KV heads with one entry stands for all heads, and is left as it is.

    Args:
        holder: the layer or the step.
        layer: says how many heads there are.
        entries: for each axis its entries, in their order.
    """
    sizes = {HEADS: layer.num_heads, KV_HEADS: layer.num_kv_heads}
    found = {}
    for name, tensor in holder.tensors.items():
        for dim, axis in dims(type(holder), name, tensor):
            if axis in entries and tensor.shape[dim] == sizes.get(axis, tensor.shape[dim]):
                found[name] = found.get(name, tensor)[(slice(None),) * dim + (entries[axis],)]
    return found


def dims(holder: type[Layer | Batch], name: str, tensor: torch.Tensor) -> Iterator[tuple[int, Axis]]:
    """The dimensions of a field's tensor with their axes."""
    axes = axes_of(holder).get(name, ())
    return enumerate(axes[len(axes) - tensor.dim() :])


def shape(holder: type[Layer | Batch], name: str, sizes: Mapping[Axis, int]) -> tuple[int, ...]:
    """The shape of a field's tensor. An axis without a size has one entry."""
    return tuple(sizes.get(axis, 1) for axis in axes_of(holder)[name])
