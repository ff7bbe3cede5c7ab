"""Which way of looking finds which mutant: as JSON, and as the page docs/generated/zoo-ways.md."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Final, Literal

import msgspec
from attn_fuzz.report.zoo_page import NEEDS_GPU, UNFINISHED
from attn_fuzz.zoo.mutants import KnownBug, MutantError

SCHEMA = "attn-parity.ways/1"
Way = Literal["judge", "property", "sanitizer", "exact", "exhaust", "proof"]
COUNTED: Final[Mapping[Way, str]] = {
    "judge": "examples",
    "property": "examples",
    "sanitizer": "examples",
    "exact": "examples",
    "exhaust": "launches",
    "proof": "claims",
}
"""The ways, and what each of them counts."""
EXPLAINED: Final[tuple[Way, ...]] = ("exact", "exhaust")
"""Ways that are to find all that they can: of each mutant that they do not find, its file says why (`unseen`)."""
DOES_NOT_RUN = "does not run"


class Caught(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one way made of a mutant.

    Attributes:
        found: after how many examples, launches or claims each seed found it, None where it did not; empty if the run did not
            come to its end.
        seconds: the median over the seeds that found it.
        by: the kind of the verdict, or the theorems that are false.
        note: what the way could not look at.
        error: why the mutant does not run, if it does not.
    """

    found: tuple[int | None, ...] = ()
    seconds: float | None = None
    by: str | None = None
    note: str = ""
    error: str | None = None

    @property
    def is_caught(self) -> bool:
        return bool(self.found) and None not in self.found

    @property
    def is_missed(self) -> bool:
        """Whether the way came to its end and no seed found it. A way without an end has missed nothing."""
        return bool(self.found) and set(self.found) == {None} and self.error is None

    @property
    def count(self) -> float | None:
        """The median over the seeds; None unless all of them found it."""
        return median(count for count in self.found if count is not None) if self.is_caught else None


_AND = " and "
_DRAW_NOTHING: Final[tuple[Way, ...]] = ("exhaust", "proof")


