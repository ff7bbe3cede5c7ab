"""The sanitizer, installed for one test."""

import pytest
from attn_fuzz.interpreted import accesses, sanitizer
from triton.runtime import interpreter


@pytest.fixture
def sanitized(monkeypatch):
    """The sanitizer for one test; the interpreter is then as it was."""
    for name in (*accesses._BUILDER_HOOKS, *accesses._ACCESS_HOOKS):
        monkeypatch.setattr(interpreter.InterpreterBuilder, name, getattr(interpreter.InterpreterBuilder, name))
    monkeypatch.setattr(interpreter.GridExecutor, "_init_args_hst", interpreter.GridExecutor._init_args_hst)
    monkeypatch.setattr(sanitizer, "checks", "nothing")
    accesses.install()
    accesses.install()  # twice is once
