"""Counts launches of Triton kernels by name, where they are interpreted or emulated. Those on a GPU are not seen."""

from collections import Counter
from typing import Any

counts: Counter[str] = Counter()
"""The launches of this process."""


def count(kernel: Any) -> None:
    """Count a launch of a kernel: a function, or what Triton makes of one."""
    counts[getattr(kernel, "fn", kernel).__name__] += 1
