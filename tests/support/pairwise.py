"""Fewer parameters than all combinations, without losing a fault that two of them bring about together."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest


def parametrize_pairwise(**options: Sequence[Any] | Mapping[str, Any]) -> pytest.MarkDecorator:
    """Parametrize a test with combinations in which any two values of any two options meet at least once.

    Args:
        options: at least two arguments of the test, each with its values, or with its values by the ids that reports show.
    """
    values = {name: list(given.values() if isinstance(given, Mapping) else given) for name, given in options.items()}
    ids = {name: list(map(str, given)) for name, given in options.items()}
    chosen = covering({name: len(given) for name, given in values.items()})
    return pytest.mark.parametrize(
        tuple(options),
        [tuple(values[name][case[name]] for name in options) for case in chosen],
        ids=["-".join(ids[name][case[name]] for name in options) for case in chosen],
    )


def covering(sizes: Mapping[str, int]) -> list[dict[str, int]]:
    """Combinations of indices below the sizes, such that any two indices of two names occur together; the same in every run.

    Each combination begins with the first pair that has not occurred, and takes for every further name the index that adds most
    pairs; of equals, the one that was taken least often.
    """
    missing = {
        frozenset(pair)
        for first, second in itertools.combinations(sizes, 2)
        for pair in itertools.product([(first, i) for i in range(sizes[first])], [(second, i) for i in range(sizes[second])])
    }
    taken = Counter[tuple[str, int]]()
    chosen: list[dict[str, int]] = []
    while missing:
        case = dict(min(map(sorted, missing)))
        for name in [name for name in sizes if name not in case]:
            met = {
                index: sum(frozenset((item, (name, index))) in missing for item in case.items()) for index in range(sizes[name])
            }
            case[name] = max(met, key=lambda index: (met[index], -taken[name, index]))
        missing -= {frozenset(pair) for pair in itertools.combinations(case.items(), 2)}
        taken.update(case.items())
        chosen.append({name: case[name] for name in sizes})
    return chosen
