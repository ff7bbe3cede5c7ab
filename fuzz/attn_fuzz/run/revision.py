"""A case at one revision of a kernel's repository: it runs in a fresh process, which imports the target from a worktree."""

import os
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import msgspec
from attn_fuzz.cases.case import Case
from attn_fuzz.errors import ExecutorError, InputError
from attn_fuzz.run.processes import prepared
from attn_fuzz.run.processes.executor import START_SECONDS, Executor
from attn_fuzz.targets import registry
from attn_fuzz.text import one_line
from attn_fuzz.verdict.verdict import Verdict

Result = Literal["passes", "fails", "cannot tell"]
RUNS = 6
"""A case is run up to three times (`attn_fuzz.run.case.trial`), each in a process that may have to be started again."""


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a case at a revision.

    Attributes:
        result: "cannot tell": the target does not load, does not admit the case or rightly refuses it, or the process died.
        words: the verdict, or why there is none, in one line.
        verdict: the verdict of the case, if it ran.
        is_of_worktree: True if a module that was imported lies in the worktree.
    """

    result: Result
    words: str
    verdict: Verdict | None = None
    is_of_worktree: bool = True


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """The folders from which a target is imported.

    Attributes:
        checkout: the user's checkout, from which nothing may be imported.
        worktree: the worktree of the same repository that takes its place.
        folders: folders of the repository, relative to its root, which come first in the search for modules.
    """

    checkout: Path
    worktree: Path
    folders: tuple[Path, ...]

    def moved(self, path: str) -> str:
        """A path into the checkout as a path into the worktree. Other paths, and those of an environment in it, stay."""
        whole = Path(path).resolve()
        if not whole.is_relative_to(self.checkout) or whole.is_relative_to(Path(sys.prefix).resolve()):
            return path
        return str(self.worktree / whole.relative_to(self.checkout))

    def import_path(self, path: Sequence[str]) -> list[str]:
        """The `sys.path` of a process in the worktree, made from this process's own."""
        first = [str(self.worktree / folder) for folder in self.folders]
        return [*first, *(self.moved(entry or os.getcwd()) for entry in path)]

    def environment(self) -> dict[str, str]:
        """Variables that name folders of packages (`attn_fuzz.foreign`), with their new values."""
        named = {name: value for name, value in os.environ.items() if name.startswith("ATTN_PARITY_")}
        return {name: self.moved(os.path.abspath(value)) for name, value in named.items()}


def replay(case: Case, target: str, place: Place, device: str, case_seconds: float, sanitize: bool) -> Replay:
    """Run a case on a target as a worktree has it now.

    Args:
        target: its name.
        device: "cpu" or "cuda".
        case_seconds: seconds that the case may take.
        sanitize: True if accesses of interpreted kernels are checked, where the target declares such kernels.
    """
    seconds = START_SECONDS + RUNS * case_seconds
    try:
        return prepared.answer(device, seconds, _replay, case, target, place, device, case_seconds, sanitize)
    except TimeoutError:
        return Replay(result="cannot tell", words="the target did not load in time")
    except (EOFError, OSError):
        return Replay(result="cannot tell", words="the process died while the target was loaded")


def _replay(
    connection: Connection, case: Case, name: str, place: Place, device: str, case_seconds: float, sanitize: bool
) -> None:
    """The fresh process: it sends one Replay."""
    os.environ.update(place.environment())
    sys.path[:] = place.import_path(sys.path)
    folder = place.moved(os.getcwd())  # where a target is that was named as module:attribute
    os.chdir(folder if os.path.isdir(folder) else place.worktree)
    os.dup2(2, 1)  # stdout is for results
    try:
        connection.send(_replayed(case, name, place, device, case_seconds, sanitize))
    except (InputError, ExecutorError, OSError) as error:
        connection.send(Replay(result="cannot tell", words=one_line(str(error), 300), is_of_worktree=_is_of(place)))


def _replayed(case: Case, name: str, place: Place, device: str, case_seconds: float, sanitize: bool) -> Replay:
    target = registry.usable(name, device)
    if (reason := target.not_drawn(case, device)) is not None:
        return Replay(result="cannot tell", words=f"the target does not admit the case: {reason}", is_of_worktree=_is_of(place))
    checked = sanitize and target.can_be_sanitized(device)
    with (
        tempfile.TemporaryDirectory() as scratch,
        Executor(name, device, case_seconds, Path(scratch, "in-flight.json"), sanitize=checked) as executor,
    ):
        verdict = executor.run(case)
    words = f"{verdict.kind}: {verdict.message}" if verdict.message else verdict.kind
    result: Result = "fails" if verdict.failed else "passes" if verdict.kind == "agree" else "cannot tell"
    return Replay(result=result, words=one_line(words, 300), verdict=verdict, is_of_worktree=_is_of(place))


def _is_of(place: Place) -> bool:
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    return any(file is not None and Path(file).resolve().is_relative_to(place.worktree) for file in files)
