"""Tensors with a dtype, shape, stride, device or memory that an argument of a call must not have. Their values are right.

So a function refuses them whether or not it checks values in tensors, and whether or not a legal call of the same form came
before.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from attn_contract import Batch, Layer, Layout
from attn_contract.layer import FLOAT8_DTYPES, SCALES
from attn_contract.memory import extent
from attn_fuzz.cases.poison import storage_of

_INTEGERS = {1: torch.bool, 2: torch.int16, 4: torch.int32, 8: torch.int64}
DTYPE, SHAPE, STRIDE, DEVICE, ALIAS, GRADIENT = "dtype", "shape", "stride", "device", "alias", "gradient"


class Wrong(NamedTuple):
    """A way in which a tensor of a call is wrong.

    Args:
        kind: DTYPE, SHAPE, STRIDE, DEVICE, ALIAS, or GRADIENT, which a call asks for where torch records gradients.
        what: what is wrong, in words.
        make: makes the tensor; or the arguments, if the words name some.
    """

    kind: str
    what: str
    make: Callable[[], Any]


def wrong_tensors(right: torch.Tensor, free: Collection[int] = ()) -> Iterator[Wrong]:
    """Ways in which a tensor can be wrong by itself.

    Args:
        right: the tensor of a call that agrees with the contract.
        free: the dimensions whose sizes depend on no other argument.
    """
    for kind, form, change in _FORMS:
        yield Wrong(kind, form, functools.partial(change, right))
    if right.dim():
        # a vector of all elements: with two of three dimensions an output would be legal
        yield Wrong(SHAPE, "with too few dimensions", lambda: right.flatten() if right.dim() > 1 else right.new_zeros(()))
    # a dimension of one element, or of a tensor without elements, has no stride
    if right.numel() and right.dim() and right.shape[-1] > 1:
        yield Wrong(STRIDE, "with gaps in its last dimension", lambda: torch.stack((right, right), -1)[..., 0])
    for dim, size in enumerate(right.shape):
        if dim not in free:
            yield Wrong(SHAPE, f"longer in dimension {dim}", functools.partial(_longer, right, dim))
            if size:
                yield Wrong(SHAPE, f"shorter in dimension {dim}", functools.partial(right.narrow, dim, 0, size - 1))


def overlapping(tensors: Mapping[str, torch.Tensor], written: Collection[str]) -> Iterator[Wrong]:
    """Ways in which a written tensor of a call shares memory: with itself, and a few bytes with each other tensor."""
    for name in written:
        for dim in range(tensors[name].dim() - 1):
            if tensors[name].numel() and tensors[name].shape[dim] > 1:
                what = f"{name} that overlaps itself in dimension {dim}"
                yield Wrong(ALIAS, what, lambda name=name, dim=dim: {name: _folded(tensors[name], dim)})
        for other in tensors:
            if other != name and tensors[name].numel() and tensors[other].numel():
                for first, second in ((name, other), (other, name)):
                    what = f"{name} {'before' if first == name else 'in'} the last bytes of {other}"
                    yield Wrong(ALIAS, what, functools.partial(in_one_memory, tensors, first, second))


def in_one_memory(tensors: Mapping[str, torch.Tensor], first: str, second: str, *, later: int = 0) -> dict[str, torch.Tensor]:
    """Copies of two tensors in one memory, by name. The second begins in the last bytes of the first.

    Args:
        later: the number of its elements by which the second begins later; 1: they share no byte.
    """
    held = {name: _bytes_of(tensors[name]) for name in (first, second)}
    size = tensors[second].element_size()
    begin = ((len(held[first]) - 1) // size + later) * size
    memory = torch.empty(begin + max(map(len, held.values())), dtype=torch.uint8, device=tensors[first].device)
    found = {}
    for name, at in ((first, 0), (second, begin)):
        memory[at : at + len(held[name])] = held[name]
        flat = memory[at : at + len(held[name])].view(tensors[name].dtype)
        found[name] = flat.as_strided(tensors[name].shape, tensors[name].stride())
    return found


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """From the first to the end of the last element."""
    begin, size = int(tensor.storage_offset()), tensor.element_size()
    return storage_of(tensor, torch.uint8)[begin * size : (begin + extent(tensor.shape, tensor.stride())) * size]


def _folded(right: torch.Tensor, dim: int) -> torch.Tensor:
    """A tensor of the same shape in which a step of a dimension is one element too short to pass what lies within it."""
    strides = list(right.stride())
    inner = [each for each in range(right.dim()) if strides[each] < strides[dim]]
    strides[dim] = sum((right.shape[each] - 1) * strides[each] for each in inner)
    return torch.as_strided(right.new_empty(extent(right.shape, tuple(strides))), right.shape, strides)


def wrong_attention(
    q: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    kv_cache: torch.Tensor | None,
    layer: Layer,
    batch: Batch,
    *,
    out: torch.Tensor,
    lse: torch.Tensor | None,
) -> Iterator[Wrong]:
    """Ways in which a tensor of a legal call of attention, which has these arguments, can be wrong."""
    right: dict[str, Any] = {"q": q, "k": k, "v": v, "kv_cache": kv_cache, "layer": layer, "batch": batch}
    keys = {"kv_cache": kv_cache} if layer.attn_type.reads_cache else {"k": k, "v": v}
    tensors = {name: tensor for name, tensor in {"q": q, **keys, "out": out, "lse": lse}.items() if tensor is not None}
    for name, tensor in tensors.items():
        for kind, form, make in wrong_tensors(tensor, dims_of(layer.layout, "block", "slot") if name == "kv_cache" else ()):
            yield Wrong(kind, f"{name} {form}", lambda name=name, make=make: {name: make()})
    if kv_cache is not None and kv_cache.numel() and layer.layout is not None and (unit := layer.layout.stride_alignment) > 1:
        half = functools.partial(_later, kv_cache, unit // 2)
        yield Wrong(STRIDE, f"kv_cache at no multiple of {unit} elements", lambda: {"kv_cache": half()})
    if layer.output_scale is None and layer.q_scale is None:
        other = torch.float16 if out.dtype == torch.float32 else torch.float32
        yield Wrong(DTYPE, f"out of {other} beside {q.dtype}", lambda: {"out": out.to(other)})
    for words, dims, kept in _TOGETHER:
        few = kept(layer, batch)
        if few >= 0 and tensors.keys() >= {next(iter(dims))}:
            shorter = functools.partial(_shorter, {name: tensors[name] for name in dims if name in tensors}, dims, few)
            yield Wrong(SHAPE, f"{' and '.join(name for name in dims if name in tensors)} of {few} {words}", shorter)
    for name, tensor in {**layer.tensors, **batch.tensors}.items():
        for kind, form, make in _wrong_parts(name, tensor, layer):
            yield Wrong(kind, f"{name} {form}", lambda name=name, make=make: _held(right, {name: make()}))
    every = {**tensors, **layer.tensors, **batch.tensors}
    for kind, what, make in overlapping(every, [name for name in ("out", "lse") if name in tensors]):
        yield Wrong(kind, what, lambda make=make: _held(right, make()))
    for name, tensor in every.items():
        if tensor.dtype in _DIFFERENTIABLE:
            asked = functools.partial(torch.Tensor.requires_grad_, tensor.detach())
            yield Wrong(GRADIENT, f"a gradient asked of {name}", lambda name=name, asked=asked: _held(right, {name: asked()}))


def _held(right: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The arguments that hold tensors, which are a layer's or a batch's where these have some of their names."""
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        holder = next((each for each in ("layer", "batch") if name in right[each].tensors), None)
        if holder is not None:
            name, tensor = holder, dataclasses.replace(found.get(holder, right[holder]), **{name: tensor})
        found[name] = tensor
    return found


