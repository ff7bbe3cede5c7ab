"""Text from outside, made fit to be shown: a terminal obeys control characters, and so does who reads one line of a log.

Importing this module needs no extra.
"""

import difflib
from collections.abc import Iterable


def printable(text: str, kept: str = "") -> str:
    """The text with `?` for each character that cannot be printed, except for the characters in `kept`."""
    return "".join(character if character.isprintable() or character in kept else "?" for character in text)


def one_line(text: str, most: int | None = None) -> str:
    """The text as one printable line of at most `most` characters. Its middle is left out where it is longer."""
    line = printable(" ".join(text.split()))
    if most is None or len(line) <= most:
        return line
    end = most * 3 // 5  # a compiler quotes the source first and names the error last
    return f"{line[: most - end - 5]} ... {line[-end:]}"


def how_many(number: int, noun: str) -> str:
    """The number and its noun, which gets an s if it is not one: "1 case", "2 cases"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def nearest(name: str, names: Iterable[str]) -> str:
    """A question for an error about an unknown name: whether a similar name was meant. Empty if no name is similar."""
    found = difflib.get_close_matches(name, names, 1)
    return f": did you mean {found[0]}?" if found else ""
