"""The draws of a run: what it threw away, and which features that its target supports it did not draw."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from attn_fuzz.cases.features import FEATURES, Feature
from attn_fuzz.run.shard import Progress
from attn_fuzz.strategies.tally import SUPPORTED
from attn_fuzz.targets.support import Support

LOST_SHARE = 0.2
"""The share of drawn cases that were thrown away above which a run warns: a field of Support would save them."""
FEW = 10
"""So many cases that were thrown away have fields in common by chance, and show no field that would save them."""
NAMED = 3


class Drawn(NamedTuple):
    """Counts of the draws of a run.

    Attributes:
        examples: cases that ran.
        rejected: by reason, how many cases were drawn and thrown away, the most frequent reason first.
        remedies: by reason, restrictions of `attn_fuzz.targets.engine.Engine` that say the same.
        features: those that the target supports and no case had.
        num_features: how many the target supports.
    """

    examples: int
    rejected: dict[str, int]
    remedies: dict[str, list[str]]
    features: list[str]
    num_features: int

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
        }


def _first(names: Sequence[str]) -> str:
    return "; ".join([*names[:NAMED], *["..."] * (len(names) > NAMED)])


def drawn(progress: Sequence[Progress], support: Support) -> Drawn:
    """The draws of a run's shards, for a target with this support."""
    possible = [feature.name for feature in FEATURES if can_have(support, feature)]
    rejected = sum((Counter(p.rejected) for p in progress), Counter[str]())
    return Drawn(
        examples=sum(p.examples for p in progress),
        rejected=dict(rejected.most_common()),
        remedies={reason: _remedies(reason, progress) for reason in rejected},
        features=[name for name in possible if not any(name in p.features for p in progress)],
        num_features=len(possible),
    )


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


def _has_cache(support: Support) -> bool:
    return any(attn_type.reads_cache for attn_type in support.attn_types)
