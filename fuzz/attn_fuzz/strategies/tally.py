"""Counts of drawn features, by which rare ones are preferred, and of rejected cases."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from attn_fuzz.cases.case import MAX_ELEMENTS, Case, num_elements
from attn_fuzz.cases.edges import edges
from attn_fuzz.cases.features import FEATURES, features
from attn_fuzz.targets.engine import RESTRICTIONS
from attn_fuzz.targets.support import Support

SMALL_PAGE = 64
"""Elements of a block of K at most, for block ids beyond 16 bits."""
SURE = 0.8
"""A restriction is a remedy if this share of the cases that were thrown away break it, and no case that was kept."""
SUPPORTED = "supported, where a case was to be refused"
"""The reason why a case is thrown away that was drawn beyond the support, and is not beyond it."""
SAMPLE = 200
"""The number of cases that are stored in order to find remedies."""
EDGE_SHARE = 0.25
"""With a larger share, the many pairs of edges would outweigh those of features."""
AXES = (("attention", "phase", "rule"), ("attention", "layout", "rule"))
"""Groups of features (`attn_fuzz.cases.features`), of which a triple has one feature each."""


class Tally:
    """Counts of the cases that a run has drawn and rejected.

    A case is added after it has run, with any verdict. So the cases of a run depend only on its seed, and the same
    choices of Hypothesis give the same case while a failure is shrunk.

    Attributes:
        families: families of cases whose first case has run. The cases of a family share a layer.
        rejected: by reason, how many cases were drawn and thrown away.
    """

    def __init__(self) -> None:
        self.families = 0
        self.rejected = Counter[str]()
        self._met = Counter[tuple[str, ...]]()
        self._worth: dict[tuple[str, ...], float] = {}
        self._kept: list[Case] = []
        self._rejected: dict[str, list[Case]] = defaultdict(list)

    def add(self, case: Case) -> None:
        """Count a case that has run, here or elsewhere."""
        held, own_edges = traits(case), edges(case)
        for together in itertools.chain(_meetings(held), itertools.product(own_edges, held)):
            self._met[together] += 1
            self._worth[together] = (1 + self._met[together]) ** -2
        if len(self._kept) < SAMPLE:
            self._kept.append(case)

    def novelty(self, case: Case) -> float:
        """The worth of a case: 1 for each pair or triple of its traits that was never drawn, and less if it was drawn more
        often.

        A pair of an edge and another trait counts EDGE_SHARE times as much.
        """
        held, worth = traits(case), self._worth.get
        # lists are faster than generators
        of_traits = sum([worth(together, 1.0) for together in _meetings(held)])
        return of_traits + EDGE_SHARE * sum([worth(together, 1.0) for together in itertools.product(edges(case), held)])

    def rarest_changes(self, case: Case, changes: Sequence[str], count: int) -> tuple[str, ...]:
        """The changes whose earlier calls would add most novelty to a case without earlier calls; the rarest one last.

        Args:
            changes: the changes to choose from. Among equal ones the first is chosen.
            count: the number of changes to choose, if there are enough.
        """
        held, worth = traits(case), self._worth.get
        adds = {change: sum([worth((trait, _earlier(change)), 1.0) for trait in held]) for change in changes}
        return tuple(sorted(changes, key=lambda change: -adds[change])[:count][::-1])

    def takes(self, case: Case, support: Support, refused: bool) -> bool:
        """True if a case that was drawn for a support is to run; the reason is counted if it is not.

        Args:
            case: the drawn case.
            support: the support of the target.
            refused: True if the case is to be refused.
        """
        reason = _why_not(case, support, refused)
        if reason is not None:
            self.rejected[reason] += 1
            if len(self._rejected[reason]) < SAMPLE:
                self._rejected[reason].append(case)
        return reason is None

    def remedies(self) -> dict[str, list[str]]:
        """Restrictions that most discarded cases break and no kept case does, by the reason for which cases were discarded."""
        kept_to = {name: keeps for name, keeps in RESTRICTIONS.items() if all(map(keeps, self._kept))}
        return {
            reason: [name for name, keeps in kept_to.items() if sum(not keeps(case) for case in cases) >= SURE * len(cases)]
            for reason, cases in self._rejected.items()
        }


def _why_not(case: Case, support: Support, refused: bool) -> str | None:
    if num_elements(case) > MAX_ELEMENTS:
        return "too many elements to be replayed"
    beyond = support.beyond(case)
    if (beyond is not None) == refused:
        return None
    if beyond is None:
        return SUPPORTED
    return f"excluded: {beyond}" if support.exclude(case) == beyond else beyond


def traits(case: Case) -> list[str]:
    """The features of a case, its sizes, and last the changes of earlier calls: all pairs of these should be drawn."""
    sizes = (f"{name} {size(case)}" for name, size in _SIZES.items())
    return [*features(case), *sizes, *map(_earlier, dict.fromkeys(case.earlier))]


def triples(held: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The triples among features: those that have a feature of each group of one of AXES."""
    by_group: dict[str, list[str]] = defaultdict(list)
    for trait in held:
        by_group[_GROUP.get(trait, "")].append(trait)
    return itertools.chain.from_iterable(itertools.product(*(by_group[group] for group in groups)) for groups in AXES)


def _meetings(held: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The pairs and the triples of traits."""
    return itertools.chain(itertools.combinations(held, 2), triples(held))


_GROUP: Final[Mapping[str, str]] = {feature.name: feature.group for feature in FEATURES}


def _earlier(change: str) -> str:
    return f"earlier {change}"


def _page(case: Case) -> str:
    if case.cache is None:
        return "none"
    return "small" if case.cache.block_size * case.num_kv_heads * case.head_size <= SMALL_PAGE else "large"


def _span(value: int) -> int:
    """The power of two that a number is below; 0 of 0, and -1 of a negative number."""
    return -1 if value < 0 else value.bit_length()


_SIZES: Final[Mapping[str, Callable[[Case], object]]] = {
    "head_size": lambda case: case.head_size,
    "group_size": lambda case: case.group_size,
    "block_size": lambda case: case.cache.block_size if case.cache else None,
    "page": _page,
    "window left": lambda case: _span(case.window[0]),
    "window right": lambda case: _span(case.window[1]),
    "chunk": lambda case: _span(case.chunked_local or 0),
    "sinks": lambda case: case.sinks,
    "queries": lambda case: _span(max((r.query_len for r in case.requests), default=0)),
    "keys": lambda case: _span(max((r.seq_len for r in case.requests), default=0)),
    "values": lambda case: case.values.kind,
}
