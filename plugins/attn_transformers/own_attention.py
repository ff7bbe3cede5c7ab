"""Models that attend without transformers' AttentionInterface: Bloom and MPT are taught to use it, others are refused by name.

`teach` replaces the forward of the two attention modules. The new one uses the interface if its model asks for one of our
implementations, and calls the old one otherwise.
"""

import functools
from collections.abc import Callable, Collection
from contextvars import ContextVar
from typing import Any

import torch
from attn_contract import UnsupportedError
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.bloom import modeling_bloom
from transformers.models.mpt import modeling_mpt

_asked: ContextVar[str | None] = ContextVar("asked", default=None)
"""The implementation that the running model asks for. Its attention modules do not know their config."""


def teach(names: Collection[str]) -> None:
    """Make Bloom and MPT use the AttentionInterface for these implementations, and refuse them to models that cannot."""
    for model, attention, forward in (
        (modeling_bloom.BloomModel, modeling_bloom.BloomAttention, _bloom),
        (modeling_mpt.MptModel, modeling_mpt.MptAttention, _mpt),
    ):
        model.forward = _announcing(model.forward)
        attention.forward = _through_the_interface(attention.forward, forward, names)
    for base in (modeling_bloom.BloomPreTrainedModel, modeling_mpt.MptPreTrainedModel):
        base._can_set_attn_implementation_cached_value = True
    PreTrainedModel.get_correct_attn_implementation = _refusing(PreTrainedModel.get_correct_attn_implementation, names)
    PreTrainedModel.set_attn_implementation = _refusing_later(PreTrainedModel.set_attn_implementation, names)


def _announcing(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def announced(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        token = _asked.set(self.config._attn_implementation)
        try:
            return forward(self, *args, **kwargs)
        finally:
            _asked.reset(token)

    return announced


def _through_the_interface(old: Callable[..., Any], new: Callable[..., Any], names: Collection[str]) -> Callable[..., Any]:
    @functools.wraps(old)
    def chosen(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        return (new if _asked.get() in names else old)(self, *args, **kwargs)

    return chosen


def _refusing(check: Callable[..., str], names: Collection[str]) -> Callable[..., str]:
    @functools.wraps(check)
    def refusing(self: PreTrainedModel, requested_attention: str | None, is_init_check: bool = False) -> str:
        if requested_attention in names:
            _check_uses_the_interface(self)
        return check(self, requested_attention, is_init_check)

    return refusing


def _refusing_later(set_later: Callable[..., None], names: Collection[str]) -> Callable[..., None]:
    """transformers itself logs a warning, and the model goes on with what it had."""

    @functools.wraps(set_later)
    def refusing(self: PreTrainedModel, attn_implementation: str | dict[str, Any], *args: Any, **kwargs: Any) -> None:
        for model in self.modules():
            if isinstance(model, PreTrainedModel) and _asked_of(model, self.config, attn_implementation) in names:
                _check_uses_the_interface(model)
        set_later(self, attn_implementation, *args, **kwargs)

    return refusing


def _asked_of(model: PreTrainedModel, config: Any, attn_implementation: str | dict[str, Any]) -> str | None:
    """The implementation that a model or one of its parts is to use. In a dict each part of a config has its own."""
    if isinstance(attn_implementation, str):
        return attn_implementation
    parts = {"": config, **{name: getattr(config, name) for name in config.sub_configs}}
    asked = [attn_implementation.get(name) for name, part in parts.items() if part is model.config]
    return next((name for name in asked if isinstance(name, str)), None)


def _check_uses_the_interface(model: PreTrainedModel) -> None:
    """
    Raises:
        UnsupportedError: the model is transformers' own, and attends without the AttentionInterface.
    """
    if type(model).__module__.startswith("transformers.") and not model._can_set_attn_implementation():
        reason = "it attends by code of its own and not through transformers' AttentionInterface"
        raise UnsupportedError("attn_transformers", type(model).__name__, reason)


def _attend(module: torch.nn.Module, query: Any, key: Any, value: Any, mask: Any, **arguments: Any) -> torch.Tensor:
    """[B, Q, H * D]"""
    asked = _asked.get()
    assert asked is not None
    return ALL_ATTENTION_FUNCTIONS[asked](module, query, key, value, mask, is_causal=True, **arguments)[0].flatten(2)


def _bloom(
    self: Any,
    hidden_states: torch.Tensor,
    residual: torch.Tensor,
    alibi: torch.Tensor,
    attention_mask: torch.Tensor | None,
    layer_past: Any = None,
    use_cache: bool = False,
    output_attentions: bool = False,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """BloomAttention: alibi is [B * H, 1, K]."""
    query, key, value = self._reshape(self.query_key_value(hidden_states))
    if layer_past is not None:
        key, value = layer_past.update(key, value, self.layer_idx)
    dropout = self.attention_dropout.p if self.training else 0.0
    arguments = {"scaling": self.inv_norm_factor, "dropout": dropout, "output_attentions": output_attentions, **others}
    bias = alibi.unflatten(0, (-1, self.num_heads))
    out = self.dense(_attend(self, query, key, value, attention_mask, position_bias=bias, **arguments))
    return modeling_bloom.dropout_add(out, residual, self.hidden_dropout, self.training), None


def _mpt(
    self: Any,
    hidden_states: torch.Tensor,
    position_bias: torch.Tensor | None,
    past_key_values: Any = None,
    attention_mask: torch.Tensor | None = None,
    output_attentions: bool = False,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """MptAttention: position_bias is [H, 1, max_seq_len], for the last keys."""
    qkv = self.Wqkv(hidden_states)
    if self.clip_qkv:
        qkv = qkv.clamp(min=-self.clip_qkv, max=self.clip_qkv)
    query, key, value = (x.unflatten(2, (self.n_heads, self.head_dim)).transpose(1, 2) for x in qkv.chunk(3, dim=2))
    if past_key_values is not None:
        key, value = past_key_values.update(key, value, self.layer_idx)
    if position_bias is not None:
        position_bias = position_bias[None, :, :, -key.shape[2] :]
    dropout = self.attn_dropout_p if self.training else 0.0
    arguments = {"scaling": self.softmax_scale, "dropout": dropout, "output_attentions": output_attentions, **others}
    return self.out_proj(_attend(self, query, key, value, attention_mask, position_bias=position_bias, **arguments)), None
