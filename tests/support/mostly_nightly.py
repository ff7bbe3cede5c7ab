"""Parameters of which some are tested in each run, and all at night."""

from collections.abc import Collection, Iterable

import pytest


def mostly_nightly(values: Iterable, in_each_run: Collection) -> list:
    """Parameters for `pytest.mark.parametrize`: those that are not `in_each_run` are marked `nightly`."""
    return [pytest.param(value, marks=[pytest.mark.nightly] * (value not in in_each_run)) for value in values]
