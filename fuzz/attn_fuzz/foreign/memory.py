"""New memory that holds NaN, as memory of a GPU may: what a kernel forgets to write, or reads without a need, is then seen."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

Function = TypeVar("Function", bound=Callable[..., Any])
_NEW = (torch.empty, torch.empty_like, torch.empty_strided, torch.Tensor.new_empty, torch.Tensor.new_empty_strided)


class _NaNInNewMemory(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in _NEW and made.is_floating_point():
            made.fill_(torch.nan)
        return made


def with_nan_in_new_memory(function: Function) -> Function:
    """The function, for whose calls torch.empty and its kin return tensors of NaN, where these are of a floating type.

    Zeros are what a process finds most often in new memory, and hide that a kernel reads what nobody has written.
    """

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        with _NaNInNewMemory():
            return function(*arguments, **options)

    return call  # type: ignore[return-value]
