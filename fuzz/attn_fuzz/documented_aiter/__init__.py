"""A test double of AITER as of 2026-08: its documented interface in plain loops, since its kernels need AMD's GPUs.

Each function takes exactly the recorded arguments, by keyword. It computes in float32 what AITER's sources document, with
AITER's own conventions and not with the contract's. Agreement with this double shows that the adapter and the backends call
AITER rightly. It does not show that AITER is right.
"""

from collections.abc import Callable
from dataclasses import replace
from types import UnionType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

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


def without(aiter: Aiter, function: str, argument: str | None = None) -> Aiter:
    """The same AITER without a function, or without an argument of the function."""
    signatures = dict(aiter.signatures)
    signature = signatures.pop(function)
    if argument is not None:
        arguments = tuple(name for name in signature.arguments if name != argument)
        signatures[function] = replace(signature, arguments=arguments)
    return replace(aiter, signatures=signatures)


def with_two_edges(aiter: Aiter) -> Aiter:
    """The same AITER with the older windows of flash_attn_varlen_func: a left and a right edge, and no sink tokens."""
    name = "flash_attn_varlen_func"
    newer, signature = aiter.functions[name], aiter.signatures[name]

    def older(*, window_size: tuple[int, int] = (-1, -1), **arguments: Any) -> Any:
        left, right = window_size
        return newer(window_size=(left, right, 0), **arguments)

    older_signature = replace(signature, defaults={**signature.defaults, "window_size": (-1, -1)})
    signatures, functions = {**aiter.signatures, name: older_signature}, {**aiter.functions, name: older}
    return replace(aiter, signatures=signatures, functions=functions)


def _noted(function: Callable[..., Any], signature: Signature, calls: list[Call] | None) -> Callable[..., Any]:
    hints = get_type_hints(function)

    def call(**arguments: Any) -> Any:
        if unknown := arguments.keys() - set(signature.arguments):
            raise TypeError(f"{signature.function}() got an unexpected keyword argument {sorted(unknown)[0]!r}")
        if missing := set(signature.arguments) - signature.defaults.keys() - arguments.keys():
            raise TypeError(f"{signature.function}() is missing {sorted(missing)[0]!r}")
        for name, value in arguments.items():
            assert _is_of(value, hints.get(name, object)), f"{name}: got {value}, expected {hints[name]}"
            assert getattr(value, "dtype", None) != torch.int64, f"{name}: got torch.int64, expected torch.int32"
        if calls is not None:
            calls.append(Call(signature.function, arguments))
        with next(value.device for value in arguments.values() if isinstance(value, torch.Tensor)):
            return function(**{**signature.defaults, **arguments})

    return call


def _is_of(value: object, hint: Any) -> bool:
    """Whether a value is of an annotated type: a class, a union, or a tuple of classes."""
    if isinstance(hint, UnionType):
        return any(_is_of(value, one) for one in get_args(hint))
    if get_origin(hint) is tuple:
        types = get_args(hint)
        return isinstance(value, tuple) and len(value) == len(types) and all(map(_is_of, value, types))
    return hint is Any or isinstance(value, int | float if hint is float else hint)
