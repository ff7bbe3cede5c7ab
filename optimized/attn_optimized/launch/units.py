"""Numbers in the units that kernels take them in."""

import math

UNLIMITED = 2**31 - 1
"""A distance that hides no key: lengths are int32."""


def in_units(itemsize: int, **strides: int) -> tuple[int, dict[str, int]]:
    """The unit of strides, which is a constant of the kernel, and the strides in that unit.

    The unit is 16 bytes of elements, the widest load, if every stride is a multiple of that. Otherwise it is one element. So a
    kernel has two variants. If the compiler specialized the kernel for each stride, there would be many.
    """
    widest = 16 // itemsize
    unit = widest if math.gcd(*strides.values()) % widest == 0 else 1
    return unit, {name: stride // unit for name, stride in strides.items()}


def distance(edge: int) -> int:
    """An edge of a window as kernels take it: -1, which stands for no edge, becomes a distance that hides no key."""
    return UNLIMITED if edge < 0 else edge
