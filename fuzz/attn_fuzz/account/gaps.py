"""What a run could not have seen, in words and as plain data."""

import itertools
from collections.abc import Collection, Iterator, Set
from typing import NamedTuple

from attn_fuzz.account.account import ANYWHERE, SIZES_OF, Account, Accounts, concerns
from attn_fuzz.mistakes import MISTAKES
from attn_fuzz.mistakes.mistake import Mistake
from attn_fuzz.text import how_many, nearest

NAMED, PLACES = 6, 6
"""The most mistakes, and places, that a line names. JSON has all."""
SUBJECTS = tuple(dict.fromkeys(mistake.about for mistake in MISTAKES))


class Row(NamedTuple):
    """A mistake at a place: how many cases have asked it, in how many of its sizes it was asked and shown."""

    mistake: Mistake
    asked: int
    sizes_asked: int
    sizes_shown: int

    @property
    def is_seen(self) -> bool:
        return self.sizes_shown > 0 and self.sizes_shown >= self.sizes_asked

    def __str__(self) -> str:
        if not self.asked:
            return f"{self.mistake.sentence} (never drawn)"
        how = f"seen in {self.sizes_shown} of {self.sizes_asked} sizes" if self.sizes_shown else "never beyond the bound"
        return f"{self.mistake.sentence} (drawn {how_many(self.asked, 'time')}, {how})"


def rows(account: Account) -> list[Row]:
    found = []
    for mistake, sizes in zip(MISTAKES, SIZES_OF, strict=True):
        asked, shown = ([counts[index] for index in sizes] for counts in (account.asked, account.shown))
        found.append(Row(mistake, max(asked), sum(map(bool, asked)), sum(map(bool, shown))))
    return found


def lines(accounts: Accounts, subjects: Set[str]) -> list[str]:
    """Lines for the end of a run, on the mistakes that it could not have seen. None if no case was asked.

    Args:
        subjects: what mistakes may be about, of SUBJECTS. Others are no gap, such as rules that the target does not support.
    """
    if ANYWHERE not in accounts:
        return []
    everywhere = [row for row in rows(accounts[ANYWHERE]) if row.mistake.about in subjects]
    seen = {row.mistake.sentence for row in everywhere if row.is_seen}
    return [*_not_seen(everywhere), *_at_places(accounts, seen)]


def _not_seen(everywhere: list[Row]) -> Iterator[str]:
    by_subject = {subject: [row for row in everywhere if row.mistake.about == subject] for subject in SUBJECTS}
    never = [subject for subject, found in by_subject.items() if found and not any(row.asked for row in found)]
    if never:
        yield f"not seen, since no case has any: mistakes about {', '.join(never)}"
    some = [[str(row) for row in found if not row.is_seen] for subject, found in by_subject.items() if subject not in never]
    # the first mistake about each subject comes first
    missing = [each for of_subject in itertools.zip_longest(*some) for each in of_subject if each is not None]
    if missing:
        yield f"not seen: {_first(missing, NAMED, '; ')}"


def _at_places(accounts: Accounts, seen: Set[str]) -> Iterator[str]:
    """A line on mistakes that were asked at a place, not seen there, and seen at others."""
    missing = {}
    for place, account in sorted(accounts.items()):
        rows_here = [row for row, is_relevant in zip(rows(account), concerns(place), strict=True) if is_relevant]
        unseen = [
            row.mistake.sentence for row in rows_here if row.asked and not row.sizes_shown and row.mistake.sentence in seen
        ]
        if place != ANYWHERE and unseen:
            missing[place] = unseen
    # first the paths and modes of the target, where any mistake may be made
    places = sorted(missing, key=lambda place: not all(concerns(place)))
    if places:
        told = [f"in {place}: {_first(missing[place], 1)}" for place in places]
        yield f"not seen {_first(told, PLACES, '; ')}"


def _first(sentences: list[str], most: int, joint: str = ", ") -> str:
    more = [f"and {len(sentences) - most} more"] * (len(sentences) > most)
    return joint.join([*sentences[:most], *more])


def unknown(names: Collection[str]) -> str:
    """An error about the first name that is neither a subject nor the sentence of a mistake; empty if there is none."""
    known = [*SUBJECTS, *(mistake.sentence for mistake in MISTAKES)]
    for name in names:
        if name not in known:
            return f"{name!r}, expected one of {', '.join(SUBJECTS)}, or the sentence of a mistake{nearest(name, known)}"
    return ""


def missing(accounts: Accounts, names: Collection[str]) -> list[str]:
    """Of the mistakes that some names mean, those that no case could have shown."""
    everywhere = rows(accounts.get(ANYWHERE, Account()))
    return [str(row) for row in everywhere if {row.mistake.about, row.mistake.sentence} & {*names} and not row.is_seen]


def to_json(accounts: Accounts) -> list[dict[str, object]]:
    """A record for each mistake, with how many cases asked it and how many of its sizes were shown, by place."""
    by_place = {place: rows(account) for place, account in sorted(accounts.items())}
    return [
        {
            "mistake": mistake.sentence,
            "about": mistake.about,
            "sizes": len(mistake.changes),
            "places": {place or "anywhere": [found[i].asked, found[i].sizes_shown] for place, found in by_place.items()},
        }
        for i, mistake in enumerate(MISTAKES)
    ]
