"""Errors that the command line prints instead of a traceback. Importing this module needs no extra."""

import contextlib
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any

EXIT_FAULT = 2
"""The exit code of wrong usage, and of a fault of this tool. Python's own, 1, would tell a mismatch."""
EXIT_LIMIT = 3
"""The exit code if nothing failed, and cases could not be run because of a limit of this tool."""

EXIT_UNSEEN = 4
"""The exit code if nothing failed, and a mistake that the run was to look for could not have been seen."""

EXIT_NEVER_SENT = 5
"""The exit code if cases fail, and no engine sends any of them."""


class InputError(ValueError):
    """Something a person gave is wrong: a case, a target, a mutant, a database. Its message is one line and names the thing."""

    exit_code = EXIT_FAULT


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


def end_with_own_exit_code() -> None:
    """From now on an exception that nothing catches ends this process with EXIT_FAULT, and an interruption with 130."""
    sys.excepthook = _end


@contextlib.contextmanager
def raised_by_target() -> Iterator[None]:
    """For the script of a failure: what is raised inside is the target's failure, and ends the process with 1."""
    try:
        yield
    except (LimitError, ExecutorError):
        raise
    except Exception as error:
        traceback.print_exc()
        raise SystemExit(1) from error


def _end(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        raise SystemExit(130)
    if isinstance(error, InputError | ExecutorError):
        lines = str(error)
    else:
        sys.__excepthook__(kind, error, where)
        lines = f"a fault of this tool or of its installation, and no verdict on a kernel: {kind.__name__}: {error}"
    with contextlib.suppress(OSError, ValueError):  # nobody can read the line
        print(f"attn-parity: {lines}", file=sys.stderr, flush=True)
    raise SystemExit(EXIT_FAULT)
