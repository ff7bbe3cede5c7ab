"""Finds calls that wait for the device, so that no CUDA graph could hold them.

Nothing waits on a CPU. So each operation of torch is looked at. One that takes a number out of a tensor waits on a GPU, and so
does one whose result has a size that depends on numbers. Kernels are not launched meanwhile.
"""

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from attn_optimized.kernel_call import KernelCall
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
    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func is _ATEN.index.Tensor and any(index is not None and index.dtype == torch.bool for index in args[1])
        by_counts = func is _ATEN.repeat_interleave.Tensor and (kwargs or {}).get("output_size") is None
        if func in _WAITS or by_mask or by_counts:
            self.waits.append(str(func))
        return func(*args, **(kwargs or {}))


def waits_of(call: Callable[[], object]) -> list[str]:
    """The operations by which a call waits, which launches no kernel of this project meanwhile."""
    waits: list[str] = []
    with mock.patch.object(KernelCall, "run"), _Watch(waits):
        call()
    return waits