class Looked(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """How a way looked.

    Attributes:
        seeds, at_most: of drawn examples.
        scope: of an exhaustive run.
        versions: of what it used.
    """

    seeds: tuple[int, ...] = ()
    at_most: int = 0
    scope: str = ""
    versions: dict[str, str] = {}


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mutant by its name, and what each way made of it."""

    name: str
    ways: dict[Way, Caught]


class Results(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="schema", tag=SCHEMA):
    """The ways that have looked, and each mutant."""

    looked: dict[Way, Looked]
    mutants: tuple[Row, ...]


def merged(parts: Sequence[Results], names: Sequence[str]) -> Results:
    """Several results as one, with the mutants in the order of `names`. Of what two of them have, the later one counts, unless
    it was not run to its end.

    Raises:
        MutantError: two of them looked in one way with unlike settings.
    """
    looked: dict[Way, Looked] = {}
    rows: dict[str, dict[Way, Caught]] = {name: {} for name in names}
    for part in parts:
        for way, how in part.looked.items():
            whole = len({row.name for row in part.mutants if way in row.ways}) >= len(names)
            looked[way] = how if whole else _joined(way, looked.get(way, how), how)
        for row in part.mutants:
            if row.name in rows:
                fresh: dict[Way, Caught] = {way: caught for way, caught in row.ways.items() if caught.found or caught.error}
                rows[row.name] = row.ways | rows[row.name] | fresh
    return Results(looked=looked, mutants=tuple(Row(name, ways) for name, ways in rows.items() if ways))


def _joined(way: Way, one: Looked, other: Looked) -> Looked:
    """How a way looked in two parts. Exhaustive runs and proofs draw nothing: under other versions they look at the same.

    Raises:
        MutantError: the two have unlike settings.
    """
    known = {
        name: {*one.versions.get(name, number).split(_AND), *number.split(_AND)} for name, number in other.versions.items()
    }
    same = msgspec.structs.replace(one, versions=other.versions) if way in _DRAW_NOTHING else one
    if same != other:
        raise MutantError(f"{way}: results of {one} and of {other} do not go together")
    return msgspec.structs.replace(other, versions={name: _AND.join(sorted(numbers)) for name, numbers in known.items()})


def earliest(ways: Mapping[Way, Caught]) -> list[Way]:
    """The ways that found a mutant after the fewest calls. A proof makes no call."""
    calls: dict[Way, float | None] = {
        way: 0 if way == "proof" else caught.count for way, caught in ways.items() if caught.is_caught
    }
    least = min((count for count in calls.values() if count is not None), default=None)
    return [way for way, count in calls.items() if count == least]


def cheapest(ways: Mapping[Way, Caught]) -> Way | None:
    """The way that found a mutant in the fewest seconds."""
    seconds: dict[Way, float] = {
        way: caught.seconds for way, caught in ways.items() if caught.is_caught and caught.seconds is not None
    }
    return min(seconds, key=lambda way: seconds[way]) if seconds else None


def needless(results: Results, mutants: Sequence[KnownBug]) -> list[str]:
    """Reasons in the `unseen` of mutants that the way finds. A miss without a reason is "not explained" on the page."""
    rows = {row.name: row.ways for row in results.mutants}
    return [
        f"{mutant.name}: {way} finds it, and `unseen` says why it does not"
        for mutant in mutants
        for way in EXPLAINED
        if way in mutant.unseen and (caught := rows.get(mutant.name, {}).get(way)) is not None and caught.is_caught
    ]


def differences(results: Results, mutants: Sequence[KnownBug]) -> list[str]:
    """Mutants that a way has not looked at, and results without a mutant."""
    described = {mutant.name for mutant in mutants}
    wrong = [f"{row.name}: results without a mutant" for row in results.mutants if row.name not in described]
    for way in results.looked:
        seen = {row.name for row in results.mutants if way in row.ways}
        wrong += [f"{name}: a mutant without results of {way}" for name in sorted(described - seen)]
    return wrong


def in_words(caught: Caught | None, way: Way, mutant: KnownBug) -> str:
    """A cell: after how many, or why not."""
    if caught is None:
        return ""
    if caught.error:
        return DOES_NOT_RUN
    if not caught.found:
        return NEEDS_GPU if mutant.needs_gpu and way != "proof" else UNFINISHED
    if caught.is_caught:
        return f"{caught.count:g}"
    found = [count for count in caught.found if count is not None]
    if found:
        return f"{len(found)} of {len(caught.found)} seeds"
    return "refused" if way == "proof" and caught.note.startswith("refused") else "–"


def summary(results: Results) -> str:
    """One line: how many mutants each way finds, how many it alone finds, and of how many its run has no end."""
    looked: list[Way] = [way for way in COUNTED if way in results.looked]
    alone = Counter(finds_alone(row, looked) for row in results.mutants)
    total = Counter(way for row in results.mutants for way, caught in row.ways.items() if caught.is_caught)
    open_ones = Counter(way for row in results.mutants for way in looked if not _has_ended(row.ways.get(way)))
    parts = []
    for way in looked:
        more = [f"{alone[way]} alone"] * (len(looked) > 1) + [f"{open_ones[way]} without a result"] * bool(open_ones[way])
        parts.append(f"{way} {total[way]}" + (f" ({', '.join(more)})" if more else ""))
    return f"of {len(results.mutants)} mutants: {', '.join(parts)}"


def _has_ended(caught: Caught | None) -> bool:
    return caught is not None and bool(caught.found)


def finds_alone(row: Row, looked: Sequence[Way]) -> Way | None:
    """The way that finds a mutant which each other way has looked for, to its end, and missed; None if there is none."""
    found: list[Way] = [way for way in looked if (caught := row.ways.get(way)) is not None and caught.is_caught]
    missed = [way for way in looked if (caught := row.ways.get(way)) is not None and caught.is_missed]
    return found[0] if len(found) == 1 and len(missed) == len(looked) - 1 else None


_PREFACE = """\
# The zoo: which way of looking finds which bug

The mutants of [zoo.md](zoo.md), each looked for in each way alone. [ways.md](../reference/ways.md) says what a way is, and
what its numbers count. `attn-parity ways --write` wrote this page and zoo-ways.json, which holds its numbers. `attn-parity ways
--check` fails if the page is not made of that file and today's mutants.
"""


def text(results: Results, mutants: Sequence[KnownBug]) -> str:
    """The page, whole."""
    looked: list[Way] = [way for way in COUNTED if way in results.looked]
    rows = {row.name: row.ways for row in results.mutants}
    lines = [*_PREFACE.splitlines(), ""]
    lines += [f"- {way}: {_how(way, results.looked[way])}." for way in looked]
    lines += ["", f"{summary(results)[0].upper()}{summary(results)[1:]}.", ""]
    lines += [f"| mutant | class | {' | '.join(looked)} | earliest | cheapest |", f"|---|---|{'--:|' * len(looked)}---|---|"]
    for mutant in mutants:
        if (ways := rows.get(mutant.name)) is not None:
            cells = [in_words(ways.get(way), way, mutant) for way in looked]
            first, least = earliest(ways), cheapest(ways)
            cost = f"{least}, {ways[least].seconds:g} s" if least else ""
            lines.append(f"| `{mutant.name}` | {mutant.kind} | {' | '.join(cells)} | {', '.join(first)} | {cost} |")
    lines += _section("What one way alone finds, and why the others do not", _alone(results, mutants, looked))
    for way in EXPLAINED:
        if way in looked:
            unseen = [
                f"- `{mutant.name}`: {mutant.unseen.get(way, 'not explained')}"
                for mutant in mutants
                if (caught := rows.get(mutant.name, {}).get(way)) is not None and caught.found and not caught.is_caught
            ]
            open_ones = sum(line.endswith(": not explained") for line in unseen)
            title = f"What {way} does not find, and why" + (
                f": {open_ones} of {len(unseen)} not explained" if open_ones else ""
            )
            lines += _section(title, unseen)
    if "proof" in looked:
        false = [
            f"- `{mutant.name}`: {caught.by}"
            for mutant in mutants
            if (caught := rows.get(mutant.name, {}).get("proof")) is not None and caught.by
        ]
        lines += _section("Theorems that are false of a mutant", false)
        refused = [
            f"- `{mutant.name}`: {caught.note}"
            for mutant in mutants
            if (caught := rows.get(mutant.name, {}).get("proof")) is not None and caught.note
        ]
        lines += _section("Mutants whose source the extractor refuses", refused)
    return "\n".join(lines) + "\n"


def _how(way: Way, looked: Looked) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in looked.versions.items())
    seeds = f"seed{'s' * (len(looked.seeds) > 1)} {', '.join(map(str, looked.seeds))}, at most {looked.at_most} examples each"
    what = {"exhaust": f"scope {looked.scope}", "proof": "all theorems of [proofs.md](proofs.md)"}.get(way, seeds)
    return f"{what}; {versions}" if versions else what


def _alone(results: Results, mutants: Iterable[KnownBug], looked: Sequence[Way]) -> list[str]:
    rows = {row.name: row for row in results.mutants}
    return [
        f"- `{mutant.name}`, {way}: {mutant.what} {_why_not(mutant, rows[mutant.name], looked)}".rstrip()
        for mutant in mutants
        if mutant.name in rows and (way := finds_alone(rows[mutant.name], looked)) is not None
    ]


def _why_not(mutant: KnownBug, row: Row, looked: Sequence[Way]) -> str:
    """Why each way that missed a mutant did, where the mutant's file or the way itself says it."""
    missed = [way for way in looked if way in row.ways and row.ways[way].is_missed]
    reasons = [(way, mutant.unseen.get(way) or row.ways[way].note) for way in missed]  # type: ignore[call-overload]
    return " ".join(f"*{way}*: {reason}" for way, reason in reasons if reason)


def _section(title: str, lines: list[str]) -> list[str]:
    return ["", f"## {title}", "", *(lines or ["None."])]
