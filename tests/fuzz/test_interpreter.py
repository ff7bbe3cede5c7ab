"""The interpreter made right: every dtype and every function of Triton's language, in a process that only interprets."""

import json
import os
from pathlib import Path

import pytest
import triton
import triton.language as tl
from attn_fuzz.interpreted import interpreter, numbers
from interpreted import dtypes, functions
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter as triton_interpreter

from tests import processes


def run(*arguments: str) -> dict[str, str]:
    """What failed of the checks, by name."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = processes.run(["-m", "interpreted", *arguments], cwd=Path(__file__).parent, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout.splitlines()[-1])["failed"]


@pytest.fixture(scope="module")
def failed():
    return run()


@pytest.mark.parametrize("name", functions.CHECKED)
def test_numbers_are_those_of_compiled_code(failed, name):
    assert name not in failed, failed[name]


def test_the_checks_notice_the_interpreter_as_it_comes():
    names = ["cast", "cast, rtz", "compared, then cast", "sum, rounded", "tensor.__not__", "clamp", "dot"]
    assert list(run("--as-it-comes", *names)) == names


def test_every_dtype_of_triton_is_known():
    assert tl.dtype.OTHER_TYPES == ["void"], "the others are numbers"
    assert set(numbers.STORED) == set(dtypes.NAMES)
    assert set(dtypes.TORCH) | {"fp8e4b15"} == set(dtypes.FLOATS)


@pytest.mark.parametrize("name", functions.language())
def test_every_function_of_the_language_is_checked_or_has_a_reason(name):
    assert (name in functions.CHECKED) != bool(functions.reason(name))


def test_a_dtype_that_is_not_known_is_refused():
    with pytest.raises(NotImplementedError, match="fp4 is not known"):
        numbers.cast(numbers.decoded(triton_interpreter.np.zeros(1, "uint8"), "fp8e5"), "fp32", "fp4")


@pytest.mark.parametrize(
    ("holder", "name"),
    [
        (triton_interpreter, "_patch_lang"),
        (triton_interpreter.InterpreterBuilder, "cast_impl"),
        (TritonSemantic, "computation_type_impl"),
    ],
)
def test_a_triton_that_moved_its_hooks_is_named(holder, name, monkeypatch):
    monkeypatch.delattr(holder, name)
    with pytest.raises(RuntimeError, match=f"^triton {triton.__version__}: its interpreter has no .*{name}"):
        interpreter.install()
