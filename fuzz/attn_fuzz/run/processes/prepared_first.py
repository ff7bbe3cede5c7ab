"""Imported first by the server of `prepared`: while the server imports, it ends when the run has been killed.

A server notices the end of its run when it waits for work. Importing torch takes seconds before that, many on a busy machine.
Neither the server nor a fork of it, from its first moment on, gets Ctrl-C.
"""

import os
import threading

from attn_fuzz.run.processes import prepared

WAKE_SECONDS = 0.2
_PARENT = os.getppid()
_stopped = threading.Event()


def _watch() -> None:
    while not _stopped.wait(WAKE_SECONDS):
        if os.getppid() != _PARENT:
            os._exit(1)


_thread = threading.Thread(target=_watch, daemon=True)


def _stop() -> None:
    """Before the first fork: the server imports nothing more, and a process with threads is not to be forked."""
    if not _stopped.is_set():
        _stopped.set()
        _thread.join()


prepared.ignore_interrupts()
os.register_at_fork(before=_stop)
_thread.start()
