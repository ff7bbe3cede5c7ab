"""Imported last by the server of `prepared`: the server ends at once when it is no longer needed.

Otherwise Python would take seconds to take torch apart, after the run has ended. Its forks look for garbage every few hundred
cases, and not among all that the server has imported. A fork says nothing if its parent ends before the fork has read what it
is to do.
"""

import atexit
import gc
import os
import pickle
import shutil
import sys
from types import TracebackType

from attn_fuzz.run.processes import prepared

_SERVER, _RUN = os.getpid(), os.getppid()


def _end() -> None:
    if os.getpid() == _SERVER:  # a fork ends as it likes
        if os.getppid() != _RUN:  # a run that was killed has left its folder; one that goes on needs it
            shutil.rmtree(os.environ[prepared.FOLDER], ignore_errors=True)
        os._exit(0)


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, EOFError | pickle.UnpicklingError):
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _tell
atexit.register(_end)
gc.freeze()
