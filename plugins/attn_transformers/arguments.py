"""Translate the arguments that transformers passes to a function of attention into a call of the contract.

Only the mask says which keys a query sees (`attn_transformers.masks`); everything else is read from the arguments. An unknown
argument with a value is refused by name.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from attn_contract import Batch, ContractError, Layer, Layout, UnsupportedError
from attn_contract.arguments import shown

from attn_transformers.biases import WHO, slopes_of, split_mask
from attn_transformers.masks import read
from attn_transformers.reading import LAYOUT, Reading

WITHOUT_EFFECT = frozenset(
    {
        *("position_ids", "use_cache", "output_hidden_states", "output_router_logits", "return_dict", "num_items_in_batch"),
        *("max_length_q", "max_length_k"),
    }
)
"""Arguments that models pass on, and that change no attention. The model has used positions already, to rotate queries and
keys and to make the mask."""

OF_THE_ENGINE = frozenset(
    {"read_index", "write_index", "block_table", "logits_indices", "logits_processor_args", "updated_cache"}
)
"""Arguments of continuous batching that its cache reads, and attention does not."""

REFUSED = {
    "output_attentions": "the kernels do not return weights: use attn_implementation='eager'",
    "head_mask": "no rule of the contract takes a head away",
}
"""Known arguments that are refused, with the reasons."""


@dataclass(frozen=True, eq=False)
class Arguments:
    """The tensors and numbers of one call, checked.

    Args:
        query: [B, H, Q, D].
        key: [B, HK, K, D].
        value: [B, HK, K, DV].
        seen: [B, Q, K] bool on the CPU.
        bias: [B, H, Q, K] on the CPU, the numbers added to logits.
        softcap, s_aux, sliding_window: transformers' names of logits_soft_cap, of sinks, and of a window that counts the token
            itself.
        packed: the first query and the first key of each request, and the ends of the last one.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    seen: torch.Tensor
    bias: torch.Tensor | None
    scale: float
    softcap: float | None
    s_aux: torch.Tensor | None
    sliding_window: int | None
    is_causal: bool
    packed: tuple[list[int], list[int]] | None


@dataclass(frozen=True, eq=False)
class Step:
    """A call of the contract, and the places of its rows among those of transformers.

    Args:
        q: [T, H, D].
        rows: [T] int64, index of each row among B * Q.
        k, v: [B * K, HK, D or DV] for the cache, key k of row b at `b * K + k`; without a cache [T, HK, D or DV].
    """

    layer: Layer
    batch: Batch
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    rows: torch.Tensor


def arguments_of(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    none_is_causal: bool = True,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    **others: Any,
) -> Arguments:
    """The checked arguments of transformers' call of a function of attention.

    Args:
        none_is_causal: True if several queries of a causal layer without a mask are causal and begin a sequence, as for
            `sdpa`; for `eager` such queries see all keys.

    Raises:
        UnsupportedError: an argument asks for something that the contract cannot express, or is unknown here.
        ContractError: tensors have shapes that contradict each other, or there is no mask because transformers makes none.
    """
    _refuse(others)
    if dropout:
        raise UnsupportedError(WHO, f"dropout={dropout}", "attention here is inference and deterministic: call model.eval()")
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        raise UnsupportedError(WHO, "a gradient", "attention here is inference: run the model under torch.no_grad()")
    if value.shape[:-1] != key.shape[:-1]:
        raise ContractError("value", f"shape {tuple(value.shape)}", f"{(*key.shape[:-1], 'the width of V')}, as keys")
    if s_aux is None and isinstance(getattr(module, "sinks", None), torch.Tensor):
        raise UnsupportedError(WHO, "a layer's own sinks", "it does not pass them as s_aux, so nobody knows whether they count")
    if (cu_seq_lens_q is None) != (cu_seq_lens_k is None):
        raise ContractError("cu_seq_lens_q, cu_seq_lens_k", "one of them", "both or none")
    if attention_mask is None and cu_seq_lens_q is None:
        _check_that_masks_are_made(module)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    shape = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    seen, bias = _mask_of(attention_mask, shape, causal and none_is_causal)
    if position_bias is not None:
        added = position_bias.detach().cpu()
        bias = added if bias is None else added + bias
    return Arguments(
        query=query,
        key=key,
        value=value,
        seen=seen,
        bias=None if bias is None else bias.expand(shape),
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap=softcap,
        s_aux=s_aux,
        sliding_window=sliding_window,
        is_causal=causal,
        packed=None if cu_seq_lens_q is None or cu_seq_lens_k is None else (cu_seq_lens_q.tolist(), cu_seq_lens_k.tolist()),
    )


