"""Imported last by the server of `attn_fuzz.run.prepared`: the server ends at once when nobody needs it any more.

Otherwise Python would take seconds to take torch apart, after the run has ended. Its forks look for garbage every few hundred
cases, and not among all that the server has imported.
"""

import atexit
import gc
import os

_SERVER = os.getpid()


def _end() -> None:
    if os.getpid() == _SERVER:  # a fork ends as it likes
        os._exit(0)


atexit.register(_end)
gc.freeze()
