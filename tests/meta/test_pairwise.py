"""Do fewer parameters still bring every two values together?"""

import itertools

import pytest

from tests.support.pairwise import covering


@pytest.mark.parametrize("sizes", [(3, 3, 2, 5), (2, 2, 2, 2), (8, 4), (5, 2, 2), (1, 4, 3)], ids=str)
def test_any_two_values_meet(sizes):
    named = dict(zip("abcd", sizes, strict=False))
    chosen = covering(named)
    assert all(list(case) and case.keys() == named.keys() for case in chosen)
    for first, second in itertools.combinations(named, 2):
        met = {(case[first], case[second]) for case in chosen}
        assert met == set(itertools.product(range(named[first]), range(named[second])))
    assert covering(named) == chosen, "the same in every run"


@pytest.mark.parametrize(("sizes", "most"), [((3, 3, 2, 5), 15), ((2, 2, 2, 2), 6), ((8, 4), 32), ((5, 2, 2), 10)], ids=str)
def test_few_combinations_suffice(sizes, most):
    assert len(covering(dict(zip("abcd", sizes, strict=False)))) <= most
