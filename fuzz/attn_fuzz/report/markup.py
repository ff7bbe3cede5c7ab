"""HTML and SVG as elements. Texts and attributes may come from a stranger: they lose characters that cannot be printed when an
element is made, and all of them are escaped when a page is written."""

from importlib.resources import files
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from attn_fuzz.text import printable


def element(tag: str, *children: Element | str, **attributes: object) -> Element:
    """An element with its children in order. In an attribute's name, `_` becomes `-`; at the end it is left out (`class_`)."""
    names = {name.rstrip("_").replace("_", "-"): printable(str(value), kept="\n") for name, value in attributes.items()}
    parent = Element(tag, names)
    for child in children:
        if isinstance(child, Element):
            parent.append(child)
        elif len(parent):
            parent[-1].tail = (parent[-1].tail or "") + printable(child, kept="\n")
        else:
            parent.text = (parent.text or "") + printable(child, kept="\n")
    return parent


def scrolled(child: Element, name: str) -> Element:
    """A child that may be wider than the page. Keys scroll it, too: it takes the focus, and so has a name."""
    return element("div", child, class_="scroll", role="group", aria_label=f"{name}, to scroll", tabindex=0)


def table(name: str, columns: list[str], rows: list[list[str]]) -> Element:
    head = element("tr", *(element("th", column, scope="col") for column in columns))
    body = (element("tr", *(element("td", text) for text in row)) for row in rows)
    return scrolled(element("table", element("thead", head), element("tbody", *body), aria_label=name), name)


def facts(pairs: dict[str, str]) -> Element:
    """A list of names and values, side by side."""
    return element("dl", *(element("div", element("dt", name), element("dd", text)) for name, text in pairs.items()))


def page(title: str, *children: Element) -> bytes:
    """A page that holds its style, has no script, and fetches nothing."""
    style = files("attn_fuzz.report").joinpath("page.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", style),
    )
    html = element("html", head, element("body", element("main", *children)), lang="en")
    return b"<!doctype html>\n" + ElementTree.tostring(html, method="html", encoding="unicode").encode(
        "utf-8", "backslashreplace"
    )
