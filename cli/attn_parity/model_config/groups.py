"""The layers of a model by what they ask of attention: layers that ask for the same are one group."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from attn_contract import AttentionType, ContractError, Layout
from attn_contract.arguments import shown
from attn_contract.scope import refuse_out_of_scope
from attn_parity.model_config.meaning import Meaning, Said
from attn_parity.model_config.model_types import CHUNKED, FULL, SLIDING, ModelType


@dataclass(frozen=True, kw_only=True)
class Group:
    """Layers that attend alike.

    Args:
        layers: their numbers, counted from 0; in a model of encoder and decoder, from 0 in each.
        num_heads, num_kv_heads, head_size, attn_type: as in AttentionConfig.
        scale: the factor of q.k.
        rules: by the rule's name, as in AttentionConfig.
        layout: the one that holds its rows; None leaves the choice to the backend.
    """

    layers: tuple[int, ...]
    num_heads: int
    num_kv_heads: int
    head_size: int
    scale: float
    attn_type: AttentionType = AttentionType.DECODER
    rules: Mapping[str, Any] = field(default_factory=dict)
    layout: Layout | None = None

    def with_ranges(self, longest: int) -> "Group":
        """The same layers in a model whose images see themselves both ways, inside the window if there is one.

        Args:
            longest: the tokens of an image. A window that is as wide hides none of them, so that nothing need hold it there.
        """
        ranges = {"bidirectional_ranges": True}
        if "window" in self.rules and self.rules["window"][0] < longest - 1:
            ranges["ranges_clamped"] = True
        return dataclasses.replace(self, rules={**self.rules, **ranges})


_OTHER_NAMES = {
    "attention": FULL,
    "mamba": "linear_attention",
    "indexed_attention": "index_topk",
    "deepseek_sparse_attention": "index_topk",
}
"""Names of kinds of layers that mean the same as another one here or in `attn_contract.scope`."""


def groups(said: Said, record: ModelType) -> dict[str, Group]:
    """The groups of a model by name: the kind of the layers, or whose attention it is.

    Raises:
        ContractError: values that are missing, or contradict each other.
        UnsupportedError: layers of a kind that is out of scope.
    """
    layers = said.needed(Meaning.NUM_LAYERS)
    if record.kind == "encoder_decoder":
        return _encoder_and_decoder(said, layers)
    sizes = _sizes(said)
    if record.kind == "encoder" and not said(Meaning.IS_DECODER):
        return {"encoder": Group(layers=tuple(range(layers)), attn_type=AttentionType.ENCODER_ONLY, **sizes)}
    kinds: dict[str, list[int]] = {}
    for layer, kind in enumerate(_layer_types(said, record, layers)):
        kinds.setdefault(_OTHER_NAMES.get(kind, kind), []).append(layer)
    refuse_out_of_scope(kinds)
    return {
        kind: Group(
            layers=tuple(of_it),
            rules={**_rules(said, record), **_rules_of(kind, said), **(record.windowed_rules if kind == SLIDING else {})},
            layout=None if said(Meaning.VALUE_SIZE) in (None, sizes["head_size"]) else Layout.CONTENT_PACKED,
            **(_windowed_sizes(said, record, sizes) if kind == SLIDING else sizes),
        )
        for kind, of_it in kinds.items()
    }


def _layer_types(said: Said, record: ModelType, layers: int) -> list[str]:
    listed = said(Meaning.LAYER_TYPES)
    kinds = record.layer_types(said, layers) if listed is None else listed
    if len(kinds) != layers:
        given = (Meaning.LAYER_TYPES, Meaning.LAYER_KINDS, Meaning.ROTATED_LAYERS)
        name = next(said.names[meaning] for meaning in given if said(meaning) is not None)
        expected = f"{layers}, one for each of {said.names[Meaning.NUM_LAYERS]}"
        raise ContractError(name, f"a list of {len(kinds)}", expected)
    windowed, expected = said(Meaning.WINDOWED_LAYERS), [int(kind == SLIDING) for kind in kinds]
    if windowed not in (None, expected):
        raise ContractError(said.names[Meaning.WINDOWED_LAYERS], shown(windowed), f"{shown(expected)}, as the kinds of layers")
    return kinds


def _rules_of(kind: str, said: Said) -> dict[str, Any]:
    """The rules of a kind of layer, or ContractError where the kind is not known."""
    if kind == FULL:
        return {}
    because = f"there are layers of {kind}"
    if kind == SLIDING:
        if said(Meaning.USE_WINDOW) is False:
            raise ContractError(said.names[Meaning.USE_WINDOW], False, f"true: {because}")
        before = said(Meaning.KEYS_BEFORE)
        before = said.needed(Meaning.WINDOW, because) - 1 if before is None else before
        return {"window": (before, before)}
    if kind == CHUNKED:
        return {"chunked_local": said.needed(Meaning.CHUNK, because)}
    known = ", ".join((FULL, SLIDING, CHUNKED))
    raise ContractError(said.names[Meaning.LAYER_TYPES], shown(kind), f"one of {known}")


def _rules(said: Said, record: ModelType) -> dict[str, Any]:
    """The rules of all layers of a decoder."""
    rules = dict(record.rules)
    if (latent_size := said(Meaning.LATENT_SIZE)) is not None:
        rules["head_size_v"] = latent_size
    if (value_size := said(Meaning.VALUE_SIZE)) is not None:
        rules["head_size_v"] = value_size
    if (cap := said(Meaning.SOFT_CAP)) is not None:
        rules["logits_soft_cap"] = cap
    if said(Meaning.ALIBI):
        rules["alibi_slopes"] = True
    return rules


def _sizes(said: Said) -> dict[str, Any]:
    heads = said.needed(Meaning.HEADS)
    if Meaning.LATENT_SIZE in said.names:
        return _latent_sizes(said, heads)
    head_size = said(Meaning.HEAD_SIZE) or _head_size(said, Meaning.HEADS, heads)
    v_head_size = said(Meaning.V_HEAD_SIZE)
    if v_head_size not in (None, head_size):
        refuse_out_of_scope([said.names[Meaning.V_HEAD_SIZE]])
    return {
        "num_heads": heads,
        "num_kv_heads": _kv_heads(said, heads),
        "head_size": head_size,
        "scale": _scale(said, head_size),
    }


def _windowed_sizes(said: Said, record: ModelType, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of a layer with a window."""
    kv_heads = sizes["num_kv_heads"] * record.windowed_kv_heads
    if said(Meaning.WINDOWED_KV_HEADS) not in (None, kv_heads):
        times = f"{record.windowed_kv_heads} times {said.names[Meaning.KV_HEADS]}"
        raise ContractError(said.names[Meaning.WINDOWED_KV_HEADS], said(Meaning.WINDOWED_KV_HEADS), f"{kv_heads}, {times}")
    if sizes["num_heads"] % kv_heads:
        expected = f"a multiple of the {kv_heads} KV heads of a layer with a window"
        raise ContractError(said.names[Meaning.HEADS], sizes["num_heads"], expected)
    return {**sizes, "num_kv_heads": kv_heads}


