"""What the fuzzer draws: how often each feature, and each pair of features, in how many cases of a profile.

Nothing is run. A pair that no case can have says why (`attn_fuzz.features.undefined`); every other pair must be drawn.
"""

import multiprocessing
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import msgspec
from attn_fuzz import engine, targets
from attn_fuzz.engine import Plan
from attn_fuzz.features import FEATURES, features, undefined

NAMES = [feature.name for feature in FEATURES]


class Coverage(msgspec.Struct, frozen=True, kw_only=True):
    """Cases by feature and by pair of features, each pair in the order of FEATURES.

    `refused` holds, by target and feature, why the target refuses every drawn case that has the feature; other features of the
    target's cases are supported.
    """

    examples: int
    single: dict[str, int]
    pairs: dict[tuple[str, str], int]
    refused: dict[str, dict[str, str]]


def cover(plans: Sequence[Plan], workers: int, judged_by: Sequence[str] = ()) -> Coverage:
    """Draw the cases of all plans and count.

    Args:
        plans: shards; see `runner.shards`.
        workers: processes at once.
        judged_by: targets whose support is asked about every case.
    """
    single, pairs = Counter[str](), Counter[tuple[str, str]]()
    supported: dict[str, set[str]] = {name: set() for name in judged_by}
    reasons: dict[str, dict[str, str]] = {name: {} for name in judged_by}
    examples = 0
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for shard in pool.imap_unordered(_count, [(plan, tuple(judged_by)) for plan in plans]):
            examples += shard[0]
            single.update(shard[1])
            pairs.update(shard[2])
            for name in judged_by:
                supported[name] |= shard[3][name]
                reasons[name] |= shard[4][name]
    refused = {
        name: {feature: reasons[name][feature] for feature in NAMES if feature in reasons[name].keys() - supported[name]}
        for name in judged_by
    }
    return Coverage(examples=examples, single=dict(single), pairs=dict(pairs), refused=refused)


def missing(coverage: Coverage) -> list[tuple[str, str]]:
    """Defined pairs that no case had."""
    return [pair for pair in combinations(NAMES, 2) if not undefined(*pair) and not coverage.pairs.get(pair)]


def impossible(coverage: Coverage) -> list[tuple[str, str]]:
    """Pairs that are called undefined and were drawn all the same."""
    return [pair for pair in coverage.pairs if undefined(*pair)]


_Shard = tuple[int, Counter[str], Counter[tuple[str, str]], dict[str, set[str]], dict[str, dict[str, str]]]


def _count(task: tuple[Plan, tuple[str, ...]]) -> _Shard:
    plan, judged_by = task
    single, pairs = Counter[str](), Counter[tuple[str, str]]()
    supported: dict[str, set[str]] = {name: set() for name in judged_by}
    reasons: dict[str, dict[str, str]] = {name: {} for name in judged_by}
    supports = {name: targets.load(name).support(plan.device) for name in judged_by}
    cases = engine.drawn(plan)
    for case in cases:
        found = features(case)
        single.update(found)
        pairs.update(combinations(found, 2))
        for name, support in supports.items():
            reason = support.beyond(case)
            if reason is None:
                supported[name].update(found)
            else:
                reasons[name].update(dict.fromkeys(found, reason))
    return len(cases), single, pairs, supported, reasons
