"""The fixtures of the tests of the fuzzer."""

from tests.fuzz.conftest import *  # noqa: F403
