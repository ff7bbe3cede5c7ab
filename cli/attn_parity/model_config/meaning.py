"""Meanings of the fields of a model config for attention, and the values that each may have."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum, auto
from typing import Any

from attn_contract import ContractError
from attn_contract.arguments import check_int, check_type, shown

MOST_LAYERS = 10_000
"""No model has as many. A larger number is refused before there is a list with an entry for each layer."""


class Meaning(StrEnum):
    """The meaning of a value. Fields of one meaning have other names in other models."""

    HIDDEN_SIZE = auto()
    NUM_LAYERS = auto()
    HEADS = auto()
    KV_HEADS = auto()
    """None: as many as query heads."""
    HEAD_SIZE = auto()
    """None: the hidden size by the query heads."""
    V_HEAD_SIZE = auto()
    """None: the head size."""
    VALUE_SIZE = auto()
    """V of a model whose code gives values a width of their own, in rows of K and V side by side."""
    LATENT_SIZE = auto()
    """MLA: the elements of a latent vector. Where a field has this meaning, the cache is latent, with one KV head."""
    NOPE_SIZE = auto()
    """MLA: the elements of a head's key that are not rotated."""
    ROPE_SIZE = auto()
    """MLA: the elements of a head's key that are rotated."""
    YARN_FACTOR = auto()
    """MLA: the factor by which YaRN stretches positions. None: it does not."""
    YARN_MSCALE = auto()
    """MLA: m of (0.1 * m * ln(YARN_FACTOR) + 1) ** 2, by which YaRN scales the factor of q.k. None and 0: it does not."""
    DECODER_LAYERS = auto()
    DECODER_HEADS = auto()
    MULTI_QUERY = auto()
    """Falcon: whether there is one KV head, whatever the number of KV heads says."""
    GROUPED = auto()
    """Falcon: whether the number of KV heads counts in spite of MULTI_QUERY."""
    DTYPE = auto()
    LAYER_TYPES = auto()
    """For each layer, its name in LAYER_RULES of `attn_parity.model_config.groups`."""
    LAYER_KINDS = auto()
    """MiniMax: for each layer, 1 for softmax attention and 0 for linear attention."""
    WINDOW = auto()
    """Keys that a token sees in a layer with a window, itself included. None: there is no window."""
    KEYS_BEFORE = auto()
    """Keys before a token that it sees in a layer with a window, whatever WINDOW says. None: as WINDOW says."""
    WINDOWED_LAYERS = auto()
    """For each layer, 1 for one with a window. It must say the same as LAYER_TYPES."""
    WINDOWED_KV_HEADS = auto()
    """KV heads of a layer with a window. It must be what the model type's code makes of KV_HEADS."""
    USE_WINDOW = auto()
    """True if WINDOW counts."""
    FIRST_WINDOWED = auto()
    """The number of layers before the first one with a window."""
    PERIOD = auto()
    """P: every layer has a window, but each P-th."""
    CHUNK = auto()
    ROTATED_LAYERS = auto()
    """Llama 4: for each layer, 1 for a rotated one, which is also cut into chunks. Empty: as ROTATED_PERIOD says."""
    ROTATED_PERIOD = auto()
    """P: every layer is rotated, but each P-th."""
    SOFT_CAP = auto()
    SCALE = auto()
    """The factor of q.k. None: 1 / sqrt(head size)."""
    SCALE_DIVISOR = auto()
    """d of the factor 1 / sqrt(d)."""
    ALIBI = auto()
    IS_DECODER = auto()


def _count(name: str, value: Any) -> None:
    check_int(name, value, minimum=1)


