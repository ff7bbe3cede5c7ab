"""All tensors of one call together: their device, their gradients, and whose memory a written tensor reaches into."""

import torch

from attn_contract.arguments import check_tensor, refuse_vmap
from attn_contract.batch import Batch
from attn_contract.errors import ContractError
from attn_contract.memory import are_interleaved, is_same_view, memory_of, overlaps_itself


def check_tensors(
    read: dict[str, torch.Tensor],
    written: dict[str, torch.Tensor],
    *,
    step: Batch | None = None,
    in_place: dict[str, tuple[str, ...]] | None = None,
) -> None:
    """Check that the tensors are on one device, that none needs a gradient, and that written ones have memory of their own.

    Args:
        read, written: the tensors of the call, by the names of its arguments.
        step: its tensors are read, too. Batch has checked each of them by itself, and one step serves all layers of a model.
        in_place: by the name of a written tensor, the names of the read ones that may be the very same view.
    """
    tensors = {**read, **written}
    for name, tensor in tensors.items():
        check_tensor(name, tensor)
    refuse_vmap(tensors if step is None else {**tensors, **step.tensors})
    first = next(iter(tensors))
    device, grad_enabled = tensors[first].device, torch.is_grad_enabled()
    # for speed: of the step's tensors only qq_bias can need a gradient, and the step knows its device
    if step is not None and (step.device != device or (grad_enabled and step.qq_bias is not None)):
        tensors |= step.tensors
    for name, tensor in tensors.items():
        if tensor.device != device:
            raise ContractError(name, f"a tensor on {tensor.device}", f"{device}, where {first} is")
        if grad_enabled and tensor.requires_grad:
            raise ContractError(name, "requires_grad=True", "no gradients: there is no backward; call under torch.no_grad()")
    if device.type == "meta":
        raise ContractError(first, "a tensor on meta", "a device that has memory")
    bytes_of = {name: memory_of(tensor) for name, tensor in tensors.items()}
    if step is not None:
        tensors |= step.tensors
        bytes_of |= step.memory
    for name in written:
        _check_own_memory(name, tensors, bytes_of, (in_place or {}).get(name, ()))


def _check_own_memory(
    name: str, tensors: dict[str, torch.Tensor], bytes_of: dict[str, tuple[int, int]], may_be: tuple[str, ...]
) -> None:
    """Check that a written tensor shares no byte with itself or others, unless it is the same view as one of `may_be`."""
    tensor = tensors[name]
    if not tensor.is_contiguous() and overlaps_itself(tensor.shape, tensor.stride()):
        raise ContractError(name, f"strides {tuple(tensor.stride())}", "elements that do not share memory")
    start, end = bytes_of[name]
    for other, (other_start, other_end) in bytes_of.items():
        if end <= other_start or other_end <= start or other == name or start == end or other_start == other_end:
            continue
        if are_interleaved(tensor, tensors[other]):
            continue
        if other not in may_be or not is_same_view(tensor, tensors[other]):
            raise ContractError(name, f"memory that reaches into {other}'s", "memory of its own: it is written")
