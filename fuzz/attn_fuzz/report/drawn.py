"""What a run drew and threw away, and which features and pairs that its target supports it did not draw."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain, combinations, product
from typing import Any, Final, NamedTuple

from attn_contract import AttentionType, Layout
from attn_fuzz.cases.edges import BLOCK_EDGES, LEAST_BLOCK, at_tiles
from attn_fuzz.cases.features import FEATURES, Feature, undefined
from attn_fuzz.run.shard import Progress
from attn_fuzz.strategies.batches import tile_lengths
from attn_fuzz.strategies.rules import window_lengths
from attn_fuzz.strategies.tally import AXES, SUPPORTED
from attn_fuzz.targets.target import Support

WARNING_SHARE = 0.2
"""More cases than this share of what was drawn are a loss that a field of Support would save."""
NAMED = 3


class Drawn(NamedTuple):
    """What became of the draws of a run.

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
    def lines(self) -> list[str]:
        """For the end of a run: what was thrown away, a warning if it was much, and what was not drawn."""
        return [*self.rejections, *self._missing()]

    @property
    def rejections(self) -> list[str]:
        """What was thrown away, and a warning if it was much."""
        lost = {reason: count for reason, count in self.rejected.items() if reason != SUPPORTED}
        if not lost:
            return []
        drawn = self.examples + sum(lost.values())
        listed = _first([f"{count} {reason}" for reason, count in lost.items()], "; ")
        lines = [f"thrown away: {sum(lost.values())} of {drawn} cases drawn: {listed}"]
        if sum(lost.values()) > WARNING_SHARE * drawn:
            most = next(iter(lost))
            says = " or ".join(f"engine=Engine({remedy})" for remedy in self.remedies.get(most, ()))
            remedy = f"Support({says}) says so, and is drawn directly" if says else "no field of Support says this directly"
            lines.append(f"warning: more than {WARNING_SHARE:.0%} were thrown away, most of them as {most!r}: {remedy}")
        return lines

    def _missing(self) -> list[str]:
        parts = []
        if self.features:
            parts.append(f"{len(self.features)} of {self.num_features} features ({_first(self.features)})")
        if self.pairs:
            parts.append(f"{len(self.pairs)} of {self.num_pairs} pairs ({_first([f'{a} with {b}' for a, b in self.pairs])})")
        if self.triples:
            parts.append(f"{len(self.triples)} of {self.num_triples} triples")
        if self.edges:
            parts.append(f"{len(self.edges)} of {self.num_edges} edges ({_first(self.edges)})")
        return [f"not drawn: {', '.join(parts)}"] if parts else []

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "rejected": self.rejected,
            "remedies": self.remedies,
            "features": {"possible": self.num_features, "not_drawn": self.features},
            "pairs": {"possible": self.num_pairs, "not_drawn": self.pairs},
            "triples": {"possible": self.num_triples, "not_drawn": self.triples},
            "edges": {"possible": self.num_edges, "not_drawn": self.edges},
        }


def _first(names: Sequence[str], joint: str = ", ") -> str:
    return joint.join(names[:NAMED]) + (f"{joint}..." if len(names) > NAMED else "")


def drawn(progress: Sequence[Progress], support: Support) -> Drawn:
    """What the shards of a run drew, for a target with this support."""
    size = len(FEATURES)
    together = [sum(row) for row in zip(*(p.together for p in progress if p.together), strict=True)] or [0] * size**2
    possible = [i for i, feature in enumerate(FEATURES) if can_have(support, feature)]
    pairs = [(i, j) for i, j in combinations(possible, 2) if not undefined(FEATURES[i].name, FEATURES[j].name)]
    triples, edges = _possible_triples([FEATURES[i] for i in possible]), _possible_edges(support)
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


def _possible_triples(possible: Sequence[Feature]) -> list[tuple[str, ...]]:
    """The triples of AXES among features, but for those of which two cannot meet."""
    by_group = {group: [feature.name for feature in possible if feature.group == group] for group in {*chain(*AXES)}}
    triples = chain.from_iterable(product(*(by_group[group] for group in groups)) for groups in AXES)
    return [triple for triple in triples if not any(undefined(a, b) for a, b in combinations(triple, 2))]


