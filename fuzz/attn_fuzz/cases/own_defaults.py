"""Torch's default dtype and device for what is built, judged and explained. A target has those of its process."""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar

import torch

_Defaults = tuple[torch.dtype, torch.device]
_CPU = torch.device("cpu")
_of_process: ContextVar[_Defaults | None] = ContextVar("of_process", default=None)


@contextlib.contextmanager
def own_defaults() -> Iterator[None]:
    """Float32 on the CPU, for a block or, as a decorator, for a function."""
    outside = _of_process.set(_of_process.get() or _current())
    try:
        with _set(torch.float32, _CPU):
            yield
    finally:
        _of_process.reset(outside)


def targets_defaults() -> AbstractContextManager[None]:
    """The defaults that were set around the outermost `own_defaults`, for a call of a target."""
    return _set(*(_of_process.get() or _current()))


def _current() -> _Defaults:
    return torch.get_default_dtype(), torch.get_default_device()


@contextlib.contextmanager
def _set(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    before, own_device = _current()
    torch.set_default_dtype(dtype)
    try:
        # the mode of a device slows every call of torch
        with contextlib.nullcontext() if device == own_device else device:
            yield
    finally:
        torch.set_default_dtype(before)
