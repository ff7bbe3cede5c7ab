"""The interpreter made right: every dtype and every function of Triton's language, in a process that only interprets."""

import json
import os
import re
from pathlib import Path
from typing import Any

import attn_optimized
import pytest
import triton
import triton.language as tl
from attn_fuzz.errors import LimitError
from attn_fuzz.interpreted import interpreter, numbers
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter as triton_interpreter

from tests.fuzz.interpreted import dtypes, forms, functions, names
from tests.support import processes


def run(*arguments: str) -> Any:
    """The output of the checks."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = processes.run(["-m", "tests.fuzz.interpreted", *arguments], cwd=Path(__file__).parents[3], env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def failed():
    return run()["failed"]


@pytest.mark.parametrize("name", functions.CHECKED)
def test_numbers_are_those_of_compiled_code(failed, name):
    assert name not in failed, failed[name]


def test_the_checks_notice_the_interpreter_as_it_comes():
    broken = ["cast", "cast, rtz", "compared, then cast", "sum, rounded", "tensor.__not__", "clamp", "dot"]
    assert list(run("--as-it-comes", *broken)["failed"]) == broken


def test_every_dtype_of_triton_is_known():
    assert tl.dtype.OTHER_TYPES == ["void"], "the others are numbers"
    assert set(numbers.STORED) == set(dtypes.NAMES)
    assert set(dtypes.TORCH) | {"fp8e4b15"} == set(dtypes.FLOATS)


STORED = names.stored()


def test_the_names_of_this_triton_are_stored():
    """Run it in another process: a kernel that failed in this one may have left the interpreter in Triton's modules."""
    assert set(run("--names")) == STORED[triton.__version__], "python -m interpreted --write-names"


@pytest.mark.parametrize("name", sorted(set.union(*STORED.values())))
def test_every_name_of_a_supported_triton_is_checked_or_has_a_reason(name):
    assert (name in functions.CHECKED) != bool(functions.reason(name))


@pytest.mark.parametrize("name", forms.names())
def test_every_argument_of_every_function_has_forms(name):
    for parameter in forms.parameters(name):
        assert forms.forms(name, parameter), parameter


ONLY_HERE = {
    "mask has unsupported dtype": "as it comes, the interpreter takes the truth of a scalar for an integer",
    "Unsupported data type": "as it comes, the interpreter exchanges integers alone",
    "ufunc 'bitwise_xor' not supported": "nothing is combined of one element",
}
"""Errors of Triton's interpreter as it comes, or of NumPy, where the one that is made right has numbers, and why."""
REFUSED_HERE = ("they have one shape", "is larger than the block of pointers")
"""Errors where Triton's interpreter as it comes reads memory past an argument's."""


# of these, the interpreter of Triton before 3.9 has other results as it comes, or lets through what later ones refuse
IS_OLD = triton.__version__.startswith(("3.6", "3.7", "3.8"))
JUDGED = [name for name in forms.names() if not (IS_OLD and name in ("umulhi", "histogram", "topk"))]


KERNELS = " ".join(path.read_text() for path in Path(attn_optimized.__file__).parent.glob("kernels/*.py"))
USED = [name for name in JUDGED if re.search(rf"\btl\.{name}\(", KERNELS)]
"""The functions that our kernels use."""
OTHERS = [name for name in JUDGED if name not in USED]


@pytest.mark.parametrize(
    "names",
    [USED, *(pytest.param(OTHERS[part::6], marks=pytest.mark.nightly) for part in range(6))],
    ids=lambda names: names[0],
)
def test_every_form_of_every_argument_means_what_triton_says(names):
    """In processes of its own."""
    judged, here, exact = (run("--forms", *way, *names) for way in (["--as-it-comes"], [], ["--exact"]))
    for name in names:
        for case, right in judged[name].items():
            require(case, here[name][case], right, REFUSED_HERE)
            require(f"{case}, exact", exact[name][case], right, (*REFUSED_HERE, "NotCarriedError"))


def require(case: str, got: Any, right: Any, refused: tuple[str, ...]) -> None:
    if isinstance(right, str):
        is_only_here = any(text in right for text in ONLY_HERE)
        assert isinstance(got, str) or is_only_here, f"{case}: {got}, expected an error: {right}"
    elif isinstance(got, str):
        assert any(text in got for text in refused), f"{case}: {got}, expected {right}"
    else:
        assert close(got, right), f"{case}: {got}, expected {right}"


def close(got: Any, right: Any) -> bool:
    if isinstance(right, list):
        return len(got) == len(right) and all(map(close, got, right))
    return got == right or (isinstance(right, float) and got == pytest.approx(right, 1e-5))


def test_a_dtype_that_is_not_known_is_refused():
    with pytest.raises(LimitError, match="fp4 is not known"):
        numbers.cast(numbers.decoded(triton_interpreter.np.zeros(1, "uint8"), "fp8e5"), "fp32", "fp4")


@pytest.mark.parametrize(
    ("holder", "name"),
    [
        (triton_interpreter, "_patch_lang"),
        (triton_interpreter.InterpreterBuilder, "cast_impl"),
        (TritonSemantic, "broadcast_impl_value"),
    ],
)
def test_a_triton_that_moved_its_hooks_is_named(holder, name, monkeypatch):
    monkeypatch.delattr(holder, name)
    with pytest.raises(RuntimeError, match=f"^triton {triton.__version__}: its interpreter has no .*{name}"):
        interpreter.install()
