"""Triton's interpreter as it comes: it computes with the bit patterns of bfloat16, so kernels must refuse bfloat16 there."""

from collections.abc import Callable
from unittest import mock

import torch
from attn_contract import UnsupportedError
from attn_fuzz.interpreted.interpreter import EXACT


def check(call: Callable[[], object], dtype: torch.dtype) -> None:
    """Check that a call on tensors of bfloat16 is refused as long as the interpreter is as it comes.

    Raises:
        AssertionError: the call was not refused.
    """
    from triton.runtime.interpreter import InterpreterBuilder

    if dtype != torch.bfloat16:
        return
    with mock.patch.object(InterpreterBuilder, EXACT, False):
        try:
            call()
        except UnsupportedError:
            return
    raise AssertionError("bfloat16 in an interpreter that computes it wrongly: expected a refusal")
