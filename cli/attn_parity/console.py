"""The consoles of commands, results on stdout and notes on stderr, with their tables and progress bars.

The text may quote a file or an exception from elsewhere, so no control character reaches a terminal. A console that cannot be
written, because a pipe was closed or a disk is full, ends no run: the run still has to write its files and return its exit
code.
"""

import contextlib
import errno
import os
import select
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TextIO

import rich.console
from attn_fuzz.text import printable
from rich.console import ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.table import Table

BROKEN_PIPE = os.strerror(errno.EPIPE)


class Console(rich.console.Console):
    """A console that prints printable characters only.

    Attributes:
        lost: the reason why nothing more is printed, or None.
    """

    lost: str | None = None

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text, kept="\n"), segment.style)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print objects. Lines of text are not wrapped: they are read by programs, too."""
        try:
            super().print(*objects, **{"soft_wrap": all(isinstance(each, str) for each in objects), **options})
        except OSError as error:
            self._lose(error.strerror)

    def on_broken_pipe(self) -> None:
        self._lose(BROKEN_PIPE)

    def _lose(self, why: str | None) -> None:
        self.lost, self.quiet = why or "cannot be written", True
        with contextlib.suppress(OSError, ValueError):  # else Python would fail to write at its end what is still in a buffer
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def is_read(stream: TextIO | None) -> bool:
    """True if somebody can read the output. Nobody reads a pipe whose other end is closed."""
    poll = select.poll()
    with contextlib.suppress(AttributeError, OSError, ValueError):  # a stream without a descriptor
        poll.register(stream.fileno(), 0)  # pyright: ignore[reportOptionalMemberAccess]
    return not poll.poll(0)


def open_closed_streams() -> None:
    """Open the null device as each standard stream that is closed. The next file would get its number, and what is printed.

    Nobody gets results then.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError as error:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115 - open to the end
            if name == "stdout":
                results.lost, results.quiet = error.strerror, True


notes = Console(stderr=True, highlight=False, markup=False, emoji=False)
results = Console(highlight=False, markup=False, emoji=False)
if not results.is_terminal:
    results.width = 140


def plain_table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table


@contextlib.contextmanager
def task(total: float | None, *columns: ProgressColumn, words: str = "", done: int = 0) -> Iterator[Callable[..., None]]:
    """A progress bar of these columns after a spinner. Call it with what `Progress.update` of rich takes."""
    hidden = not notes.is_terminal
    with Progress(SpinnerColumn(), *columns, console=notes, transient=True, disable=hidden) as progress:
        yield partial(progress.update, progress.add_task(words, total=total, completed=done))


@contextlib.contextmanager
def progress_bar(total: int) -> Iterator[Callable[..., None]]:
    """A progress bar. Call it with the number that is done, and with words to stand after it, if there are some."""
    counts = TextColumn("{task.completed}/{task.total}")
    with task(total, BarColumn(), counts, TimeElapsedColumn(), TextColumn("{task.description}"), words="starting") as update:

        def show(done: int, words: str = "") -> None:
            update(completed=done, description=words)

        yield show
