"""The draws of a run: what it threw away, and which features and pairs that its target supports it did not draw."""

import dataclasses
from collections import Counter
from collections.abc import Sequence, Set
from itertools import chain, combinations, product
from typing import Any, NamedTuple

from attn_fuzz.cases.edges import BLOCK_EDGES, MIN_BLOCK, at_tiles
from attn_fuzz.cases.features import FEATURES, Feature, examples, undefined
from attn_fuzz.run.shard import Progress
from attn_fuzz.strategies.batches import tile_lengths
from attn_fuzz.strategies.rules import window_lengths
from attn_fuzz.strategies.tally import AXES, SUPPORTED
from attn_fuzz.targets.engine import ANY_ENGINE
from attn_fuzz.targets.support import Support

LOST_SHARE = 0.2
"""The share of drawn cases that were thrown away above which a run warns: a field of Support would save them."""
FEW = 10
"""So many cases that were thrown away have fields in common by chance, and show no field that would save them."""
NAMED = 3
_BY_NAME = {feature.name: feature for feature in FEATURES}


class Drawn(NamedTuple):
    """Counts of the draws of a run.

    Attributes:
        examples: cases that ran.
        rejected: by reason, how many cases were drawn and thrown away, the most frequent reason first.
        remedies: by reason, restrictions of `attn_fuzz.targets.engine.Engine` that say the same.
        features, pairs, triples, edges: those that the target supports and no case had.
        num_features, num_pairs, num_triples, num_edges: how many the target supports.
    """

    examples: int
    rejected: dict[str, int]
    remedies: dict[str, list[str]]
    features: list[str]
    pairs: list[tuple[str, str]]
    triples: list[tuple[str, ...]]
    edges: list[str]
    num_features: int
    num_pairs: int
    num_triples: int
    num_edges: int

    @property
    def rejections(self) -> list[str]:
        """A line on the draws that were thrown away, and a warning if they were many."""
        lost = {reason: count for reason, count in self.rejected.items() if reason != SUPPORTED}
        if not lost:
            return []
        drawn = self.examples + sum(lost.values())
        listed = _first([f"{count} {reason}" for reason, count in lost.items()])
        lines = [f"thrown away: {sum(lost.values())} of {drawn} cases drawn: {listed}"]
        if sum(lost.values()) > max(FEW, LOST_SHARE * drawn):
            most = next(iter(lost))
            says = " or ".join(f"engine=Engine({remedy})" for remedy in self.remedies.get(most, ()))
            remedy = f"Support({says}) says so, and is drawn directly" if says else "no field of Support says this directly"
            lines.append(f"warning: more than {LOST_SHARE:.0%} were thrown away, most of them as {most!r}: {remedy}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """The counts as plain data."""
        return {
            "rejected": self.rejected,
            "remedies": self.remedies,
            "features": {"possible": self.num_features, "not_drawn": self.features},
            "pairs": {"possible": self.num_pairs, "not_drawn": self.pairs},
            "triples": {"possible": self.num_triples, "not_drawn": self.triples},
            "edges": {"possible": self.num_edges, "not_drawn": self.edges},
        }


def _first(names: Sequence[str]) -> str:
    return "; ".join([*names[:NAMED], *["..."] * (len(names) > NAMED)])


def drawn(progress: Sequence[Progress], support: Support) -> Drawn:
    """The draws of a run's shards, for a target with this support."""
    size = len(FEATURES)
    together = [sum(row) for row in zip(*(p.together for p in progress if p.together), strict=True)] or [0] * size**2
    possible = [i for i, feature in enumerate(FEATURES) if can_have(support, feature)]
    pairs = [(i, j) for i, j in combinations(possible, 2) if why_not(support, FEATURES[i].name, FEATURES[j].name) is None]
    met = {frozenset((FEATURES[i].name, FEATURES[j].name)) for i, j in pairs}
    triples, edges = _possible_triples([FEATURES[i] for i in possible], met), _possible_edges(support)
    rejected = sum((Counter(p.rejected) for p in progress), Counter[str]())
    return Drawn(
        examples=sum(p.examples for p in progress),
        rejected=dict(rejected.most_common()),
        remedies={reason: _remedies(reason, progress) for reason in rejected},
        features=[FEATURES[i].name for i in possible if not together[i * size + i]],
        pairs=[(FEATURES[i].name, FEATURES[j].name) for i, j in pairs if not together[i * size + j]],
        triples=[triple for triple in triples if not any(triple in p.triples for p in progress)],
        edges=[edge for edge in edges if not any(edge in p.edges for p in progress)],
        num_features=len(possible),
        num_pairs=len(pairs),
        num_triples=len(triples),
        num_edges=len(edges),
    )


def _possible_triples(possible: Sequence[Feature], pairs: Set[frozenset[str]]) -> list[tuple[str, ...]]:
    """The triples of AXES among features, all of which are pairs."""
    by_group = {group: [feature.name for feature in possible if feature.group == group] for group in {*chain(*AXES)}}
    triples = chain.from_iterable(product(*(by_group[group] for group in groups)) for groups in AXES)
    return [triple for triple in triples if all(frozenset(pair) in pairs for pair in combinations(triple, 2))]


def _possible_edges(support: Support) -> list[str]:
    """The edges of the lengths and windows that are drawn for a support."""
    engine = support.engine
    queries = tile_lengths(support) if engine.several_queries else [1]
    has_contexts = _has_cache(support) and engine.contexts
    keys = range(1, support.max_seq_len + 1) if has_contexts else queries
    edges = at_tiles("queries", queries) + at_tiles("keys", keys)
    if _has_cache(support) and max(support.block_sizes) >= MIN_BLOCK:
        edges += BLOCK_EDGES.values()
    if "window" in support.rules:
        edges += at_tiles("left edge", window_lengths(support))
        if {*engine.windows} - {"left"}:
            edges += at_tiles("right edge", window_lengths(support))
    return edges


def _remedies(reason: str, progress: Sequence[Progress]) -> list[str]:
    """The restrictions that are a remedy in every shard that threw cases away for this reason."""
    of_shards = [p.remedies[reason] for p in progress if reason in p.remedies]
    return [name for name in of_shards[0] if all(name in names for names in of_shards)] if of_shards else []


def can_have(support: Support, feature: Feature) -> bool:
    """True if a case that the support allows can have a feature."""
    if feature.rule not in (None, *support.rules) or (feature.dimension.needs_cache and not _has_cache(support)):
        return False
    asked = {name: getattr(support if hasattr(support, name) else support.engine, name) for name in feature.value.asks}
    return all(feature.value.asks[name](value) for name, value in asked.items())


def why_not(support: Support, first: str, second: str) -> str | None:
    """The reason why no case that the support allows has both of two features that it allows one by one; None if one can."""
    if reason := undefined(first, second):
        return reason
    engine = support.engine
    if engine.mixed_alibi and engine.mixed_ranges and "any" in engine.query_lens:
        return None
    related = dataclasses.replace(ANY_ENGINE, mixed_alibi=engine.mixed_alibi, mixed_ranges=engine.mixed_ranges)
    both_have_lengths = all(_BY_NAME[name].group == "phase" for name in (first, second))
    if both_have_lengths:
        related = dataclasses.replace(related, query_lens=engine.query_lens)
    why = ""
    for case in examples(first, second):
        if (reason := related.not_sent(case)) is None:
            return None
        why = why or reason
    return f"its engine sends {why}"


def _has_cache(support: Support) -> bool:
    return any(attn_type.reads_cache for attn_type in support.attn_types)
