"""Errors that the command line prints instead of a traceback. Importing this module needs no extra."""

from typing import Any

EXIT_LIMIT = 3
"""The exit code if nothing failed, and cases could not be run because of a limit of this tool."""


class InputError(ValueError):
    """Something a person gave is wrong: a case, a target, a mutant, a database. Its message is one line and names the thing."""

    exit_code = 2


class ExecutorError(RuntimeError):
    """A target does not load, a patch does not apply, or the fuzzer itself is at fault; never a fault of a kernel.

    Its message may have several lines, such as a traceback.
    """


class FaultError(ExecutorError):
    """The interpreter, the emulator or an adapter of this project raised an unexpected exception."""


class UnbuiltError(FaultError):
    """A case, and the layer and the step that are made of it, do not ask for the same. The message begins with a name."""


class LimitError(RuntimeError):
    """This tool cannot run a kernel. That is no verdict on the kernel.

    Args:
        what: names the limit: an instruction, a function, a module, a dtype.
        lifted_by: what would lift it; empty if `what` says so.
    """

    def __init__(self, what: str, lifted_by: str = "compiled code: on a GPU, or as TARGET@gfx942") -> None:
        super().__init__(what)
        self.lifted_by = lifted_by

    @property
    def sentence(self) -> str:
        return f"{self} (lifted by {self.lifted_by})" if self.lifted_by else str(self)

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (str(self), self.lifted_by)


class FailedCheckError(Exception):
    """A check of the fuzzer, made while a target ran, finds a fault: the verdict on the case, whatever its outputs are.

    Args:
        kind: the kind of the verdict (`attn_fuzz.verdict.verdict.VerdictKind`), such as "property".
        about: the subject of the failure, as in `Verdict.about`.
        message: one line for a person.
        ratio: the largest error / bound, of a value.
    """

    def __init__(self, kind: str, about: str, message: str, ratio: float = 0.0) -> None:
        super().__init__(kind, about, message, ratio)
        self.kind: Any = kind  # its type imports torch
        self.about, self.message, self.ratio = about, message, ratio

    def __str__(self) -> str:
        return self.message


class RefusedByTritonError(TypeError, ValueError, NotImplementedError):
    """An interpreted kernel has what Triton does not compile. That is a verdict on the kernel."""


class HelperKilledError(RuntimeError):
    """SIGKILL ended a process that a target's process has started. No kernel sends SIGKILL, so this is no fault of a kernel."""