def step_of(arguments: Arguments) -> Step | None:
    """The call of the contract; None where no query sees a key."""
    seen, query = arguments.seen, arguments.query
    reading = read(seen, is_causal=arguments.is_causal, sliding_window=arguments.sliding_window, packed=arguments.packed)
    if not reading.requests:
        return None
    if arguments.bias is not None:
        if arguments.s_aux is not None:
            raise UnsupportedError(
                WHO, "sinks beside a position_bias", "a sink notices what ALiBi of transformers adds to a row"
            )
        slopes = slopes_of(arguments.bias, seen, reading).to(query.device)
        reading = dataclasses.replace(reading, rules={**reading.rules, "alibi_slopes": slopes})
    layer = _layer(arguments, reading)
    _, num_queries, num_keys = seen.shape
    at = [request.row * num_queries + i for request in reading.requests for i in request.queries]
    rows = torch.tensor(at, dtype=torch.int64, device=query.device)
    k, v = (x.transpose(1, 2).flatten(0, 1).contiguous() for x in (arguments.key, arguments.value))
    if layer.layout is None:  # a batch may have more keys than queries, as with a static cache
        own = [request.row * num_keys + i for request in reading.requests for i in request.keys]
        k, v = k[own], v[own]
    q = query.transpose(1, 2).flatten(0, 1)[rows]
    return Step(layer, reading.batch(num_keys, query.device), q.detach(), k.detach(), v.detach(), rows)


def _refuse(others: dict[str, Any]) -> None:
    for name, value in others.items():
        if value is None or value is False or name in WITHOUT_EFFECT:
            continue
        reason = REFUSED.get(name, "no rule of the contract is known for this argument")
        what = f"a tensor {tuple(value.shape)}" if isinstance(value, torch.Tensor) else shown(value)
        raise UnsupportedError(WHO, f"{name} ({what})", reason)


def _check_that_masks_are_made(module: torch.nn.Module) -> None:
    """A missing mask has a meaning only if transformers would have made a mask where one is needed.

    transformers makes masks for names that have a mask function. Without one, no padding and no window reaches attention.
    """
    from transformers import AttentionMaskInterface

    asked = getattr(getattr(module, "config", None), "_attn_implementation", None)
    if asked is not None and asked not in AttentionMaskInterface():
        raise ContractError(
            "attention_mask",
            f"None, as always while no mask function is registered for attn_implementation={asked!r}",
            "one, as after transformers.AttentionMaskInterface.register(NAME, transformers.masking_utils.sdpa_mask)",
        )


def _mask_of(
    mask: torch.Tensor | None, shape: tuple[int, int, int, int], is_causal: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The keys that a mask shows, bool [B, Q, K], and the numbers that it adds to logits; None if it adds none."""
    num_rows, _, num_queries, num_keys = shape
    if mask is None:
        seen = torch.ones(num_rows, num_queries, num_keys, dtype=torch.bool, device="cpu")
        return seen.tril() if is_causal and num_queries > 1 else seen, None
    if not isinstance(mask, torch.Tensor) or mask.dim() != 4:
        got = f"shape {tuple(mask.shape)}" if isinstance(mask, torch.Tensor) else shown(mask)
        raise ContractError("attention_mask", got, "None or a tensor of four dimensions: rows, heads, queries, keys")
    *others, of_keys = zip(mask.shape, shape, strict=True)
    if any(size not in (1, whole) for size, whole in others) or len(set(of_keys)) > 1:
        expected = f"one that broadcasts to {shape}, with an entry for each key"
        raise ContractError("attention_mask", f"shape {tuple(mask.shape)}", expected)
    seen, bias = split_mask(mask.detach().cpu())
    if not torch.equal(seen, seen[:, :1].expand_as(seen)):
        raise UnsupportedError(WHO, "an attention mask that differs by head", "all heads of a layer see the same keys")
    return seen[:, 0].expand(num_rows, num_queries, num_keys).contiguous(), bias


def _layer(arguments: Arguments, reading: Reading) -> Layer:
    _, num_heads, _, head_size = arguments.query.shape
    v_head_size = arguments.value.shape[3]
    layout = LAYOUT if v_head_size == head_size else Layout.CONTENT_PACKED
    attn_type = reading.attn_type
    return Layer(
        num_heads=num_heads,
        num_kv_heads=arguments.key.shape[1],
        head_size=head_size,
        scale=arguments.scale,
        attn_type=attn_type,
        logits_soft_cap=arguments.softcap,
        sinks=None if arguments.s_aux is None else arguments.s_aux.detach(),
        layout=layout if attn_type.reads_cache else None,
        head_size_v=None if v_head_size == head_size else v_head_size,
        **reading.rules,
    )
