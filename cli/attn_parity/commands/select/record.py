"""The record that `attn-parity select --json` writes."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict

from attn_optimized.selector import Assignment
from attn_parity.commands.select.vllm_arguments import VllmArguments
from attn_parity.model_config import Group


class Filled(TypedDict):
    """Fields that a model config leaves out, with their values, and who says so."""

    by: str
    fields: Mapping[str, Any]


class Selected(TypedDict):
    """The backend of each layer of a model, by the layer's name. The last fields are of a model config."""

    error: str | None
    layers: Mapping[str, Assignment]
    model_type: NotRequired[str]
    groups: NotRequired[Mapping[str, Group]]
    filled: NotRequired[Filled]
    left_out: NotRequired[Sequence[str]]
    unknown: NotRequired[Sequence[str]]
    not_answered: NotRequired[Mapping[str, Sequence[int]]]
    vllm: NotRequired[VllmArguments]


class Select(Selected):
    """The result of `attn-parity select`."""

    schema: Literal["attn-parity.select/1"]
    model: str
    architecture: str
    aiter: str
