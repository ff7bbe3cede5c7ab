"""Pages in a browser: what a screen reader is told, by axe-core and by the browser's own tree of accessible names; whether text
can be read on its colours, light and dark; and whether texts of a picture overlap.

`tox run -e browser` installs what drives a browser. The browser is Chromium or Chrome, as the machine has it.
"""

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec
import pytest
from attn_fuzz.cases.case import Case, Request
from attn_fuzz.cases.features import count
from attn_fuzz.report import grid, markup, page, svg
from attn_fuzz.report.grid import Cell, Picture
from attn_fuzz.run.case.trial import try_case
from attn_fuzz.run.shard import Progress
from planted import NAN

from tests.fuzz.report.reported import failure_of, run_of

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: tox run -e browser")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python: tox run -e browser")

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
LEAST_CONTRAST = 4.5
"""Of text, in the guidelines WCAG 2, level AA."""
LEAST_DISTANCE = 10
"""Of two colours in CIELAB (1976): some four times what is just noticeable."""
replace = msgspec.structs.replace


class Text(NamedTuple):
    """A text of the page, with the colours of its letters and of what lies below, each (red, green, blue)."""

    text: str
    kind: str
    colour: tuple[int, int, int]
    below: tuple[int, int, int]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        # a browser has no sandbox where its user is root
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=BROWSER, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, tmp_path) -> Iterator[Callable[..., Any]]:
    """Opens HTML in a new tab, with all details unfolded."""
    tabs = []

    def open_page(content: bytes, scheme: str = "light") -> Any:
        path = tmp_path / "page.html"
        path.write_bytes(content)
        tabs.append(browser.new_page(viewport={"width": 1240, "height": 900}, color_scheme=scheme))
        tabs[-1].goto(path.as_uri())
        tabs[-1].evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        return tabs[-1]

    yield open_page
    for tab in tabs:
        tab.close()


@pytest.fixture
def large_case(step_case: Case) -> Case:
    """A mask that is sampled and ends within a block, a request with many blocks, and more requests than there are colours."""
    long = Request(query_len=203, seq_len=1003, blocks=tuple(range(251)), causal=True)
    short = (Request(query_len=1, seq_len=3, blocks=(251 + r,), causal=True) for r in range(8))
    cache = replace(step_case.cache, num_blocks=260)
    return replace(step_case, requests=(long, *short), window=(40, -1), sink_tokens=4, cache=cache)


@pytest.fixture
def run_page(step_case, large_case) -> bytes:
    """The page of a run with a failure and all other parts of a page."""
    first = {"first": large_case, "first_verdict": try_case(large_case, NAN, "cpu")}
    failure = failure_of(step_case, try_case(step_case, NAN, "cpu"), **first)
    progress = Progress(
        examples=3,
        seconds=2.0,
        spent={"build": 0.1, "target": 1.0, "judge": 0.4},
        together=count(step_case, count(large_case, [])),
        ratios={"out float32 decode": [5] + [0] * 78 + [1] + [0] * 4 + [2, 3], "lse float32 decode": [1] * 86},
    )
    return page.of_run(run_of(failure, progress=[progress]))


def every_kind() -> bytes:
    """A page with a cell of each kind that a picture may have."""
    kinds = [*grid.MEANINGS, *(f"owner-{i}" for i in range(grid.NUM_OWNER_COLOURS)), *(f"heat-{i}" for i in range(6))]
    cells = [[Cell(grid.MEANINGS.get(kind, ("7", ""))[0] or "7", kind)] for kind in kinds]
    picture = Picture("every kind", cells, kinds, {0: "0"}, "a note", num_requests=9)
    return markup.page("kinds", markup.element("h1", "kinds"), svg.picture(picture))


def images(tab: Any) -> list[str]:
    """The accessible names of all images, as the browser hands them to a screen reader."""
    nodes = tab.context.new_cdp_session(tab).send("Accessibility.getFullAXTree")["nodes"]
    return [node["name"]["value"] for node in nodes if node.get("role", {}).get("value") in ("image", "img")]


def test_nothing_stands_in_a_screen_readers_way(opened, run_page):
    for scheme in ("light", "dark"):
        found = axe.Axe().run(opened(run_page, scheme))
        assert not found.violations_count, found.generate_report()


def test_every_picture_has_a_name_of_its_own(opened, run_page):
    names = images(opened(run_page))
    assert len(names) == run_page.count(b'role="img"')
    assert all(names)
    assert "pairs of features: the number of examples that had both" in names
    bins = "11 elements, 99% at 2 or beyond, the largest at 2 or beyond"
    assert f"histogram of error over bound, out float32 decode: {bins}" in names
    assert any(name.startswith("time of all workers: build 0.1 s, target 1.0 s") for name in names)
    masks = [name for name in names if name.startswith("request 0: mask, 2 x 7 (queries x keys); ")]
    assert masks == ["request 0: mask, 2 x 7 (queries x keys); 13 cells: visible; 2 cells: a slot past seq_len; "
                     "1 cell: hidden: after the query"]  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_letter_can_be_read_on_its_colour(opened, run_page, scheme):
    texts = [*texts_on_colours(opened(every_kind(), scheme)), *texts_on_colours(opened(run_page, scheme))]
    kinds = {"in-visible", "in-window", "in-nan", "in-owner-5", "in-heat-5", "column pair", "small"}
    assert {text.kind for text in texts} >= kinds
    faint = {f"{text.kind}: {text.text!r}" for text in texts if contrast(text.colour, text.below) < LEAST_CONTRAST}
    assert not faint


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_cells_without_letters_are_told_apart_by_colour(opened, scheme):
    """In a mask with many columns; and the shades of pairs."""
    tab = opened(every_kind(), scheme)
    for kinds in (
        ("visible", "sink-token", "range", "some", "causal", "window", "chunk", "tree", "other", "past"),
        ("pair-1", "pair-2", "pair-3", "pair-4", "pair-5", "pair-undefined"),
    ):
        colours = {kind: tab.evaluate(_COLOUR_OF, kind) for kind in kinds}
        for one, other in itertools.combinations(kinds, 2):
            assert distance(colours[one], colours[other]) > LEAST_DISTANCE, (one, other)