def _latent_sizes(said: Said, heads: int) -> dict[str, Any]:
    """The absorbed form, which reads the cache: one KV head for all query heads. The scale is that of the expanded form."""
    rope_size = said.needed(Meaning.ROPE_SIZE)
    head_size = said.needed(Meaning.LATENT_SIZE) + rope_size
    scale = _scale(said, said.needed(Meaning.NOPE_SIZE) + rope_size)
    if (factor := said(Meaning.YARN_FACTOR) or 1) > 1:
        scale *= (0.1 * (said(Meaning.YARN_MSCALE) or 0) * math.log(factor) + 1) ** 2
    return {"num_heads": heads, "num_kv_heads": 1, "head_size": head_size, "scale": scale}


def _kv_heads(said: Said, heads: int) -> int:
    if said(Meaning.MULTI_QUERY) and not said(Meaning.GROUPED):
        return 1
    kv_heads = said(Meaning.KV_HEADS) or heads
    if heads % kv_heads:
        expected = f"a multiple of {said.names[Meaning.KV_HEADS]} ({kv_heads})"
        raise ContractError(said.names[Meaning.HEADS], heads, expected)
    return kv_heads


def _head_size(said: Said, of: Meaning, heads: int) -> int:
    """The head size where no field says it."""
    hidden = said.needed(Meaning.HIDDEN_SIZE, "no field says the head size")
    if hidden % heads:
        expected = f"a multiple of {said.names[of]} ({heads}), since no field says the head size"
        raise ContractError(said.names[Meaning.HIDDEN_SIZE], hidden, expected)
    return hidden // heads


def _scale(said: Said, head_size: int) -> float:
    if (scale := said(Meaning.SCALE)) is not None:
        return float(scale)
    return 1 / math.sqrt(said(Meaning.SCALE_DIVISOR) or head_size)


def _encoder_and_decoder(said: Said, encoder_layers: int) -> dict[str, Group]:
    """An encoder's self-attention, and a decoder's self-attention and cross-attention. There is no grouping of heads."""

    def group(of: Meaning, layers: int, attn_type: AttentionType) -> Group:
        heads = said.needed(of)
        size = _head_size(said, of, heads)
        scale = _scale(said, size)
        numbers = tuple(range(layers))
        return Group(layers=numbers, num_heads=heads, num_kv_heads=heads, head_size=size, scale=scale, attn_type=attn_type)

    decoder_layers = said.needed(Meaning.DECODER_LAYERS)
    return {
        "encoder.self_attn": group(Meaning.HEADS, encoder_layers, AttentionType.ENCODER),
        "decoder.self_attn": group(Meaning.DECODER_HEADS, decoder_layers, AttentionType.DECODER),
        "decoder.encoder_attn": group(Meaning.DECODER_HEADS, decoder_layers, AttentionType.ENCODER_DECODER),
    }
