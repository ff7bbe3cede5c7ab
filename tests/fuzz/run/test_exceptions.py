"""The message about an exception names the place in the target's code, for any function that raises it, and on any machine."""

import dataclasses
import json

import pytest
import torch
import triton
import triton.language as tl
from attn_contract import Layer
from attn_fuzz.run.case.exceptions import described
from attn_fuzz.run.case.trial import try_case
from attn_fuzz.verdict.verdict import what_failed
from planted import FLASH

HERE = __name__.replace(".", "/") + ".py"


@triton.jit
def broken_kernel(x_ptr):
    tl.store(x_ptr + tl.arange(0, 4)[:2], 0.0)


def in_itself():
    raise TypeError("no\nway")


def in_the_standard_library():
    json.loads("{")


def in_torch():
    torch.ones(3) @ torch.ones(4)


def in_the_contract():
    Layer(num_heads=0, num_kv_heads=1, head_size=16, scale=1.0)


def in_a_kernel_that_is_interpreted():
    broken_kernel[1,](torch.zeros(4))


def in_what_another_exception_is_made_of():
    try:
        in_itself()
    except TypeError as error:
        raise RuntimeError("again") from error


def raised_by(function) -> BaseException:
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    ("function", "message", "name"),
    [
        (in_itself, "TypeError: no way", "in_itself"),
        (in_the_standard_library, "JSONDecodeError: ", "in_the_standard_library"),
        (in_torch, "RuntimeError: ", "in_torch"),
        (in_the_contract, "ContractError: num_heads: ", "in_the_contract"),
        (in_what_another_exception_is_made_of, "RuntimeError: again", "in_what_another_exception_is_made_of"),
        pytest.param(
            in_a_kernel_that_is_interpreted,
            "InterpreterError: ",
            "broken_kernel",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here"),
        ),
    ],
)
def test_the_innermost_line_of_the_targets_code_is_named(function, message, name):
    said = described(raised_by(function))
    assert said.startswith(message)
    place, _, rest = said.rpartition(f", in {name})")
    assert (place.rpartition(" (")[2].rpartition(":")[0], rest) == (HERE, "")


def test_causes_that_form_a_ring_are_followed_once():
    error = ValueError("a")
    error.__cause__ = KeyError("b")
    error.__cause__.__cause__ = error
    assert described(error) == "ValueError: a"


def test_failures_by_exceptions_of_one_type_are_one_failure_wherever_they_were_raised(step_case):
    def raises_early(*arguments, **named):
        raise RuntimeError("no")

    def raises_late(*arguments, **named):
        raise RuntimeError("no")

    targets = (dataclasses.replace(FLASH, attention=attention) for attention in (raises_early, raises_late))
    early, late = (try_case(step_case, target, "cpu") for target in targets)
    assert early.message != late.message
    assert what_failed(early) == what_failed(late) == ("raised", "RuntimeError")
