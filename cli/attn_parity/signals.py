"""Signals that end a run."""

import contextlib
import os
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does.

    Afterwards both signals are handled as before, unless the run was interrupted. Then its process ignores further signals
    until it ends, because they would change its exit code.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, handler)


@contextlib.contextmanager
def interrupts_end_the_process() -> Iterator[None]:
    """For imports: a signal ends the process at once, with 130, and raises no KeyboardInterrupt in a module half imported.

    Torch goes on without numpy if numpy's import fails, and fails when it imports numpy again.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    replaced = {number: one for number, one in handlers.items() if one in (signal.default_int_handler, signal.SIG_DFL)}
    for number in replaced:
        signal.signal(number, lambda number, frame: os._exit(130))
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


def ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