def test_no_text_lies_on_another(opened, run_page):
    overlaps = opened(run_page).evaluate(_OVERLAPS)
    assert not overlaps


def test_no_text_of_a_picture_is_cut(opened, run_page):
    assert opened(run_page).evaluate(_CUT) == []


def test_each_column_of_pairs_has_its_name_and_each_shade_its_counts(opened, run_page):
    tab = opened(run_page)
    assert tab.locator("figure.pairs text.column").count() == tab.locator("figure.pairs text.name").count() > 60
    legend = tab.locator("figure.pairs .legend li").all_inner_texts()
    assert [text.strip() for text in legend] == ["1 example", "2 examples", "not drawn in this run", "no case has both"]
    last_class = "all => all.map(one => one.getAttribute('class').split(' ').pop())"
    used, shown = (set(tab.locator(f"figure.pairs {each}").evaluate_all(last_class)) for each in ("rect", ".swatch"))
    assert used == shown


def texts_on_colours(tab: Any) -> list[Text]:
    return [Text(text, kind, tuple(colour), tuple(below)) for text, kind, colour, below in tab.evaluate(_TEXTS)]


def contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """The contrast ratio of WCAG 2: from 1 to 21."""
    dark, light = sorted(_luminance(colour) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: tuple[int, ...]) -> float:
    return sum(share * _linear(part) for share, part in zip((0.2126, 0.7152, 0.0722), colour, strict=True))


def _linear(part: int) -> float:
    return part / 255 / 12.92 if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4


def distance(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """The distance of two colours in CIELAB (1976). 2.3 is just noticeable."""
    return sum((a - b) ** 2 for a, b in zip(_lab(one), _lab(other), strict=True)) ** 0.5


def _lab(colour: tuple[int, ...]) -> tuple[float, float, float]:
    red, green, blue = map(_linear, colour)
    x = (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.9505
    y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    z = (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.089
    a, b, c = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, y, z))
    return 116 * b - 16, 500 * (a - b), 200 * (b - c)


_PARTS = "const parts = colour => colour.match(/[0-9.]+/g).slice(0, 3).map(Number);"

_COLOUR_OF = f"""kind => {{
  {_PARTS}
  const swatch = document.body.appendChild(document.createElement("b"));
  swatch.className = "swatch " + kind;
  return parts(getComputedStyle(swatch).backgroundColor);
}}"""

# below a text of a picture: the last rect before it that holds its middle, or the page
_TEXTS = f"""() => {{
  {_PARTS}
  const paper = parts(getComputedStyle(document.body).backgroundColor);
  const found = [];
  for (const svg of document.querySelectorAll("svg")) {{
    const rects = [...svg.querySelectorAll("rect")].map(rect => [rect, rect.getBoundingClientRect()]);
    for (const text of svg.querySelectorAll("text")) {{
      const box = text.getBoundingClientRect(), x = box.x + box.width / 2, y = box.y + box.height / 2;
      const turned = text.hasAttribute("transform");
      const holds = ([_, r]) => !turned && r.left <= x && x <= r.right && r.top <= y && y <= r.bottom;
      const below = rects.filter(holds).map(([rect, _]) => rect).pop();
      const fill = below ? parts(getComputedStyle(below).fill) : paper;
      found.push([text.textContent, text.className.baseVal, parts(getComputedStyle(text).fill), fill]);
    }}
  }}
  return found;
}}"""

# texts that are not turned; the pairs' names on the diagonal are parallel
_OVERLAPS = """() => {
  const found = [];
  for (const svg of document.querySelectorAll("svg")) {
    const texts = [...svg.querySelectorAll("text:not([transform])")].filter(text => text.textContent);
    const boxes = texts.map(text => [text.textContent, text.getBBox()]);
    const rows = new Map();
    for (const [name, box] of boxes) {
      const row = Math.round(box.y);
      for (const [other, b] of rows.get(row) ?? [])
        if (Math.min(box.x + box.width, b.x + b.width) - Math.max(box.x, b.x) > 0.5) found.push([other, name]);
      rows.set(row, [...(rows.get(row) ?? []), [name, box]]);
    }
  }
  return found;
}"""

_CUT = """() => [...document.querySelectorAll("svg")].flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text")].filter(text => {
    const box = text.getBoundingClientRect();
    return text.textContent && (box.left < frame.left - 0.5 || box.right > frame.right + 0.5 || box.top < frame.top - 0.5
                                || box.bottom > frame.bottom + 0.5);
  }).map(text => text.textContent);
})"""
