"""Where kernels must refuse tensors on a CPU: without Triton's interpreter, and bfloat16 in the interpreter as it comes.

A process of the fuzzer has the interpreter, and has taught it bfloat16. So both are pretended for one call.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from unittest import mock

import torch
from attn_contract import UnsupportedError
from attn_fuzz.interpreted.interpreter import EXACT


def check(call: Callable[[], object], dtype: torch.dtype) -> None:
    """Check that a call on tensors of a CPU is refused where its kernels cannot run.

    Args:
        call: the call, or what makes its launches.
        dtype: that the kernels compute with.

    Raises:
        AssertionError: the call was not refused with an UnsupportedError.
    """
    for what, pretended in _processes(dtype):
        with pretended:
            try:
                call()
            except UnsupportedError:
                continue
            except Exception as error:
                raise AssertionError(f"{what}: expected a refusal, got {type(error).__name__}: {error}") from error
        raise AssertionError(f"{what}: expected a refusal")


def _processes(dtype: torch.dtype) -> Iterator[tuple[str, AbstractContextManager[object]]]:
    from attn_optimized import device
    from triton.runtime.interpreter import InterpreterBuilder

    yield "a CPU without an interpreter", mock.patch.object(device, "_INTERPRETED", False)
    if dtype == torch.bfloat16:
        yield "bfloat16 in an interpreter that computes it wrongly", _without(InterpreterBuilder, EXACT)


@contextlib.contextmanager
def _without(holder: type, name: str) -> Iterator[None]:
    """A class without an attribute."""
    value = getattr(holder, name)
    delattr(holder, name)
    try:
        yield
    finally:
        setattr(holder, name, value)
