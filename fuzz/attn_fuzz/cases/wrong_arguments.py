"""Tensors that an argument of a call must not be: of another dtype, shape, stride or device. No value in them is wrong.

So a function refuses them whether or not it checks values in tensors, and whether or not a legal call of the same form came
before.
"""

import functools
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from attn_contract import Batch, Layer, Layout

_INTEGERS = {1: torch.bool, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def wrong_tensors(right: torch.Tensor, free: Collection[int] = ()) -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
    """Ways in which a tensor can be wrong: each in words, with a function that makes the tensor.

    Args:
        right: the tensor of a call that agrees with the contract.
        free: the dimensions whose sizes depend on no other argument.
    """
    for form, change in _FORMS.items():
        yield form, functools.partial(change, right)
    if right.dim():
        # a vector of all elements: with two of three dimensions an output would be legal
        yield "with too few dimensions", lambda: right.flatten() if right.dim() > 1 else right.new_zeros(())
    # a dimension of one element, or of a tensor without elements, has no stride
    if right.numel() and right.dim() and right.shape[-1] > 1:
        yield "with gaps in its last dimension", lambda: right.new_empty((*right.shape, 2))[..., 0]
    for dim, size in enumerate(right.shape):
        if dim not in free:
            yield f"longer in dimension {dim}", functools.partial(_longer, right, dim)
            if size:
                yield f"shorter in dimension {dim}", functools.partial(right.narrow, dim, 0, size - 1)


def wrong_attention(
    attention: Callable[..., object],
    q: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    kv_cache: torch.Tensor | None,
    layer: Layer,
    batch: Batch,
    *,
    out: torch.Tensor,
    lse: torch.Tensor | None,
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Calls of attention with one tensor wrong: what is wrong in words, and the call.

    Args:
        attention: see `attn_fuzz.targets.target.AttentionFunction`. The other arguments are those of a legal call.
    """
    arguments: dict[str, Any] = {"q": q, "k": k, "v": v, "kv_cache": kv_cache, "layer": layer, "batch": batch}
    outputs: dict[str, Any] = {"out": out, "lse": lse}
    keys = ("kv_cache",) if layer.attn_type.reads_cache else ("k", "v")
    for name in ("q", *keys, "out", "lse"):
        right = {**arguments, **outputs}[name]
        if right is None:
            continue
        for form, make in wrong_tensors(right, dims_of(layer.layout, "block", "slot") if name == "kv_cache" else ()):

            def call(name: str = name, make: Callable[[], torch.Tensor] = make) -> object:
                wrong = {**arguments, **outputs, name: make()}
                return attention(*(wrong[each] for each in arguments), out=wrong["out"], lse=wrong["lse"])

            yield f"{name} {form}", call


def dims_of(layout: Layout | None, *names: str) -> tuple[int, ...]:
    """The dimensions with these names, of a layout's view."""
    return () if layout is None else tuple(i for i, name in enumerate(layout.dims) if name in names)


def _longer(right: torch.Tensor, dim: int) -> torch.Tensor:
    """One more in a dimension, where it is 0."""
    longer = right.new_zeros([size + (i == dim) for i, size in enumerate(right.shape)])
    longer.narrow(dim, 0, right.shape[dim]).copy_(right)
    return longer


def _other_dtype(right: torch.Tensor) -> torch.Tensor:
    return right.to(torch.int64 if right.dtype == torch.int32 else torch.float64)


def _other_numbers(right: torch.Tensor) -> torch.Tensor:
    """The same bits as integers, or integers as floats."""
    return right.view(_INTEGERS[right.element_size()]) if right.is_floating_point() else right.float()


_FORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "of another dtype": _other_dtype,
    "of other numbers": _other_numbers,
    # one more is legal for a flat output of one row and one head
    "with two more dimensions": lambda tensor: tensor[None, None],
    "on no device": lambda tensor: tensor.to("meta"),
    "negated": torch._neg_view,  # pyright: ignore[reportPrivateImportUsage]
}
