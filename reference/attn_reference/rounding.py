"""Rounding of a result to the dtype of an output: once, to the nearest number, ties to the even one."""

import torch


def rounded(numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Numbers of the arithmetic in the dtype of an output, correctly rounded.

    torch converts float64 to 16 bits by way of float32, and so rounds twice: a number just above the midpoint of two float16
    numbers becomes the midpoint, which then goes to the even one. Here the float32 number in between is rounded to odd: of the
    two neighbours of a number that float32 cannot hold, it is the one whose last bit is 1. That one is no midpoint of 16 bits
    and lies on the number's own side of every midpoint (Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums:
    proved algorithms using rounding to odd", 2008).

    Args:
        numbers: float32 or float64.
        dtype: float32, float64, float16 or bfloat16.

    Returns:
        Of numbers' shape, in dtype. NaN stays NaN.
    """
    if numbers.dtype == torch.float64 and dtype.itemsize == 2:
        nearest = numbers.float()
        is_even = nearest.view(torch.int32) % 2 == 0
        is_above = numbers > nearest.double()
        other = torch.nextafter(nearest, torch.where(is_above, torch.inf, -torch.inf).float())
        numbers = torch.where((nearest.double() != numbers) & is_even, other, nearest)
    return numbers.to(dtype)
