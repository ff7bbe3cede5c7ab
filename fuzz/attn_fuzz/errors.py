"""Errors that the command line prints instead of a traceback. Importing this module needs no extra."""


class InputError(ValueError):
    """Something a person gave is wrong: a case, a target, a mutant, a database. Its message is one line and names the thing."""


class ExecutorError(RuntimeError):
    """A target does not load, a patch does not apply, or the fuzzer itself is at fault; never a fault of a kernel.

    Its message may have several lines, such as a traceback.
    """


class LimitError(RuntimeError):
    """This tool cannot run a kernel, and its message names the limit. That is no verdict on the kernel."""


class HelperKilledError(RuntimeError):
    """SIGKILL ended a process that a target's process has started. No kernel sends SIGKILL, so this is no fault of a kernel."""
