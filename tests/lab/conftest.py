"""The laboratory's command line in this process, and the fixtures of the fuzzer's tests."""

from collections.abc import Callable
from functools import partial

import pytest
from attn_lab.__main__ import lab

from tests.fuzz.conftest import *  # noqa: F403
from tests.fuzz.conftest import Ended


@pytest.fixture
def attn_lab(attn_parity: Callable[..., Ended]) -> Callable[..., Ended]:
    """Runs `python -m attn_lab` as `attn_parity` runs `attn-parity`."""
    return partial(attn_parity, commands=lab, name="python -m attn_lab")
