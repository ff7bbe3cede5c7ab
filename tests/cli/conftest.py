"""The fixtures of the fuzzer's tests."""

from tests.fuzz.conftest import *  # noqa: F403
