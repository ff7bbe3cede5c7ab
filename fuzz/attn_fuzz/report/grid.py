"""A picture as a grid of cells, and what the cells mean.

A cell has a kind, which gives it a colour, and a letter that can be read without colour. `terminal` and `svg` render pictures.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from attn_fuzz.text import how_many

NUM_OWNER_COLOURS = 6

MEANINGS = {
    "visible": ("#", "visible"),
    "sink-token": ("s", "visible, one of the sink_tokens"),
    "range": ("r", "visible, in a bidirectional range"),
    "causal": ("c", "hidden: after the query"),
    "window": ("w", "hidden: outside the window"),
    "chunk": ("k", "hidden: in another chunk"),
    "tree": ("t", "hidden: on another branch of the drafts"),
    "other": ("o", "hidden: by a rule that has no letter of its own"),
    "past": (".", "a slot past seq_len"),
    "some": ("%", "visible in part"),
    "shared": ("", "shared by several requests"),
    "garbage": ("", "unused entry, holds garbage"),
    "written": ("W", "key written by this step"),
    "before": ("b", "key from before"),
    "unseen": ("x", "key that no query sees, poisoned"),
    "neighbour": ("n", "written by the neighbour layer"),
    "unused": (".", "poison: nothing may be read here"),
    "leftover": (",", "a finite number that nothing may be made of"),
    "free": ("", "block of no request"),
    "padding": ("pad", "padding"),
    "guard": ("||", "guard around the allocation"),
    "layer": ("L", "another layer"),
    "broken": ("!", "beyond its bound"),
    "nan": ("N", "not finite"),
    "unwritten": ("U", "never written"),
    "stray": ("S", "written, and must not be"),
    "unowned": ("-", "row of no request"),
}
"""The letter of each kind of cell, and the letter's meaning."""


class Cell(NamedTuple):
    text: str
    kind: str
    """a key of MEANINGS; "owner-N" for a block of request N, modulo the number of colours; "heat-N" for an error, N up to 5"""
    title: str = ""


class Room(NamedTuple):
    """The most cells of a picture. A larger picture is sampled."""

    rows: int
    columns: int


@dataclass(frozen=True)
class Picture:
    """A grid of cells. `ticks` are names of columns, by index. `note` is a line below the title. `num_requests` are those of
    the case: several of them may have one colour."""

    title: str
    cells: Sequence[Sequence[Cell]]
    row_names: Sequence[str]
    ticks: Mapping[int, str] = field(default_factory=dict)
    note: str = ""
    num_requests: int = 0

    @property
    def words(self) -> str:
        """The picture for a reader who does not see it: its title, and how many cells have which meaning."""
        counts = Counter(self._meaning(cell.kind) for row in self.cells for cell in row)
        told = [f"{how_many(count, 'cell')}: {meaning}" for meaning, count in counts.most_common()]
        return "; ".join([self.title, *told])

    @property
    def legend(self) -> list[tuple[Cell, str]]:
        """For each kind in the picture that has a meaning: a cell of the kind, and the meaning."""
        found = {cell.kind: cell for row in self.cells for cell in row}
        entries = [(found[kind], meaning) for kind, (_, meaning) in MEANINGS.items() if kind in found]
        if heat := sorted(kind for kind in found if kind.startswith("heat")):
            entries.insert(0, (found[heat[-1]], "error in tenths of its bound"))
        owned = sorted(kind for kind in found if kind.startswith("owner"))
        return [*((found[kind], self._meaning(kind)) for kind in owned), *entries]

    def _meaning(self, kind: str) -> str:
        if kind in MEANINGS:
            return MEANINGS[kind][1]
        name, _, number = kind.partition("-")
        if name == "heat":
            return "error within its bound"
        requests = [str(r) for r in range(int(number), self.num_requests, NUM_OWNER_COLOURS)]
        return f"request {' or '.join(requests[:3])}{' or …' if len(requests) > 3 else ''}"


def cell(kind: str, place: str = "") -> Cell:
    """A cell of a kind of MEANINGS, with its letter and, for a tooltip, its meaning there."""
    letter, meaning = MEANINGS[kind]
    return Cell(letter, kind, f"{place}: {meaning}" if place else meaning)


def cuts(size: int, most: int) -> list[slice]:
    """Slices that cut the range of a size into at most `most` parts, which are as even as possible."""
    parts = max(1, min(size, most))
    return [slice(size * i // parts, size * (i + 1) // parts) for i in range(parts)] if size else []


def span(name: str, cut: slice, first: int = 0) -> str:
    """A slice of rows or columns in words, counted from `first`: "row 3", or "row 3 to 5"."""
    start, last = cut.start + first, cut.stop - 1 + first
    return f"{name} {start}" if start == last else f"{name} {start} to {last}"


def sampled(rows: Sequence[slice], columns: Sequence[slice]) -> str:
    """The number of elements that a cell of these rows and columns stands for, in words; empty if each stands for one."""
    most = [max((cut.stop - cut.start for cut in each), default=1) for each in (rows, columns)]
    return "" if most == [1, 1] else f"a cell is up to {most[0]} x {most[1]} elements"
