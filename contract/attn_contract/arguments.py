"""Checks of a single argument: its Python type, its range, a tensor's shape and dtype. They read no value of a tensor."""

import reprlib
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Any

import torch
from torch._C import _functorch as functorch  # pyright: ignore[reportAttributeAccessIssue]

from attn_contract.errors import ContractError

INT32_MAX = torch.iinfo(torch.int32).max


def shown(value: object) -> str:
    """A short repr for a message. Python before 3.14 refuses to write an int of thousands of digits in decimal."""
    try:
        return reprlib.repr(value)
    except ValueError:
        return f"{type(value).__name__} that is too long to show"


def named(value: object) -> str:
    """A value as a message shows it: a dtype without its module."""
    return str(value).removeprefix("torch.")


def check_type(argument: str, value: object, kind: type | UnionType, expected: str) -> None:
    if not isinstance(value, kind):
        raise ContractError(argument, shown(value), expected)


def check_names(argument: str, by_name: Mapping[Any, object]) -> None:
    """Check that each key of a mapping can be a layer's name."""
    for name in by_name:
        if not isinstance(name, str):
            raise ContractError(argument, f"the key {shown(name)}", "a layer's name, which is a string, for each key")


def elements_of(argument: str, value: Iterable[Any], expected: str) -> list[Any]:
    """The elements of an iterable. A tensor without dimensions has the type of an Iterable, and yields nothing."""
    try:
        elements = iter(value)
    except TypeError:
        raise ContractError(argument, shown(value), expected) from None
    return list(elements)


def check_int(argument: str, value: object, *, minimum: int) -> None:
    """Check a size, a length or a distance of positions: kernels hold them in int32. A bool is not a number here."""
    if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= INT32_MAX:
        raise ContractError(argument, shown(value), f"an int, at least {minimum} and at most {INT32_MAX}")


def check_tensor(argument: str, value: object) -> None:
    if not isinstance(value, torch.Tensor):
        raise ContractError(argument, shown(value), "a tensor")
    if value.layout != torch.strided:
        raise ContractError(argument, f"a tensor of {value.layout}", "torch.strided")
    if value.is_nested or value.is_neg() or value.is_conj():
        kind = "nested tensor" if value.is_nested else "negated view" if value.is_neg() else "conjugate view"
        raise ContractError(argument, f"a {kind}", "a tensor whose memory holds its values")


def refuse_vmap(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse tensors that stand for many: they have no memory, and each of the many may have other lengths."""
    if functorch.peek_interpreter_stack() is None:  # for speed
        return
    for name, tensor in tensors.items():
        if functorch.is_batchedtensor(tensor):
            raise ContractError(name, "a tensor under torch.func.vmap", "one of a single call: a ragged batch has all requests")


def check_dims(argument: str, tensor: torch.Tensor, names: tuple[str, ...]) -> None:
    if tensor.dim() != len(names):
        raise ContractError(argument, f"shape {tuple(tensor.shape)}", f"{len(names)} dimensions: {', '.join(names)}")


def check_dense_last(argument: str, tensor: torch.Tensor) -> None:
    if not tensor.is_contiguous() and tensor.shape[-1] > 1 and tensor.stride(-1) != 1 and tensor.numel():
        raise ContractError(argument, f"stride {tensor.stride(-1)} in the last dimension", "1: it must be dense")


def check_int32(argument: str, value: object, names: tuple[str, ...]) -> None:
    """Check a tensor of int32 whose rows are dense, and whose dimensions have these names."""
    check_tensor(argument, value)
    assert isinstance(value, torch.Tensor)
    check_dims(argument, value, names)
    if value.dtype != torch.int32:
        raise ContractError(argument, value.dtype, "torch.int32")
    check_dense_last(argument, value)


def check_vector(argument: str, value: object, dtype: torch.dtype) -> None:
    check_tensor(argument, value)
    assert isinstance(value, torch.Tensor)
    if value.dim() != 1:
        raise ContractError(argument, f"shape {tuple(value.shape)}", "one dimension")
    if value.dtype != dtype:
        raise ContractError(argument, value.dtype, str(dtype))
    check_dense_last(argument, value)
