"""Memory ranges of strided tensors, and whether they overlap. Nothing here reads a value of a tensor."""

from functools import lru_cache

import torch


def memory_of(tensor: torch.Tensor) -> tuple[int, int]:
    """The address of the tensor's first byte, and the address past its last byte.

    The bytes between belong to the tensor or to tensors that are interleaved with it.
    """
    start = tensor.data_ptr()
    if tensor.is_contiguous():  # for speed
        return start, start + tensor.nbytes
    return start, start + extent(tensor.shape, tensor.stride()) * tensor.element_size()


@lru_cache(maxsize=4096)
def overlaps_itself(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """True if two indices of a strided tensor may share memory. They never do where dimensions nest, as in views of caches."""
    if 0 in shape:
        return False
    span = 1
    for step, size in sorted((step, size) for size, step in zip(shape, stride, strict=True) if size > 1):
        if step < span:
            return True
        span = step * (size - 1) + span
    return False


def are_interleaved(a: torch.Tensor, b: torch.Tensor) -> bool:
    """True if two tensors, neither empty, keep to disjoint bytes of one period.

    q, k and v that are slices of the rows of one fused tensor do: the period is a row.
    """
    for period in {step * tensor.element_size() for tensor in (a, b) for step in tensor.stride() if step}:
        shift = (b.data_ptr() - a.data_ptr()) % period
        if _bytes_within(a, period) <= shift and shift + _bytes_within(b, period) <= period:
            return True
    return False


def is_same_view(a: torch.Tensor, b: torch.Tensor) -> bool:
    """True if every index of both tensors is the same memory. No index moves by the stride of a dimension of one element."""
    if (a.data_ptr(), a.shape) != (b.data_ptr(), b.shape):
        return False
    return all(step_a == step_b for size, step_a, step_b in zip(a.shape, a.stride(), b.stride(), strict=True) if size > 1)


@lru_cache(maxsize=4096)
def extent(shape: torch.Size, strides: tuple[int, ...]) -> int:
    """The number of elements from a tensor's first to its last one."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))


def _bytes_within(tensor: torch.Tensor, period: int) -> int:
    """The bytes from the first to the end of the last element, without the dimensions that step by whole periods."""
    steps = [(size, step * tensor.element_size()) for size, step in zip(tensor.shape, tensor.stride(), strict=True)]
    return tensor.element_size() + sum((size - 1) * step for size, step in steps if step % period)
