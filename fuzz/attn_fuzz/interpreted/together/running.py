"""The programs of a launch that run together, and which of them take part in what runs now.

Every block of an interpreted kernel has a first axis: one entry for each program that runs, or one entry for all of them where
nothing tells them apart, as in constants, arguments and ranges.
"""

from typing import Any

import numpy as np

AT_ONCE = 32
"""The most programs of a launch that run together. Their blocks then fit into a core's caches."""

Lanes = np.ndarray | None
"""The active ones of the running programs, [programs] bool; None: all of them."""


class Running:
    """The programs that run now.

    Attributes:
        indices: [programs, 3] int32, of the grid.
        active: the programs that take part in the running operation.
        frames: the frames of the functions that run and may return for some of the programs, the innermost last.
        code: the code of the kernel.
        has_stored: True if a program has written memory.
        undone_by: by store, in their order, the pointers, the mask and what memory held before.
        refusal: why the programs cannot run together; empty if nothing stands against it so far.
    """

    def __init__(self, indices: np.ndarray, code: Any) -> None:
        self.indices = indices
        self.active: Lanes = None
        self.frames: list[Any] = []
        self.code = code
        self.has_stored = False
        self.undone_by: list[tuple[Any, Any, Any]] = []
        self.refusal = ""

    @property
    def count(self) -> int:
        return len(self.indices)


class ApartError(Exception):
    """The programs must run one by one."""


class FewerError(BaseException):
    """Some programs have returned before any has stored. The others begin again, without the place of those.

    It is no Exception, because Triton wraps each Exception of a kernel's functions into another one.

    Args:
        rest: which of the running programs have not returned, [programs] bool.
    """

    def __init__(self, rest: np.ndarray) -> None:
        super().__init__()
        self.rest = rest


current = Running(np.zeros((1, 3), np.int32), None)
"""The programs that run in this process."""
at_once = AT_ONCE
"""The most programs of the next launch that run together."""


def apart(why: str) -> ApartError:
    """The error where the running programs cannot go on together."""
    current.refusal = current.refusal or why
    return ApartError(why)


def both(first: Lanes, second: Lanes) -> Lanes:
    """The programs of both."""
    if first is None or second is None:
        return second if first is None else first
    return first & second


def common(numbers: np.ndarray) -> Any | None:
    """The number that all active programs have, or None if they differ.

    Args:
        numbers: [programs], or [1] for all of them.
    """
    if len(numbers) > 1 and current.active is not None:
        numbers = numbers[current.active]
    if len(numbers) > 1 and (numbers != numbers[0]).any():
        return None
    return numbers[0] if len(numbers) else numbers.dtype.type(0)
