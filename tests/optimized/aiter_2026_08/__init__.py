"""A test double of AITER as of 2026-08: its documented interface in plain loops, since its kernels need AMD's GPUs.

Each function takes exactly the recorded arguments, by keyword, and computes in float32 what AITER's sources document, with
AITER's own conventions and not with the contract's. What it shows is that backends call AITER rightly, not that AITER is right.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from attn_optimized.aiter_adapter import Aiter, Signature, recorded

from aiter_2026_08 import attention, mha, unified_attention

_FUNCTIONS = (mha.flash_attn_varlen_func, attention.paged_attention_v1, unified_attention.unified_attention)


class Call(NamedTuple):
    function: str
    arguments: dict[str, Any]


def stand_in(calls: list[Call]) -> Aiter:
    """The recorded AITER with functions that run on a CPU and note each call."""
    aiter = recorded("2026-08")
    functions = {function.__name__: _noted(function, aiter.signatures[function.__name__], calls) for function in _FUNCTIONS}
    return replace(aiter, functions=functions)


def _noted(function: Callable[..., Any], signature: Signature, calls: list[Call]) -> Callable[..., Any]:
    def call(**arguments: Any) -> Any:
        if unknown := arguments.keys() - set(signature.arguments):
            raise TypeError(f"{signature.function}() got an unexpected keyword argument {sorted(unknown)[0]!r}")
        if missing := set(signature.arguments) - signature.defaults.keys() - arguments.keys():
            raise TypeError(f"{signature.function}() is missing {sorted(missing)[0]!r}")
        calls.append(Call(signature.function, arguments))
        with next(value.device for value in arguments.values() if isinstance(value, torch.Tensor)):
            return function(**{**signature.defaults, **arguments})

    return call
