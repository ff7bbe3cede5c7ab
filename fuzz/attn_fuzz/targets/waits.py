"""Calls that check no values in tensors: the host must not wait for the device, so that a CUDA graph can hold them.

Nothing waits on a CPU. So each operation of torch is looked at. One that takes a number out of a tensor waits on a GPU, and so
does one whose result has a size that depends on numbers. Kernels are not launched meanwhile.
"""

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_ATEN = torch.ops.aten
_WAITS = (
    _ATEN._local_scalar_dense.default,
    _ATEN.equal.default,
    _ATEN.is_nonzero.default,
    _ATEN.masked_select.default,
    _ATEN.nonzero.default,
)


class _Watch(TorchDispatchMode):
    """Raises an AssertionError at an operation that waits for a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func is _ATEN.index.Tensor and any(index is not None and index.dtype == torch.bool for index in args[1])
        by_counts = func is _ATEN.repeat_interleave.Tensor and (kwargs or {}).get("output_size") is None
        is_waiting = func in _WAITS or by_mask or by_counts
        assert not is_waiting, f"a call that checks no values waits for the device by {func}"
        return func(*args, **(kwargs or {}))


def check(call: Callable[[], object]) -> None:
    """Make a call that launches no kernel of this project, and check that it waits for nothing.

    Raises:
        AssertionError: it waits.
    """
    from attn_optimized.kernel_call import KernelCall

    with mock.patch.object(KernelCall, "run"), _Watch():
        call()