def _possible_edges(support: Support) -> list[str]:
    """The edges that the lengths and windows have which are drawn for a support."""
    engine = support.engine
    queries = tile_lengths(support) if {*engine.query_lens} != {"one"} else [1]
    has_contexts = _has_cache(support) and engine.contexts
    keys = range(1, support.max_seq_len + 1) if has_contexts else queries
    edges = at_tiles("queries", queries) + at_tiles("keys", keys)
    if _has_cache(support) and max(support.block_sizes) >= LEAST_BLOCK:
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
    """Whether a case that the support allows can have a feature."""
    if feature.name == "alibi_slopes, signed" and not support.engine.signed_slopes:
        return False
    if feature.rule is not None:
        return feature.rule in support.rules
    return _POSSIBLE[feature.group](feature.name, support)


def _has_cache(support: Support) -> bool:
    return any(attn_type.reads_cache for attn_type in support.attn_types)


def _attention(name: str, support: Support) -> bool:
    types = {
        "encoder": AttentionType.ENCODER,
        "encoder-only": AttentionType.ENCODER_ONLY,
        "cross-attention": AttentionType.ENCODER_DECODER,
    }
    if name in types:
        return types[name] in support.attn_types
    needed = {
        "decoder, causal": support.causal,
        "decoder, non-causal": "non_causal" in support.rules,
        "decoder, causal per request": support.causal and {"non_causal", "per_request_causal"} <= set(support.rules),
    }
    return AttentionType.DECODER in support.attn_types and needed[name]


def _phase(name: str, support: Support) -> bool:
    if name == "more queries than keys":
        return _has_cache(support) and support.engine.more_queries_than_keys
    if name == "request without a query":
        return support.engine.empty_requests
    if name == "prefill":
        return support.engine.prompts or AttentionType.DECODER not in support.attn_types
    return _has_cache(support) and support.engine.contexts


def _allocation(name: str, support: Support) -> bool:
    engine = support.engine
    content = any("content" in layout.dims for layout in support.layouts)
    if name.startswith("order "):
        return content and name.removeprefix("order ") in engine.orders
    possible = {
        "interleaved layers": content and max(engine.num_layers) > 1,
        "K and V planes": True in engine.planes and any(_has_planes(layout) for layout in support.layouts),
        "padded blocks": max(engine.padding) > 0,
        "padded rows": max(engine.padding) > 0 and any(map(_has_latent_rows, support.layouts)),
        "block size no power of two": any(size.bit_count() > 1 for size in support.block_sizes),
        "writer in another layout": engine.other_views and _can_share(support.layouts),
        "neighbour in another layout": engine.other_views and _can_share(support.layouts),
    }
    return _has_cache(support) and possible[name]


def _can_share(layouts: Sequence[Layout]) -> bool:
    return sum(not (layout.has_inline_scales or layout.has_latent_value) for layout in layouts) > 1


def _has_latent_rows(layout: Layout) -> bool:
    return layout.has_latent_value and not layout.has_dense_pages


def _has_planes(layout: Layout) -> bool:
    return "content" not in layout.dims and not layout.has_latent_value


def _write(name: str, support: Support) -> bool:
    engine = support.engine
    possible = {
        "slot -1": AttentionType.DECODER in support.attn_types,
        "nothing written": False in engine.writes,
        "saturated": engine.saturated and bool(support.cache_dtypes),
    }
    return _has_cache(support) and possible.get(name, "rope" in support.rules)


def _call(name: str, support: Support) -> bool:
    engine = support.engine
    if name.startswith("output "):
        return name.removeprefix("output ") in support.output_dtypes
    return {
        "fused qkv": True in engine.fused_qkv,
        "LSE": "lse" in support.rules,
        "earlier call": True,
        "scale 0": 0 in engine.scale_signs,
        "scale below 0": -1 in engine.scale_signs,
        "unlike strides": True in engine.unlike_strides,
        "dense output": True in engine.dense_out,
    }[name]


def _cache_dtype(name: str, support: Support) -> bool:
    plain = name == "cache of the layer's dtype"
    return _has_cache(support) and (plain or name.removeprefix("cache ") in support.cache_dtypes)


def _scales(name: str, support: Support) -> bool:
    return bool(support.cache_dtypes) and any(name.startswith(f"scale per {kind}") for kind in support.scales)


_POSSIBLE: Final[dict[str, Callable[[str, Support], bool]]] = {
    "attention": _attention,
    "phase": _phase,
    "dtype": lambda name, support: name in support.dtypes,
    "layout": lambda name, support: _has_cache(support) and name in map(str, support.layouts),
    "allocation": _allocation,
    "cache dtype": _cache_dtype,
    "scales": _scales,
    "write": _write,
    "call": _call,
}
"""By a group of features: whether a support allows the feature of that name."""
