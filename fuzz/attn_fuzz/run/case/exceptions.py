"""Words for an exception that a target raised: its type, its message, and the place where it was raised."""

import sys
import traceback
from collections.abc import Iterator
from pathlib import PurePath
from types import FrameType

from attn_fuzz.text import one_line

_TARGETS = "attn_fuzz.targets"
_OTHERS = {"attn_amdgcn", "attn_contract", "attn_fuzz", "attn_reference", "numpy", "torch", "triton", *sys.stdlib_module_names}
"""Packages that targets call, or that call targets: a frame of theirs does not say what to repair."""


def described(error: BaseException) -> str:
    """The exception in one line: `TypeError: MESSAGE (my_kernel.py:12, in attention)`."""
    place = _place(error)
    return f"{type(error).__name__}: {message_of(error)}{f' ({place})' if place else ''}"


def message_of(error: BaseException) -> str:
    """An exception's message as one printable line. `__str__` of the exception may raise."""
    try:
        return one_line(str(error), 300)
    except BaseException:
        return "(its message cannot be printed)"


def _place(error: BaseException) -> str:
    """The innermost frame in the target's code; empty if there is none.

    An exception that a library has made of another one, as Triton's interpreter does, was raised where its cause was.
    """
    innermost = ""
    for each in causes(error):
        frames = list(traceback.walk_tb(each.__traceback__))
        own = [(frame, line) for frame, line in frames if _is_of_target(frame)]
        if own:
            frame, line = own[-1]
            innermost = one_line(f"{_file(frame)}:{line}, in {frame.f_code.co_name}", 200)
        if own and own[-1] == frames[-1]:
            break
    return innermost


def causes(error: BaseException) -> Iterator[BaseException]:
    """The exception, its cause, the cause of this cause, and so on. Causes may form a ring."""
    met: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and not any(cause is each for each in met):
        met.append(cause)
        yield cause
        cause = cause.__cause__


def _is_of_target(frame: FrameType) -> bool:
    module = module_of(frame)
    return module.partition(".")[0] not in _OTHERS or module.startswith(_TARGETS)


def _file(frame: FrameType) -> str:
    """The file of a frame below the folder that its package lies in, so that it is the same on all machines."""
    path, module = PurePath(frame.f_code.co_filename), module_of(frame).replace(".", "/")
    below = (f"{module}.py", f"{module}/__init__.py")
    return next((file for file in below if path.as_posix().endswith(f"/{file}")), path.name)


def module_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
