"""`python -m tests.commits`: what a commit's message lacks."""

import pytest

from tests.commits import lacking


@pytest.mark.parametrize(
    ("subject", "body", "is_merge", "expected"),
    [
        ("docs, size: fewer words", "They were needless.", False, []),
        ("Merge branch 'kernels'", "tests/optimized ran.", True, []),
        ("fewer words", "They were needless.", False, ["no place at the beginning of its subject"]),
        ("docs: " + 70 * "x", "", False, ["76 characters of its subject, expected at most 72", "no body that says why"]),
        ("Merge branch 'kernels'", "\n", True, ["no body that says what ran"]),
    ],
)
def test_each_part_that_a_message_lacks_is_named(subject, body, is_merge, expected):
    assert [*lacking(subject, body, is_merge=is_merge)] == expected
