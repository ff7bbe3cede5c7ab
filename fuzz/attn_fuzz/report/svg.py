"""Pictures and histograms as SVG. Colours are classes that the page's style defines, light and dark."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from xml.etree.ElementTree import Element

from attn_fuzz.report.grid import Cell, Picture
from attn_fuzz.report.markup import element, scrolled
from attn_fuzz.verdict.ratios import BINS_PER_OCTAVE, BROKEN, NUM_BINS, OCTAVES

LETTER_WIDTH, LINE = 7.5, 18
BIN, AXIS, APART = 4, 48, 12
"""A histogram's width of a bin, height of the axis, and distance of the outermost bins from the others."""
MAX_COLUMNS_WITH_TEXT = 64
MIN_CELL = 8


def picture(picture: Picture) -> Element:
    """A figure: the grid with the names of its rows and columns, and a legend of colours and letters."""
    columns = max(map(len, picture.cells), default=0)
    longest = max((len(cell.text) for row in picture.cells for cell in row), default=1)
    with_text = columns <= MAX_COLUMNS_WITH_TEXT
    width = round(longest * LETTER_WIDTH) + 6 if with_text else MIN_CELL
    margin = round(max(map(len, picture.row_names), default=0) * LETTER_WIDTH) + 10
    top = LINE if picture.ticks else 2
    marks = [*_ticks(picture, margin, width)]
    for y, (name, row) in enumerate(zip(picture.row_names, picture.cells, strict=True)):
        middle = top + y * LINE + LINE - 5
        marks.append(element("text", name, x=margin - 6, y=middle, class_="name"))
        for x, length, cell in _runs(row):
            title = element("title", cell.title or cell.text)
            box = {"x": margin + x * width, "y": top + y * LINE, "width": length * width - 1, "height": LINE - 1}
            marks.append(element("rect", title, class_=cell.kind, **box))
        if with_text:
            texts = (
                element("text", cell.text, x=margin + x * width + width / 2 - 0.5, y=middle, class_=f"in-{cell.kind}")
                for x, cell in enumerate(row)
            )
            marks += texts
    size = (margin + columns * width + 40, top + len(picture.cells) * LINE + 2)
    drawing = _drawing(picture.words, marks, (0, 0, *size), width=size[0], height=size[1])
    caption = element("figcaption", element("strong", picture.title), element("span", picture.note, class_="note"))
    described = legend((cell.kind, cell.text, meaning) for cell, meaning in picture.legend)
    return element("figure", caption, scrolled(drawing, picture.title), described, class_="picture")


def legend(entries: Iterable[tuple[str, str, str]]) -> Element:
    """A list of swatches: class, letter and meaning of each."""
    items = (element("li", element("b", letter, class_=f"swatch {kind}"), f" {meaning}") for kind, letter, meaning in entries)
    return element("ul", *items, class_="legend")


def _drawing(words: str, marks: Sequence[Element], box: tuple[float, ...], **attributes: object) -> Element:
    """An svg element with its left, top, width and height. `words` name it to a reader who does not see it, and hears nothing
    of what is inside."""
    return element("svg", *marks, viewBox=" ".join(map(str, box)), role="img", aria_label=words, **attributes)


def _ticks(picture: Picture, margin: int, width: int) -> Iterator[Element]:
    """The names of columns, and a mark at the left edge of each. A name for which there is no room is left out."""
    free = 0
    for column, name in sorted(picture.ticks.items()):
        x = column * width
        yield element("line", x1=margin + x - 0.5, y1=LINE - 4, x2=margin + x - 0.5, y2=LINE, class_="mark")
        if x >= free:
            yield element("text", name, x=margin + x, y=LINE - 5, class_="tick")
            free = x + (len(name) + 1) * LETTER_WIDTH


def _runs(row: Sequence[Cell]) -> Iterator[tuple[int, int, Cell]]:
    """Start, length and first cell of each run of equal cells. Cells with different titles are not equal."""
    for _, run in groupby(enumerate(row), key=lambda item: item[1]):
        cells = list(run)
        yield cells[0][0], len(cells), cells[0][1]


def histogram(counts: Sequence[int], words: str) -> Element:
    """Elements by error over bound, with four steps to a factor of 2. The heights are square roots of counts.

    The first bar, of all that is below 2^-20, and the last one, of 2 and more, stand apart: they are no steps of the scale.
    All steps are one path. A page has dozens of histograms, and an element for each step would make them ten times as large.

    Args:
        words: the histogram's name for a reader who does not see it.
    """
    most = max(counts) or 1
    tops = [f"{round(AXIS - 46 * (count / most) ** 0.5, 1):g}" for count in counts]
    last = NUM_BINS - 1
    bars = [_steps(0, tops[:1], "bar"), _steps(1, tops[1:BROKEN], "bar")]
    if any(counts[BROKEN:]):
        bars += [_steps(BROKEN, tops[BROKEN:last], "bar-broken"), _steps(last, tops[last:], "bar-broken")]
    bound = _place(BROKEN) - 0.5
    names = [(_place(0.5), "<2⁻²⁰"), (bound, "bound"), (_place(last) + BIN / 2, "≥2")]
    names += [(_place(1 + BINS_PER_OCTAVE * (exponent - OCTAVES.start)), name) for exponent, name in OCTAVES_NAMED.items()]
    marks = [
        *(
            element("line", x1=_place(a), y1=AXIS + 0.5, x2=_place(b - 1) + BIN, y2=AXIS + 0.5, class_="axis")
            for a, b in _PARTS
        ),
        element("line", x1=bound, y1=0, x2=bound, y2=AXIS + 4, class_="bound"),
        *(element("text", name, x=x, y=AXIS + 13, class_="small") for x, name in names),
    ]
    return _drawing(words, [*bars, *marks], (-18, 0, _place(NUM_BINS) + 30, AXIS + 16), class_="histogram")


OCTAVES_NAMED = {-15: "2⁻¹⁵", -10: "2⁻¹⁰", -5: "2⁻⁵"}
_PARTS = ((0, 1), (1, NUM_BINS - 1), (NUM_BINS - 1, NUM_BINS))
"""Bins that have an axis in common."""


def _place(index: float) -> float:
    """The place where a bin begins."""
    return BIN * index + APART * (index >= 1) + APART * (index >= NUM_BINS - 1)


def _steps(first: int, tops: Sequence[str], kind: str) -> Element:
    """The area between the axis and the tops of bins. Neighbours of equal height are one step.

    Args:
        first: index of the first bin.
    """
    steps = "".join(f"V{top}h{BIN * len(list(run))}" for top, run in groupby(tops))
    return element("path", d=f"M{_place(first)} {AXIS}{steps}V{AXIS}z", class_=kind)
