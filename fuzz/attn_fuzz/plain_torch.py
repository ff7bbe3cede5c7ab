"""torch as a new process finds it, whatever a caller has set."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """float32 is the default dtype inside, and the CPU the default device. Also a decorator: `@plain_torch()`."""
    dtype, is_elsewhere = torch.get_default_dtype(), torch.get_default_device().type != "cpu"
    torch.set_default_dtype(torch.float32)
    try:
        # torch.device as a context takes a while for each call of torch
        with torch.device("cpu") if is_elsewhere else contextlib.nullcontext():
            yield
    finally:
        torch.set_default_dtype(dtype)
