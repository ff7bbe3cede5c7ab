"""Finds the real tokens of a running model, and those for which a mask hides all keys.

A function of attention gets a mask of four dimensions, which combines padding, windows and causality. Padding itself is named
by an `attention_mask` of two dimensions, which its model gets, or `generate`, which may make one of four dimensions. A token is
real if its entry there is not 0. In a causal layer all tokens are real if there is no such mask. Requests of an engine have no
padding. Cross-attention is not checked, nor are models that learn of padding in another way.
"""

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any
from unittest import mock

import torch

from attn_transformers.biases import split_mask

_running: ContextVar[tuple[dict[str, Any], ...]] = ContextVar("running", default=())
"""The arguments of the running models, by name. The innermost model is last."""
_made: ContextVar[tuple[Any, Any]] = ContextVar("made", default=(None, None))
"""The mask that `generate` made last, and the one from which it was made."""


@contextlib.contextmanager
def models_watched() -> Iterator[None]:
    """Keep the arguments of running models, inside the `with` and in all threads."""
    from transformers import GenerationMixin, PreTrainedModel

    call: Callable[..., Any] = PreTrainedModel.__call__
    prepare: Callable[..., Any] = vars(GenerationMixin)["prepare_inputs_for_generation"]

    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        names = dict.fromkeys(inspect.signature(self.forward).parameters)
        token = _running.set((*_running.get(), {**names, **dict(zip(names, args, strict=False)), **kwargs}))
        try:
            return call(self, *args, **kwargs)
        finally:
            _running.reset(token)

    def prepared(self: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = prepare(self, *args, **kwargs)
        name = "decoder_attention_mask" if self.config.is_encoder_decoder else "attention_mask"
        _made.set((inputs.get(name), kwargs.get(name)))
        return inputs

    with (
        mock.patch.object(PreTrainedModel, "__call__", called),
        mock.patch.object(GenerationMixin, "prepare_inputs_for_generation", prepared),
    ):
        yield
    _made.set((None, None))


def hidden_tokens(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    is_causal: bool | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    **others: Any,
) -> list[str]:
    """The real tokens of which the mask hides every key, in a layer that attends to its own tokens.

    Args:
        query: [B, H, Q, D].
        key: [B, HK, K, D].
        attention_mask: [B or 1, H or 1, Q or 1, K or 1].
        others: further arguments of attention, which are not read.

    Returns:
        for each token its row in the batch, or its request in an engine's step, and its position.
    """
    if attention_mask is None:
        return []
    rows, queries = query.shape[0], query.shape[2]
    sees = split_mask(attention_mask.detach())[0].any(3).any(1).cpu().expand(rows, queries)
    if sees.all():
        return []
    if cu_seq_lens_q is not None and cu_seq_lens_k is not None:
        return _of_requests(sees[0], cu_seq_lens_q.tolist(), cu_seq_lens_k.tolist())
    causal = getattr(module, "is_causal", None) if is_causal is None else is_causal
    if causal is None or getattr(module, "is_cross_attention", False) or not (causal or key.shape[2] == queries):
        return []
    length = _length(queries) if causal else queries
    own = range(length - queries, length)
    return [f"row {row} of the batch, position {own[i]}" for row, i in (_real(own, rows, causal) & ~sees).nonzero().tolist()]


def _of_requests(sees: torch.Tensor, queries: list[int], keys: list[int]) -> list[str]:
    found = []
    for request, (begin, end) in enumerate(itertools.pairwise(queries)):
        first = keys[request + 1] - keys[request] - (end - begin)
        hidden = [i - begin for i in range(begin, end) if not sees[i]]
        found += [f"request {request} of the step, position {first + i}" for i in hidden]
    return found


def _length(queries: int) -> int:
    """The number of tokens of a row after this step, with padding."""
    caches = [given.get(name) for given in reversed(_running.get()) for name in ("cache", "past_key_values")]
    cache = next((one for one in caches if one is not None), None)
    layers = getattr(getattr(cache, "self_attention_cache", cache), "layers", [])
    # a layer updates its cache before it attends; one that takes its keys from another layer has none
    return max([queries, *(int(layer.get_seq_length()) for layer in layers if hasattr(layer, "get_seq_length"))])


def _real(own: range, rows: int, causal: bool) -> torch.Tensor:
    """[B, Q] bool, True for tokens at the positions `own` that are real. If that is not known, all are False."""
    is_real, running = torch.zeros(rows, len(own), dtype=torch.bool, device="cpu"), _running.get()
    masks = [_padding(given, causal) for given in reversed(running)]
    if not running or "attention_mask" not in running[-1]:
        return is_real
    flat = next((mask for mask in masks if isinstance(mask, torch.Tensor) and mask.dim() == 2), None)
    if flat is None:
        return is_real | (causal and masks[-1] is None)
    if len(flat) == rows:
        known = flat[:, own.start : own.stop].cpu() != 0
        is_real[:, : known.shape[1]] = known
    return is_real


def _padding(given: dict[str, Any], causal: bool) -> Any:
    """The mask of its tokens that a model got. If it has an encoder and a decoder, causal layers have the decoder's mask."""
    mask = given.get("decoder_attention_mask" if causal and "decoder_attention_mask" in given else "attention_mask")
    made, source = _made.get()
    return source if mask is not None and mask is made else mask
