"""Names for transformers' `attn_implementation`."""

import functools
import importlib
from typing import Any

import torch

IMPLEMENTATIONS = {"attn_parity": "attn_reference", "attn_parity_triton": "attn_optimized"}
"""The packages that compute, by the names that models ask for: the reference, on any device, and the Triton kernels."""


def register() -> None:
    """Make the implementations known to transformers, in this process. A second call changes nothing.

    It also makes the attention of Bloom and MPT, which transformers' interface does not reach, use it for these names, and
    makes transformers refuse the names to models that attend by code of their own.

    Raises:
        ModuleNotFoundError: transformers is not installed; the message names the extra.
    """
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "attn_transformers needs transformers: pip install 'attn-parity[transformers]'", name=error.name
        ) from None
    from attn_transformers.attention import attention
    from attn_transformers.own_attention import teach

    if "attn_parity" in AttentionInterface():
        return
    for name, package in IMPLEMENTATIONS.items():
        AttentionInterface.register(name, functools.partial(_imported, attention, package))
        AttentionMaskInterface.register(name, whole_mask)
    teach(IMPLEMENTATIONS)


def whole_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """transformers' mask [B, 1, Q, K] bool, also where SDPA would need none: a missing mask does not say what a query sees."""
    from transformers.masking_utils import sdpa_mask

    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})


def _imported(attention: Any, package: str, *args: Any, **kwargs: Any) -> Any:
    """`attention` with kernels that are imported when a model first needs them: the Triton kernels need Triton."""
    return attention(importlib.import_module(package), *args, **kwargs)
