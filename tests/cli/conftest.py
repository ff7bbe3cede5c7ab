"""The fixtures of the tests of the fuzzer and of compiled code."""

from tests.binaries.conftest import *  # noqa: F403
from tests.fuzz.conftest import *  # noqa: F403
