"""The function of attention that transformers calls: by the reference or by the Triton kernels."""

from types import ModuleType
from typing import Any

import torch

from attn_transformers.arguments import OF_THE_ENGINE, Step, arguments_of, step_of
from attn_transformers.engine_pages import FULL_ATTENTION, SLIDING_ATTENTION, EnginePages, pages_of


def attention(
    kernels: ModuleType,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """A function for transformers' AttentionInterface, once `kernels` is given.

    Args:
        kernels: `attn_reference` or `attn_optimized`, which have the same functions.
        module: transformers' layer; only its `is_causal` is read.
        query: [B, H, Q, D].
        key: [B, HK, K, D].
        value: [B, HK, K, DV].
        attention_mask: [B, 1, Q, K] bool, or floats that are added to logits.
        arguments: the arguments of `arguments_of` and of `through_cache`.

    Returns:
        [B, Q, H, DV], with zeros for queries that see no key, and no weights.

    Raises:
        UnsupportedError: an argument asks for something that the contract cannot express, or is unknown.
        ContractError: the arguments contradict each other.
    """
    key, value, pages, arguments = through_cache(module, key, value, **arguments)
    step = step_of(arguments_of(module, query, key, value, attention_mask, **arguments))
    num_rows, num_heads, num_queries, _ = query.shape
    out = query.new_zeros(num_rows * num_queries, num_heads, value.shape[3])
    if step is not None:
        out[step.rows] = _attend(kernels, step, pages)
    return out.unflatten(0, (num_rows, num_queries)), None


def through_cache(
    module: torch.nn.Module,
    key: torch.Tensor,
    value: torch.Tensor,
    cache: Any = None,
    updated_cache: Any = None,
    **arguments: Any,
) -> tuple[torch.Tensor, torch.Tensor, EnginePages | None, dict[str, Any]]:
    """All keys and values of a step of continuous batching, their pages in its paged cache, and the other arguments.

    The cache gets the new keys and values. Without such a cache, key and value hold all of them. A layer that takes its keys
    from another layer has no cache, and gets the lengths of all kinds of layers.

    Args:
        cache: the paged cache, which a function of attention updates before transformers 5.24.
        updated_cache: the paged cache that the layer has updated, as since transformers 5.24 (`registration.intercepted`).
    """
    pages = None
    if cache is not None or updated_cache is not None:
        layer_index: Any = module.layer_idx
        if cache is not None:
            key, value = cache.update(key_states=key, value_states=value, layer_idx=layer_index, kwargs=arguments)
        pages = pages_of(updated_cache if cache is None else cache, layer_index, arguments)
    elif isinstance(lengths := arguments.get("cu_seq_lens_k"), dict):
        kind = FULL_ATTENTION if arguments.get("sliding_window") is None else SLIDING_ATTENTION
        arguments = {**arguments, "cu_seq_lens_k": lengths[kind]}
    return key, value, pages, {name: given for name, given in arguments.items() if name not in OF_THE_ENGINE}


def written(kernels: ModuleType, step: Step) -> torch.Tensor:
    """A cache that holds only a step's keys and values, in blocks of one slot."""
    (num_keys, *row), (*_, v_head_size) = step.k.shape, step.v.shape
    shape = (num_keys, 2, 1, *row) if step.layer.head_size_v is None else (num_keys, row[0], 1, row[1] + v_head_size)
    cache, slots = step.k.new_empty(shape), torch.arange(num_keys, device=step.k.device)
    kernels.write_kv_cache(step.k, step.v, cache, step.layer, slots)
    return cache


def _attend(kernels: ModuleType, step: Step, pages: EnginePages | None) -> torch.Tensor:
    if step.layer.layout is None:
        return kernels.varlen_attention(step.q, step.k, step.v, step.layer, step.batch)
    if pages is not None and (batch := pages.batch(step)) is not None:
        return kernels.paged_attention(step.q, pages.kv_cache, step.layer, batch)
    return kernels.paged_attention(step.q, written(kernels, step), step.layer, step.batch)
