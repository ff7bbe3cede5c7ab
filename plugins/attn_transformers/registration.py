"""Names for transformers' `attn_implementation`."""

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from attn_contract import ContractError
from attn_fuzz import extras

IMPLEMENTATIONS = {"attn_parity": "attn_reference", "attn_parity_triton": "attn_optimized"}
"""The packages that compute, by the names that models ask for: the reference, on any device, and the Triton kernels."""


def register() -> None:
    """Register the implementations with transformers, in this process. A second call changes nothing.

    It also makes the attention of Bloom and MPT, which transformers' interface does not reach, use it for these names, and
    makes transformers refuse the names to models that attend by code of their own.

    Raises:
        ModuleNotFoundError: transformers is not installed; the message names the extra.
        ContractError: another function is registered under one of the names.
    """
    extras.require("transformers")
    from transformers import AttentionInterface, AttentionMaskInterface

    from attn_transformers.own_attention import teach

    known = {name: function for name, function in AttentionInterface().items() if name in IMPLEMENTATIONS}
    for name, function in known.items():
        if getattr(function, "func", None) is not _computed_by:
            raise ContractError("attn_implementation", f"{name!r}, registered already as {function!r}", "a name that is free")
    if known:
        return
    teach(IMPLEMENTATIONS)
    for name, package in IMPLEMENTATIONS.items():
        AttentionInterface.register(name, functools.partial(_computed_by, package))
        AttentionMaskInterface.register(name, whole_mask)


@contextlib.contextmanager
def replacing(implementation: str, by: str = "attn_parity") -> Iterator[None]:
    """Take the place of another implementation inside the `with`, for engines that accept only names of their own.

    Continuous batching is such an engine: it takes "sdpa" and "paged|eager", and makes masks for no other name.

    Args:
        implementation: "sdpa", "eager", "paged|eager" or any other whose masks have four dimensions.
        by: a name of IMPLEMENTATIONS.
    """
    if by not in IMPLEMENTATIONS:
        raise ContractError("by", repr(by), f"one of {', '.join(IMPLEMENTATIONS)}")
    ours = functools.partial(_computed_by, IMPLEMENTATIONS[by], none_is_causal="eager" not in implementation)
    with intercepted(implementation, lambda theirs: ours):
        yield


@contextlib.contextmanager
def intercepted(implementation: str, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Replace the function that models get from transformers for an implementation, inside the `with` and in all threads.

    Since transformers 5.24 the layers of a model update the paged cache of continuous batching, and do not pass it on. Inside
    the `with` they pass it on as `updated_cache`.
    """
    from transformers import AttentionInterface
    from transformers.generation.continuous_batching.cache import PagedAttentionCache

    paged_cache: Any = PagedAttentionCache
    get_interface, update = AttentionInterface.get_interface, paged_cache.update

    def changed(self: Any, asked: str, default: Callable[..., Any]) -> Callable[..., Any]:
        function = get_interface(self, asked, default)
        return change(function) if asked == implementation else function

    def noted(self: Any, *states: Any, kwargs: dict[str, Any], **named: Any) -> Any:
        result = update(self, *states, kwargs=kwargs, **named)
        kwargs["updated_cache"] = self
        return result

    with (
        mock.patch.object(AttentionInterface, "get_interface", changed),
        mock.patch.object(paged_cache, "update", noted),
    ):
        yield


def whole_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """transformers' mask [B, 1, Q, K] bool, also where SDPA would need none: a missing mask does not say what a query sees."""
    from transformers.masking_utils import sdpa_mask

    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})


def _computed_by(package: str, *args: Any, **kwargs: Any) -> Any:
    """`attention` with kernels that are imported when a model first needs them: the Triton kernels need Triton."""
    from attn_transformers.attention import attention

    return attention(importlib.import_module(package), *args, **kwargs)
