"""Where commands print: results on stdout, notes on stderr.

What is printed may quote a file or an exception from elsewhere, so no control character reaches a terminal. And a console that
cannot be written, because a pipe was closed or a disk is full, ends no run: the run's files and its exit code are still due.
"""

import contextlib
import os
from collections.abc import Iterable
from typing import Any

import rich.console
from attn_fuzz.text import printable
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment


class Console(rich.console.Console):
    """A console that prints printable characters only.

    Attributes:
        lost: why nothing more is printed, or None.
    """

    lost: str | None = None

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text, kept="\n"), segment.style)

    def print(self, *objects: Any, **options: Any) -> None:
        try:
            super().print(*objects, **options)
        except OSError as error:
            self._lose(error.strerror)

    def on_broken_pipe(self) -> None:
        self._lose("Broken pipe")

    def _lose(self, why: str | None) -> None:
        self.lost, self.quiet = why or "cannot be written", True
        with contextlib.suppress(OSError, ValueError):  # else Python would fail to write at its end what is still in a buffer
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


notes = Console(stderr=True, highlight=False, markup=False, emoji=False)
results = Console(highlight=False, markup=False, emoji=False)
if not results.is_terminal:
    results.width = 140
