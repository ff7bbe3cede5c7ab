"""Tensors with a dtype, shape, stride or device that an argument of a call must not have. Their values are right.

So a function refuses them whether or not it checks values in tensors, and whether or not a legal call of the same form came
before.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from attn_contract import Batch, Layer, Layout
from attn_contract.layer import SCALES
from attn_contract.memory import extent

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
    right: dict[str, Any] = {"q": q, "k": k, "v": v, "kv_cache": kv_cache, "layer": layer, "batch": batch}

    def calling(make: Callable[[], dict[str, Any]], gradients: bool = False) -> Callable[[], object]:
        def call() -> object:
            with torch.set_grad_enabled(gradients):
                wrong = {**right, "out": out, "lse": lse, **make()}
                return attention(*(wrong[each] for each in right), out=wrong["out"], lse=wrong["lse"])

        return call

    keys = {"kv_cache": kv_cache} if layer.attn_type.reads_cache else {"k": k, "v": v}
    tensors = {name: tensor for name, tensor in {"q": q, **keys, "out": out, "lse": lse}.items() if tensor is not None}
    for name, tensor in tensors.items():
        for form, make in wrong_tensors(tensor, dims_of(layer.layout, "block", "slot") if name == "kv_cache" else ()):
            yield f"{name} {form}", calling(lambda name=name, make=make: {name: make()})
    if kv_cache is not None and kv_cache.numel() and layer.layout is not None and (unit := layer.layout.stride_alignment) > 1:
        half = functools.partial(_later, kv_cache, unit // 2)
        yield f"kv_cache at no multiple of {unit} elements", calling(lambda: {"kv_cache": half()})
    if layer.output_scale is None and layer.q_scale is None:
        other = torch.float16 if out.dtype == torch.float32 else torch.float32
        yield f"out of {other} beside {q.dtype}", calling(lambda: {"out": out.to(other)})
    for words, dims, kept in _TOGETHER:
        few = kept(layer, batch)
        if few >= 0 and tensors.keys() >= {next(iter(dims))}:
            shorter = functools.partial(_shorter, {name: tensors[name] for name in dims if name in tensors}, dims, few)
            yield f"{' and '.join(name for name in dims if name in tensors)} of {few} {words}", calling(shorter)
    for holder, held in (("layer", layer), ("batch", batch)):
        for name, tensor in held.tensors.items():
            for form, make in _wrong_parts(name, tensor, layer):
                replaced = lambda holder=holder, held=held, name=name, make=make: {  # noqa: E731
                    holder: dataclasses.replace(held, **{name: make()})
                }
                yield f"{name} {form}", calling(replaced)
    for name, tensor in {**tensors, **layer.tensors, **batch.tensors}.items():
        if tensor.dtype in _DIFFERENTIABLE:
            yield f"a gradient asked of {name}", calling(functools.partial(_with_gradient, right, name, tensor), True)


def _shorter(tensors: dict[str, torch.Tensor], dims: dict[str, int], length: int) -> dict[str, torch.Tensor]:
    """The same tensors with fewer elements in a dimension. A flat output has its heads in its rows."""
    found = {}
    for name, tensor in tensors.items():
        is_flat = name == "out" and tensor.dim() == 2 and dims[name] == 1
        size = length * (tensor.shape[1] // tensors["q"].shape[1]) if is_flat else length
        found[name] = tensor.narrow(dims[name], 0, size)
    return found


def _later(right: torch.Tensor, elements: int) -> torch.Tensor:
    """A tensor of the same shape and strides that begins some elements after the beginning of its memory."""
    return right.new_empty(extent(right.shape, right.stride()) + elements).as_strided(right.shape, right.stride(), elements)


_TOGETHER: tuple[tuple[str, dict[str, int], Callable[[Layer, Batch], int]], ...] = (
    ("rows", {"q": 0, "out": 0, "lse": 1}, lambda layer, batch: batch.num_actual_tokens - 1),
    ("rows", {"k": 0, "v": 0}, lambda layer, batch: batch.num_actual_tokens - 1),
    ("heads", {"q": 1, "out": 1, "lse": 0}, lambda layer, batch: layer.num_heads - 1),
    ("heads", {"k": 1, "v": 1}, lambda layer, batch: layer.num_kv_heads - 1),
)
"""Tensors that agree with each other, and have too little of a dimension for the layer or the step: what has too little, the
dimension by the tensor's name, and how much they have."""
_DIFFERENTIABLE = (torch.float32, torch.float16, torch.bfloat16)
_OF_ANY_LENGTH = {"block_table": (1,), "slot_mapping": (0,), "bidirectional_ranges": (1,), "selected": (0, 1, 2)}
_OF_ANY_STRIDES = ("k_scale_cache", "v_scale_cache")


def _wrong_parts(name: str, right: torch.Tensor, layer: Layer) -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
    """Ways in which a tensor of a layer or of a step can be wrong, as `wrong_tensors` has them."""
    if name in SCALES:  # of one element, and of one for each head, are legal
        yield "longer than there are heads", lambda: right.new_ones(layer.num_kv_heads + 1)
        yield from ((form, functools.partial(change, right)) for form, change in _FORMS.items())
    else:
        wrong = wrong_tensors(right, _OF_ANY_LENGTH.get(name, ()))
        yield from ((form, make) for form, make in wrong if not (name in _OF_ANY_STRIDES and form.startswith("with gaps")))


def _with_gradient(right: dict[str, Any], name: str, tensor: torch.Tensor) -> dict[str, Any]:
    asked = tensor.detach().requires_grad_()
    for holder in ("layer", "batch"):
        if name in right[holder].tensors:
            return {holder: dataclasses.replace(right[holder], **{name: asked})}
    return {name: asked}


def dims_of(layout: Layout | None, *names: str) -> tuple[int, ...]:
    """The dimensions with these names, of a layout's view."""
    return () if layout is None else tuple(i for i, name in enumerate(layout.dims) if name in names)


def _longer(right: torch.Tensor, dim: int) -> torch.Tensor:
    """The tensor with one more element in a dimension; the element is 0."""
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
