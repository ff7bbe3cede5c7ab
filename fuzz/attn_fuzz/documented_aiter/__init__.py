"""A test double of AITER as of 2026-08: its documented interface in plain loops, since its kernels need AMD's GPUs.

Each function takes exactly the recorded arguments, by keyword. It computes in float32 what AITER's sources document, with
AITER's own conventions and not with the contract's. Agreement with this double shows that the adapter and the backends call
AITER rightly. It does not show that AITER is right.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from attn_fuzz.documented_aiter import attention, mha, unified_attention
from attn_optimized.aiter_adapter import Aiter, Signature, recorded

_FUNCTIONS = (
    mha.flash_attn_varlen_func,
    attention.paged_attention_v1,
    attention.pa_fwd_asm,
    unified_attention.unified_attention,
)


class Call(NamedTuple):
    function: str
    arguments: dict[str, Any]


def stand_in(calls: list[Call] | None = None) -> Aiter:
    """The recorded AITER with functions that run on a CPU. They append each call to `calls`, if it is given."""
    aiter = recorded("2026-08")
    functions = {function.__name__: _noted(function, aiter.signatures[function.__name__], calls) for function in _FUNCTIONS}
    return replace(aiter, functions=functions)


def _noted(function: Callable[..., Any], signature: Signature, calls: list[Call] | None) -> Callable[..., Any]:
    def call(**arguments: Any) -> Any:
        if unknown := arguments.keys() - set(signature.arguments):
            raise TypeError(f"{signature.function}() got an unexpected keyword argument {sorted(unknown)[0]!r}")
        if missing := set(signature.arguments) - signature.defaults.keys() - arguments.keys():
            raise TypeError(f"{signature.function}() is missing {sorted(missing)[0]!r}")
        if calls is not None:
            calls.append(Call(signature.function, arguments))
        with next(value.device for value in arguments.values() if isinstance(value, torch.Tensor)):
            return function(**{**signature.defaults, **arguments})

    return call