def _layers(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST_LAYERS:
        raise ContractError(name, shown(value), f"an int from 1 to {MOST_LAYERS}")


def _flag(name: str, value: Any) -> None:
    check_type(name, value, bool, "true or false")


def _positive(name: str, value: Any) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= 1e30 or not math.isfinite(value):
        raise ContractError(name, shown(value), "a positive number")


def _not_below_0(name: str, value: Any) -> None:
    if value != 0 or isinstance(value, bool):
        _positive(name, value)


def _dtype(name: str, value: Any) -> None:
    if value not in ("float32", "float16", "bfloat16"):
        raise ContractError(name, shown(value), "float32, float16 or bfloat16")


def _names(name: str, value: Any) -> None:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ContractError(name, shown(value), "a list with the name of a kind of attention for each layer")


def _not_negative(name: str, value: Any) -> None:
    check_int(name, value, minimum=0)


def _zeros_and_ones(name: str, value: Any) -> None:
    if not isinstance(value, list) or not all(type(item) is int and item in (0, 1) for item in value):
        raise ContractError(name, shown(value), "a list with 0 or 1 for each layer")


_OPTIONAL = {
    *(Meaning.KV_HEADS, Meaning.HEAD_SIZE, Meaning.V_HEAD_SIZE, Meaning.LAYER_TYPES, Meaning.WINDOW, Meaning.CHUNK),
    *(Meaning.YARN_FACTOR, Meaning.YARN_MSCALE, Meaning.KEYS_BEFORE, Meaning.WINDOWED_LAYERS, Meaning.WINDOWED_KV_HEADS),
    *(Meaning.ROTATED_LAYERS, Meaning.SOFT_CAP, Meaning.SCALE, Meaning.DTYPE, Meaning.USE_WINDOW, Meaning.FIRST_WINDOWED),
}
_CHECKS: Mapping[Meaning, Callable[[str, Any], None]] = {
    **dict.fromkeys(Meaning, _count),
    **dict.fromkeys((Meaning.NUM_LAYERS, Meaning.DECODER_LAYERS), _layers),
    **dict.fromkeys((Meaning.MULTI_QUERY, Meaning.GROUPED, Meaning.USE_WINDOW, Meaning.ALIBI, Meaning.IS_DECODER), _flag),
    **dict.fromkeys((Meaning.SOFT_CAP, Meaning.SCALE, Meaning.SCALE_DIVISOR), _positive),
    **dict.fromkeys((Meaning.LAYER_KINDS, Meaning.ROTATED_LAYERS, Meaning.WINDOWED_LAYERS), _zeros_and_ones),
    Meaning.YARN_FACTOR: _positive,
    Meaning.YARN_MSCALE: _not_below_0,
    Meaning.LAYER_TYPES: _names,
    Meaning.FIRST_WINDOWED: _not_negative,
    Meaning.KEYS_BEFORE: _not_negative,
    Meaning.DTYPE: _dtype,
}


@dataclass(frozen=True)
class Said:
    """The values of a config's fields, by meaning.

    Args:
        names: the field's name by its meaning, for messages; the first one if a model has several.
        values: by meaning. A meaning that no field has is missing; None is a value that a field has.
    """

    names: Mapping[Meaning, str]
    values: Mapping[Meaning, Any]

    def __call__(self, meaning: Meaning) -> Any:
        """A value; None where no field has it."""
        return self.values.get(meaning)

    def needed(self, meaning: Meaning, because: str = "its model type has no default for it") -> Any:
        """A value that must be there, or ContractError naming the field."""
        if (value := self.values.get(meaning)) is None:
            raise ContractError(self.names[meaning], "nothing", f"a value: {because}")
        return value


def read(names: Mapping[str, Meaning], fields: Mapping[str, Any]) -> Said:
    """Read the values of fields, whose meanings are those of `names`.

    Raises:
        ContractError: a value that cannot have its field's meaning, or two fields of one meaning that differ.
    """
    first: dict[Meaning, str] = {}
    values: dict[Meaning, Any] = {}
    said_by: dict[Meaning, str] = {}
    for name, meaning in names.items():
        first.setdefault(meaning, name)
        if name not in fields:
            continue
        value = fields[name]
        if value is not None or meaning not in _OPTIONAL:
            _CHECKS[meaning](name, value)
        if meaning in values and values[meaning] != value:
            expected = f"{shown(values[meaning])}, as {said_by[meaning]} says"
            raise ContractError(name, shown(value), expected)
        values[meaning] = value
        said_by[meaning] = name
    return Said({**first, **said_by}, values)
