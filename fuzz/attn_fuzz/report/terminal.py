"""Pictures in a terminal. Cells have letters, so that a picture can be read without colours, and colours if there are any."""

from collections.abc import Iterator, Sequence

from attn_fuzz.report.grid import Cell, Picture
from rich.console import Group, RenderableType
from rich.text import Text

STYLES = {
    "visible": "black on green",
    "sink-token": "black on cyan",
    "range": "black on bright_green",
    "some": "green",
    "past": "dim",
    "shared": "black on magenta",
    "garbage": "red",
    "written": "black on green",
    "before": "black on blue",
    "unseen": "yellow",
    "neighbour": "black on magenta",
    "unused": "dim",
    "leftover": "dim",
    "free": "dim",
    "padding": "dim",
    "guard": "dim",
    "layer": "dim",
    "broken": "bold white on red",
    "nan": "bold white on red",
    "unwritten": "bold black on yellow",
    "stray": "bold black on magenta",
    "unowned": "dim",
    "owner-0": "black on cyan",
    "owner-1": "black on yellow",
    "owner-2": "black on green",
    "owner-3": "black on blue",
    "owner-4": "black on white",
    "owner-5": "black on bright_red",
    "heat-4": "green",
    "heat-5": "yellow",
}


def render(pictures: Sequence[Picture]) -> RenderableType:
    return Group(*(line for picture in pictures for line in _lines(picture)))


def _lines(picture: Picture) -> Iterator[Text]:
    yield Text(f"\n{picture.title}", style="bold", no_wrap=True)
    if picture.note:
        yield Text(picture.note, style="dim")
    margin = max(map(len, picture.row_names), default=0)
    width = max((len(cell.text) for row in picture.cells for cell in row), default=1)
    gap = " " if width > 1 else ""
    if picture.ticks:
        yield Text(" " * (margin + 2) + _ruler(picture, width + len(gap)), style="dim", no_wrap=True)
    for name, row in zip(picture.row_names, picture.cells, strict=True):
        line = Text(f"{name:>{margin}}  ", no_wrap=True)
        for cell in row:
            line.append_text(_cell(cell, width))
            line.append(gap)
        yield line
    if not picture.cells:
        yield Text("(nothing to draw)", style="dim")
    if picture.legend:
        yield Text(" " * (margin + 2)).append_text(_legend(picture))


def _ruler(picture: Picture, step: int) -> str:
    """The names of columns, above the columns. A name for which there is no room is left out."""
    line = ""
    for column, name in sorted(picture.ticks.items()):
        if column * step >= len(line):
            line = line.ljust(column * step) + name + " "
    return line.rstrip()


def _legend(picture: Picture) -> Text:
    text = Text()
    for cell, meaning in picture.legend:
        text.append_text(_cell(cell, len(cell.text))).append(f" {meaning}   ")
    return text


def _cell(cell: Cell, width: int) -> Text:
    return Text(f"{cell.text:>{width}}", style=STYLES.get(cell.kind, ""))