def _shorter(tensors: dict[str, torch.Tensor], dims: dict[str, int], length: int) -> dict[str, torch.Tensor]:
    """The same tensors with fewer elements in a dimension. A flat output has its heads in its rows."""
    found = {}
    for name, tensor in tensors.items():
        is_flat = name == "out" and tensor.dim() == 2 and dims[name] == 1
        size = length * (tensor.shape[1] // tensors["q"].shape[1]) if is_flat else length
        found[name] = tensor.narrow(dims[name], 0, size)
    return found


def _later(right: torch.Tensor, elements: int) -> torch.Tensor:
    """A tensor of the same shape, strides and values that begins some elements after the beginning of its memory."""
    held = _bytes_of(right)
    memory = torch.cat((held.new_zeros(elements * right.element_size()), held))
    return memory.view(right.dtype).as_strided(right.shape, right.stride(), elements)


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


def _wrong_parts(name: str, right: torch.Tensor, layer: Layer) -> Iterator[Wrong]:
    """Ways in which a tensor of a layer or of a step can be wrong by itself."""
    if name in SCALES:  # of one element, and of one for each head, are legal
        yield Wrong(SHAPE, "longer than there are heads", lambda: right.new_ones(layer.num_kv_heads + 1))
        yield from (Wrong(kind, form, functools.partial(change, right)) for kind, form, change in _FORMS)
    else:
        wrong = wrong_tensors(right, _OF_ANY_LENGTH.get(name, ()))
        yield from (each for each in wrong if not (name in _OF_ANY_STRIDES and each.kind == STRIDE))


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


def _negated(right: torch.Tensor) -> torch.Tensor:
    """A view that means the right values, and whose memory holds their negatives."""
    if right.dtype == torch.bool:
        return torch._neg_view(right)  # pyright: ignore[reportPrivateImportUsage]
    negative = (-right.float()).to(right.dtype) if right.dtype in FLOAT8_DTYPES else -right
    return torch._neg_view(negative)  # pyright: ignore[reportPrivateImportUsage]


_FORMS: tuple[tuple[str, str, Callable[[torch.Tensor], torch.Tensor]], ...] = (
    (DTYPE, "of another dtype", _other_dtype),
    (DTYPE, "of other numbers", _other_numbers),
    # one more is legal for a flat output of one row and one head
    (SHAPE, "with two more dimensions", lambda tensor: tensor[None, None]),
    (DEVICE, "on no device", lambda tensor: tensor.to("meta")),
    (STRIDE, "negated", _negated),
)
