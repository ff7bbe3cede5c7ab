"""Answers by mistake and place: one byte for each size of each mistake."""

import functools
from collections.abc import Sequence

import msgspec
from attn_contract import Layout
from attn_fuzz.mistakes import MISTAKES
from attn_fuzz.mistakes.mistake import Change, Mistake

ANYWHERE = ""
"""The place in which all cases are."""
DTYPE = "a cache of "
"""The beginning of the name of a place where the elements of the cache have a dtype."""
OF_LAYOUTS = ("num_kv_heads", "keys and values", "block_table", "strides", "keys past the end")
OF_DTYPES = ("k_scale, v_scale", "kv_cache_dtype", "keys past the end")
"""The subjects of mistakes that a kernel may make with one layout, or one dtype, of the cache alone."""
ENOUGH = 3
"""A mistake that so many cases have shown is not asked again, once each of its sizes has been shown. At a path, layout or dtype
one case is enough, and one size."""
NOT_ASKED, AGREES, DIFFERS = 0, 1, 2
"""The answers: the mistake was not asked, or cannot be made; the output with it agrees; the output with it is wrong."""

SIZES: tuple[tuple[Mistake, Change], ...] = tuple((mistake, change) for mistake in MISTAKES for change in mistake.changes)
"""The sizes of all mistakes. An index into them names one."""
SIZES_OF: tuple[tuple[int, ...], ...] = tuple(
    tuple(index for index, (each, _) in enumerate(SIZES) if each is mistake) for mistake in MISTAKES
)
"""For each of MISTAKES the indices of its sizes."""
_MISTAKE_OF = tuple(index for index, mistake in enumerate(MISTAKES) for _ in mistake.changes)
_MOST = 255


@functools.cache
def concerns(place: str) -> tuple[bool, ...]:
    """For each of MISTAKES whether a kernel may make it at a place and not at others."""
    subjects = OF_LAYOUTS if place in Layout.__members__ else OF_DTYPES if place.startswith(DTYPE) else None
    return tuple(subjects is None or mistake.about in subjects for mistake in MISTAKES)


class Account(msgspec.Struct, frozen=True):
    """How many cases have asked, and how many have shown, each size of each mistake at one place.

    Attributes:
        asked, shown: a byte for each of SIZES. It counts up to 255.
    """

    asked: bytes = bytes(len(SIZES))
    shown: bytes = bytes(len(SIZES))

    def with_answers(self, answers: bytes) -> "Account":
        return self.plus(Account(bytes(map(bool, answers)), bytes(each == DIFFERS for each in answers)))

    def needs(self, place: str) -> list[bool]:
        """For each of SIZES whether a case at this place is to be asked."""
        concerned, shown = concerns(place), [sum(self.shown[index] for index in sizes) for sizes in SIZES_OF]
        if place != ANYWHERE:
            return [concerned[mistake] and not shown[mistake] for mistake in _MISTAKE_OF]
        return [not count or shown[mistake] < ENOUGH for mistake, count in zip(_MISTAKE_OF, self.shown, strict=True)]

    def plus(self, other: "Account") -> "Account":
        return Account(_sum(self.asked, other.asked), _sum(self.shown, other.shown))


Accounts = dict[str, Account]
"""By place."""


def added(accounts: Accounts, places: Sequence[str], answers: bytes) -> Accounts:
    """The accounts with the answers of one more case, which was in some places; `answers` has a byte for each of SIZES."""
    if not answers:
        return accounts
    return accounts | {place: accounts.get(place, Account()).with_answers(answers) for place in places}


def together(parts: Sequence[Accounts]) -> Accounts:
    """The account of all parts of a run."""
    found: Accounts = {}
    for accounts in parts:
        for place, account in accounts.items():
            found[place] = found[place].plus(account) if place in found else account
    return found


def _sum(first: bytes, second: bytes) -> bytes:
    return bytes(min(a + b, _MOST) for a, b in zip(first, second, strict=True))
