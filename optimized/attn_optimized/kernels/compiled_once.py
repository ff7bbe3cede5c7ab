"""Kernels that are compiled once for all values of their numeric arguments."""

import inspect
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl
from triton import knobs

INTERPRETED = tl.constexpr(knobs.runtime.interpret)
"""True if Triton's interpreter runs the kernels of this process. It runs no inline PTX."""


def compiled_once(*, aligned: tuple[str, ...]) -> Callable[[Callable[..., Any]], Any]:
    """`triton.jit` for a kernel whose numeric arguments are sizes of a step, flags or strides.

    By default, Triton compiles a kernel anew for a number that is 1, for one that is a multiple of 16, and for a tensor whose
    address is no multiple of 16. A kernel of this decorator is compiled once for all numbers (parameters in lower case that are
    no pointers) and once for all addresses of tensors that `aligned` does not name.

    Args:
        aligned: tensors whose rows are read or written 16 bytes at once. The kernel is compiled anew for an unaligned one.
    """

    def jit(function: Callable[..., Any]) -> Any:
        names = list(inspect.signature(function).parameters)
        pointers = [name for name in names if name.endswith("_ptr")]
        if unknown := set(aligned) - set(pointers):
            raise ValueError(f"{function.__name__} has no {sorted(unknown)}")
        return triton.jit(
            function,
            do_not_specialize=[name for name in names if name.islower() and name not in pointers],
            do_not_specialize_on_alignment=[name for name in pointers if name not in aligned],
        )

    return jit
