"""The fixtures of the fuzzer's tests."""

from tests.fuzz.conftest import (  # noqa: F401
    attn_parity,
    child_environment,
    full_for,
    fuzz_apart,
    fuzz_here,
    fuzz_in,
    script_ends,
    step_case,
)
