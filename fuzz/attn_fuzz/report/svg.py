"""Pictures, histograms and the table of pairs as SVG. Colours are classes that the page's style defines, light and dark."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from xml.etree.ElementTree import Element

from attn_fuzz.cases.features import FEATURES, undefined
from attn_fuzz.report.markup import element
from attn_fuzz.report.pictures import Cell, Picture
from attn_fuzz.verdict.ratios import BROKEN, NUM_BINS

LETTER_WIDTH, LINE = 7.5, 18
MOST_COLUMNS_WITH_TEXT = 64
SMALLEST_CELL = 8


def picture(picture: Picture) -> Element:
    """A figure: the grid with the names of its rows and columns, and a legend of colours and letters."""
    columns = max(map(len, picture.cells), default=0)
    longest = max((len(cell.text) for row in picture.cells for cell in row), default=1)
    with_text = columns <= MOST_COLUMNS_WITH_TEXT
    width = round(longest * LETTER_WIDTH) + 6 if with_text else SMALLEST_CELL
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
    drawing = element("svg", *marks, viewBox=f"0 0 {size[0]} {size[1]}", width=size[0], height=size[1], role="img")
    legend = (
        element("li", element("b", cell.text, class_=f"swatch {cell.kind}"), f" {meaning}") for cell, meaning in picture.legend
    )
    caption = element("figcaption", element("strong", picture.title), element("span", picture.note, class_="note"))
    return element(
        "figure", caption, element("div", drawing, class_="scroll"), element("ul", *legend, class_="legend"), class_="picture"
    )


def _ticks(picture: Picture, margin: int, width: int) -> Iterator[Element]:
    """The names of columns. A name for which there is no room is left out."""
    free = 0
    for column, name in sorted(picture.ticks.items()):
        x = column * width
        if x >= free:
            yield element("text", name, x=margin + x, y=LINE - 5, class_="tick")
            free = x + (len(name) + 1) * LETTER_WIDTH


def _runs(row: Sequence[Cell]) -> Iterator[tuple[int, int, Cell]]:
    """Start, length and first cell of each run of equal cells. Cells with different titles are not equal."""
    for _, run in groupby(enumerate(row), key=lambda item: item[1]):
        cells = list(run)
        yield cells[0][0], len(cells), cells[0][1]


def histogram(counts: Sequence[int]) -> Element:
    """Elements by error over bound, from 2^-20 to 2, with four steps to a factor of 2. The heights are square roots of counts.

    All steps are one path. A page has dozens of histograms, and an element for each step would make them ten times as large.
    """
    most = max(counts) or 1
    tops = [f"{round(48 - 46 * (count / most) ** 0.5, 1):g}" for count in counts]
    bars = [_steps(0, tops[:BROKEN], "bar")]
    if any(counts[BROKEN:]):
        bars.append(_steps(BROKEN, tops[BROKEN:], "bar-broken"))
    bound = 4 * BROKEN - 0.5
    marks = [
        element("line", x1=0, y1=48.5, x2=4 * NUM_BINS, y2=48.5, class_="axis"),
        element("line", x1=bound, y1=0, x2=bound, y2=52, class_="bound"),
        *(
            element("text", f"2^{exponent}" if exponent else "bound", x=4 * (1 + 4 * (exponent + 20)), y=60, class_="small")
            for exponent in (-20, -15, -10, -5, 0)
        ),
    ]
    return element("svg", *bars, *marks, viewBox=f"-10 0 {4 * NUM_BINS + 20} 64", class_="histogram", role="img")


def _steps(first: int, tops: Sequence[str], kind: str) -> Element:
    """The area between the axis and the tops of bins. Neighbours of equal height are one step.

    Args:
        first: index of the first bin.
    """
    steps = "".join(f"V{top}h{4 * len(list(run))}" for top, run in groupby(tops))
    return element("path", d=f"M{4 * first} 48{steps}V48z", class_=kind)


def pairs(together: Sequence[int]) -> Element:
    """How many examples had each pair of features. A darker cell is a larger count. A pair that no case can have is marked."""
    names, cell, margin = [feature.name for feature in FEATURES], 11, 190
    most = max(together, default=0) or 1
    marks = []
    for i, first in enumerate(names):
        y = i * cell
        marks.append(element("text", first, x=margin - 6, y=y + 9, class_="name pair"))
        for j in range(i):
            count, second = together[j * len(names) + i], names[j]
            why = undefined(second, first)
            what = f"{count} examples" if count else f"none: {why}" if why else "not drawn in this run"
            kind = (
                f"pair-{1 + min(4, int(5 * (count / most) ** 0.5))}" if count else "pair-undefined" if why else "pair-missing"
            )
            title = element("title", f"{second} + {first}: {what}")
            marks.append(element("rect", title, x=margin + j * cell, y=y, width=cell - 1, height=cell - 1, class_=kind))
    size = (margin + len(names) * cell, len(names) * cell + 2)
    return element("svg", *marks, viewBox=f"0 0 {size[0]} {size[1]}", width=size[0], height=size[1], role="img")
