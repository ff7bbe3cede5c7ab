"""Counts the steps that code of Python and its regular expressions take, so that a test of growth needs no clock."""

import re
import sys
from collections.abc import Callable, Iterator
from re import _constants as codes  # pyright: ignore[reportAttributeAccessIssue]
from re import _parser as parser  # pyright: ignore[reportAttributeAccessIssue]
from types import FrameType
from typing import Any
from unittest.mock import patch

MODULES = ("attn_", "tomllib", "json", "yaml")
"""Packages whose lines are counted, and whose compiled patterns are."""


class Counter:
    def __init__(self) -> None:
        self.steps = 0

    def lines(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "call":
            return self.lines if frame.f_globals.get("__name__", "").startswith(MODULES) else None
        self.steps += event == "line"
        return self.lines


class Counted:
    """A compiled pattern. A search is counted by a matcher that backtracks as the one of `re` does."""

    def __init__(self, pattern: re.Pattern, counter: Counter) -> None:
        self._pattern, self._counter = pattern, counter
        self._tree = [*parser.parse(pattern.pattern, pattern.flags)]

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._pattern, name)
        if name not in ("match", "fullmatch", "search", "finditer", "findall", "sub", "split"):
            return found

        def counting(*arguments: Any, **named: Any) -> Any:
            begin = arguments[1] if name != "sub" and len(arguments) > 1 else 0
            tracing = sys.gettrace()
            sys.settrace(None)
            self._count(name, arguments[name == "sub"], begin)
            sys.settrace(tracing)
            return found(*arguments, **named)

        return counting

    def _count(self, how: str, text: str, place: int) -> None:
        while place <= len(text):
            self._counter.steps += 1
            end = next(self._ends(self._tree, text, place, {}), None)
            if how in ("match", "fullmatch") or (how == "search" and end is not None):
                return
            place = place + 1 if end is None or end == place else end

    def _ends(self, tree: list, text: str, place: int, groups: dict) -> Iterator[int]:
        """Where a match of some items may end, in the order in which they are tried."""
        if not tree:
            yield place
            return
        for end in self._item(tree[0], text, place, groups):
            yield from self._ends(tree[1:], text, end, groups)

    def _item(self, item: tuple, text: str, place: int, groups: dict) -> Iterator[int]:
        self._counter.steps += 1
        code, value = item
        if code in (codes.MAX_REPEAT, codes.POSSESSIVE_REPEAT, codes.MIN_REPEAT):
            ends = self._repeated(*value, text, place, groups)
            if code is codes.MIN_REPEAT:
                yield from ends
            elif found := [*ends]:
                yield from found[:-2:-1] if code is codes.POSSESSIVE_REPEAT else found[::-1]
        elif code is codes.SUBPATTERN:
            group, _, _, inner = value
            for end in self._ends([*inner], text, place, groups):
                groups[group] = text[place:end]
                yield end
        elif code is codes.BRANCH:
            for inner in value[1]:
                yield from self._ends([*inner], text, place, groups)
        elif code in (codes.ASSERT, codes.ASSERT_NOT):
            way, inner = value
            begins = [place] if way > 0 else [place - 1] if place else []
            found = any(next(self._ends([*inner], text, begin, groups), None) is not None for begin in begins)
            if found == (code is codes.ASSERT):
                yield place
        elif code is codes.GROUPREF:
            if text.startswith(groups.get(value, "\0"), place):
                yield place + len(groups[value])
        elif code is codes.AT:
            if self._is_at(value, text, place):
                yield place
        elif place < len(text) and self._is_one(item, text[place]):
            yield place + 1

    def _repeated(self, least: int, most: int, inner: Any, text: str, place: int, groups: dict) -> Iterator[int]:
        """The ends after each number of repetitions. A repetition is not tried another way: our patterns need none."""
        times = 0
        while True:
            if times >= least:
                yield place
            end = next(self._ends([*inner], text, place, groups), None) if times < most else None
            if end is None or end == place:
                return
            place, times = end, times + 1

    def _is_at(self, where: Any, text: str, place: int) -> bool:
        lines = bool(self._pattern.flags & re.MULTILINE)
        if where is codes.AT_BOUNDARY:
            return _is_word(text, place - 1) != _is_word(text, place)
        if where in (codes.AT_BEGINNING, codes.AT_BEGINNING_STRING):
            return place == 0 or (lines and where is codes.AT_BEGINNING and text[place - 1] == "\n")
        assert where in (codes.AT_END, codes.AT_END_STRING), where
        return place == len(text) or (lines and where is codes.AT_END and text[place] == "\n")

    def _is_one(self, item: tuple, character: str) -> bool:
        code, value = item
        if code is codes.LITERAL:
            return ord(character) == value
        if code is codes.NOT_LITERAL:
            return ord(character) != value
        if code is codes.ANY:
            return character != "\n" or bool(self._pattern.flags & re.DOTALL)
        assert code is codes.IN, code
        negated = value[0][0] is codes.NEGATE
        return negated != any(_is_in(each, character) for each in value[negated:])


def _is_word(text: str, place: int) -> bool:
    return 0 <= place < len(text) and (text[place].isalnum() or text[place] == "_")


def _is_in(item: tuple, character: str) -> bool:
    code, value = item
    if code is codes.RANGE:
        return value[0] <= ord(character) <= value[1]
    if code is codes.CATEGORY:
        return {
            codes.CATEGORY_DIGIT: character.isdigit(),
            codes.CATEGORY_SPACE: character.isspace(),
            codes.CATEGORY_NOT_SPACE: not character.isspace(),
            codes.CATEGORY_WORD: _is_word(character, 0),
        }[value]
    return ord(character) == value


def steps(function: Callable[[], object]) -> int:
    """How many steps a call takes, whatever it raises."""
    counter = Counter()
    patterns = [
        patch.object(module, name, Counted(value, counter))
        for module_name, module in [*sys.modules.items()]
        if module_name.startswith(MODULES)
        for name, value in [*vars(module).items()]
        if isinstance(value, re.Pattern) and isinstance(value.pattern, str)
    ]
    for each in patterns:
        each.start()
    before = sys.gettrace()
    sys.settrace(counter.lines)
    try:
        function()
    except Exception:
        pass
    finally:
        sys.settrace(before)
        for each in patterns:
            each.stop()
    return counter.steps
